// SPDX-License-Identifier: Apache-2.0
//! Quality of service: what may pass when, and whose turn it is.
//!
//! **Limits.** A limit is a [`meter::Meter`], which gives each frame the time at which it may leave. A frame whose time has
//! not come is not dropped: [`crate::Verdict::Hold`] says when, and the caller keeps it, best where it is, so that its
//! sender is slowed down. A flow knows the meters of each of its directions; rules, its ends' machines and the service that
//! was called have set them. Meters live as long as a flow or the newest policy knows them.
//!
//! **Turns.** Which port's frames are taken up next, and how many, is the caller's business; [`Turn`] and [`Credit`] say
//! what is fair.

mod meter;
mod turns;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{BitRate, Counted, Judgement, Moment, RuleId, VmIndex};

use meter::Meter;
pub(crate) use turns::turns;
pub use turns::{Credit, FRAME_COST_BYTES, QUANTUM_BYTES, Turn};

/// Most meters of one direction of a flow; the outermost count.
const METERS_MAX: usize = 8;

/// A meter in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterRecord {
    /// The rule, machine or service whose limit it is.
    pub name: RuleId,
    /// Whether it counts answers.
    pub answers: bool,
    /// What it lets through.
    pub limit: BitRate,
    /// What it has let through lately: over a second or so.
    pub bits_per_second: u64,
    /// Frames counted.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that had to wait.
    pub held_frames: u64,
    /// For how long, together.
    pub held: Duration,
    /// For how long at most.
    pub held_max: Duration,
}

/// The switch is driven by one thread at a time, so nobody ever waits for the lock.
type Shared = Arc<Mutex<Meter>>;

/// All meters, by whose they are and whether they count answers.
#[derive(Debug, Default)]
pub(crate) struct Meters(HashMap<(RuleId, bool), Shared>);

/// The meters of a flow.
#[derive(Debug, Default)]
pub(crate) struct FlowMeters {
    initiator: Vec<Shared>,
    responder: Vec<Shared>,
}

impl Meters {
    /// The meters of a flow between machines that was judged so.
    pub(crate) fn of_flow(&mut self, judgement: &Judgement, ends: [Option<VmIndex>; 2]) -> FlowMeters {
        let mut meters = FlowMeters::default();
        for insertion in &judgement.inserted {
            let Some((limit, counted)) = insertion.limit else { continue };
            let mut add = |to: &mut Vec<Shared>, answers| {
                let name = (insertion.rule.clone(), answers);
                let meter = self.0.entry(name).or_insert_with(|| Arc::new(Mutex::new(Meter::new(limit))));
                locked(meter).set_limit(limit);
                if to.len() < METERS_MAX {
                    to.push(Arc::clone(meter));
                }
            };
            let sends = |end: Option<VmIndex>| match counted {
                Counted::From(vm) => end == Some(vm),
                Counted::EachWay => true,
            };
            if sends(ends[0]) {
                add(&mut meters.initiator, false);
            }
            if sends(ends[1]) {
                add(&mut meters.responder, counted == Counted::EachWay);
            }
        }
        meters
    }

    /// Forgets those that no flow knows.
    pub(crate) fn tidy(&mut self) {
        self.0.retain(|_, meter| Arc::strong_count(meter) > 1);
    }

    /// All of them in numbers, by name.
    pub(crate) fn records(&self, now: Moment) -> Vec<MeterRecord> {
        let record = |((name, answers), meter): (&(RuleId, bool), &Shared)| {
            locked(meter).record(name.clone(), *answers, now)
        };
        let mut records: Vec<_> = self.0.iter().map(record).collect();
        records.sort_by(|a, b| (&a.name, a.answers).cmp(&(&b.name, b.answers)));
        records
    }
}

impl FlowMeters {
    /// When a frame may leave, which is counted as leaving then.
    pub(crate) fn departure(&self, from_initiator: bool, now: Moment, len_bytes: usize) -> Moment {
        let meters = if from_initiator { &self.initiator } else { &self.responder };
        meters.iter().fold(now, |latest, meter| latest.max(locked(meter).departure(now, len_bytes)))
    }
}

fn locked(meter: &Shared) -> std::sync::MutexGuard<'_, Meter> {
    meter.lock().unwrap_or_else(PoisonError::into_inner)
}
