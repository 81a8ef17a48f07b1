// SPDX-License-Identifier: Apache-2.0
//! What happens to flows without a frame: expiry, a change of policy, the loss of a card.

use model::{Action, Moment};
use packet::emit::{Link, Segment};
use packet::{TcpFlags, emit};

use crate::case::Case;
use crate::key::FlowKey;
use crate::ports::Ports;
use crate::stage::judged;
use crate::table::millisecond;
use crate::tcp::Progress;
use crate::{FlowChange, FlowSlots, FlowState, PortId, Switch, Told};

/// What becomes of a flow that was judged again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conclusion {
    /// It is allowed.
    GoesOn,
    /// It is denied, and its slots remember that.
    Reset,
    /// It is denied, and forgotten.
    Gone,
}

impl<S: FlowSlots> Switch<S> {
    /// Looks at up to `flows_max` flows, going on where the last call stopped, or at all if there are no
    /// more: ends those that have been idle for too long, tells of those that nobody was told of for long, and judges
    /// those again that an older snapshot judged, unless an end must be attributed first; those wait for their next frame.
    pub fn tick(&mut self, now: Moment, flows_max: usize) {
        self.now = now;
        self.look_after_dns();
        self.look_after_checks();
        let flows = self.table.len();
        if flows_max >= flows {
            self.cursor = 0;
        }
        for _ in 0..flows_max.min(flows) {
            if self.cursor >= self.table.len() {
                self.cursor = 0;
            }
            // A removal puts another flow in this position, which is looked at next.
            if self.cursor < self.table.len() && self.look_after(self.cursor) {
                self.cursor += 1;
            }
        }
    }

    /// Whether the flow is still there.
    fn look_after(&mut self, position: usize) -> bool {
        let index = self.table.flow(position).initiator as usize;
        if self.is_expired(index, millisecond(self.now)) {
            self.end_flow(position, FlowChange::Closed);
            return false;
        }
        self.tell_of_ongoing(position);
        let state = self.table.state(position);
        let left = self.table.flow(position).left_in_epoch == Some(self.epoch);
        if self.table.slot(index).epoch == self.epoch || left || state == FlowState::Reset {
            return true;
        }
        let Some(case) = self.known_case(position).filter(|_| state != FlowState::Refused) else {
            return self.strand(position) == Conclusion::Reset;
        };
        if case.missing() != model::Needs::default() {
            self.table.flow_mut(position).left_in_epoch = Some(self.epoch);
            return true;
        }
        self.conclude(position, case) != Conclusion::Gone
    }

    /// Tells of a flow that goes on, if nobody was told of it for long and it has moved something since. With no room for
    /// another event it is told of the next time.
    fn tell_of_ongoing(&mut self, position: usize) {
        let flow = self.table.flow(position);
        let told_at = flow.told.as_ref().map_or(flow.opened, |told| told.at);
        let is_over = matches!(self.table.state(position), FlowState::Reset | FlowState::Refused);
        if self.now.since(told_at) < self.config.ongoing_told_every || is_over || !self.outbox.takes_event() {
            return;
        }
        let counted = |index: u32| {
            let (frames, bytes, _) = self.table.counted(index);
            (frames, bytes)
        };
        let sent = [counted(flow.initiator), flow.responder.map_or((0, 0), counted)];
        // A silent flow comes by here with every sweep.
        if flow.told.as_ref().map_or([(0, 0); 2], |told| told.sent) == sent {
            return;
        }
        let record = self.record(position);
        self.report(FlowChange::Ongoing, record);
        self.table.flow_mut(position).told = Some(Box::new(Told { at: self.now, sent }));
    }

    /// The case of a flow that is in the table, with what was found out about it.
    pub(crate) fn known_case(&self, position: usize) -> Option<Case> {
        let flow = self.table.flow(position);
        let mut case = self.case(&self.table.keys(position))?;
        case.source_is.clone_from(&flow.source);
        case.destination_is.clone_from(&flow.destination);
        case.spoken = flow.spoken;
        // A flow that is open goes on when a name is not known any more, if the rule is there still.
        let known = std::mem::take(&mut case.names);
        case.names.clone_from(&flow.names);
        case.names.extend(known.into_iter().filter(|name| !flow.names.contains(name)));
        Some(case)
    }

