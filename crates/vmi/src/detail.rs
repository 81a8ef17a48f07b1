// SPDX-License-Identifier: Apache-2.0
//! What is told of a process beyond its identity: command line, namespaces, memory, threads, state.
//!
//! All of it decorates: what this kernel does not describe, or what cannot be read now, is absent, and the rest
//! is told nevertheless. Policy sees none of it.

use std::fmt;

use model::Process;

use crate::core::Core;
use crate::error::{Fault, ViewError};
use crate::guest::Guest;
use crate::layout::detail::Resident;
use crate::memory::Gva;
use crate::paging::PageTables;
use crate::reader::VIEW_READS_MAX;
use crate::task::Task;

/// Longest command line told, in bytes; what is longer is cut.
const COMMAND_BYTES_MAX: u64 = 4096;
/// Most memory for command lines in one list, in bytes; those of the processes that follow are absent.
const COMMANDS_BYTES_MAX: usize = 2 << 20;
/// Addresses of user space end below this on processors with tables of five levels.
const USER_END: u64 = 1 << 56;
/// Most namespaces of process ids inside each other (`MAX_PID_NS_LEVEL`).
const PID_LEVELS_MAX: u32 = 32;
const PAGE_BYTES: u64 = 4096;
/// Which counters of an address space are resident pages: of files, anonymous, and shared (`enum` of
/// include/linux/mm_types_task.h; the third counts swapped ones).
const RESIDENT_COUNTERS: [u32; 3] = [0, 1, 3];

/// A process with what decorates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessDetail {
    /// Who it is.
    pub process: Process,
    /// The words of its command line, 4 KiB of it at most; text that the process itself may have changed. Absent
    /// for kernel threads, and when its page is swapped out.
    pub command: Option<Vec<String>>,
    /// Inodes of its namespaces.
    pub namespaces: Namespaces,
    /// Its memory in RAM, in bytes; absent for kernel threads.
    pub resident_bytes: Option<u64>,
    /// Number of its threads.
    pub threads: Option<u32>,
    /// What its first thread does.
    pub state: Option<ProcessState>,
}

/// Inodes of the namespaces of a process, as the links in `/proc/PID/ns` show them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Of process ids: its own, not that of its children.
    pub pid: Option<u32>,
    /// Of the network.
    pub net: Option<u32>,
    /// Of mounts.
    pub mnt: Option<u32>,
    /// Of users.
    pub user: Option<u32>,
}

/// What a thread does, as the third field of `/proc/PID/stat` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessState {
    /// It runs, or could.
    Running,
    /// It waits, and signals wake it.
    Sleeping,
    /// It waits for something that must come.
    DiskSleep,
    /// A signal has stopped it.
    Stopped,
    /// A tracer has stopped it.
    Traced,
    /// It is being removed.
    Dead,
    /// It has exited, and its parent has not asked how.
    Zombie,
    /// A kernel thread that has been parked.
    Parked,
    /// A kernel thread with nothing to do.
    Idle,
}

impl ProcessState {
    /// From the kernel's bits (`include/linux/sched.h`).
    pub(crate) fn from_kernel(state: u32, exit_state: u32) -> Self {
        const IDLE: u32 = 0x402;
        const LOCK_OR_FROZEN: u32 = 0x1000 | 0x8000;
        if state & IDLE == IDLE {
            return Self::Idle;
        }
        let reported = (state | exit_state) & 0x7f;
        match reported.checked_ilog2() {
            None if state & LOCK_OR_FROZEN != 0 => Self::DiskSleep,
            None => Self::Running,
            Some(0) => Self::Sleeping,
            Some(1) => Self::DiskSleep,
            Some(2) => Self::Stopped,
            Some(3) => Self::Traced,
            Some(4) => Self::Dead,
            Some(5) => Self::Zombie,
            Some(_) => Self::Parked,
        }
    }

    /// The letter that `ps` shows.
    #[must_use]
    pub fn as_char(self) -> char {
        match self {
            Self::Running => 'R',
            Self::Sleeping => 'S',
            Self::DiskSleep => 'D',
            Self::Stopped => 'T',
            Self::Traced => 't',
            Self::Dead => 'X',
            Self::Zombie => 'Z',
            Self::Parked => 'P',
            Self::Idle => 'I',
        }
    }
}

