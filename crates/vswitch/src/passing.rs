// SPDX-License-Identifier: Apache-2.0
//! The way of a frame whose flow is known.

use model::{Moment, ServiceFlags};
use packet::emit::{Link, Segment, Unreachable};
use packet::{Addresses, Fragment, Network, Tcp, TcpFlags, Transport};
use packet::{edit, emit};

use crate::arrival::{Arrival, unreadable};
use crate::fragment;
use crate::key::FlowKey;
use crate::port::Port;
use crate::preview::{Reading, Whole};
use crate::table::{Home, millisecond};
use crate::{
    Answers, DropReason, FRAME_LEN_BYTES_MAX, FlowChange, FlowSlot, FlowSlots, FlowState, Frame, PortId,
    Preview, Switch, Verdict,
};

impl<S: FlowSlots> Switch<S> {
    /// Decides about a frame that came in at `ingress`. `answers` are those to an earlier
    /// [`Verdict::Ask`] about the same frame.
    ///
    /// # Examples
    /// See `examples/hit.rs`.
    pub fn process(
        &mut self,
        now: Moment,
        ingress: PortId,
        frame: &mut Frame,
        answers: Option<&Answers>,
    ) -> Verdict {
        let mut preview = Preview::default();
        preview.read(&self.table.places, ingress, frame);
        self.process_previewed(now, ingress, frame, &preview, answers)
    }

    /// As [`Switch::process`], with a preview of this very frame, unchanged since, at this port.
    pub fn process_previewed(
        &mut self,
        now: Moment,
        ingress: PortId,
        frame: &mut Frame,
        preview: &Preview,
        answers: Option<&Answers>,
    ) -> Verdict {
        self.now = now;
        (frame.services, frame.mirror) = (ServiceFlags::NONE, None);
        if answers.is_none()
            && let Some(output) = self.express(ingress, frame, preview)
        {
            return Verdict::Forward(output);
        }
        let verdict = self.decide_whole(ingress, frame, preview, answers);
        self.counters.note(&verdict, frame.total_len_bytes);
        verdict
    }

    /// Decides about any frame.
    pub(crate) fn decide_whole(
        &mut self,
        ingress: PortId,
        frame: &mut Frame,
        preview: &Preview,
        answers: Option<&Answers>,
    ) -> Verdict {
        let read;
        let whole = match &preview.reading {
            Reading::Whole(whole) => whole,
            Reading::Plain(_) => {
                read = Whole::read(frame);
                &read
            }
        };
        self.decide(ingress, frame, whole, preview.flow, answers)
    }

    fn decide(
        &mut self,
        ingress: PortId,
        frame: &mut Frame,
        whole: &Whole,
        flow: Option<(FlowKey, Home)>,
        answers: Option<&Answers>,
    ) -> Verdict {
        let Some(port) = self.ports.port(ingress) else { return Verdict::Drop(DropReason::NoPort) };
        if frame.total_len_bytes > FRAME_LEN_BYTES_MAX {
            return Verdict::Drop(DropReason::TooLong);
        }
        let packet = match &whole.packet {
            Ok(packet) => packet,
            Err(error) => return unreadable(*error, frame),
        };
        if !port.sends_as(packet.ethernet.source) {
            return Verdict::Drop(DropReason::SpoofedMac);
        }
        match &packet.network {
            Network::Arp(arp) => self.answer_arp(ingress, arp),
            Network::Other => Verdict::Drop(DropReason::EtherType),
            Network::Ip(ip) => {
                let Ok(vnet) = whole.vnet else { return Verdict::Drop(DropReason::BadOffload) };
                let ethernet = &packet.ethernet;
                self.decide_ip(&mut Arrival { ingress, frame, ethernet, ip, vnet, answers }, flow)
            }
        }
    }

    fn decide_ip(&mut self, arrival: &mut Arrival<'_>, flow: Option<(FlowKey, Home)>) -> Verdict {
        match arrival.ip.fragment {
            None => self.decide_packet(arrival, flow),
            Some(piece) if piece.offset_bytes == 0 => self.decide_first(arrival, flow, piece),
            Some(piece) => self.decide_later(arrival, piece),
        }
    }

    #[inline]
    fn decide_packet(&mut self, arrival: &mut Arrival<'_>, flow: Option<(FlowKey, Home)>) -> Verdict {
        let Some((key, home)) = flow else {
            return self.decide_message(arrival);
        };
        match self.table.find_from(home, &key) {
            Some(index) => {
                self.counters.hits += 1;
                self.continue_flow(arrival, key, index as usize)
            }
            None => {
                self.counters.misses += 1;
                self.open_flow(arrival, key, None)
            }
        }
    }

