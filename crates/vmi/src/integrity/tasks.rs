// SPDX-License-Identifier: Apache-2.0
//! Tasks in one view and not in another: the list of tasks, the tree of process ids, the run queues.
//!
//! What is created or ends meanwhile must not be a suspect. A task enters the list before it can run, and
//! leaves list and tree together, marked as exiting; so what is seen in one view before, and still there after,
//! must be in another that was read in between.

use std::collections::HashSet;

use crate::core::Core;
use crate::error::Fault;
use crate::memory::Gva;
use crate::task::Task;

use super::finding::{Certainty, FindingKind};
use super::layout::{Ids, IntegrityLayout};
use super::suspects::Suspect;

/// Most nodes of the tree of process ids: 64 ids each, 4 Mi ids.
const NODES_MAX: usize = 1 << 17;
/// Slots of a node (`XA_CHUNK_SIZE`).
const SLOTS: usize = 64;
/// Entries below this are the tree's own marks.
const MARKS_END: u64 = 4096;
/// Processors looked at.
const CPUS_MAX: u32 = 512;
/// Tasks of one run queue walked.
const QUEUE_MAX: usize = 4096;
/// Priorities of the real-time class (`MAX_RT_PRIO`), each with a list.
const REAL_TIME_PRIORITIES: u32 = 100;
const LIST_HEAD_BYTES: u32 = 16;
/// Length of a name.
const COMM_BYTES: usize = 16;

/// A task as one view has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Seen {
    task: Gva,
    start_time_ns: u64,
}

impl Core {
    pub(super) fn task_suspects(&self, layout: &IntegrityLayout) -> Result<Vec<Suspect>, Fault> {
        let Some(ids) = layout.ids.as_ref().filter(|_| self.anchors.symbols.find("init_pid_ns").is_some())
        else {
            return Ok(Vec::new());
        };
        let by_id = self.tasks_by_id(ids)?;
        let running = self.queued_tasks(layout)?;
        let (mut listed, mut leaders) = (HashSet::new(), Vec::new());
        for leader in self.tasks()? {
            leaders.extend(self.seen(leader.0));
            listed.insert(leader.0);
            listed.extend(self.threads(leader)?);
        }
        let mut suspects = Vec::new();
        for (seen, how) in
            by_id.iter().map(|seen| (seen, "has a process id")).chain(running.iter().map(|s| (s, "runs")))
        {
            if !listed.contains(&seen.task) && self.is_alive(ids, *seen) {
                let evidence = format!("{} {how} but is not in the list of tasks", self.describe(seen.task));
                suspects.push(suspect(FindingKind::HiddenTask, seen.task, evidence));
            }
        }
        let before: HashSet<Gva> = by_id.into_iter().map(|seen| seen.task).collect();
        let missing: Vec<Seen> = leaders.into_iter().filter(|seen| !before.contains(&seen.task)).collect();
        if !missing.is_empty() {
            let after: HashSet<Gva> = self.tasks_by_id(ids)?.into_iter().map(|seen| seen.task).collect();
            for seen in missing {
                if !after.contains(&seen.task) && self.is_alive(ids, seen) {
                    let evidence =
                        format!("{} is in the list of tasks but has no process id", self.describe(seen.task));
                    suspects.push(suspect(FindingKind::TaskWithoutId, seen.task, evidence));
                }
            }
        }
        Ok(suspects)
    }

    fn seen(&self, task: Gva) -> Option<Seen> {
        let start_time_ns = self.start_time_ns(Task(task)).ok()?;
        Some(Seen { task, start_time_ns })
    }

    /// Whether the task is still the one that was seen, and is not on its way out.
    fn is_alive(&self, ids: &Ids, seen: Seen) -> bool {
        self.seen(seen.task) == Some(seen) && self.reader.u32(seen.task.at(ids.exit_state)) == Ok(0)
    }

    fn describe(&self, task: Gva) -> String {
        let name = self.reader.text(task.at(self.layout.task.comm), COMM_BYTES).unwrap_or_default();
        let pid = self.pid(Task(task)).unwrap_or_default();
        format!("process {pid} `{name}`")
    }