impl fmt::Display for ProcessState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_char(), f)
    }
}

impl Guest {
    /// Every process, in order of age, with what decorates it.
    ///
    /// # Errors
    /// As [`Guest::processes`].
    pub fn process_details(&self) -> Result<Vec<ProcessDetail>, ViewError> {
        self.core().query(VIEW_READS_MAX, |core| {
            let mut command_bytes_left = COMMANDS_BYTES_MAX;
            core.tasks()?.into_iter().map(|task| core.process_detail(task, &mut command_bytes_left)).collect()
        })
    }
}

impl Core {
    fn process_detail(&self, task: Task, command_bytes_left: &mut usize) -> Result<ProcessDetail, Fault> {
        let process = self.process(task)?;
        let mm = self.of_any_thread(task, self.layout.task.mm).unwrap_or_default();
        let mut command = if mm.is_null() { None } else { self.command(mm) };
        let bytes = command.iter().flatten().map(|word| size_of::<String>() + word.len()).sum::<usize>();
        match command_bytes_left.checked_sub(bytes) {
            Some(left) => *command_bytes_left = left,
            None => command = None,
        }
        Ok(ProcessDetail {
            process,
            command,
            namespaces: self.namespaces_of(task),
            resident_bytes: if mm.is_null() { None } else { self.resident_bytes(mm) },
            threads: self.thread_count(task),
            state: self.state(task),
        })
    }

    /// The command line as the process keeps it, read through its own page tables: nothing is paged in.
    fn command(&self, mm: Gva) -> Option<Vec<String>> {
        let layout = self.layout.detail.arguments.as_ref()?;
        let start = self.reader.u64(mm.at(layout.start)).ok()?;
        let end = self.reader.u64(mm.at(layout.end)).ok()?;
        let len_bytes = end.checked_sub(start).filter(|&len| len > 0 && end <= USER_END)?;
        let pgd = self.reader.pointer(mm.at(layout.pgd)).ok()?;
        let root_gpa = self.reader.translate(pgd).ok()?.gpa;
        let mut bytes = vec![0; usize::try_from(len_bytes.min(COMMAND_BYTES_MAX)).ok()?];
        let tables = PageTables { root_gpa, levels: self.reader.levels() };
        self.reader.bytes_through(&tables, start, &mut bytes).ok()?;
        Some(words(&bytes, len_bytes > COMMAND_BYTES_MAX))
    }

    fn namespaces_of(&self, task: Task) -> Namespaces {
        let Some(layout) = &self.layout.detail.namespaces else { return Namespaces::default() };
        let nsproxy = self.of_any_thread(task, layout.task.nsproxy).ok().filter(|nsproxy| !nsproxy.is_null());
        let inode = |place: Result<Gva, Fault>, offset: u32| {
            let namespace = place.ok().filter(|namespace| !namespace.is_null())?;
            self.reader.u32(namespace.at(offset)).ok()
        };
        let shared = |at: u32, offset: u32| inode(self.reader.pointer(nsproxy?.at(at)), offset);
        let cred = self.reader.pointer(task.0.at(layout.task.cred));
        Namespaces {
            pid: inode(self.pid_namespace(task, layout), layout.pid_namespace.inode),
            net: shared(layout.nsproxy.net, self.layout.net.inode),
            mnt: shared(layout.nsproxy.mnt, layout.mnt.inode),
            user: inode(
                cred.and_then(|cred| self.reader.pointer(cred.at(layout.cred.user))),
                layout.user.inode,
            ),
        }
    }

    /// The innermost namespace in which a process has a number.
    fn pid_namespace(&self, task: Task, layout: &crate::layout::detail::Namespaces) -> Result<Gva, Fault> {
        let pid = self.reader.pointer(task.0.at(layout.task.pid))?;
        let level = self.reader.u32(pid.at(layout.pid.level))?;
        if pid.is_null() || level > PID_LEVELS_MAX {
            return Err(Fault::Inconsistent);
        }
        let number = pid.at(layout.pid.numbers).element(level.into(), layout.upid_bytes);
        self.reader.pointer(number.at(layout.upid.namespace))
    }

