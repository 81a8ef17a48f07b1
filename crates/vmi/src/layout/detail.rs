// SPDX-License-Identifier: Apache-2.0
//! Layouts of what decorates: a kernel that lacks one of them lacks one field of a view, and nothing else.

use crate::btf::Structures;
use crate::error::TypesError;
use crate::layout::Gaps;

offsets! {
    /// A thread's state and what it belongs to.
    TaskDetail of "task_struct" {
        state: "__state" | "state", exit_state: "exit_state",
    }
}
offsets! {
    /// What the threads of a process share.
    SignalDetail of "signal_struct" { threads: "nr_threads" }
}
offsets! {
    /// Where a user address space keeps its command line, and its page tables.
    Arguments of "mm_struct" { pgd: "pgd", start: "arg_start", end: "arg_end" }
}
offsets! {
    TaskNamespaces of "task_struct" { nsproxy: "nsproxy", pid: "thread_pid", cred: "real_cred" }
}
offsets! {
    Nsproxy of "nsproxy" { mnt: "mnt_ns", net: "net_ns" }
}
offsets! {
    MntNamespace of "mnt_namespace" { inode: "ns.inum" }
}
offsets! {
    PidNamespace of "pid_namespace" { inode: "ns.inum" }
}
offsets! {
    UserNamespace of "user_namespace" { inode: "ns.inum" }
}
offsets! {
    CredNamespace of "cred" { user: "user_ns" }
}
offsets! {
    Pid of "pid" { level: "level", numbers: "numbers" }
}
offsets! {
    Upid of "upid" { namespace: "ns" }
}
offsets! {
    PercpuCounter of "percpu_counter" { count: "count", counters: "counters" }
}

/// From a process to its namespaces.
#[derive(Clone, Debug)]
pub(crate) struct Namespaces {
    pub(crate) task: TaskNamespaces,
    pub(crate) nsproxy: Nsproxy,
    pub(crate) mnt: MntNamespace,
    pub(crate) pid_namespace: PidNamespace,
    pub(crate) user: UserNamespace,
    pub(crate) cred: CredNamespace,
    pub(crate) pid: Pid,
    pub(crate) upid: Upid,
    pub(crate) upid_bytes: u32,
}

/// How an address space counts its resident pages.
#[derive(Clone, Debug)]
pub(crate) enum Resident {
    /// Numbers from this offset on (until 6.1).
    Numbers(u32),
    /// Counters with a part for each CPU, from `at` on (from 6.2).
    PerCpu { at: u32, counter: PercpuCounter, counter_bytes: u32 },
}

/// What is told of a process beyond its identity.
#[derive(Clone, Debug)]
pub(crate) struct Detail {
    pub(crate) task: Option<TaskDetail>,
    pub(crate) signal: Option<SignalDetail>,
    pub(crate) arguments: Option<Arguments>,
    pub(crate) namespaces: Option<Namespaces>,
    pub(crate) resident: Option<Resident>,
}

impl Detail {
    pub(crate) fn resolve(types: &Structures<'_>, gaps: &mut Gaps) -> Self {
        Self {
            task: gaps.whole("process states", TaskDetail::resolve(types)),
            signal: gaps.whole("thread counts", SignalDetail::resolve(types)),
            arguments: gaps.whole("command lines", Arguments::resolve(types)),
            namespaces: gaps.whole("namespaces", Namespaces::resolve(types)),
            resident: gaps.whole("resident memory", Resident::resolve(types)),
        }
    }
}

impl Namespaces {
    fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        Ok(Self {
            task: TaskNamespaces::resolve(types)?,
            nsproxy: Nsproxy::resolve(types)?,
            mnt: MntNamespace::resolve(types)?,
            pid_namespace: PidNamespace::resolve(types)?,
            user: UserNamespace::resolve(types)?,
            cred: CredNamespace::resolve(types)?,
            pid: Pid::resolve(types)?,
            upid: Upid::resolve(types)?,
            upid_bytes: types.size("upid")?,
        })
    }
}

impl Resident {
    fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        if let Ok(numbers) = types.offset("mm_struct", "rss_stat.count") {
            return Ok(Self::Numbers(numbers));
        }
        Ok(Self::PerCpu {
            at: types.offset("mm_struct", "rss_stat")?,
            counter: PercpuCounter::resolve(types)?,
            counter_bytes: types.size("percpu_counter")?,
        })
    }
}
