// SPDX-License-Identifier: Apache-2.0
//! What the guest's processors do: the time that threads have had, and who runs now.
//!
//! Counters only grow; two samples and the time between them give shares. The guest adds to a running thread's
//! time at its clock ticks, so a sample is some milliseconds behind.

use crate::core::Core;
use crate::error::{Fault, ViewError};
use crate::guest::Guest;
use crate::memory::Gva;
use crate::reader::VIEW_READS_MAX;
use crate::task::Task;

/// Most virtual processors told.
const CPUS_MAX: u32 = 1024;
/// Most threads told, of all processes together.
const THREADS_MAX: usize = 65_536;
/// `TASK_COMM_LEN`.
const COMM_BYTES: usize = 16;

/// What the guest's processors had done when it was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSample {
    /// Time of every process, in order of age; empty where the kernel does not describe it.
    pub processes: Vec<ProcessTime>,
    /// Every processor that is online; empty where the kernel does not tell.
    pub cpus: Vec<RunQueue>,
}

/// The processor time of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessTime {
    /// Process id.
    pub pid: u32,
    /// With `pid` it names the process for good.
    pub start_time_ns: u64,
    /// `comm`.
    pub name: String,
    /// Time of all its threads, exited ones included.
    pub runtime_ns: u64,
    /// Its threads.
    pub threads: Vec<ThreadTime>,
}

/// The processor time of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadTime {
    /// Thread id.
    pub tid: u32,
    /// `comm`, which every thread may set for itself.
    pub name: String,
    /// Time since it was made.
    pub runtime_ns: u64,
    /// Times it gave up its processor.
    pub voluntary_switches: u64,
    /// Times its processor was taken from it.
    pub involuntary_switches: u64,
}

/// A virtual processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunQueue {
    /// Its number.
    pub cpu: u32,
    /// Process that runs on it; zero when it idles.
    pub pid: u32,
    /// Thread that runs on it; zero when it idles.
    pub tid: u32,
    /// `comm` of that thread.
    pub name: String,
    /// Threads that run or could run on it.
    pub runnable: u32,
    /// Times it has gone over to another thread.
    pub switches: u64,
}

impl Guest {
    /// What the processors have done so far, and do now.
    ///
    /// # Errors
    /// As [`Guest::processes`].
    pub fn cpu_sample(&self) -> Result<CpuSample, ViewError> {
        self.core().query(VIEW_READS_MAX, |core| {
            let cpus = core.run_queues().unwrap_or_default();
            Ok(CpuSample { processes: core.process_times()?, cpus })
        })
    }
}

impl Core {
    /// What is added to the address of a per-CPU variable, for each processor that is possible.
    ///
    /// # Errors
    /// When the kernel does not tell how many there are.
    pub(crate) fn cpu_offsets(&self) -> Result<Vec<u64>, Fault> {
        let symbols = &self.anchors.symbols;
        let count = self.reader.u32(symbols.find("nr_cpu_ids").ok_or(Fault::Unmapped)?)?;
        let offsets = symbols.find("__per_cpu_offset").ok_or(Fault::Unmapped)?;
        if count == 0 || count > CPUS_MAX {
            return Err(Fault::Inconsistent);
        }
        (0..u64::from(count)).map(|cpu| self.reader.u64(offsets.element(cpu, 8))).collect()
    }

    fn run_queues(&self) -> Result<Vec<RunQueue>, Fault> {
        let layout = self.layout.cpu.as_ref().and_then(|cpu| Some((&cpu.thread, cpu.queue.as_ref()?)));
        let (thread, layout) = layout.ok_or(Fault::Unmapped)?;
        let variable = self.anchors.symbols.find("runqueues").ok_or(Fault::Unmapped)?;
        let mut cpus = Vec::new();
        for (cpu, offset) in (0..).zip(self.cpu_offsets()?) {
            let queue = Gva(variable.0.wrapping_add(offset));
            if self.reader.u32(queue.at(layout.cpu))? != cpu {
                return Err(Fault::Inconsistent);
            }
            if self.reader.u32(queue.at(layout.online))? == 0 {
                continue;
            }
            let current = self.reader.pointer(queue.at(layout.current))?;
            cpus.push(RunQueue {
                cpu,
                pid: self.pid(Task(current))?,
                tid: self.reader.u32(current.at(thread.tid))?,
                name: self.reader.text(current.at(self.layout.task.comm), COMM_BYTES)?,
                runnable: self.reader.u32(queue.at(layout.running))?,
                switches: self.reader.u64(queue.at(layout.switches))?,
            });
        }
        Ok(cpus)
    }

    fn process_times(&self) -> Result<Vec<ProcessTime>, Fault> {
        let Some(layout) = &self.layout.cpu else { return Ok(Vec::new()) };
        let mut processes = Vec::new();
        let mut thread_count = 0;
        for task in self.tasks()? {
            let mut threads = Vec::new();
            for thread in self.threads(task)? {
                threads.push(ThreadTime {
                    tid: self.reader.u32(thread.at(layout.thread.tid))?,
                    name: self.reader.text(thread.at(self.layout.task.comm), COMM_BYTES)?,
                    runtime_ns: self.reader.u64(thread.at(layout.thread.runtime))?,
                    voluntary_switches: self.reader.u64(thread.at(layout.thread.voluntary))?,
                    involuntary_switches: self.reader.u64(thread.at(layout.thread.involuntary))?,
                });
            }
            thread_count += threads.len();
            if thread_count > THREADS_MAX {
                return Err(Fault::Exhausted);
            }
            let mut runtime_ns =
                threads.iter().fold(0, |sum: u64, thread| sum.saturating_add(thread.runtime_ns));
            if let Some(exited) = &layout.exited {
                let signal = self.reader.pointer(task.0.at(self.layout.task.signal))?;
                runtime_ns = runtime_ns.saturating_add(self.reader.u64(signal.at(exited.runtime))?);
            }
            processes.push(ProcessTime {
                pid: self.pid(task)?,
                start_time_ns: self.start_time_ns(task)?,
                name: self.reader.text(task.0.at(self.layout.task.comm), COMM_BYTES)?,
                runtime_ns,
                threads,
            });
        }
        Ok(processes)
    }
}
