// SPDX-License-Identifier: Apache-2.0
//! What every question to a guest is asked by: address space, layouts and anchors; and how one is asked.

use crate::error::{Fault, ViewError};
use crate::layout::Layout;
use crate::memory::Gva;
use crate::paging::Linear;
use crate::reader::Reader;
use crate::symbols::Symbols;
use crate::users::Users;

/// Times a question is asked when the guest changes under the reader.
const TRIES: usize = 3;
/// All of RAM is mapped at a multiple of this.
const DIRECT_MAP_ALIGNMENT: u64 = 1 << 30;
/// Start of the idle task's name.
const IDLE_NAME: &[u8] = b"swapper";

/// Where walks begin.
#[derive(Clone, Debug)]
pub(crate) struct Anchors {
    pub(crate) init_task: Gva,
    pub(crate) net_namespaces: Gva,
    /// How files that are sockets are told from others; where it is not known, by what they point to.
    pub(crate) socket_file_ops: Option<Gva>,
    pub(crate) symbols: Symbols,
}

/// What reads the guest, without what remembers it: address space, layouts and anchors.
pub(crate) struct Core {
    pub(crate) reader: Reader,
    pub(crate) layout: Layout,
    pub(crate) anchors: Anchors,
    pub(crate) users: Users,
}

impl Core {
    /// Asks `question` with a budget for all tries, again when the guest changed meanwhile.
    pub(crate) fn query<T>(
        &self,
        reads_max: u32,
        mut question: impl FnMut(&Self) -> Result<T, Fault>,
    ) -> Result<T, ViewError> {
        self.reader.start_query(reads_max);
        if !self.idle_task_is_there() {
            return Err(ViewError::Gone);
        }
        let mut result = question(self);
        for _ in 1..TRIES {
            match result {
                Err(Fault::Unmapped | Fault::Inconsistent) => result = question(self),
                Ok(_) | Err(Fault::Exhausted) => break,
            }
        }
        Ok(result?)
    }

    /// Whether the kernel is still where it was found.
    pub(crate) fn idle_task_is_there(&self) -> bool {
        let comm = self.anchors.init_task.at(self.layout.task.comm);
        self.reader.array(comm).is_ok_and(|name: [u8; IDLE_NAME.len()]| name == IDLE_NAME)
    }

    /// Learns where all of RAM is mapped from the first task, which lies there.
    pub(crate) fn find_direct_map(&mut self, ram_end: u64) -> Result<(), Fault> {
        let first = self.reader.pointer(self.anchors.init_task.at(self.layout.task.tasks))?;
        let gpa = self.reader.translate(first)?.gpa;
        let start = first.0.checked_sub(gpa).ok_or(Fault::Inconsistent)?;
        let end = start.checked_add(ram_end).ok_or(Fault::Inconsistent)?;
        // Where the short cut would not hold, every read walks the page tables.
        if start % DIRECT_MAP_ALIGNMENT == 0 && !(start..end).contains(&self.anchors.init_task.0) {
            self.reader.map_directly(Linear { range: start..end, gpa: 0 });
        }
        Ok(())
    }
}
