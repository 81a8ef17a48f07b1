// SPDX-License-Identifier: Apache-2.0
//! From a socket to the process behind it.
//!
//! The kernel keeps no pointer that way. The file's credentials lead to the process that created or accepted
//! the socket, since no two processes share credentials; but that process may have passed the file on and
//! closed its own copy. So whoever is named, by credentials or by memory of an earlier answer, must be seen to
//! hold the file in its descriptor table; otherwise all tables are walked.

use std::collections::HashMap;
use std::ops::ControlFlow;

use model::{Attribution, Confidence, UnknownReason};

use crate::core::Core;
use crate::error::Fault;
use crate::memory::{Gva, is_described};
use crate::socket::{Common, SocketState};
use crate::task::Task;

/// Files and credentials remembered at most; beyond, all are forgotten.
const REMEMBERED_MAX: usize = 1 << 16;
/// Youngest processes looked at before all are: a process that connects soon after it started is among them.
const YOUNGEST_MAX: usize = 16;

/// What is remembered between questions. Never told without being verified.
#[derive(Default)]
pub(crate) struct Memo {
    /// Which process had these credentials when the task list was last walked.
    creds: HashMap<Gva, Task>,
    /// Which process held this file, and when it had started.
    holders: HashMap<Gva, (Task, u64)>,
}

impl Memo {
    fn remember(&mut self, file: Gva, task: Task, start_time_ns: u64) {
        if self.holders.len() >= REMEMBERED_MAX {
            self.holders.clear();
        }
        self.holders.insert(file, (task, start_time_ns));
    }

    fn learn(&mut self, cred: Gva, task: Task) {
        if self.creds.len() >= REMEMBERED_MAX {
            self.creds.clear();
        }
        self.creds.insert(cred, task);
    }
}

impl Core {
    /// Who is behind a socket. `found` is how sure the answer is if a process holds it.
    pub(crate) fn owner(&self, memo: &mut Memo, sock: Gva, found: Confidence) -> Result<Attribution, Fault> {
        let none = || Ok(Attribution::unknown(UnknownReason::NoOwner));
        let common = self.common(sock)?;
        match common.map(|common| common.state) {
            Some(SocketState::TimeWait) => none(),
            Some(SocketState::Request) => {
                let listener = self.reader.pointer(sock.at(self.layout.sock.listener))?;
                match self.common(listener)? {
                    Some(common) if common.state.is_whole() => {
                        self.owner_of_whole(memo, listener, Some(common), found)
                    }
                    _ => none(),
                }
            }
            _ => self.owner_of_whole(memo, sock, common, found),
        }
    }

    /// As [`Self::owner`], for a whole socket; `common` is absent unless it is an IP socket.
    fn owner_of_whole(
        &self,
        memo: &mut Memo,
        sock: Gva,
        common: Option<Common>,
        found: Confidence,
    ) -> Result<Attribution, Fault> {
        let uid = self.sock_uid(sock)?;
        let mut attribution = Attribution {
            process: None,
            socket_uid: uid,
            socket_user: None,
            socket_cgroup: None,
            socket_netns: common
                .and_then(|common| self.netns_inode(common.net).ok())
                .filter(|inode| *inode != 0),
            inner: None,
            confidence: Confidence::Socket,
            unknown: Some(UnknownReason::NoOwner),
        };
        let file = match (self.file_of(sock)?, common) {
            (Some(file), _) => Some(file),
            // Not accepted yet: whoever listens will get it.
            (None, Some(common)) if !common.is_dead && common.state != SocketState::Close => {
                self.listener_file(&common)?
            }
            (None, _) => None,
        };
        let group = self.reader.pointer(sock.at(self.layout.sock.cgroup));
        let mut own_group = None;
        if let Some((task, start_time_ns)) = file.map_or(Ok(None), |file| self.holder(memo, file))? {
            let process = self.process(task)?;
            if process.start_time_ns != start_time_ns {
                return Err(Fault::Inconsistent);
            }
            own_group = self.task_cgroup(task).ok();
            attribution.process = Some(process);
            attribution.confidence = found;
            attribution.unknown = None;
        }
        // Mostly a process's sockets are its user's and its group's.
        let process = attribution.process.as_ref();
        attribution.socket_user = match process {
            Some(process) if process.uid == uid => process.user.clone(),
            _ => uid.and_then(|uid| self.user_name(uid)),
        };
        attribution.socket_cgroup = match (process, group) {
            (Some(process), Ok(group)) if own_group == Some(group) => process.cgroup.clone(),
            (_, group) => group.and_then(|group| self.cgroup_path(group)).ok(),
        };
        Ok(attribution)
    }

