// SPDX-License-Identifier: Apache-2.0
//! Layouts of what the scheduler counts.

use crate::btf::Structures;
use crate::error::TypesError;
use crate::layout::Gaps;

offsets! {
    /// A thread's time.
    ThreadCpu of "task_struct" {
        tid: "pid", runtime: "se.sum_exec_runtime", voluntary: "nvcsw", involuntary: "nivcsw",
    }
}
offsets! {
    /// The time of a process's exited threads.
    ExitedCpu of "signal_struct" { runtime: "sum_sched_runtime" }
}
offsets! {
    /// A CPU's run queue.
    RunQueue of "rq" {
        current: "curr", running: "nr_running", switches: "nr_switches", cpu: "cpu", online: "online",
    }
}

/// Where the scheduler counts.
#[derive(Clone, Debug)]
pub(crate) struct Cpu {
    pub(crate) thread: ThreadCpu,
    pub(crate) exited: Option<ExitedCpu>,
    pub(crate) queue: Option<RunQueue>,
}

impl Cpu {
    pub(crate) fn resolve(types: &Structures<'_>, gaps: &mut Gaps) -> Result<Self, TypesError> {
        Ok(Self {
            thread: ThreadCpu::resolve(types)?,
            exited: gaps.whole("times of exited threads", ExitedCpu::resolve(types)),
            queue: gaps.whole("run queues", RunQueue::resolve(types)),
        })
    }
}
