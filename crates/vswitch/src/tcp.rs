// SPDX-License-Identifier: Apache-2.0
//! The tracker of TCP connections: which segments the state and both windows admit, and what they change.
//!
//! An end may send what lies between the oldest data that its peer may still ask for and the edge of the
//! window that the peer has advertised, and may acknowledge what the peer has sent (G. van Rooij, "Real
//! Stateful TCP Packet Filtering in IP Filter", 2001). As the switch sees every segment that the ends
//! exchange, this refuses no segment that its receiver would take.
//!
//! What an end shows of itself ([`Progress`]) lies in its slot and outlives the process; what that allows its
//! peer ([`Limits`]) lies beside the peer's slot, so that a segment is checked with what its own direction
//! has at hand. Limits are not handed over: a connection that was taken over is not held to windows that have
//! not been advertised since.
//!
//! A reset is honoured only if it is exactly what its receiver expects next. One that is merely in the window passes and
//! changes nothing: its receiver challenges it, and the answer is exact (RFC 5961 section 3.2). Half-open
//! connections end likewise: an end that still holds the old connection answers a SYN with an
//! acknowledgment that the SYN's sender refuses with a reset (RFC 9293 section 3.5.1), so both pass.
//!
//! Selective acknowledgments need no care: they never move the edge of a window.

use packet::{Tcp, TcpFlags};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{DropReason, FlowState};

/// Windows are remembered for how old a segment may be in units of this, rounded up.
const REACH_UNIT_BITS: u32 = 14;
/// How old an acknowledgment may be, in bytes, however small the windows are.
const REACH_BYTES_MIN: i32 = 1 << 16;
/// The scale of an end that did not offer the option (RFC 7323 section 2.2).
const SCALE_NONE: u8 = 0x0f;
/// Greatest scale (RFC 7323 section 2.3).
const SCALE_MAX: u8 = 14;

/// How far one end has come, as its own segments show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The sequence number after all that it has sent.
    pub sequence_end: u32,
    /// The highest acknowledgment it has sent.
    pub acknowledged: u32,
    /// The end's window scale in the low bits, and what is known above it.
    pub marks: u8,
}

impl Progress {
    const SCALE: u8 = 0x0f;
    /// Its first sequence number was seen.
    const SYNCHRONISED: u8 = 0x10;
    /// It has acknowledged something.
    const ACKNOWLEDGED: u8 = 0x20;

    fn is_synchronised(self) -> bool {
        self.marks & Self::SYNCHRONISED != 0
    }

    /// The highest acknowledgment sent, if there was any.
    pub(crate) fn acknowledged(self) -> Option<u32> {
        (self.marks & Self::ACKNOWLEDGED != 0).then_some(self.acknowledged)
    }

    fn offers_scale(self) -> bool {
        self.marks & Self::SCALE != SCALE_NONE
    }

    /// Neither end scales its windows unless both offer to.
    fn without_scale(self) -> Self {
        Self { marks: self.marks | SCALE_NONE, ..self }
    }

    fn window_bytes(self, tcp: &Tcp) -> u32 {
        let scale = if self.offers_scale() { self.marks & Self::SCALE } else { 0 };
        u32::from(tcp.window) << scale
    }

    /// Whether the segment carries the end's SYN, as it was seen.
    pub(crate) fn repeats_syn(self, tcp: &Tcp) -> bool {
        self.is_synchronised() && self.sequence_end == tcp.sequence.wrapping_add(1)
    }

    fn acknowledging(mut self, tcp: &Tcp) -> Self {
        if tcp.flags.has(TcpFlags::ACK) {
            self.acknowledged =
                self.acknowledged().map_or(tcp.acknowledgment, |old| later(old, tcp.acknowledgment));
            self.marks |= Self::ACKNOWLEDGED;
        }
        self
    }
}

