// SPDX-License-Identifier: Apache-2.0
//! What a machine's processors did between two samples.

use std::collections::HashMap;

use api::admin::{CpuSample, ThreadTime};
use serde::Serialize;

/// What the processors did in a span of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Usage {
    /// The span, in milliseconds.
    pub(crate) interval_ms: u64,
    /// Nothing ran in the span, not even what the kernel does by itself: the guest is stopped, or it is a dump.
    pub(crate) standstill: bool,
    /// The processors that are online.
    pub(crate) cpus: Vec<CpuUsage>,
    /// Processes, or threads, the busiest first.
    pub(crate) tasks: Vec<TaskUsage>,
}

/// What a processor did.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CpuUsage {
    pub(crate) cpu: u32,
    /// Who ran on it at the end of the span; zeros when it idled.
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) name: String,
    pub(crate) runnable: u32,
    pub(crate) switches_per_second: f64,
}

/// What a process, or a thread, had of the processors.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TaskUsage {
    pub(crate) pid: u32,
    /// Absent for a process as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tid: Option<u32>,
    pub(crate) name: String,
    /// Of one processor.
    pub(crate) cpu_percent: f64,
    /// Since it started.
    pub(crate) cpu_time_ms: u64,
    pub(crate) switches_per_second: f64,
}

impl Usage {
    /// What happened between two samples. Whoever is only in the second started in between.
    pub(crate) fn between(before: &CpuSample, after: &CpuSample, by_thread: bool) -> Self {
        let span_ns = after.at_ns.saturating_sub(before.at_ns).max(1);
        let per_second = |count: u64| count as f64 * 1e9 / span_ns as f64;
        let old_cpus: HashMap<u32, u64> = before.cpus.iter().map(|cpu| (cpu.cpu, cpu.switches)).collect();
        let cpus = after.cpus.iter().map(|cpu| CpuUsage {
            cpu: cpu.cpu,
            pid: cpu.pid,
            tid: cpu.tid,
            name: cpu.name.clone(),
            runnable: cpu.runnable,
            switches_per_second: per_second(
                cpu.switches.saturating_sub(old_cpus.get(&cpu.cpu).copied().unwrap_or(cpu.switches)),
            ),
        });
        let old: HashMap<(u32, u64), _> =
            before.processes.iter().map(|process| ((process.pid, process.start_time_ns), process)).collect();
        let usage = |pid, tid, name: &str, ran_ns: u64, old_ns: u64, switches: u64| TaskUsage {
            pid,
            tid,
            name: name.to_owned(),
            cpu_percent: ran_ns.saturating_sub(old_ns) as f64 * 100.0 / span_ns as f64,
            cpu_time_ms: ran_ns / 1_000_000,
            switches_per_second: per_second(switches),
        };
        let mut tasks = Vec::new();
        for process in &after.processes {
            let was = old.get(&(process.pid, process.start_time_ns)).copied();
            let old_threads: HashMap<u32, &ThreadTime> =
                was.into_iter().flat_map(|was| &was.threads).map(|thread| (thread.tid, thread)).collect();
            let mut all_switches = 0_u64;
            for thread in &process.threads {
                let was = old_threads.get(&thread.tid).copied();
                let switched = switches(thread).saturating_sub(was.map_or(0, switches));
                all_switches = all_switches.saturating_add(switched);
                if by_thread {
                    let old_ns = was.map_or(0, |was| was.runtime_ns);
                    let tid = Some(thread.tid);
                    tasks.push(usage(process.pid, tid, &thread.name, thread.runtime_ns, old_ns, switched));
                }
            }
            if !by_thread {
                let old_ns = was.map_or(0, |was| was.runtime_ns);
                tasks.push(usage(process.pid, None, &process.name, process.runtime_ns, old_ns, all_switches));
            }
        }
        tasks.sort_by(|a, b| {
            b.cpu_percent
                .total_cmp(&a.cpu_percent)
                .then(b.cpu_time_ms.cmp(&a.cpu_time_ms))
                .then(a.pid.cmp(&b.pid))
        });
        let standstill = before.processes == after.processes && before.cpus == after.cpus;
        Self { interval_ms: span_ns / 1_000_000, standstill, cpus: cpus.collect(), tasks }
    }
}

fn switches(thread: &ThreadTime) -> u64 {
    thread.voluntary_switches.saturating_add(thread.involuntary_switches)
}

#[cfg(test)]
mod tests {
    use api::admin::{ProcessTime, RunQueue};

    use super::*;

    fn process(pid: u32, start_time_ns: u64, runtime_ms: u64, switches: u64) -> ProcessTime {
        let thread = ThreadTime {
            tid: pid,
            name: "thread".into(),
            runtime_ns: runtime_ms * 1_000_000,
            voluntary_switches: switches,
            involuntary_switches: switches,
        };
        let runtime_ns = thread.runtime_ns;
        ProcessTime { pid, start_time_ns, name: "name".into(), runtime_ns, threads: vec![thread] }
    }

    fn sample(at_ms: u64, switches: u64, processes: Vec<ProcessTime>) -> CpuSample {
        let cpu = RunQueue { cpu: 0, pid: 1, tid: 1, name: "name".into(), runnable: 2, switches };
        CpuSample { at_ns: at_ms * 1_000_000, processes, cpus: vec![cpu] }
    }

    #[test]
    fn shares_are_of_one_processor_and_the_busiest_comes_first() {
        let before = sample(1000, 100, vec![process(1, 1, 500, 0), process(2, 1, 500, 10)]);
        let after = sample(1500, 600, vec![process(1, 1, 510, 5), process(2, 1, 1500, 10)]);
        let usage = Usage::between(&before, &after, false);
        assert_eq!((usage.interval_ms, usage.cpus[0].switches_per_second), (500, 1000.0));
        let told: Vec<_> = usage
            .tasks
            .iter()
            .map(|t| (t.pid, t.cpu_percent, t.cpu_time_ms, t.switches_per_second))
            .collect();
        assert_eq!(told, [(2, 200.0, 1500, 0.0), (1, 2.0, 510, 20.0)]);
        let threads = Usage::between(&before, &after, true);
        assert_eq!((threads.tasks[0].tid, threads.tasks[0].cpu_percent), (Some(2), 200.0));
    }

    #[test]
    fn guest_in_which_nothing_runs_stands_still() {
        let before = sample(1000, 100, vec![process(1, 1, 500, 0)]);
        assert!(Usage::between(&before, &sample(2000, 100, vec![process(1, 1, 500, 0)]), false).standstill);
        for after in [sample(2000, 101, vec![process(1, 1, 500, 0)]), sample(2000, 100, vec![])] {
            assert!(!Usage::between(&before, &after, false).standstill);
        }
    }

    #[test]
    fn process_with_a_used_number_starts_from_nothing() {
        let before = sample(1000, 100, vec![process(1, 1, 5000, 0)]);
        let after = sample(2000, 100, vec![process(1, 2, 100, 0)]);
        assert_eq!(Usage::between(&before, &after, false).tasks[0].cpu_percent, 10.0);
    }

    #[test]
    fn counters_that_run_backwards_and_time_that_stands_still_do_no_harm() {
        let before = sample(1000, 100, vec![process(1, 1, 5000, 9)]);
        let after = sample(1000, 50, vec![process(1, 1, 100, 1)]);
        let usage = Usage::between(&before, &after, false);
        assert_eq!((usage.tasks[0].cpu_percent, usage.tasks[0].switches_per_second), (0.0, 0.0));
        assert_eq!(usage.cpus[0].switches_per_second, 0.0);
    }
}