    /// The first piece of a packet, which carries its ports.
    fn decide_first(
        &mut self,
        arrival: &mut Arrival<'_>,
        flow: Option<(FlowKey, Home)>,
        piece: Fragment,
    ) -> Verdict {
        let Some((key, _)) = flow else { return Verdict::Drop(DropReason::Fragment) };
        if fragment::is_malformed(arrival.ip, piece) {
            return Verdict::Drop(DropReason::Malformed);
        }
        let verdict = self.decide_packet(arrival, flow);
        // A packet with a fragment header may well be whole (RFC 6946).
        // Its other pieces wait behind it if it does.
        if piece.more && matches!(verdict, Verdict::Forward(_) | Verdict::Hold(_)) {
            let fragments = &mut self.states[usize::from(arrival.ingress.0)].fragments;
            fragments.begin(self.now, arrival.ip, piece, key, self.config.fragmented_per_port_max);
        }
        verdict
    }

    /// A later piece of a packet, which follows the first.
    fn decide_later(&mut self, arrival: &mut Arrival<'_>, piece: Fragment) -> Verdict {
        let from = usize::from(arrival.ingress.0);
        let timeout = self.config.fragment_timeout;
        let followed = match self.states[from].fragments.find(self.now, arrival.ip, piece, timeout) {
            Ok(followed) => followed,
            Err(reason) => return Verdict::Drop(reason),
        };
        let Some(index) = self.table.find(&followed.flow).map(|index| index as usize) else {
            return Verdict::Drop(DropReason::FragmentUnknown);
        };
        if self.table.slot(index).epoch != self.epoch
            && let Some(verdict) = self.judge_again(arrival, followed.flow, index)
        {
            return verdict;
        }
        let slot = *self.table.slot(index);
        if matches!(slot.state(), None | Some(FlowState::Reset | FlowState::Refused)) {
            return Verdict::Drop(DropReason::Denied);
        }
        if slot.is_served()
            && let Some(verdict) = self.enter_stages(index, arrival)
        {
            return verdict;
        }
        if let Some(verdict) = self.rewrite(arrival, slot.output()) {
            return verdict;
        }
        self.treat(arrival, &slot, index);
        self.states[from].fragments.advance(followed, piece);
        if let Some(sequence_end) = followed.sequence_end {
            self.table.extend(index, sequence_end);
        }
        self.table.slot_mut(index).last_seen_ms = millisecond(self.now);
        self.table.count(index, arrival.frame.total_len_bytes, TcpFlags::default());
        Verdict::Forward(slot.output())
    }

    /// A frame whose flow is in the slot at `index`.
    fn continue_flow(&mut self, arrival: &mut Arrival<'_>, key: FlowKey, index: usize) -> Verdict {
        let now_ms = millisecond(self.now);
        let slot = *self.table.slot(index);
        let Some(state) = slot.state() else { return self.open_flow(arrival, key, None) };
        if slot.idle_ms(now_ms) > self.idle_limits.of(state) && self.is_expired(index, now_ms) {
            self.end_flow(self.table.flow_at(index), FlowChange::Closed);
            return self.open_flow(arrival, key, None);
        }
        if let Transport::Tcp(tcp) = &arrival.ip.transport
            && tcp.flags.opens()
            && !belongs(&slot, state, tcp)
        {
            return self.open_flow(arrival, key, Some(index));
        }
        if slot.is_translated() && self.is_unanswered(index, state, now_ms) {
            return self.open_flow(arrival, key, Some(index));
        }
        if slot.epoch != self.epoch
            && let Some(verdict) = self.judge_again(arrival, key, index)
        {
            return verdict;
        }
        match (state, &arrival.ip.transport) {
            (FlowState::Reset, Transport::Tcp(tcp)) => {
                let tcp = *tcp;
                self.reset_stray(arrival, &tcp);
                Verdict::Drop(DropReason::Reset)
            }
            (FlowState::Reset | FlowState::Refused, _) => {
                self.send_error(arrival, Unreachable::Prohibited);
                Verdict::Drop(DropReason::Denied)
            }
            _ => self.pass(arrival, index, state, now_ms),
        }
    }