    fn resident_bytes(&self, mm: Gva) -> Option<u64> {
        let layout = self.layout.detail.resident.as_ref()?;
        let mut pages = 0_i64;
        for index in RESIDENT_COUNTERS {
            let count = match layout {
                Resident::Numbers(at) => {
                    self.reader.u64(mm.at(*at).element(index.into(), 8)).ok()?.cast_signed()
                }
                Resident::PerCpu { at, counter, counter_bytes } => {
                    let place = mm.at(*at).element(index.into(), *counter_bytes);
                    let shared = self.reader.u64(place.at(counter.count)).ok()?.cast_signed();
                    let own = self.reader.pointer(place.at(counter.counters)).ok()?;
                    shared.wrapping_add(self.per_cpu_sum(own))
                }
            };
            // Parts of a counter may be negative for a moment.
            pages = pages.saturating_add(count.max(0));
        }
        u64::try_from(pages).ok()?.checked_mul(PAGE_BYTES)
    }

    /// The sum of a per-CPU variable of 32 bits; nothing where CPUs cannot be told.
    fn per_cpu_sum(&self, variable: Gva) -> i64 {
        let parts = self.cpu_offsets().unwrap_or_default().into_iter().filter_map(|offset| {
            let part = self.reader.u32(Gva(variable.0.wrapping_add(offset))).ok()?;
            Some(i64::from(part.cast_signed()))
        });
        parts.sum()
    }

    fn thread_count(&self, task: Task) -> Option<u32> {
        let layout = self.layout.detail.signal.as_ref()?;
        let signal = self.reader.pointer(task.0.at(self.layout.task.signal)).ok()?;
        self.reader.u32(signal.at(layout.threads)).ok()
    }

    fn state(&self, task: Task) -> Option<ProcessState> {
        let layout = self.layout.detail.task.as_ref()?;
        let state = self.reader.u32(task.0.at(layout.state)).ok()?;
        let exit_state = self.reader.u32(task.0.at(layout.exit_state)).ok()?;
        Some(ProcessState::from_kernel(state, exit_state))
    }
}

/// The words of a command line. One that does not end with NUL has been overwritten by its process with a title
/// of its own, which ends with the first NUL.
fn words(bytes: &[u8], is_cut: bool) -> Vec<String> {
    let is_title = !is_cut && bytes.last().is_some_and(|&last| last != 0);
    let len = if is_title { memchr::memchr(0, bytes).unwrap_or(bytes.len()) } else { bytes.len() };
    let text = &bytes[..len];
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    text.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_split_into_words_and_titles_do_not() {
        for (bytes, is_cut, expected) in [
            (&b"/usr/bin/shop\0serve\x008080\0"[..], false, &["/usr/bin/shop", "serve", "8080"][..]),
            (b"shop\0\0", false, &["shop", ""]),
            (b"shop\0se", true, &["shop", "se"]),
            (b"nginx: worker process\0of the old words", false, &["nginx: worker process"]),
            (b"\xff\0", false, &["\u{fffd}"]),
            (b"", false, &[""]),
        ] {
            assert_eq!(words(bytes, is_cut), expected, "{bytes:?}");
        }
    }

    #[test]
    fn states_are_the_letters_of_ps() {
        for (state, exit_state, letter) in [
            (0, 0, 'R'),
            (1, 0, 'S'),
            (2, 0, 'D'),
            (4, 0, 'T'),
            (8, 0, 't'),
            (0x80, 0x10, 'X'),
            (0, 0x20, 'Z'),
            (0x40, 0, 'P'),
            (0x402, 0, 'I'),
            (0x2001, 0, 'S'),
            (0x1000, 0, 'D'),
            (0x8000, 0, 'D'),
            (u32::MAX, u32::MAX, 'I'),
        ] {
            assert_eq!(ProcessState::from_kernel(state, exit_state).as_char(), letter, "{state:#x}");
        }
    }
}
