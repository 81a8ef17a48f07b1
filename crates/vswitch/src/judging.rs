// SPDX-License-Identifier: Apache-2.0
//! The way of a frame that opens a flow, or meets a flow judged by an older snapshot.

use std::net::SocketAddr;
use std::sync::Arc;

use model::{FiveTuple, Judgement, Needs, ServiceFlags};
use packet::emit::Unreachable;
use packet::{TcpFlags, Transport, emit};

use crate::arrival::Arrival;
use crate::case::Case;
use crate::flow::Flow;
use crate::key::FlowKey;
use crate::port::Port;
use crate::stage::Opening;
use crate::sweep::Conclusion;
use crate::table::{Room, millisecond};
use crate::{
    Ask, DropReason, FlowChange, FlowEnd, FlowRecord, FlowSlots, FlowState, How, PortId, Question, Switch,
    Verdict,
};

/// Most flows evicted to make room for one: each direction may need one.
const EVICTIONS_MAX: usize = 2;

/// What the first frame of every flow goes through.
const FIRST: ServiceFlags = ServiceFlags::union(&[ServiceFlags::DISCOVERY, ServiceFlags::AUTHORIZE]);

impl<S: FlowSlots> Switch<S> {
    /// The first frame of a flow, or one that takes the place of the flow at `replaced`.
    pub(crate) fn open_flow(
        &mut self,
        arrival: &mut Arrival<'_>,
        key: FlowKey,
        replaced: Option<usize>,
    ) -> Verdict {
        let Some(port) = self.ports.port(arrival.ingress).cloned() else {
            return Verdict::Drop(DropReason::NoPort);
        };
        if let Some(verdict) = self.serve_locally(arrival, &port) {
            return verdict;
        }
        if let Transport::Tcp(tcp) = arrival.ip.transport
            && !tcp.flags.opens()
        {
            self.reset_stray(arrival, &tcp);
            return Verdict::Drop(DropReason::NoConnection);
        }
        if key.is_echo_reply() {
            return Verdict::Drop(DropReason::NoConnection);
        }
        let (answers, served) = match self.route(arrival, &port, &key) {
            Ok(route) => route,
            Err(reason @ (DropReason::NoEndpoint | DropReason::NoBackend)) => {
                let _ = self.refuse_unknown(arrival);
                return Verdict::Drop(reason);
            }
            Err(reason) => return Verdict::Drop(reason),
        };
        let keys = (key, answers);
        let Some(mut case) = self.case(&keys) else { return Verdict::Drop(DropReason::NoEndpoint) };
        if let Some(reason) = self.over_quota(arrival, answers.ingress(), replaced) {
            return Verdict::Drop(reason);
        }
        match arrival.answers {
            Some(answers) => case.learn(answers),
            None => {
                let hows = (How::Frame, How::Listener);
                if let Some(question) = question(case.missing(), &keys, hows) {
                    return Verdict::Ask(question);
                }
            }
        }
        let balanced = if served.is_some() { ServiceFlags::BALANCE } else { ServiceFlags::NONE };
        arrival.frame.services = FIRST | balanced;
        let mut opening = Opening { keys, served, case, replaced, judgement: None };
        match self.open_stages(arrival, &mut opening) {
            Some(verdict) => verdict,
            None => self.admit(arrival, opening),
        }
    }

    /// Why the port may not open one more flow towards `output`, given that the flow at `replaced` ends.
    fn over_quota(
        &self,
        arrival: &Arrival<'_>,
        output: PortId,
        replaced: Option<usize>,
    ) -> Option<DropReason> {
        let opener = arrival.ingress;
        let freed = replaced.map(|index| self.table.flow_at(index)).filter(|position| {
            self.table.slot(self.table.flow(*position).initiator as usize).key.ingress() == opener
        });
        let freed = freed.map(|position| self.table.state(position));
        let without = |count: u32, counted: fn(FlowState) -> bool| {
            count.saturating_sub(freed.is_some_and(counted).into())
        };
        let (opener, target) = (&self.states[usize::from(opener.0)], &self.states[usize::from(output.0)]);
        let half_open = |count| without(count, FlowState::is_half_open);
        if without(opener.flows, |state| !state.is_over()) >= self.config.flows_per_port_max {
            Some(DropReason::PortQuota)
        } else if self.leads_outside(output) && opener.translated >= self.config.external_per_port_max {
            Some(DropReason::ExternalQuota)
        } else if !matches!(arrival.ip.transport, Transport::Tcp(_)) {
            None
        } else if half_open(opener.half_open) >= self.config.half_open_per_port_max {
            Some(DropReason::HalfOpenQuota)
        } else if half_open(target.half_open_towards) >= self.config.half_open_per_target_max {
            Some(DropReason::HalfOpenTarget)
        } else {
            None
        }
    }

    fn leads_outside(&self, id: PortId) -> bool {
        self.ports.port(id).is_some_and(|port| port.tenant().is_none())
    }

