// SPDX-License-Identifier: Apache-2.0
//! A bounded ring of flow events that adds up what it cannot hold.
//!
//! While the ring is full, events that differ in nothing but the initiator's port and in what they counted
//! are merged into one that says of how many flows it tells; it follows once there is room for all of them. Only when
//! there are more different ones than [`MERGED_MAX`] are flows lost, and each of them is counted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Sender, TrySendError};
use model::{Generation, Protocol, RuleId};
use vswitch::{FlowChange, FlowEnd, FlowEvent, FlowState, PortId};

/// Events of different kinds that wait, merged, for room in the ring.
pub const MERGED_MAX: usize = 1024;

/// The sending end of a ring.
#[derive(Debug)]
pub struct Funnel {
    ring: Sender<FlowEvent>,
    merged: HashMap<Kind, FlowEvent>,
    counts: Arc<FunnelCounts>,
}

/// What became of flows, in totals.
#[derive(Debug, Default)]
pub struct FunnelCounts {
    /// Flows told of together with others.
    pub merged: AtomicU64,
    /// Flows that nobody was told of.
    pub lost: AtomicU64,
    /// Spans of flows among either: what is added up has none.
    pub spans_lost: AtomicU64,
}

/// What events that are merged have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Kind {
    change: FlowChange,
    state: FlowState,
    ends: [(PortId, Option<String>, Option<u32>); 2],
    addresses: [IpAddr; 2],
    destination_port: u16,
    protocol: Protocol,
    decided_by: Option<RuleId>,
    generation: Generation,
}

impl Funnel {
    /// The sending end of `ring`.
    pub fn new(ring: Sender<FlowEvent>) -> Self {
        Self { ring, merged: HashMap::new(), counts: Arc::default() }
    }

    /// What became of flows so far.
    pub fn counts(&self) -> Arc<FunnelCounts> {
        Arc::clone(&self.counts)
    }

    /// Passes an event on, now or later.
    pub fn offer(&mut self, event: FlowEvent) {
        self.drain();
        let sent =
            if self.merged.is_empty() { self.ring.try_send(event) } else { Err(TrySendError::Full(event)) };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(event)) => self.merge(event),
            Err(TrySendError::Disconnected(event)) => self.lose(&event),
        }
    }

    /// Passes on what waits, once there is room for all of it: one by one it would be in vain, for each would
    /// fill the ring again.
    pub fn drain(&mut self) {
        if self.merged.is_empty() {
            return;
        }
        let room = self.ring.capacity().map_or(usize::MAX, |capacity| capacity - self.ring.len());
        if room < self.merged.len() {
            return;
        }
        for event in std::mem::take(&mut self.merged).into_values() {
            if let Err(TrySendError::Full(event) | TrySendError::Disconnected(event)) =
                self.ring.try_send(event)
            {
                self.lose(&event);
            }
        }
    }

    fn merge(&mut self, mut event: FlowEvent) {
        self.lose_span(&event);
        event.record.trace = None;
        event.record.leave_untold();
        let kind = Kind::of(&event);
        if let Some(known) = self.merged.get_mut(&kind) {
            self.counts.merged.fetch_add(event.flows, Ordering::Relaxed);
            add(known, &event);
        } else if self.merged.len() < MERGED_MAX {
            self.merged.insert(kind, event);
        } else {
            self.lose(&event);
        }
    }

    fn lose(&self, event: &FlowEvent) {
        self.counts.lost.fetch_add(event.flows, Ordering::Relaxed);
        self.lose_span(event);
    }

    fn lose_span(&self, event: &FlowEvent) {
        self.counts.spans_lost.fetch_add(u64::from(event.tells_span()), Ordering::Relaxed);
    }
}

impl Kind {
    fn of(event: &FlowEvent) -> Self {
        let record = &event.record;
        let end = |end: &FlowEnd| {
            let attribution = end.attribution.as_deref();
            let exe = attribution.and_then(|is| is.process.as_ref()?.exe.clone());
            (end.port, exe, attribution.and_then(model::Attribution::uid))
        };
        Self {
            change: event.change,
            state: record.state,
            ends: [end(&record.initiator), end(&record.responder)],
            addresses: [record.tuple.source, record.tuple.destination],
            destination_port: record.tuple.destination_port,
            protocol: record.tuple.protocol,
            decided_by: record.judgement.as_ref().map(|judgement| judgement.decided_by.clone()),
            generation: record.generation,
        }
    }
}

/// Adds up two events of a kind. What differs between them is left out: the initiator's port is zero then, and no
/// round-trip time is told.
fn add(sum: &mut FlowEvent, event: &FlowEvent) {
    sum.flows += event.flows;
    sum.at = sum.at.max(event.at);
    let (record, other) = (&mut sum.record, &event.record);
    record.tuple.source_port = 0;
    record.rtt = None;
    record.opened = record.opened.min(other.opened);
    record.last_seen = record.last_seen.max(other.last_seen);
    for (end, other) in [(&mut record.initiator, &other.initiator), (&mut record.responder, &other.responder)]
    {
        end.sent_frames += other.sent_frames;
        end.sent_bytes += other.sent_bytes;
        end.sent_flags = end.sent_flags | other.sent_flags;
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::flowlog::tests::event;

    #[test]
    fn what_does_not_fit_is_added_up_and_follows() {
        let (ring, events) = bounded(4);
        let mut funnel = Funnel::new(ring);
        for source_port in 1..=100 {
            let mut event = event(source_port);
            event.record.initiator.sent_bytes = 10;
            funnel.offer(event);
        }
        let first: Vec<FlowEvent> = events.try_iter().collect();
        assert_eq!(first.iter().map(|event| event.flows).collect::<Vec<_>>(), [1; 4]);
        funnel.drain();
        let rest = events.try_recv().unwrap();
        assert_eq!(
            (rest.flows, rest.record.initiator.sent_bytes, rest.record.tuple.source_port),
            (96, 960, 0)
        );
        assert!(events.try_recv().is_err());
        let counts = funnel.counts();
        assert_eq!((counts.merged.load(Ordering::Relaxed), counts.lost.load(Ordering::Relaxed)), (95, 0));
    }

    #[test]
    fn every_flow_is_told_of_or_counted_as_lost() {
        let (ring, events) = bounded(MERGED_MAX);
        let mut funnel = Funnel::new(ring);
        let offered = 4 * MERGED_MAX;
        for number in 0..offered {
            let mut event = event(1);
            event.record.tuple.destination_port = number as u16;
            funnel.offer(event);
        }
        let mut told: u64 = events.try_iter().map(|event| event.flows).sum();
        funnel.drain();
        told += events.try_iter().map(|event| event.flows).sum::<u64>();
        let lost = funnel.counts().lost.load(Ordering::Relaxed);
        assert_eq!((told, lost), (2 * MERGED_MAX as u64, offered as u64 - 2 * MERGED_MAX as u64));
    }
}