    /// A frame of a flow that is allowed: tracks and forwards it.
    pub(crate) fn pass(
        &mut self,
        arrival: &mut Arrival<'_>,
        index: usize,
        state: FlowState,
        now_ms: u32,
    ) -> Verdict {
        let slot = self.table.slot(index);
        let output = slot.output();
        if slot.is_served()
            && let Some(verdict) = self.enter_stages(index, arrival)
        {
            return verdict;
        }
        let after = match self.track(arrival, index, state) {
            Ok(after) => after,
            Err(verdict) => return verdict,
        };
        if let Some(verdict) = self.rewrite(arrival, output) {
            return verdict;
        }
        let slot = self.table.slot_mut(index);
        slot.last_seen_ms = now_ms;
        if slot.is_treated() {
            let slot = *slot;
            self.treat(arrival, &slot, index);
        }
        self.table.count(index, arrival.frame.total_len_bytes, arrival.tcp_flags());
        if after != state {
            let position = self.table.flow_at(index);
            let answers = state == FlowState::SynSent && !self.table.slot(index).is_initiator();
            if answers && self.answered(position, after) {
                self.end_flow(position, FlowChange::Closed);
                return Verdict::Drop(DropReason::Redirected);
            }
            self.change_state(position, after);
        }
        Verdict::Forward(output)
    }

    /// The state of a flow after a packet of it; a verdict if the packet does not fit the flow.
    #[inline]
    fn track(&mut self, arrival: &Arrival<'_>, index: usize, state: FlowState) -> Result<FlowState, Verdict> {
        match &arrival.ip.transport {
            Transport::Tcp(tcp) => {
                let scale = match tcp.flags.has(TcpFlags::SYN) {
                    true => arrival.window_scale().map_err(|error| unreadable(error, arrival.frame))?,
                    false => None,
                };
                self.table.track(index, state, tcp, scale).map_err(Verdict::Drop)
            }
            _ if !self.table.slot(index).is_initiator() => Ok(FlowState::TwoWay),
            _ => Ok(state),
        }
    }

    /// Rewrites the frame for its way out of `output`; a verdict if it may not go there.
    pub(crate) fn rewrite(&mut self, arrival: &mut Arrival<'_>, output: PortId) -> Option<Verdict> {
        let Some(destination) = self.ports.port(output).map(|port| port.mac) else {
            return Some(Verdict::Drop(DropReason::NoEndpoint));
        };
        if arrival.ethernet.destination == self.config.gateway_mac {
            if arrival.ip.ttl <= 1 {
                self.send_error(arrival, Unreachable::TimeExceeded);
                return Some(Verdict::Drop(DropReason::TtlExpired));
            }
            edit::decrement_ttl(&mut arrival.frame.head, arrival.ip);
            edit::set_source(&mut arrival.frame.head, self.config.gateway_mac);
        }
        edit::set_destination(&mut arrival.frame.head, destination);
        arrival.frame.vnet = arrival.vnet;
        None
    }

    /// Gives a packet of a translated flow the addresses and ports it leaves with, and takes one of a flow with
    /// services through its stages.
    fn treat(&mut self, arrival: &mut Arrival<'_>, slot: &FlowSlot, index: usize) {
        if slot.is_served() {
            self.leave_stages(index, arrival);
        }
        if slot.is_translated() {
            let (addresses, ports) = self.table.slot(slot.partner()).key.answered();
            let partial = arrival.vnet.needs_checksum();
            edit::readdress(&mut arrival.frame.head, arrival.ip, partial, addresses, ports);
        }
    }

    /// Whether neither direction has been heard for as long as its state allows.
    pub(crate) fn is_expired(&self, index: usize, now_ms: u32) -> bool {
        let position = self.table.flow_at(index);
        let limit_ms = self.idle_limits.of(self.table.state(position));
        self.table.idle_ms(position, now_ms) > limit_ms
    }

    /// Sets a flow's state, and what its ports are charged for with it.
    pub(crate) fn change_state(&mut self, position: usize, state: FlowState) {
        let was = self.table.state(position);
        self.table.set_state(position, state);
        if (was, state) == (FlowState::SynReceived, FlowState::Established) {
            self.time_handshake(position);
        }
        self.turn_stages(position, state);
        if was.is_half_open() != state.is_half_open() || was.is_over() != state.is_over() {
            self.charge(position, was, u32::saturating_sub);
            self.charge(position, state, u32::saturating_add);
        }
        if state.is_over() {
            self.release(position);
        }
    }

    /// Notes how long a handshake took that is complete with this frame, unless a part of it was sent twice.
    fn time_handshake(&mut self, position: usize) {
        let flow = self.table.flow(position);
        let frames = |slot: Option<u32>| slot.map_or(0, |slot| self.table.counted(slot).0);
        if (frames(Some(flow.initiator)), frames(flow.responder)) == (2, 1) {
            let rtt = self.now.since(flow.opened);
            self.table.flow_mut(position).rtt = Some(rtt);
        }
    }

