// SPDX-License-Identifier: Apache-2.0
//! The switch: what it has at hand, and what it tells.

use std::net::SocketAddr;
use std::sync::Arc;

use model::{Moment, NicRef, Snapshot};

use crate::checks::Checks;
use crate::config::IdleLimits;
use crate::dns::Dns;
use crate::judgements::Judgements;
use crate::outbox::Outbox;
use crate::ports::{PortState, Ports};
use crate::qos::Meters;
use crate::services::Balancers;
use crate::table::{FlowTable, millisecond};
use crate::{
    Counters, Emission, FlowChange, FlowEnd, FlowEvent, FlowRecord, FlowSlot, FlowSlots, MeterRecord, PortId,
    SwitchConfig, Turn, Uplink,
};

/// A switch for the machines of one host.
///
/// It is driven by one thread: offer frames to [`Switch::process`], call [`Switch::tick`] a few hundred times
/// a second, and drain [`Switch::emissions`] and [`Switch::events`] after either.
pub struct Switch<S = Vec<FlowSlot>> {
    pub(crate) config: SwitchConfig,
    pub(crate) idle_limits: IdleLimits,
    pub(crate) table: FlowTable<S>,
    pub(crate) ports: Ports,
    pub(crate) states: Vec<PortState>,
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    /// Names the snapshot within this process; see [`FlowSlot::epoch`].
    pub(crate) epoch: u8,
    pub(crate) judgements: Judgements,
    pub(crate) balancers: Balancers,
    pub(crate) checks: Checks,
    pub(crate) meters: Meters,
    pub(crate) outbox: Outbox,
    /// Whether somebody wants to know of every flow that opens.
    pub(crate) tells_openings: bool,
    pub(crate) dns: Dns,
    pub(crate) counters: Counters,
    pub(crate) now: Moment,
    /// The next flow that a sweep looks at.
    pub(crate) cursor: usize,
}

impl<S: FlowSlots> Switch<S> {
    /// A switch without ports. Flows that a predecessor left intact in `slots` are taken over; everything
    /// else in there is wiped. The number of slots is rounded down to a power of two, and a flow takes two.
    ///
    /// # Panics
    /// When there are fewer than [`crate::SLOTS_MIN`] slots.
    pub fn new(config: SwitchConfig, slots: S) -> Self {
        let (table, discarded) = FlowTable::adopt(slots, config.hash_seed);
        let mut counters = Counters::default();
        counters.flows_adopted = table.len() as u64;
        counters.slots_discarded = discarded;
        Self {
            idle_limits: IdleLimits::new(&config.timeouts),
            config,
            table,
            ports: Ports::default(),
            states: Vec::new(),
            snapshot: None,
            epoch: 0,
            judgements: Judgements::default(),
            balancers: Balancers::default(),
            checks: Checks::default(),
            meters: Meters::default(),
            outbox: Outbox::default(),
            tells_openings: true,
            dns: Dns::default(),
            counters,
            now: Moment::default(),
            cursor: 0,
        }
    }

    /// Puts a snapshot in force, at once for every frame that follows. `ports` numbers the cards; those that
    /// the snapshot does not know are left out. `uplinks` are the ports that lead outside. Flows of cards that are gone end here; others are judged
    /// again on their next frame or by the next sweeps, whichever comes first.
    pub fn install(
        &mut self,
        now: Moment,
        snapshot: Arc<Snapshot>,
        ports: &[(PortId, NicRef)],
        uplinks: &[Uplink],
    ) {
        self.now = now;
        let ports = Ports::new(&snapshot, ports, uplinks, self.config.capacity);
        self.meters.tidy();
        let first = self.snapshot.is_none();
        self.end_flows_without_card(&ports, first);
        self.states.resize(ports.len().max(self.states.len()), PortState::default());
        self.forget_dns_without_card(&ports);
        self.dns.keep_tenants(&snapshot);
        self.ports = ports;
        self.balancers.update(now, &snapshot, &self.ports);
        self.snapshot = Some(snapshot);
        self.judgements = Judgements::default();
        self.update_checks();
        if first {
            self.welcome_adopted();
        }
        self.epoch = self.epoch.checked_add(1).unwrap_or_else(|| {
            // So rare that forgetting all epochs is the simplest way to never confuse two of them.
            (0..self.table.len()).for_each(|position| self.table.set_epoch(position, 0));
            1
        });
    }

