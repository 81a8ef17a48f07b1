// SPDX-License-Identifier: Apache-2.0
//! What the poll cores have done, in numbers.

use std::time::Duration;

use hdrhistogram::Histogram;
use vhost_port::PortCounters;
use vswitch::{Counters, MeterRecord, PortId};

/// Longest wait that is told apart from longer ones.
pub const WAIT_NS_MAX: u64 = 10_000_000_000;
/// Limits told of; more are left out.
pub const METERS_MAX: usize = 1024;

/// What the switch has done so far.
#[derive(Clone, Debug, Default)]
pub struct SwitchNumbers {
    /// Its counters.
    pub counters: Counters,
    /// Flows in the table.
    pub flows: usize,
    /// Its limits, at most [`METERS_MAX`].
    pub meters: Vec<MeterRecord>,
}

/// What a poll core has done so far.
#[derive(Clone, Debug, Default)]
pub struct CoreNumbers {
    /// Counters of each port that it serves.
    pub ports: Vec<(PortId, PortCounters)>,
    /// Rounds over the ports.
    pub rounds: u64,
    /// Rounds that found frames.
    pub busy_rounds: u64,
    /// Times the loop slept.
    pub sleeps: u64,
    /// Frames taken from guests and from the host.
    pub frames: u64,
    /// Frames for ports of other cores.
    pub handed_over: u64,
    /// Frames that were dropped because too many were on their way to another core.
    pub link_full: u64,
    /// Frames that the destination could not take.
    pub undelivered: u64,
    /// Frames dropped because their guest was still being attached to.
    pub not_ready: u64,
    /// Frames dropped because an answer was late.
    pub late: u64,
    /// How long frames waited for an answer, in nanoseconds; to three digits up to [`WAIT_NS_MAX`].
    pub waits: Option<Histogram<u64>>,
    /// How long finding an answer took of that.
    pub lookups: Option<Histogram<u64>>,
    /// How long interactive ports were not looked after while the core was awake, likewise.
    pub gaps: Option<Histogram<u64>>,
}

/// What all poll cores have done so far.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// The switch.
    pub switch: SwitchNumbers,
    /// Each core, in order; none for one that did not answer in time.
    pub cores: Vec<Option<CoreNumbers>>,
}

impl Numbers {
    /// The sum over all cores of one of their numbers.
    pub fn sum(&self, number: impl Fn(&CoreNumbers) -> u64) -> u64 {
        self.cores.iter().flatten().map(number).sum()
    }

    /// All cores' times of one kind.
    pub fn times(&self, of: impl Fn(&CoreNumbers) -> &Option<Histogram<u64>>) -> Histogram<u64> {
        self.cores.iter().flatten().filter_map(|core| of(core).as_ref()).fold(
            latencies(),
            |mut all, times| {
                // They are all of one shape.
                let _ = all.add(times);
                all
            },
        )
    }
}

/// Times in nanoseconds, to three digits up to [`WAIT_NS_MAX`].
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_max(WAIT_NS_MAX, 3).expect("a valid range")
}

/// Adds a time to others.
pub fn record(latencies: &mut Histogram<u64>, took: Duration) {
    latencies.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
}
