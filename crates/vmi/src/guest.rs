// SPDX-License-Identifier: Apache-2.0
//! An attached guest: its anchors, and the rules that every question to it follows.

use std::sync::Arc;

use model::Process;

use crate::attach::{self, Kernel, Symbols};
use crate::btf::{Btf, Structures};
use crate::error::{AttachError, Fault, ViewError};
use crate::layout::{Layout, Vring};
use crate::memory::{Gva, PhysicalMemory};
use crate::paging::Linear;
use crate::reader::Reader;

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
    pub(crate) init_net: Gva,
    pub(crate) net_namespaces: Gva,
    pub(crate) socket_file_ops: Gva,
    pub(crate) symbols: Symbols,
}

/// What reads the guest, without what remembers it: address space, layouts and anchors.
pub(crate) struct Core {
    pub(crate) reader: Reader,
    pub(crate) layout: Layout,
    pub(crate) anchors: Anchors,
}

/// A guest whose kernel has been understood.
///
/// It reads the running guest's memory anew for every question; only what cannot change after boot is kept.
/// What it remembers beyond that (who owned a socket) is verified before it is told.
pub struct Guest {
    pub(crate) core: Core,
    pub(crate) kernel: Kernel,
    /// The kernel's types, kept for modules whose own types refer to them.
    pub(crate) btf: Btf,
    pub(crate) vring: Option<Vring>,
}

impl Guest {
    /// Finds the kernel that runs in `memory` and what is needed to read it.
    ///
    /// Reads all resident memory once. A guest that is still booting gives an error; try again later.
    ///
    /// # Errors
    /// When no kernel is found, or one that lacks what is needed.
    pub fn attach(memory: Arc<dyn PhysicalMemory>) -> Result<Self, AttachError> {
        let found = attach::find(memory)?;
        let types = Structures::of(&found.btf);
        let layout = Layout::resolve(&types)?;
        let vring = Vring::resolve(&types).ok();
        let anchors = Anchors {
            init_task: found.symbols.require("init_task")?,
            init_net: found.symbols.require("init_net")?,
            net_namespaces: found.symbols.require("net_namespace_list")?,
            socket_file_ops: found.symbols.require("socket_file_ops")?,
            symbols: found.symbols,
        };
        let mut core = Core { reader: found.reader, layout, anchors };
        if !core.idle_task_is_there() {
            return Err(AttachError::Unexpected("idle task"));
        }
        core.find_direct_map().map_err(|_| AttachError::Unexpected("task list"))?;
        Ok(Self { core, kernel: found.kernel, btf: found.btf, vring })
    }

    /// The kernel as a whole.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Every process, in order of age. Kernel threads are processes too.
    ///
    /// # Errors
    /// [`ViewError`] when the guest was reset, or its task list contradicts itself on every try.
    pub fn processes(&self) -> Result<Vec<Process>, ViewError> {
        self.core.query(|core| core.tasks()?.into_iter().map(|task| core.process(task)).collect())
    }
}

impl Core {
    /// Asks `question` with a fresh budget, again when the guest changed meanwhile.
    pub(crate) fn query<T>(&self, question: impl Fn(&Self) -> Result<T, Fault>) -> Result<T, ViewError> {
        self.reader.start_query();
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
    fn find_direct_map(&mut self) -> Result<(), Fault> {
        let first = self.reader.pointer(self.anchors.init_task.at(self.layout.task.tasks))?;
        let gpa = self.reader.translate(first)?.gpa;
        let start = first.0.checked_sub(gpa).ok_or(Fault::Inconsistent)?;
        let ram_end = self.reader.memory().extents().last().map_or(0, |extent| extent.end);
        let end = start.checked_add(ram_end).ok_or(Fault::Inconsistent)?;
        // Where the short cut would not hold, every read walks the page tables.
        if start % DIRECT_MAP_ALIGNMENT == 0 && !(start..end).contains(&self.anchors.init_task.0) {
            self.reader.map_directly(Linear { range: start..end, gpa: 0 });
        }
        Ok(())
    }
}