    /// Frames of the switch's own, oldest first.
    pub fn emissions(&mut self) -> impl Iterator<Item = Emission> + '_ {
        self.outbox.emissions.drain(..)
    }

    /// What happened to flows, oldest first.
    pub fn events(&mut self) -> impl Iterator<Item = FlowEvent> + '_ {
        self.outbox.events.drain(..)
    }

    /// Has [`FlowChange::Opened`] told of every flow, as at first, or of those alone that rules log: a flow is told of when
    /// it ends all the same.
    pub fn tell_openings(&mut self, all: bool) {
        self.tells_openings = all;
    }

    /// All flows, over ones that are still remembered included, in no order.
    pub fn flows(&self) -> impl Iterator<Item = FlowRecord> + '_ {
        (0..self.table.len()).map(|position| self.record(position))
    }

    /// Totals so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// All limits that flows have met lately, in numbers.
    pub fn meters(&self, now: Moment) -> Vec<MeterRecord> {
        self.meters.records(now)
    }

    /// What a port may do when its frames are taken up.
    pub fn turn(&self, port: PortId) -> Turn {
        self.ports.port(port).map_or_else(Turn::default, |port| port.turn)
    }

    /// Number of flows in the table.
    pub fn flow_count(&self) -> usize {
        self.table.len()
    }

    /// Queues a frame of the switch's own.
    pub(crate) fn emit(&mut self, port: PortId, frame: Vec<u8>) {
        if !self.outbox.emit(port, frame) {
            self.counters.emissions_lost += 1;
        }
    }

    /// Queues an event.
    pub(crate) fn report(&mut self, change: FlowChange, record: FlowRecord) {
        let mut event = FlowEvent { at: self.now, change, record, flows: 1, logged: false };
        self.tell_stages(&mut event);
        let span = event.tells_span();
        if !self.outbox.report(event) {
            self.counters.events_lost += 1;
            self.counters.traces_lost += u64::from(span);
        }
    }

    /// A flow as others are told of it.
    pub(crate) fn record(&self, position: usize) -> FlowRecord {
        let flow = self.table.flow(position);
        let slot = self.table.slot(flow.initiator as usize);
        let end = |port: PortId, index: Option<u32>, attribution: &Option<_>| {
            let (sent_frames, sent_bytes, sent_flags) =
                index.map_or_else(Default::default, |index| self.table.counted(index));
            let nic = self.ports.port(port).and_then(|port| port.nic().cloned());
            FlowEnd { port, nic, attribution: attribution.clone(), sent_frames, sent_bytes, sent_flags }
        };
        let idle_ns = u64::from(self.table.idle_ms(position, millisecond(self.now))) * 1_000_000;
        let delivered = self.table.keys(position).1.tuple();
        FlowRecord {
            tuple: slot.key.tuple(),
            delivered: SocketAddr::new(delivered.source, delivered.source_port),
            initiator: end(slot.key.ingress(), Some(flow.initiator), &flow.source),
            responder: end(slot.output(), flow.responder, &flow.destination),
            state: self.table.state(position),
            judgement: flow.judgement.clone(),
            generation: flow.generation,
            opened: flow.opened,
            last_seen: Moment(self.now.0.saturating_sub(idle_ns)),
            rtt: flow.rtt,
            choice: flow.choice,
            trace: flow.trace.as_deref().cloned(),
            told: flow.told.as_deref().copied(),
            spoken: flow.spoken,
        }
    }
}