    /// The file of a socket; `None` if no descriptor refers to it.
    ///
    /// # Errors
    /// When socket and file do not point to each other.
    fn file_of(&self, sock: Gva) -> Result<Option<Gva>, Fault> {
        let layout = &self.layout;
        let socket = self.reader.pointer(sock.at(layout.sock.socket))?;
        if socket.is_null() {
            return Ok(None);
        }
        let file = self.reader.pointer(socket.at(layout.socket.file))?;
        if file.is_null() {
            return Ok(None);
        }
        if self.sock_of(file)? == Some(sock) { Ok(Some(file)) } else { Err(Fault::Inconsistent) }
    }

    /// The file of the socket that listens for a connection with this local end.
    fn listener_file(&self, connection: &Common) -> Result<Option<Gva>, Fault> {
        let (local, _) = connection.ends();
        let listener = self.find_listener(local, &[connection.net])?;
        listener.map_or(Ok(None), |listener| self.file_of(listener))
    }

    /// A process that holds `file`, and when it started.
    fn holder(&self, memo: &mut Memo, file: Gva) -> Result<Option<(Task, u64)>, Fault> {
        if let Some(&(task, start)) = memo.holders.get(&file) {
            if self.is_listed(task)
                && self.start_time_ns(task) == Ok(start)
                && self.holds(task, file) == Ok(true)
            {
                return Ok(Some((task, start)));
            }
            memo.holders.remove(&file);
        }
        let mut holder = self.holder_by_cred(memo, file)?;
        if holder.is_none() {
            holder = self.search_holder(file)?;
        }
        let Some(task) = holder else { return Ok(None) };
        let start = self.start_time_ns(task)?;
        memo.remember(file, task, start);
        Ok(Some((task, start)))
    }

    /// Which of the youngest processes has these credentials.
    fn newcomer(&self, cred: Gva) -> Result<Option<Task>, Fault> {
        for task in self.youngest(YOUNGEST_MAX)? {
            if self.is_live(task, cred) {
                return Ok(Some(task));
            }
        }
        Ok(None)
    }

    /// The process that has the credentials of whoever opened `file`, if it holds it.
    fn holder_by_cred(&self, memo: &mut Memo, file: Gva) -> Result<Option<Task>, Fault> {
        if ![self.layout.file.f_cred, self.layout.task.cred].into_iter().all(is_described) {
            return Ok(None);
        }
        let cred = self.reader.pointer(file.at(self.layout.file.f_cred))?;
        let known = memo.creds.get(&cred).copied();
        let holder = known.filter(|&task| self.holds(task, file) == Ok(true) && self.is_live(task, cred));
        if holder.is_some() {
            return Ok(holder);
        }
        let newcomer = self.newcomer(cred)?.filter(|&task| self.holds(task, file) == Ok(true));
        if let Some(task) = newcomer {
            memo.learn(cred, task);
            return Ok(newcomer);
        }
        memo.creds = self.creds()?;
        let fresh = memo.creds.get(&cred).copied();
        Ok(fresh.filter(|&task| self.holds(task, file) == Ok(true)))
    }

    /// Whether a process remembered by its credentials still is one that has them.
    fn is_live(&self, task: Task, cred: Gva) -> bool {
        if !self.is_listed(task) {
            return false;
        }
        let threads = self.threads(task).unwrap_or_default();
        threads.into_iter().any(|thread| self.cred(thread) == Ok(cred))
    }

    fn cred(&self, thread: Gva) -> Result<Gva, Fault> {
        self.reader.pointer(thread.at(self.layout.task.cred))
    }

    /// Which process has which credentials: each thread may have its own.
    fn creds(&self) -> Result<HashMap<Gva, Task>, Fault> {
        let mut creds = HashMap::new();
        for task in self.tasks()? {
            for thread in self.threads(task)? {
                creds.insert(self.cred(thread)?, task);
            }
            if creds.len() >= REMEMBERED_MAX {
                break;
            }
        }
        Ok(creds)
    }

    /// The oldest process that holds `file`.
    fn search_holder(&self, file: Gva) -> Result<Option<Task>, Fault> {
        for task in self.tasks()? {
            let found = self.for_each_file(task, |_, held| {
                Ok(if held == file { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            if found.is_some() {
                return Ok(Some(task));
            }
        }
        Ok(None)
    }
}