    /// Judges a flow by the current snapshot and ends it if it is now denied.
    pub(crate) fn conclude(&mut self, position: usize, case: Case) -> Conclusion {
        let judgement = self.judgements.share(judged(&case));
        self.compile_stages(position, &judgement);
        let action = judgement.action;
        let generation = self.snapshot.as_ref().map_or(model::Generation::default(), |s| s.generation);
        let flow = self.table.flow_mut(position);
        flow.source = case.source_is;
        flow.destination = case.destination_is;
        flow.names = case.names;
        flow.judgement = Some(judgement);
        flow.generation = generation;
        self.table.set_epoch(position, self.epoch);
        match action {
            Action::Allow => Conclusion::GoesOn,
            Action::Deny => self.reset_flow(position),
        }
    }

    /// Ends a flow that would not go where it goes if it were opened now. What is open is reset at both ends, since
    /// neither may ever hear of the other again; anything else is forgotten, and its next frame opens a flow.
    pub(crate) fn strand(&mut self, position: usize) -> Conclusion {
        let is_tcp = self.table.keys(position).0.protocol() == model::Protocol::Tcp;
        if is_tcp && !matches!(self.table.state(position), FlowState::SynSent | FlowState::Refused) {
            return self.reset_flow(position);
        }
        self.end_flow(position, FlowChange::Closed);
        Conclusion::Gone
    }

    /// Ends a flow by policy. Both ends of a connection get a reset, and its slots stay for a while to
    /// answer late segments. A connection that is over anyway is only forgotten.
    pub(crate) fn reset_flow(&mut self, position: usize) -> Conclusion {
        if self.table.state(position).is_over() {
            self.end_flow(position, FlowChange::Closed);
            return Conclusion::Gone;
        }
        self.counters.flows_reset += 1;
        let record = self.record(position);
        self.report(FlowChange::Reset, record);
        let (key, answers) = self.table.keys(position);
        if key.protocol() == model::Protocol::Tcp {
            let (initiator, responder) = self.table.progress(position);
            self.send_resets(&answers, key.ingress(), (initiator, responder));
            self.send_resets(&key, answers.ingress(), (responder, initiator));
            self.change_state(position, FlowState::Reset);
            self.table.touch(position, millisecond(self.now));
            Conclusion::Reset
        } else {
            // The next datagram is judged, and refused, as the first of a new flow. The end was reported.
            self.change_state(position, FlowState::Refused);
            self.forget_flow(position);
            Conclusion::Gone
        }
    }

    /// Resets the end that sends by `key` in the name of its peer at `peer_port`. It accepts only its next
    /// expected sequence number (RFC 5961 section 3.2), which is the peer's last unless a frame was lost, when
    /// it is what the end has acknowledged; if the two differ, both are sent.
    fn send_resets(&mut self, key: &FlowKey, peer_port: PortId, (peer, own): (Progress, Progress)) {
        let port = key.ingress();
        let Some(card) = self.ports.port(port) else { return };
        let (addresses, (source_port, destination_port)) = key.answered();
        let peer_mac = self.ports.port(peer_port).map(|peer| peer.mac);
        let near = peer_mac.filter(|_| card.is_on_link(addresses.source()));
        let link = Link { source: near.unwrap_or(self.config.gateway_mac), destination: card.mac };
        let segment = Segment {
            source_port,
            destination_port,
            sequence: peer.sequence_end,
            acknowledgment: own.sequence_end,
            flags: TcpFlags::RST | TcpFlags::ACK,
        };
        self.emit(port, emit::tcp(link, addresses, segment));
        if let Some(sequence) = own.acknowledged().filter(|expected| *expected != peer.sequence_end) {
            let segment = Segment { sequence, ..segment };
            self.emit(port, emit::tcp(link, addresses, segment));
        }
    }

    /// Ends the flows whose card is not in `ports` any more, or whose port now means another card. Before
    /// the first snapshot there are only adopted flows, whose cards the caller vouches for.
    pub(crate) fn end_flows_without_card(&mut self, ports: &Ports, first: bool) {
        let gone = |id: PortId| match first {
            true => ports.port(id).is_none(),
            false => !self.ports.same_card(ports, id),
        };
        let mut ended = Vec::new();
        for position in 0..self.table.len() {
            let slot = self.table.slot(self.table.flow(position).initiator as usize);
            if gone(slot.key.ingress()) || gone(slot.output()) {
                ended.push(position);
            }
        }
        // From the last, so that a removal never moves a flow that is still to be removed.
        for position in ended.into_iter().rev() {
            self.end_flow(position, FlowChange::Closed);
        }
    }

    /// Counts adopted flows towards their openers and starts their clocks.
    pub(crate) fn welcome_adopted(&mut self) {
        for position in 0..self.table.len() {
            self.table.touch(position, millisecond(self.now));
            self.table.flow_mut(position).opened = self.now;
            self.charge(position, self.table.state(position), u32::saturating_add);
        }
    }
}