/// What the other end allows this one to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Limits {
    /// The edge of the peer's window: where data may begin at the latest. Counted from the end of a SYN that
    /// is still to come.
    sequence_max: u32,
    /// The end of what the peer has sent: the greatest sensible acknowledgment.
    acknowledgment_max: u32,
    /// The peer's greatest window so far, in units of 2^14 bytes: how old data may be. Zero: not known.
    peer_reach: u16,
    /// The end's own greatest window so far: how old acknowledgments may be. Zero: not known.
    own_reach: u16,
}

impl Limits {
    /// Nothing is known.
    pub(crate) const NONE: Self =
        Self { sequence_max: 0, acknowledgment_max: 0, peer_reach: 0, own_reach: 0 };

    /// What is known of a connection that was taken over.
    pub(crate) fn adopted(peer: Progress) -> Self {
        Self { acknowledgment_max: peer.sequence_end, ..Self::NONE }
    }

    /// Whether an end that has come this far may send the segment, which acknowledges something.
    #[inline]
    fn admit(&self, own: u32, tcp: &Tcp) -> bool {
        let old = after(self.acknowledgment_max, tcp.acknowledgment);
        let sensible = old >= 0 && (self.own_reach == 0 || old <= reach(self.own_reach).max(REACH_BYTES_MIN));
        sensible && self.admit_data(own, tcp)
    }

    #[inline]
    fn admit_data(&self, own: u32, tcp: &Tcp) -> bool {
        let inside = after(self.sequence_max, tcp.sequence) >= 0
            // Who has probed a full window with a byte goes on from there, without data.
            || tcp.payload_len_bytes == 0 && after(own, tcp.sequence) >= 0;
        self.peer_reach == 0 || inside && after(own, tcp.sequence_end()) <= reach(self.peer_reach)
    }

    /// Whether an end that has come so far may have sent this number lately.
    pub(crate) fn covers(&self, own: Progress, sequence: u32) -> bool {
        let age = after(own.sequence_end, sequence);
        age >= 0 && (self.peer_reach == 0 || age <= reach(self.peer_reach))
    }

    /// The peer has sent up to `end`, and the end's own window is `window_bytes`.
    #[inline]
    fn widen(&mut self, edge: u32, end: u32, units: u16) {
        self.sequence_max = if self.peer_reach == 0 { edge } else { later(self.sequence_max, edge) };
        self.acknowledgment_max = later(self.acknowledgment_max, end);
        self.peer_reach = self.peer_reach.max(units);
    }
}

/// What a segment does to what is known of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// It is the sender's SYN: everything starts with it.
    Begin,
    /// It advances what is known.
    Advance,
    /// Its acknowledgment answers another connection, and is to be reset.
    Challenge,
    /// None.
    Nothing,
}

/// What each end of a connection allows the other: the sender of the segment at hand, then its peer.
pub(crate) struct BothLimits<'a>(pub &'a mut Limits, pub &'a mut Limits);

/// Whether all that a segment carries is data and an acknowledgment in an open connection.
#[inline]
pub(crate) fn is_steady(state: FlowState, tcp: &Tcp) -> bool {
    const TELLING: u8 = TcpFlags::SYN.0 | TcpFlags::RST.0 | TcpFlags::FIN.0 | TcpFlags::ACK.0;
    state == FlowState::Established && tcp.flags.0 & TELLING == TcpFlags::ACK.0
}

impl Progress {
    /// The sender's progress after a segment without a SYN, which is checked.
    #[inline]
    pub(crate) fn advance(self, tcp: &Tcp, limits: BothLimits<'_>) -> Result<Self, DropReason> {
        if !limits.0.admit(self.sequence_end, tcp) {
            return Err(DropReason::OutOfWindow);
        }
        let sequence_end = later(self.sequence_end, tcp.sequence_end());
        let window_bytes = self.window_bytes(tcp);
        let units = units(window_bytes);
        limits.0.own_reach = limits.0.own_reach.max(units);
        limits.1.widen(tcp.acknowledgment.wrapping_add(window_bytes), sequence_end, units);
        Ok(Self { sequence_end, ..self.acknowledging(tcp) })
    }