    /// Every thread that has a process id of its own.
    fn tasks_by_id(&self, ids: &Ids) -> Result<Vec<Seen>, Fault> {
        let Some(namespace) = self.anchors.symbols.find("init_pid_ns") else { return Ok(Vec::new()) };
        let mut pending = vec![self.reader.u64(namespace.at(ids.tree))?];
        let (mut tasks, mut nodes) = (Vec::new(), 0);
        while let Some(entry) = pending.pop() {
            match entry & 3 {
                0 if entry == 0 => {}
                0 => {
                    let first = self.reader.pointer(Gva(entry).at(ids.tasks))?;
                    if !first.is_null() {
                        tasks.extend(self.seen(first.container(ids.links)));
                    }
                }
                2 if entry >= MARKS_END => {
                    nodes += 1;
                    if nodes > NODES_MAX {
                        return Err(Fault::Inconsistent);
                    }
                    let slots: [u8; SLOTS * 8] = self.reader.array(Gva(entry - 2).at(ids.slots))?;
                    pending.extend(slots.as_chunks().0.iter().map(|slot| u64::from_le_bytes(*slot)));
                }
                _ => {}
            }
        }
        Ok(tasks)
    }

    /// Tasks that run or wait to run, idle ones aside, as far as the queues hold still.
    fn queued_tasks(&self, layout: &IntegrityLayout) -> Result<Vec<Seen>, Fault> {
        let symbols = &self.anchors.symbols;
        let Some(current_of) = &layout.run_queues else { return Ok(Vec::new()) };
        let (Some(queues), Some(offsets), Some(count)) =
            (symbols.find("runqueues"), symbols.find("__per_cpu_offset"), symbols.find("nr_cpu_ids"))
        else {
            return Ok(Vec::new());
        };
        let mut tasks = Vec::new();
        for cpu in 0..self.reader.u32(count)?.min(CPUS_MAX) {
            let offset = self.reader.u64(offsets.element(cpu.into(), 8))?;
            let queue = Gva(queues.0.wrapping_add(offset));
            // A processor that is not there has no queue.
            let (Ok(current), Ok(idle)) = (
                self.reader.pointer(queue.at(current_of.current)),
                self.reader.pointer(queue.at(current_of.idle)),
            ) else {
                continue;
            };
            if current != idle && !current.is_null() {
                tasks.extend(self.seen(current));
            }
            let mut waiting = Vec::new();
            for (list, node) in lists(layout) {
                // A list that changes while it is walked is walked again soon.
                let found = self.list(queue.at(list), QUEUE_MAX).unwrap_or_default();
                waiting.extend(found.into_iter().map(|link| link.container(node)));
            }
            waiting.extend(self.deadline_tasks(layout, queue).unwrap_or_default());
            tasks.extend(waiting.into_iter().filter_map(|task| self.seen(task)));
        }
        Ok(tasks)
    }

    /// Tasks that wait for their deadlines.
    fn deadline_tasks(&self, layout: &IntegrityLayout, queue: Gva) -> Result<Vec<Gva>, Fault> {
        let Some(deadlines) = &layout.deadline_tasks else { return Ok(Vec::new()) };
        let server = layout.fair_server.as_ref().map(|server| queue.at(server.node));
        let mut pending = vec![self.reader.pointer(queue.at(deadlines.tree))?];
        let mut tasks = Vec::new();
        while let Some(node) = pending.pop() {
            if node.is_null() {
                continue;
            }
            if tasks.len() == QUEUE_MAX {
                return Err(Fault::Inconsistent);
            }
            if Some(node) != server {
                tasks.push(node.container(deadlines.node));
            }
            pending.push(self.reader.pointer(node.at(deadlines.left))?);
            pending.push(self.reader.pointer(node.at(deadlines.right))?);
        }
        Ok(tasks)
    }
}

/// The lists of waiting tasks on a run queue, and their links in a task.
fn lists(layout: &IntegrityLayout) -> Vec<(u32, u32)> {
    let fair = layout.fair_tasks.iter().map(|fair| (fair.list, fair.node));
    let extended = layout.extended_tasks.iter().map(|extended| (extended.list, extended.node));
    let real_time = layout.real_time_tasks.iter();
    let real_time = real_time.flat_map(|real| {
        (0..REAL_TIME_PRIORITIES).map(|priority| (real.lists + priority * LIST_HEAD_BYTES, real.node))
    });
    fair.chain(extended).chain(real_time).collect()
}

fn suspect(kind: FindingKind, task: Gva, evidence: String) -> Suspect {
    Suspect { kind, certainty: Certainty::Certain, address: task.0, evidence }
}