    /// Everything about a flow that policy may look at; `None` when an end is gone. Policy sees both ends as
    /// they are, whatever they appear as to each other.
    pub(crate) fn case(&self, (key, answers): &(FlowKey, FlowKey)) -> Option<Case> {
        if !self.course_stands(key, answers) {
            return None;
        }
        let source = self.ports.port(key.ingress())?;
        let destination = self.ports.port(answers.ingress())?;
        let (own, far) = (key.tuple(), answers.tuple());
        let tuple = FiveTuple { destination: far.source, destination_port: far.source_port, ..own };
        let snapshot = self.snapshot.as_ref()?;
        Some(Case {
            snapshot: Arc::clone(snapshot),
            tuple,
            via: snapshot.services.at(own.destination),
            source: Arc::clone(source),
            destination: Arc::clone(destination),
            source_is: None,
            destination_is: None,
            names: self.found_under(source, destination, tuple.destination),
            spoken: None,
        })
    }

    fn admit(
        &mut self,
        arrival: &mut Arrival<'_>,
        Opening { keys, served, case, replaced, judgement }: Opening,
    ) -> Verdict {
        let judgement = judgement.expect("every flow is authorized before it is admitted");
        if let Some(index) = replaced {
            self.end_flow(self.table.flow_at(index), FlowChange::Closed);
        }
        // A refused flow the other way would hold the key of our answers.
        if let Some(refused) = self.table.find(&keys.1) {
            self.end_flow(self.table.flow_at(refused as usize), FlowChange::Closed);
        }
        let Some(at) = self.make_room(&keys) else { return Verdict::Drop(DropReason::TableFull) };
        let state = match arrival.ip.transport {
            Transport::Tcp(_) => FlowState::SynSent,
            _ => FlowState::OneWay,
        };
        let position = self.enter(keys, (at.0, Some(at.1)), state, (&case, judgement));
        if let Some(served) = served {
            self.serve(position, served);
        }
        arrival.frame.services = self.table.flow(position).services;
        self.charge(position, state, u32::saturating_add);
        self.counters.flows_opened += 1;
        let verdict = self.pass(arrival, at.0 as usize, state, millisecond(self.now));
        if self.tells_openings || self.table.flow(position).services.has(ServiceFlags::LOG) {
            let record = self.record(position);
            self.report(FlowChange::Opened, record);
        }
        verdict
    }

    /// Enters a judged flow of the current snapshot into free slots.
    fn enter(
        &mut self,
        keys: (FlowKey, FlowKey),
        at: (u32, Option<u32>),
        state: FlowState,
        (case, judgement): (&Case, Arc<Judgement>),
    ) -> usize {
        let opened = self.now;
        let generation = case.snapshot.generation;
        let compiled = Arc::clone(&judgement);
        let position = self.table.insert(keys, at, state, |initiator, responder| Flow {
            initiator,
            responder,
            source: case.source_is.clone(),
            destination: case.destination_is.clone(),
            names: case.names.clone(),
            judgement: Some(judgement),
            generation,
            opened,
            left_in_epoch: None,
            served: None,
            choice: None,
            services: ServiceFlags::NONE,
            attends: ServiceFlags::NONE,
            spoken: None,
            talk: None,
            mirror: None,
            meters: None,
            trace: None,
            told: None,
            rtt: None,
        });
        self.table.set_epoch(position, self.epoch);
        self.compile_stages(position, &compiled);
        self.table.touch(position, millisecond(opened));
        position
    }

    /// Two free slots for both directions of a flow, if need be after evicting what matters least.
    fn make_room(&mut self, (key, answers): &(FlowKey, FlowKey)) -> Option<(u32, u32)> {
        for _ in 0..=EVICTIONS_MAX {
            let first = self.table.room(key, None, millisecond(self.now));
            let taken = match first {
                Room::Free(index) => Some(index),
                _ => None,
            };
            let second = self.table.room(answers, taken, millisecond(self.now));
            match (first, second) {
                (Room::Free(a), Room::Free(b)) => return Some((a, b)),
                (Room::Full, _) | (_, Room::Full) => return None,
                (Room::Evict(position), _) | (_, Room::Evict(position)) => self.evict(position),
            }
        }
        None
    }

    fn evict(&mut self, position: usize) {
        self.counters.flows_evicted += 1;
        self.end_flow(position, FlowChange::Closed);
    }