    /// The progress after more of an admitted segment, up to `sequence_end`.
    pub(crate) fn extended(self, sequence_end: u32, peer: &mut Limits) -> Self {
        peer.acknowledgment_max = later(peer.acknowledgment_max, sequence_end);
        Self { sequence_end: later(self.sequence_end, sequence_end), ..self }
    }

    /// The progress of an end that has come so far after its SYN, which offers this scale. Data that comes
    /// with a SYN may be acknowledged, but does not count as sent: most receivers drop it.
    fn begin(self, tcp: &Tcp, scale: Option<u8>, limits: BothLimits<'_>, peer_end: u32) -> Self {
        let BothLimits(own, peer) = limits;
        let scale = scale.map_or(SCALE_NONE, |scale| scale.min(SCALE_MAX));
        let sequence_end = tcp.sequence.wrapping_add(1);
        // A SYN's window is not scaled.
        let units = units(tcp.window.into());
        own.own_reach = units;
        own.sequence_max = sequence_end.wrapping_add(own.sequence_max.wrapping_sub(self.sequence_end));
        peer.peer_reach = units;
        peer.acknowledgment_max = tcp.sequence_end();
        let expected = if tcp.flags.has(TcpFlags::ACK) { tcp.acknowledgment } else { peer_end };
        peer.sequence_max = expected.wrapping_add(tcp.window.into());
        Self { sequence_end, acknowledged: 0, marks: Self::SYNCHRONISED | scale }.acknowledging(tcp)
    }
}

/// Both ends of a connection, as a segment finds them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// The segment's sender.
    pub own: Progress,
    /// Its receiver.
    pub peer: Progress,
    pub from_initiator: bool,
}

impl Ends {
    /// The connection's state and both ends after any segment. An opening SYN is given only if it belongs to
    /// this very connection.
    pub(crate) fn follow(
        self,
        state: FlowState,
        tcp: &Tcp,
        scale: Option<u8>,
        limits: BothLimits<'_>,
    ) -> Result<(FlowState, Progress, Progress), DropReason> {
        let (state, effect) = self.meaning(state, tcp, limits.0)?;
        let own = match effect {
            Effect::Begin => {
                let own = self.own.begin(tcp, scale, limits, self.peer.sequence_end);
                let (own, peer) = agreed(own, self.peer);
                return Ok((state, own, peer));
            }
            Effect::Advance => self.own.advance(tcp, limits)?,
            Effect::Challenge => self.own.acknowledging(tcp),
            Effect::Nothing => self.own,
        };
        Ok((state, own, self.peer))
    }

    fn meaning(
        &self,
        state: FlowState,
        tcp: &Tcp,
        limits: &Limits,
    ) -> Result<(FlowState, Effect), DropReason> {
        let (syn, ack) = (tcp.flags.has(TcpFlags::SYN), tcp.flags.has(TcpFlags::ACK));
        if syn && tcp.flags.0 & (TcpFlags::FIN | TcpFlags::RST).0 != 0 {
            return Err(DropReason::TcpFlags);
        }
        if tcp.flags.has(TcpFlags::RST) {
            let state = self.after_reset(state, tcp, limits).ok_or(DropReason::BadReset)?;
            return Ok((state, Effect::Nothing));
        }
        match state {
            FlowState::SynSent | FlowState::SynReceived if syn && !ack => Ok((state, Effect::Begin)),
            _ if !ack => Err(DropReason::TcpFlags),
            FlowState::SynSent if self.from_initiator => {
                // Simultaneous open (RFC 9293 section 3.5): only who has sent the SYN knows its number.
                let completes = syn
                    && self.own.repeats_syn(tcp)
                    && self.peer.is_synchronised()
                    && tcp.acknowledgment == self.peer.sequence_end;
                completes.then_some((FlowState::SynReceived, Effect::Begin)).ok_or(DropReason::OutOfWindow)
            }
            FlowState::SynSent if syn && self.answers_syn(tcp, limits) => {
                Ok((FlowState::SynReceived, Effect::Begin))
            }
            FlowState::SynSent => Ok((state, Effect::Challenge)),
            // Nobody holds the responder to the number of a SYN that the initiator may never have seen.
            FlowState::SynReceived if syn && self.is_unheard() && self.answers_syn(tcp, limits) => {
                Ok((state, Effect::Begin))
            }
            _ if syn => {
                let admitted = limits.admit(self.own.sequence_end, tcp);
                let state = if self.own.repeats_syn(tcp) { self.after_segment(state, tcp) } else { state };
                admitted.then_some((state, Effect::Nothing)).ok_or(DropReason::OutOfWindow)
            }
            // Who refused a SYN has begun nothing, and so has nothing to send.
            _ if !self.own.is_synchronised() => Err(DropReason::OutOfWindow),
            _ => Ok((self.after_segment(state, tcp), Effect::Advance)),
        }
    }

