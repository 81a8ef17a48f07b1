// SPDX-License-Identifier: Apache-2.0
//! Quality of service: what may pass when, and whose turn it is.
//!
//! **Limits.** A limit is a [`meter::Meter`], which gives each frame the time at which it may leave. A frame whose time has
//! not come is not dropped: [`crate::Verdict::Hold`] says when, and the caller keeps it, best where it is, so that its
//! sender is slowed down. A flow knows the meters of each of its directions; rules, its ends' machines and the service that
//! was called have set them. Meters live as long as a flow or the newest policy knows them. Where a rule or a service gives
//! flows a *part*, they are a class of their own at each of their meters, and classes share what passes.
//!
//! **Turns.** Which port's frames are taken up next, and how many, is the caller's business; [`Turn`] and [`Credit`] say
//! what is fair.

mod gauge;
mod meter;
mod turns;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{BitRate, Counted, Judgement, Moment, Part, RuleId, VmIndex};

use meter::{Meter, Ticket};
pub(crate) use turns::turns;
pub use turns::{Credit, FRAME_COST_BYTES, QUANTUM_BYTES, Turn};

const SECOND_NS: u64 = 1_000_000_000;

/// Most meters of one direction of a flow; the outermost count.
const METERS_MAX: usize = 8;

/// Most frames of a flow and way that wait and may be told another time; callers let one wait, and pieces of it.
/// Further ones are told a time for good.
const WAITING_MAX: usize = 8;

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
    /// The classes of flows that share it; none if all are of one.
    pub classes: Vec<ClassRecord>,
}

/// A class of flows of a meter in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassRecord {
    /// The rule or service whose flows they are; empty: flows without a class.
    pub name: RuleId,
    /// Their part.
    pub part: Part,
    /// What has passed of them lately: over a second or so.
    pub bits_per_second: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Frames of them that had to wait.
    pub held_frames: u64,
}

/// The switch is driven by one thread at a time, so nobody ever waits for the lock.
type Shared = Arc<Mutex<Meter>>;

/// All meters, by whose they are and whether they count answers.
#[derive(Debug, Default)]
pub(crate) struct Meters(HashMap<(RuleId, bool), Shared>);

/// The meters of a flow.
#[derive(Debug, Default)]
pub(crate) struct FlowMeters {
    initiator: Vec<FlowMeter>,
    responder: Vec<FlowMeter>,
    /// Frames that wait, from the responder and from the initiator.
    waiting: [RefCell<Vec<Waiting>>; 2],
}

/// A meter as a flow knows it.
#[derive(Debug)]
struct FlowMeter {
    meter: Shared,
    /// The flow's class there, and what keeps that.
    class: usize,
    _kept: Option<Arc<RuleId>>,
}

/// A frame that waits.
#[derive(Debug)]
struct Waiting {
    /// When it is to ask again.
    told: Moment,
    entered: Moment,
    /// What it has from each meter, in their order.
    tickets: [Ticket; METERS_MAX],
}

impl Meters {
    /// The meters of a flow between machines that was judged so.
    pub(crate) fn of_flow(&mut self, judgement: &Judgement, ends: [Option<VmIndex>; 2]) -> FlowMeters {
        let mut meters = FlowMeters::default();
        // The outermost rule that gives such flows a part.
        let class = judgement.inserted.iter().find_map(|insertion| Some((&insertion.rule, insertion.part?)));
        for insertion in &judgement.inserted {
            let Some((limit, counted)) = insertion.limit else { continue };
            let mut add = |to: &mut Vec<FlowMeter>, answers| {
                let name = (insertion.rule.clone(), answers);
                let meter = self.0.entry(name).or_insert_with(|| Arc::new(Mutex::new(Meter::new(limit))));
                let mut locked = locked(meter);
                locked.set_limit(limit);
                if to.len() < METERS_MAX {
                    let (class, kept) = class.map(|(name, part)| locked.class(name, part)).unzip();
                    let (meter, class) = (Arc::clone(meter), class.unwrap_or_default());
                    to.push(FlowMeter { meter, class, _kept: kept });
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
    /// When a frame may leave, if that is now, or is to ask again. `told` is what it was told last; one that was not told
    /// anything comes in for the first time. With `once` the first answer is the last.
    pub(crate) fn ask(
        &self,
        (from_initiator, once): (bool, bool),
        now: Moment,
        told: Option<Moment>,
        len_bytes: usize,
    ) -> Moment {
        let meters = if from_initiator { &self.initiator } else { &self.responder };
        let mut waiting = self.waiting[usize::from(from_initiator)].borrow_mut();
        let mut frame = match told {
            None => Waiting::enter(meters, now, len_bytes),
            Some(told) => match waiting.iter().position(|frame| frame.told == told) {
                Some(place) => waiting.swap_remove(place),
                // It was told for good, has passed here already, or came in when the flow had other meters.
                None => return now,
            },
        };
        let due = meters
            .iter()
            .zip(frame.tickets)
            .fold(now, |latest, (own, ticket)| latest.max(locked(&own.meter).due(now, ticket)));
        if due > now && !once && waiting.len() < WAITING_MAX {
            frame.told = due;
            waiting.push(frame);
            return due;
        }
        for own in meters {
            locked(&own.meter).count(own.class, due, due.since(frame.entered), len_bytes);
        }
        due
    }
}

impl Waiting {
    fn enter(meters: &[FlowMeter], now: Moment, len_bytes: usize) -> Self {
        let mut tickets = [Ticket::default(); METERS_MAX];
        for (ticket, own) in tickets.iter_mut().zip(meters) {
            *ticket = locked(&own.meter).enter(now, own.class, len_bytes);
        }
        Self { told: now, entered: now, tickets }
    }
}

fn locked(meter: &Shared) -> std::sync::MutexGuard<'_, Meter> {
    meter.lock().unwrap_or_else(PoisonError::into_inner)
}
