// SPDX-License-Identifier: Apache-2.0
//! Layouts of what leads from the first task to everything else, for a kernel that does not name its data.

use crate::btf::Structures;
use crate::error::TypesError;
use crate::layout::Gaps;

offsets! {
    /// The first task: the idle task of the first processor.
    FirstTask of "task_struct" {
        comm: "comm", tgid: "tgid", parent: "parent", real_parent: "real_parent", tasks: "tasks",
        mm: "mm", active_mm: "active_mm", nsproxy: "nsproxy", switches: "nivcsw",
    }
}
offsets! {
    /// An address space.
    AddressSpace of "mm_struct" { pgd: "pgd" }
}
offsets! {
    /// The namespaces of a task.
    Namespaces of "nsproxy" { uts: "uts_ns", net: "net_ns", pid: "pid_ns_for_children" }
}
offsets! {
    /// What the kernel calls itself.
    UtsNamespace of "uts_namespace" { release: "name.release" }
}
offsets! {
    /// A network namespace, with a socket that every one has.
    NetNamespace of "net" { list: "list", any_sock: "rtnl" }
}
offsets! {
    /// What the kernel knows of a socket's protocol.
    SockProtocol of "sock" { protocol: "__sk_common.skc_prot" }
}
offsets! {
    /// A protocol; all are in one list. `table` is that of its sockets.
    Protocol of "proto" { name: "name", table: "h", list: "node" }
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) task: FirstTask,
    pub(crate) mm: AddressSpace,
    pub(crate) namespaces: Namespaces,
    pub(crate) uts: UtsNamespace,
    pub(crate) net: NetNamespace,
    /// Without these, what only protocols lead to is not found.
    pub(crate) protocols: Option<(SockProtocol, Protocol)>,
}

impl Origin {
    /// # Errors
    /// When the kernel does not describe one of these; no kernel from 5.4 to 7.2 does not.
    pub(crate) fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        Ok(Self {
            task: FirstTask::resolve(types)?,
            mm: AddressSpace::resolve(types)?,
            namespaces: Namespaces::resolve(types)?,
            uts: UtsNamespace::resolve(types)?,
            net: NetNamespace::resolve(types)?,
            protocols: SockProtocol::resolve(types).ok().zip(Protocol::resolve(types).ok()),
        })
    }
}