    /// Whether the sender is the responder and the initiator has not acknowledged its SYN.
    fn is_unheard(&self) -> bool {
        !self.from_initiator && self.peer.acknowledged().is_none()
    }

    /// The state after a segment that is in both windows.
    fn after_segment(&self, state: FlowState, tcp: &Tcp) -> FlowState {
        use FlowState::{Closed, Established, InitiatorClosed, ResponderClosed, SynReceived};
        // Each end's first acknowledgment is that of the other's SYN.
        let opens = state == SynReceived && self.own.acknowledged().is_none();
        let state = if opens { Established } else { state };
        match (state, self.from_initiator) {
            (state, _) if !tcp.flags.has(TcpFlags::FIN) => state,
            (SynReceived | Established, true) => InitiatorClosed,
            (SynReceived | Established, false) => ResponderClosed,
            (InitiatorClosed, false) | (ResponderClosed, true) => Closed,
            (state, _) => state,
        }
    }

    /// The state after a reset; none if its receiver will not even look at it.
    fn after_reset(&self, state: FlowState, tcp: &Tcp, limits: &Limits) -> Option<FlowState> {
        let exact = self.peer.acknowledged() == Some(tcp.sequence)
            || self.own.is_synchronised() && self.own.sequence_end == tcp.sequence;
        let in_handshake = state == FlowState::SynSent;
        let refuses = in_handshake && !self.from_initiator && self.answers_syn(tcp, limits);
        if exact || refuses {
            return Some(FlowState::Closed);
        }
        (!in_handshake && limits.admit_data(self.own.sequence_end, tcp)).then_some(state)
    }

    /// Whether a segment acknowledges the peer's SYN, perhaps with data that came with it (RFC 7413).
    fn answers_syn(&self, tcp: &Tcp, limits: &Limits) -> bool {
        tcp.flags.has(TcpFlags::ACK)
            && self.peer.is_synchronised()
            && after(tcp.acknowledgment, self.peer.sequence_end) >= 0
            && after(limits.acknowledgment_max, tcp.acknowledgment) >= 0
    }
}

/// What both ends scale their windows by, once both have sent their SYN.
fn agreed(own: Progress, peer: Progress) -> (Progress, Progress) {
    let scaled = !peer.is_synchronised() || own.offers_scale() && peer.offers_scale();
    if scaled { (own, peer) } else { (own.without_scale(), peer.without_scale()) }
}

/// A window in units of [`REACH_UNIT_BITS`], rounded up to at least one: a zero window is probed with a byte.
#[inline]
fn units(window_bytes: u32) -> u16 {
    // The greatest window is 2^16 - 1 scaled by 14, so the cast loses nothing.
    (((window_bytes.max(1) - 1) >> REACH_UNIT_BITS) + 1) as u16
}

#[inline]
fn reach(units: u16) -> i32 {
    i32::from(units) << REACH_UNIT_BITS
}

/// How far `a` is after `b`, modulo 2^32 (RFC 9293 section 3.4).
#[inline]
fn after(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// The later of two sequence numbers.
#[inline]
fn later(a: u32, b: u32) -> u32 {
    if after(b, a) > 0 { b } else { a }
}
