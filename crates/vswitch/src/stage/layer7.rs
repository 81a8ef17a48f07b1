// SPDX-License-Identifier: Apache-2.0
//! Layer 7: what is spoken is told by the first bytes of a connection, and is one of what rules name, or the connection ends.
//!
//! Of each connection the bytes of whichever end speaks first are collected, in the order of their numbers, until
//! [`detect`] has an answer: at most [`PREFIX_LEN_BYTES_MAX`]. Where rules only want to be told, nothing else is done, and
//! frames pass by from then on.
//!
//! Where rules name protocols, no other bytes may take the place of those that were judged by:
//!
//! - until there is an answer, only the next bytes pass: what comes out of turn, in IP fragments, with a SYN, or from the
//!   other end is dropped, and its sender sends it again;
//! - bytes that come again must be the same;
//! - both until the receiver has acknowledged them: a segment that it refused, for a wrong checksum say, told nothing.
//!   From then on frames pass by here, too.
//!
//! What can become none of the protocols that are named is refused with the segment that shows it: both ends are reset.
//!
//! Connections in the middle of which this begins (because a rule came later, or the daemon was restarted) are not told, and
//! go on. How many are not told yet is bounded by [`crate::SwitchConfig::undecided_per_port_max`].

use std::sync::Arc;

use model::{FlowQuery, Insertion, Judgement, Protocol, RuleId, ServiceFlags, Spoken, Unmet};
use packet::{Tcp, TcpFlags, Transport};

use super::{Opening, Stage};
use crate::layer7::{Detection, PREFIX_LEN_BYTES_MAX, detect};
use crate::arrival::Arrival;
use crate::talk::{Place, Talk};
use crate::tcp::Progress;
use crate::{DropReason, FlowSlots, FlowState, Switch, Verdict};

pub(crate) struct Layer7;

impl<S: FlowSlots> Stage<S> for Layer7 {
    const FLAG: ServiceFlags = ServiceFlags::LAYER7;
    const PER_FRAME: bool = true;

    fn unmet(query: &FlowQuery<'_>, spoken: Option<Spoken>, insertion: &Insertion) -> Option<Unmet> {
        let wanted = insertion.protocols?;
        match spoken {
            _ if query.tuple.protocol != Protocol::Tcp => Some(Unmet::Untold(wanted)),
            Some(Spoken::Known(spoken)) if wanted.has(spoken) => None,
            spoken => spoken.map(|spoken| Unmet::Speaks(spoken, wanted)),
        }
    }

    fn open(
        switch: &mut Switch<S>,
        arrival: &mut Arrival<'_>,
        opening: &mut Opening,
    ) -> Option<Verdict> {
        let Transport::Tcp(tcp) = arrival.ip.transport else { return None };
        let is_held_to_it = opening.judgement.as_ref().is_some_and(|judgement| judgement.names_protocols());
        if !is_held_to_it {
            None
        } else if tcp.payload_len_bytes > 0 {
            Some(Verdict::Drop(DropReason::ProtocolUntold))
        } else {
            let undecided = switch.states[usize::from(arrival.ingress.0)].undecided;
            let is_full = undecided >= switch.config.undecided_per_port_max;
            is_full.then_some(Verdict::Drop(DropReason::UndecidedQuota))
        }
    }

    fn judged(switch: &mut Switch<S>, position: usize, judgement: &Judgement) {
        let opener = usize::from(switch.opener(position).0);
        let flow = switch.table.flow(position);
        if flow.talk.is_some() {
            return;
        }
        let begins = switch.table.state(position).is_half_open() && flow.spoken.is_none();
        let state = &mut switch.states[opener];
        let has_room = state.undecided < switch.config.undecided_per_port_max;
        if begins && (has_room || judgement.names_protocols()) {
            state.undecided += 1;
            switch.table.flow_mut(position).talk = Some(Box::new(Talk::NEW));
            return;
        }
        switch.counters.protocols_untold += u64::from(begins);
        switch.table.release_frames(position, ServiceFlags::LAYER7);
    }

    fn forget(switch: &mut Switch<S>, position: usize) {
        let opener = usize::from(switch.opener(position).0);
        if switch.table.flow_mut(position).talk.take().is_some() {
            let state = &mut switch.states[opener];
            state.undecided = state.undecided.saturating_sub(1);
        }
    }