    /// Refuses a flow: TCP with a reset, anything else with an error, and remembers the latter for a while
    /// so that a stream of datagrams is not judged one by one.
    pub(crate) fn deny(
        &mut self,
        arrival: &mut Arrival<'_>,
        opening: &Opening,
        judgement: Arc<Judgement>,
    ) -> Verdict {
        self.counters.flows_denied += 1;
        let record = self.denied_record(arrival, opening, &judgement);
        let Opening { keys, case, .. } = opening;
        let rate = &mut self.states[usize::from(arrival.ingress.0)].denials;
        if rate.allows(self.now, self.config.denials_per_second_max) {
            self.report(FlowChange::Denied, record);
        } else {
            self.counters.events_lost += 1;
            self.counters.traces_lost += u64::from(record.trace.is_some());
        }
        if let Transport::Tcp(tcp) = arrival.ip.transport {
            self.reset_stray(arrival, &tcp);
            return Verdict::Drop(DropReason::Denied);
        }
        self.send_error(arrival, Unreachable::Prohibited);
        if let Room::Free(index) = self.table.room(&keys.0, None, millisecond(self.now)) {
            let keys = (keys.0, keys.0.mirrored(keys.1.ingress()));
            self.enter(keys, (index, None), FlowState::Refused, (case, judgement));
        }
        Verdict::Drop(DropReason::Denied)
    }

    fn denied_record(
        &self,
        arrival: &Arrival<'_>,
        Opening { keys: (key, answers), served, case, .. }: &Opening,
        judgement: &Arc<Judgement>,
    ) -> FlowRecord {
        let end = |port, card: &Port, attribution: &Option<_>, frames: u64| FlowEnd {
            port,
            nic: card.nic().cloned(),
            attribution: attribution.clone(),
            sent_frames: frames,
            sent_bytes: frames * arrival.frame.total_len_bytes as u64,
            sent_flags: if frames > 0 { arrival.tcp_flags() } else { TcpFlags::default() },
        };
        let delivered = answers.tuple();
        FlowRecord {
            tuple: key.tuple(),
            delivered: SocketAddr::new(delivered.source, delivered.source_port),
            initiator: end(arrival.ingress, &case.source, &case.source_is, 1),
            responder: end(answers.ingress(), &case.destination, &case.destination_is, 0),
            state: FlowState::Refused,
            judgement: Some(Arc::clone(judgement)),
            generation: case.snapshot.generation,
            opened: self.now,
            last_seen: self.now,
            rtt: None,
            choice: served.as_ref().map(|served| served.choice),
            trace: self.sampled(judgement, key, self.now),
            told: None,
            spoken: None,
        }
    }

    /// A packet to an address that nobody of the tenant has.
    pub(crate) fn refuse_unknown(&mut self, arrival: &mut Arrival<'_>) -> Verdict {
        match arrival.ip.transport {
            // Whoever scans from outside learns nothing.
            _ if self.leads_outside(arrival.ingress) => {}
            Transport::Tcp(tcp) => self.reset_stray(arrival, &tcp),
            _ => self.send_error(arrival, emit::Unreachable::Host),
        }
        Verdict::Drop(DropReason::NoEndpoint)
    }

    /// A frame of a flow that an older snapshot judged; `None` when the flow goes on.
    pub(crate) fn judge_again(
        &mut self,
        arrival: &mut Arrival<'_>,
        key: FlowKey,
        index: usize,
    ) -> Option<Verdict> {
        let position = self.table.flow_at(index);
        let state = self.table.state(position);
        if state == FlowState::Reset {
            return None;
        }
        if state == FlowState::Refused {
            self.end_flow(position, FlowChange::Closed);
            return Some(self.open_flow(arrival, key, None));
        }
        let Some(mut case) = self.known_case(position) else {
            return Some(match self.strand(position) {
                Conclusion::Reset => Verdict::Drop(DropReason::Reset),
                _ => self.open_flow(arrival, key, None),
            });
        };
        match arrival.answers {
            Some(answers) => case.learn(answers),
            None => {
                let hows = where_to_look(self.table.slot(index).is_initiator(), state);
                if let Some(question) = question(case.missing(), &self.table.keys(position), hows) {
                    return Some(Verdict::Ask(question));
                }
            }
        }
        if self.conclude(position, case) == Conclusion::GoesOn {
            return None;
        }
        if !matches!(arrival.ip.transport, Transport::Tcp(_)) {
            self.send_error(arrival, Unreachable::Prohibited);
        }
        Some(Verdict::Drop(DropReason::Denied))
    }
}

/// Where the ends of a known flow can be found, given whose frame this is.
fn where_to_look(from_initiator: bool, state: FlowState) -> (How, How) {
    match (from_initiator, state) {
        (false, _) => (How::Connection, How::Frame),
        (true, FlowState::SynSent | FlowState::OneWay | FlowState::TwoWay) => (How::Frame, How::Listener),
        (true, _) => (How::Frame, How::Connection),
    }
}

/// What to ask the caller; `None` when nothing is missing.
fn question(missing: Needs, (key, answers): &(FlowKey, FlowKey), hows: (How, How)) -> Option<Question> {
    let initiator = Ask { port: key.ingress(), how: hows.0, tuple: key.tuple() };
    let responder = Ask { port: answers.ingress(), how: hows.1, tuple: answers.tuple() };
    (missing != Needs::default()).then_some(Question {
        initiator: missing.source.then_some(initiator),
        responder: missing.destination.then_some(responder),
    })
}
