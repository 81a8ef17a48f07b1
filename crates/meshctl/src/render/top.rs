// SPDX-License-Identifier: Apache-2.0
//! What a machine's processors do.

use super::{Grid, Style, maybe, plain, plural};
use crate::usage::Usage;

/// Most processes shown where no screen bounds them.
const TASKS_MAX: usize = 40;
/// Lines that are neither of a processor nor of a process.
const OTHER_LINES: usize = 5;
/// Why there are no shares of the processors.
const STANDSTILL: &str =
    "nothing runs: the guest is stopped, or this is a dump of its RAM; TIME is since each started\n";

/// Processors, then the busiest processes; as many as fit into `rows` if there is a screen.
pub(crate) fn top(usage: &Usage, style: Style, rows: Option<usize>) -> String {
    let runnable: u64 = usage.cpus.iter().map(|cpu| u64::from(cpu.runnable)).sum();
    let switches: f64 = usage.cpus.iter().map(|cpu| cpu.switches_per_second).sum();
    let cpu_count = plural(usage.cpus.len() as u64, "processor");
    let mut head = format!("{cpu_count}, {runnable} runnable, {switches:.0} switches/s\n");
    if usage.standstill {
        head += STANDSTILL;
    }
    let mut cpus = Grid::new(style, &["CPU", "PID", "RUNNABLE", "SWITCHES/S", "RUNS"], &[0, 1, 2, 3]);
    let cpus_max = rows.map_or(usize::MAX, |rows| (rows / 3).max(1));
    for cpu in usage.cpus.iter().take(cpus_max) {
        cpus.row(vec![
            plain(cpu.cpu),
            maybe((cpu.pid != 0).then_some(cpu.pid)),
            plain(cpu.runnable),
            plain(format!("{:.0}", cpu.switches_per_second)),
            plain(if cpu.pid == 0 && cpu.tid == 0 { "idle" } else { &cpu.name }),
        ]);
    }
    let other_lines = OTHER_LINES + usize::from(usage.standstill);
    let tasks_max = rows
        .map_or(TASKS_MAX, |rows| rows.saturating_sub(other_lines + usage.cpus.len().min(cpus_max)).max(1));
    let mut tasks =
        Grid::new(style, &["PID", "TID", "CPU %", "TIME", "SWITCHES/S", "NAME"], &[0, 1, 2, 3, 4]);
    for task in usage.tasks.iter().take(tasks_max) {
        tasks.row(vec![
            plain(task.pid),
            maybe(task.tid),
            plain(format!("{:.1}", task.cpu_percent)),
            plain(format!("{}.{:02}s", task.cpu_time_ms / 1000, task.cpu_time_ms % 1000 / 10)),
            plain(format!("{:.0}", task.switches_per_second)),
            plain(&task.name),
        ]);
    }
    head + &cpus.finish("the kernel does not tell its run queues")
        + "\n"
        + &tasks.finish("no processes were found")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::{CpuUsage, TaskUsage};

    fn usage(tasks: u32) -> Usage {
        let cpu = |cpu, pid, name: &str| CpuUsage {
            cpu,
            pid,
            tid: pid,
            name: name.into(),
            runnable: u32::from(pid != 0),
            switches_per_second: 12.4,
        };
        let task = |pid| TaskUsage {
            pid,
            tid: None,
            name: "sh\u{1b}op".into(),
            cpu_percent: 12.34,
            cpu_time_ms: 61_230,
            switches_per_second: 3.0,
        };
        Usage {
            interval_ms: 1000,
            standstill: false,
            cpus: vec![cpu(0, 7, "shop"), cpu(1, 0, "swapper/1")],
            tasks: (1..=tasks).map(task).collect(),
        }
    }

    #[test]
    fn processors_come_first_then_the_busiest() {
        assert_eq!(
            top(&usage(1), Style::default(), None),
            "\
2 processors, 1 runnable, 25 switches/s
CPU  PID  RUNNABLE  SWITCHES/S  RUNS
  0    7         1          12  shop
  1    -         0          12  idle

PID  TID  CPU %    TIME  SWITCHES/S  NAME
  1    -   12.3  61.23s           3  sh\\x1bop
"
        );
    }

    #[test]
    fn standstill_says_why_there_are_no_shares() {
        let usage = Usage { standstill: true, ..usage(1) };
        let shown = top(&usage, Style::default(), None);
        assert_eq!(shown.lines().nth(1), Some(STANDSTILL.trim_end()));
    }

    #[test]
    fn screen_is_not_overrun() {
        for (rows, standstill) in [(1, false), (10, true), (24, false), (24, true)] {
            let usage = Usage { standstill, ..usage(500) };
            let shown = top(&usage, Style::default(), Some(rows));
            assert!(shown.lines().count() <= rows.max(8), "{rows}: {shown}");
        }
        let shown = top(&usage(500), Style::default(), None);
        assert_eq!(shown.lines().count(), 5 + 1 + TASKS_MAX);
    }
}
