// SPDX-License-Identifier: Apache-2.0
//! Descriptor tables: which process holds which file, and which files are sockets.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::core::Core;
use crate::error::Fault;
use crate::memory::{Gva, is_described};
use crate::socket::Owner;
use crate::task::Task;

/// Most descriptors of one process walked (`fs.nr_open` as the kernel has it by default).
const DESCRIPTORS_MAX: u32 = 1 << 20;
/// Read at a time.
const BLOCK_DESCRIPTORS: usize = 512;
/// Most (process, descriptor) pairs of sockets told.
const OWNERS_MAX: usize = 1 << 18;

/// Where a process's files are.
struct Descriptors {
    /// The `files_struct`.
    files: Gva,
    /// Pointers to files, by descriptor.
    array: Gva,
    /// Room in the array.
    count: u32,
}

impl Core {
    /// The descriptor table of a process; `None` if it has let go of it.
    fn descriptors(&self, task: Task) -> Result<Option<Descriptors>, Fault> {
        let files = self.of_any_thread(task, self.layout.task.files)?;
        if files.is_null() {
            return Ok(None);
        }
        let fdt = self.reader.pointer(files.at(self.layout.files.fdt))?;
        let count = self.reader.u32(fdt.at(self.layout.fdtable.max_fds))?;
        let array = self.reader.pointer(fdt.at(self.layout.fdtable.fd))?;
        if count > DESCRIPTORS_MAX {
            return Err(Fault::Inconsistent);
        }
        Ok(Some(Descriptors { files, array, count }))
    }

    /// Calls `each` with the number and file of every open descriptor of a process, until it breaks.
    pub(crate) fn for_each_file<B>(
        &self,
        task: Task,
        each: impl FnMut(u32, Gva) -> Result<ControlFlow<B>, Fault>,
    ) -> Result<Option<B>, Fault> {
        let descriptors = self.descriptors(task)?;
        descriptors.map_or(Ok(None), |descriptors| self.each_of(&descriptors, each))
    }

    fn each_of<B>(
        &self,
        descriptors: &Descriptors,
        mut each: impl FnMut(u32, Gva) -> Result<ControlFlow<B>, Fault>,
    ) -> Result<Option<B>, Fault> {
        let &Descriptors { array, count, .. } = descriptors;
        let mut block = [0; BLOCK_DESCRIPTORS * 8];
        for start in (0..count).step_by(BLOCK_DESCRIPTORS) {
            let len = BLOCK_DESCRIPTORS.min((count - start) as usize);
            let bytes = &mut block[..len * 8];
            self.reader.bytes(array.element(u64::from(start), 8), bytes)?;
            for (fd, file) in (start..).zip(bytes.as_chunks().0) {
                let file = Gva(u64::from_le_bytes(*file));
                if file.is_null() {
                    continue;
                }
                if let ControlFlow::Break(found) = each(fd, file)? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// Whether a process holds `file` open.
    pub(crate) fn holds(&self, task: Task, file: Gva) -> Result<bool, Fault> {
        let Some(descriptors) = self.descriptors(task)? else { return Ok(false) };
        if self.latest(&descriptors) == Ok(Some(file)) {
            return Ok(true);
        }
        let found = self.each_of(&descriptors, |_, held| {
            Ok(if held == file { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(found.is_some())
    }

    /// The file that a process opened last, if it has closed none before it since: whoever has just made a
    /// socket is found without a look at all the others.
    fn latest(&self, descriptors: &Descriptors) -> Result<Option<Gva>, Fault> {
        let Some(next_fd) = &self.layout.next_fd else { return Ok(None) };
        let next = self.reader.u32(descriptors.files.at(next_fd.next))?;
        let latest = next.checked_sub(1).filter(|latest| *latest < descriptors.count);
        latest.map(|latest| self.reader.pointer(descriptors.array.element(latest.into(), 8))).transpose()
    }

    /// The network part of the socket that `file` is, if it is one.
    pub(crate) fn sock_of(&self, file: Gva) -> Result<Option<Gva>, Fault> {
        let layout = &self.layout;
        let private_data = file.at(layout.file.private_data);
        let Some(socket_file_ops) = self.anchors.socket_file_ops else {
            let found = self.reader.pointer(private_data).and_then(|socket| self.sock_of_pair(file, socket));
            return match found {
                // Anything may lie there, numbers too.
                Err(Fault::Unmapped | Fault::Inconsistent) => Ok(None),
                found => found,
            };
        };
        if self.reader.pointer(file.at(layout.file.f_op))? != socket_file_ops {
            return Ok(None);
        }
        let socket = self.reader.pointer(private_data)?;
        let sock = self.reader.pointer(socket.at(layout.socket.sk))?;
        Ok((!sock.is_null()).then_some(sock))
    }

    /// The network part of `socket`, if that is the socket of `file`: all three point to each other.
    fn sock_of_pair(&self, file: Gva, socket: Gva) -> Result<Option<Gva>, Fault> {
        let layout = &self.layout;
        if socket.is_null() || self.reader.pointer(socket.at(layout.socket.file))? != file {
            return Ok(None);
        }
        let sock = self.reader.pointer(socket.at(layout.socket.sk))?;
        let is_pair = !sock.is_null() && self.reader.pointer(sock.at(layout.sock.socket))? == socket;
        Ok(is_pair.then_some(sock))
    }

    /// Whether the kernel describes what leads from a process to its sockets.
    pub(crate) fn can_tell_owners(&self) -> bool {
        let layout = &self.layout;
        let kind = match self.anchors.socket_file_ops {
            Some(_) => layout.file.f_op,
            None => layout.socket.file,
        };
        let way = [layout.task.files, layout.files.fdt, layout.fdtable.max_fds, layout.fdtable.fd];
        let socket = [layout.file.private_data, layout.socket.sk, kind];
        way.into_iter().chain(socket).all(is_described)
    }

    /// Who holds each socket, by the address of its network part.
    pub(crate) fn socket_owners(&self) -> Result<HashMap<Gva, Vec<Owner>>, Fault> {
        let mut owners: HashMap<Gva, Vec<Owner>> = HashMap::new();
        if !self.can_tell_owners() {
            return Ok(owners);
        }
        let mut count = 0;
        for task in self.tasks()? {
            let pid = self.pid(task)?;
            self.for_each_file(task, |fd, file| {
                if let Some(sock) = self.sock_of(file)? {
                    count += 1;
                    if count > OWNERS_MAX {
                        return Err(Fault::Exhausted);
                    }
                    owners.entry(sock).or_default().push(Owner { pid, fd });
                }
                Ok(ControlFlow::<()>::Continue(()))
            })?;
        }
        Ok(owners)
    }
}
