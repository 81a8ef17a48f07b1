// SPDX-License-Identifier: Apache-2.0
//! Processes: the kernel's list of thread groups, and what is told of each.

use model::Process;

use crate::core::Core;
use crate::error::Fault;
use crate::memory::{Gva, is_described};

/// Most thread groups walked.
const PROCESSES_MAX: usize = 32_768;
/// Most threads of one group walked.
const THREADS_MAX: usize = 16_384;
/// Where an entry of a list (`struct list_head`) points to the one before it.
const PREVIOUS: u32 = 8;
/// `TASK_COMM_LEN`.
const COMM_BYTES: usize = 16;

/// A process (thread group), by the address of its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Task(pub(crate) Gva);

impl Core {
    /// The leaders of all thread groups, in order of age; the idle task (pid 0) is not among them.
    pub(crate) fn tasks(&self) -> Result<Vec<Task>, Fault> {
        let offset = self.layout.task.tasks;
        let entries = self.list(self.anchors.init_task.at(offset), PROCESSES_MAX)?;
        Ok(entries.into_iter().map(|entry| Task(entry.container(offset))).collect())
    }

    /// The leaders of the `len_max` youngest thread groups, the youngest first.
    pub(crate) fn youngest(&self, len_max: usize) -> Result<Vec<Task>, Fault> {
        let offset = self.layout.task.tasks;
        let head = self.anchors.init_task.at(offset);
        let mut tasks = Vec::with_capacity(len_max);
        let mut entry = self.reader.pointer(head.at(PREVIOUS))?;
        while entry != head && tasks.len() < len_max {
            tasks.push(Task(entry.container(offset)));
            entry = self.reader.pointer(entry.at(PREVIOUS))?;
        }
        Ok(tasks)
    }

    /// Whether a remembered process is in the list still: its neighbours point to it. One that has ended does not
    /// change until its memory is used for something else; but what it points to may be another process's by then,
    /// so that it would seem to hold that one's files. What cannot be read is no process.
    pub(crate) fn is_listed(&self, task: Task) -> bool {
        let node = task.0.at(self.layout.task.tasks);
        let back = self.reader.pointer(node).and_then(|next| self.reader.pointer(next.at(PREVIOUS)));
        let forth = self.reader.pointer(node.at(PREVIOUS)).and_then(|previous| self.reader.pointer(previous));
        back == Ok(node) && forth == Ok(node)
    }

    /// The threads of a process, leader included (which may have exited and hold nothing any more).
    pub(crate) fn threads(&self, task: Task) -> Result<Vec<Gva>, Fault> {
        let (task_layout, signal_layout) = (&self.layout.task, &self.layout.signal);
        if ![task_layout.signal, task_layout.thread_node, signal_layout.thread_head]
            .into_iter()
            .all(is_described)
        {
            return Ok(vec![task.0]);
        }
        let signal = self.reader.pointer(task.0.at(self.layout.task.signal))?;
        let entries = self.list(signal.at(self.layout.signal.thread_head), THREADS_MAX)?;
        Ok(entries.into_iter().map(|entry| entry.container(self.layout.task.thread_node)).collect())
    }

    /// A pointer that the threads of a process share: the leader's, or that of one which outlived the leader.
    /// Null if the process has let go of it.
    pub(crate) fn of_any_thread(&self, task: Task, offset: u32) -> Result<Gva, Fault> {
        let own = self.reader.pointer(task.0.at(offset))?;
        if !own.is_null() {
            return Ok(own);
        }
        for thread in self.threads(task)? {
            let shared = self.reader.pointer(thread.at(offset))?;
            if !shared.is_null() {
                return Ok(shared);
            }
        }
        Ok(Gva::default())
    }

    /// The entries of a circular list (`struct list_head`) without its head.
    ///
    /// # Errors
    /// When the list does not come back to its head within `len_max` entries, or meets itself before.
    pub(crate) fn list(&self, head: Gva, len_max: usize) -> Result<Vec<Gva>, Fault> {
        let mut entries = Vec::new();
        // Brent's cycle detection: a loop beside the head meets the mark again.
        let mut mark = head;
        let mut entry = self.reader.pointer(head)?;
        while entry != head {
            if entries.len() == len_max || entry == mark {
                return Err(Fault::Inconsistent);
            }
            entries.push(entry);
            if entries.len().is_power_of_two() {
                mark = entry;
            }
            entry = self.reader.pointer(entry)?;
        }
        Ok(entries)
    }

    pub(crate) fn pid(&self, task: Task) -> Result<u32, Fault> {
        self.reader.u32(task.0.at(self.layout.task.tgid))
    }

    pub(crate) fn start_time_ns(&self, task: Task) -> Result<u64, Fault> {
        let offset = self.layout.task.start_time;
        if is_described(offset) { self.reader.u64(task.0.at(offset)) } else { Ok(0) }
    }

    /// Everything that is told of a process. What only decorates (path, user, control group) may be absent,
    /// for a process can be on its way out.
    pub(crate) fn process(&self, task: Task) -> Result<Process, Fault> {
        let layout = &self.layout.task;
        let uid = self.effective_uid(task).ok();
        Ok(Process {
            pid: self.pid(task)?,
            parent_pid: self.parent_pid(task)?,
            start_time_ns: self.start_time_ns(task)?,
            name: self.reader.text(task.0.at(layout.comm), COMM_BYTES)?,
            exe: self.exe(task).ok().flatten(),
            uid,
            user: uid.and_then(|uid| self.user_name(uid)),
            cgroup: self.task_cgroup(task).and_then(|group| self.cgroup_path(group)).ok(),
        })
    }

    /// The parent's process id; zero if there is none, or it is not known.
    fn parent_pid(&self, task: Task) -> Result<u32, Fault> {
        let offset = self.layout.task.real_parent;
        if !is_described(offset) {
            return Ok(0);
        }
        let parent = self.reader.pointer(task.0.at(offset))?;
        if parent.is_null() { Ok(0) } else { self.pid(Task(parent)) }
    }

    fn exe(&self, task: Task) -> Result<Option<String>, Fault> {
        let mm = self.of_any_thread(task, self.layout.task.mm)?;
        if mm.is_null() {
            return Ok(None);
        }
        let file = self.reader.pointer(mm.at(self.layout.mm.exe_file))?;
        if file.is_null() { Ok(None) } else { self.file_path(file).map(Some) }
    }

    fn effective_uid(&self, task: Task) -> Result<u32, Fault> {
        let cred = self.reader.pointer(task.0.at(self.layout.task.real_cred))?;
        self.reader.u32(cred.at(self.layout.cred.euid))
    }
}