    fn enters(
        switch: &mut Switch<S>,
        (position, by_initiator): (usize, bool),
        arrival: &mut Arrival<'_>,
    ) -> Option<Verdict> {
        let next = switch.progress_of(position, by_initiator).sequence_end;
        let flow = switch.table.flow_mut(position);
        let judgement = flow.judgement.clone()?;
        let is_held_to_it = judgement.names_protocols();
        let refused = || is_held_to_it.then_some(Verdict::Drop(DropReason::ProtocolUntold));
        let talk = flow.talk.as_deref_mut()?;
        if arrival.ip.fragment.is_some() {
            return refused();
        }
        let Transport::Tcp(tcp) = &arrival.ip.transport else { return None };
        if !says(tcp) {
            return None;
        }
        let is_told = flow.spoken.is_some();
        match talk.by_initiator {
            None => talk.start = next,
            Some(first) if first == by_initiator => {}
            Some(_) if is_told => return None,
            Some(_) => return refused(),
        }
        let offset = match talk.place(tcp) {
            Place::Next(offset) if !tcp.flags.has(TcpFlags::SYN) => offset,
            Place::Before => return None,
            Place::Apart if is_told => return None,
            Place::Next(_) | Place::Apart => return refused(),
        };
        let Some(bytes) = said(arrival, tcp, offset) else {
            let more = arrival.frame.has_more();
            return Some(if more { Verdict::NeedMore } else { Verdict::Drop(DropReason::Unanswerable) });
        };
        if !talk.repeats(offset, bytes) {
            return refused();
        }
        if is_told || !is_held_to_it {
            return None;
        }
        let mut heard = Talk { ..*talk };
        heard.take(offset, bytes);
        let (rule, unmet) = violated(&judgement, detect(by_initiator, heard.known()))?;
        Some(switch.end_talk(position, &judgement, rule, unmet))
    }

    fn leaves(switch: &mut Switch<S>, (position, by_initiator): (usize, bool), arrival: &mut Arrival<'_>) {
        let sender = switch.progress_of(position, by_initiator);
        let flow = switch.table.flow_mut(position);
        let is_held_to_it = flow.judgement.as_ref().is_some_and(|judgement| judgement.names_protocols());
        let Some(talk) = flow.talk.as_deref_mut() else { return };
        let Transport::Tcp(tcp) = &arrival.ip.transport else { return };
        if flow.spoken.is_some() {
            if talk.by_initiator == Some(!by_initiator) && talk.is_heard(sender) {
                switch.settle_talk(position);
            }
            return;
        }
        let is_first = talk.by_initiator.is_none_or(|first| first == by_initiator);
        if !is_first || !says(tcp) || tcp.flags.has(TcpFlags::SYN) {
            return;
        }
        let offset = match talk.place(tcp) {
            Place::Next(offset) => offset,
            Place::Before => return,
            // What is missing will not be seen any more.
            Place::Apart => return switch.settle_talk(position),
        };
        let Some(bytes) = said(arrival, tcp, offset) else { return };
        talk.by_initiator = Some(by_initiator);
        talk.take(offset, bytes);
        if let Detection::Told(spoken) = detect(by_initiator, talk.known()) {
            flow.spoken = Some(spoken);
            if !is_held_to_it {
                switch.settle_talk(position);
            }
        }
    }

    fn turns(switch: &mut Switch<S>, position: usize, state: FlowState) {
        if state.is_over() {
            switch.settle_talk(position);
        }
    }
}

/// Whether a segment has bytes for whoever listens; those with a reset are for nobody.
fn says(tcp: &Tcp) -> bool {
    tcp.payload_len_bytes > 0 && !tcp.flags.has(TcpFlags::RST)
}

/// As much of what a segment says, which begins at this place, as may tell the protocol; `None` if it was not copied.
fn said<'a>(arrival: &'a Arrival<'_>, tcp: &Tcp, offset: usize) -> Option<&'a [u8]> {
    let start = arrival.ip.end - tcp.payload_len_bytes;
    let len = tcp.payload_len_bytes.min(PREFIX_LEN_BYTES_MAX - offset);
    arrival.frame.bytes().get(start..start + len)
}

/// The first rule that names none of what is, or can still be, spoken.
fn violated(judgement: &Judgement, detection: Detection) -> Option<(RuleId, Unmet)> {
    judgement.inserted.iter().find_map(|insertion| {
        let wanted = insertion.protocols?;
        let spoken = match detection {
            Detection::Told(Spoken::Known(protocol)) if wanted.has(protocol) => return None,
            Detection::Told(spoken) => spoken,
            Detection::Open(protocols) if protocols.common(wanted).is_empty() => Spoken::Other,
            Detection::Open(_) => return None,
        };
        Some((insertion.rule.clone(), Unmet::Speaks(spoken, wanted)))
    })
}

impl<S: FlowSlots> Switch<S> {
    /// How far an end of the flow has come.
    fn progress_of(&self, position: usize, initiator: bool) -> Progress {
        let (own, peer) = self.table.progress(position);
        if initiator { own } else { peer }
    }

    /// Has nothing more to do with the flow's frames.
    fn settle_talk(&mut self, position: usize) {
        <Layer7 as Stage<S>>::forget(self, position);
        self.table.release_frames(position, ServiceFlags::LAYER7);
    }

    /// Ends a connection for what is spoken in it.
    fn end_talk(
        &mut self,
        position: usize,
        judgement: &Judgement,
        rule: RuleId,
        unmet: Unmet,
    ) -> Verdict {
        let flow = self.table.flow_mut(position);
        if let Unmet::Speaks(spoken, _) = unmet {
            flow.spoken = Some(spoken);
        }
        flow.judgement = Some(Arc::new(judgement.clone().denied_for(rule, unmet)));
        self.settle_talk(position);
        let _ = self.reset_flow(position);
        Verdict::Drop(DropReason::Denied)
    }
}
