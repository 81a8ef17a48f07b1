// SPDX-License-Identifier: Apache-2.0
//! What would be left behind if this process stopped right now, so that a signal handler can see to it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A killed process is gone within milliseconds; one that is not cannot be helped.
const GONE_LIMIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Everything started and made, and not yet ended and removed.
#[derive(Default)]
pub(crate) struct Remains {
    /// Process ids of children that have not been waited for.
    pub(crate) processes: BTreeSet<u32>,
    /// Scratch folders.
    pub(crate) folders: BTreeSet<PathBuf>,
}

static REMAINS: Mutex<Remains> = Mutex::new(Remains { processes: BTreeSet::new(), folders: BTreeSet::new() });

/// The record, locked. A child's end must be waited for under this lock, so that its number, which the system may
/// give away afterwards, is never in the record.
pub(crate) fn remains() -> MutexGuard<'static, Remains> {
    REMAINS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills every process and removes every folder of this crate, at once and for good: whoever starts or ends one
/// afterwards blocks. For a thread that handles signals and ends this process right after.
pub fn abandon() {
    let mut remains = remains();
    for pid in std::mem::take(&mut remains.processes) {
        kill(pid);
    }
    for folder in std::mem::take(&mut remains.folders) {
        remove(&folder);
    }
    std::mem::forget(remains);
}

/// Kills one child and waits until it has let go of its files.
fn kill(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    // Both fail only if it has ended, which is the aim.
    let _ = kill_process(pid, Signal::KILL);
    let _ = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&GONE_LIMIT));
}

/// Removes a scratch folder; nothing useful can be done about a failure, and the files hold no secrets.
pub(crate) fn remove(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}