    /// Counts, or counts no longer, a flow in this state towards its ports.
    pub(crate) fn charge(&mut self, position: usize, state: FlowState, change: impl Fn(u32, u32) -> u32) {
        let slot = self.table.slot(self.table.flow(position).initiator as usize);
        let (opener, target, translated) = (slot.key.ingress(), slot.output(), slot.is_translated());
        let half_open = u32::from(state.is_half_open());
        if let Some(opener) = self.states.get_mut(usize::from(opener.0)) {
            opener.flows = change(opener.flows, u32::from(!state.is_over()));
            opener.half_open = change(opener.half_open, half_open);
            opener.translated = change(opener.translated, u32::from(translated && !state.is_over()));
        }
        if let Some(target) = self.states.get_mut(usize::from(target.0)) {
            target.half_open_towards = change(target.half_open_towards, half_open);
        }
    }

    /// Removes a flow and reports how it ended, unless that was reported before.
    pub(crate) fn end_flow(&mut self, position: usize, change: FlowChange) {
        let state = self.table.state(position);
        self.charge(position, state, u32::saturating_sub);
        self.release(position);
        if !matches!(state, FlowState::Reset | FlowState::Refused) {
            self.counters.flows_closed += u64::from(change == FlowChange::Closed);
            let record = self.record(position);
            self.report(change, record);
        }
        self.forget_flow(position);
    }

    /// Removes a flow without a word.
    pub(crate) fn forget_flow(&mut self, position: usize) {
        self.forget_stages(position);
        self.table.remove(position);
    }

    /// The port that has opened a flow.
    pub(crate) fn opener(&self, position: usize) -> PortId {
        self.table.slot(self.table.flow(position).initiator as usize).key.ingress()
    }

    /// Answers a segment that belongs to no connection with the reset its sender will accept (RFC 9293
    /// section 3.10.7.1). A reset is not answered.
    pub(crate) fn reset_stray(&mut self, arrival: &Arrival<'_>, tcp: &Tcp) {
        if tcp.flags.has(TcpFlags::RST) {
            return;
        }
        let (sequence, acknowledgment, flags) = if tcp.flags.has(TcpFlags::ACK) {
            (tcp.acknowledgment, 0, TcpFlags::RST)
        } else {
            (0, tcp.sequence_end(), TcpFlags::RST | TcpFlags::ACK)
        };
        let segment = Segment {
            source_port: tcp.destination_port,
            destination_port: tcp.source_port,
            sequence,
            acknowledgment,
            flags,
        };
        let link = Link { source: arrival.ethernet.destination, destination: arrival.ethernet.source };
        self.emit(arrival.ingress, emit::tcp(link, arrival.ip.addresses.reversed(), segment));
    }

    /// Tells the sender why its packet was not delivered, within its port's rate.
    pub(crate) fn send_error(&mut self, arrival: &Arrival<'_>, why: Unreachable) {
        let Some(port) = self.ports.port(arrival.ingress) else { return };
        let Some(state) = self.states.get_mut(usize::from(arrival.ingress.0)) else { return };
        if !state.errors.allows(self.now, self.config.errors_per_second_max) {
            return;
        }
        let addresses = error_addresses(port, arrival.ip.addresses);
        let link = Link { source: self.config.gateway_mac, destination: port.mac };
        let error = emit::unreachable(link, addresses, why, arrival.frame.parsable(), arrival.ip);
        self.emit(arrival.ingress, error);
    }
}

/// Whether an opening SYN belongs to this very flow: one sent once more, or one that crosses the initiator's
/// in a simultaneous open. Any other opens anew: its socket may belong to another process.
fn belongs(slot: &FlowSlot, state: FlowState, tcp: &Tcp) -> bool {
    let crosses = state == FlowState::SynSent && !slot.is_initiator();
    state.is_half_open() && (crosses || slot.progress().repeats_syn(tcp))
}

/// From the gateway, if there is one, else in the name of the destination.
fn error_addresses(port: &Port, offending: Addresses) -> Addresses {
    let reversed = offending.reversed();
    match (reversed, port.gateway_towards(offending.source())) {
        (Addresses::V4 { destination, .. }, Some(std::net::IpAddr::V4(source))) => {
            Addresses::V4 { source, destination }
        }
        (Addresses::V6 { destination, .. }, Some(std::net::IpAddr::V6(source))) => {
            Addresses::V6 { source, destination }
        }
        _ => reversed,
    }
}
