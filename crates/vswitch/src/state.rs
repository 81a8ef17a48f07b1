// SPDX-License-Identifier: Apache-2.0
//! The states of a flow, and how TCP segments move it through them.
//!
//! ```text
//! SynSent -> SynReceived -> Established -> InitiatorClosed | ResponderClosed -> Closed
//! ```
//! A reset that its receiver will accept leads to `Closed` from anywhere. Other protocols know `OneWay` and,
//! once answered, `TwoWay`. `Reset` and `Refused` are the switch's own doing: no frame passes in them.

use std::fmt;

use packet::{Tcp, TcpFlags};

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FlowState {
    /// TCP: the initiator has sent its SYN.
    SynSent = 1,
    /// TCP: the responder has answered.
    SynReceived = 2,
    /// TCP: open.
    Established = 3,
    /// TCP: the initiator has sent its FIN.
    InitiatorClosed = 4,
    /// TCP: the responder has sent its FIN.
    ResponderClosed = 5,
    /// TCP: both have sent their FIN, or one has reset the connection.
    Closed = 6,
    /// TCP: policy has reset it; late segments are answered with resets.
    Reset = 7,
    /// Not TCP: denied, and remembered for a short while.
    Refused = 8,
    /// Not TCP: not answered yet.
    OneWay = 9,
    /// Not TCP: seen in both directions.
    TwoWay = 10,
}

impl FlowState {
    const ALL: [Self; 10] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::InitiatorClosed,
        Self::ResponderClosed,
        Self::Closed,
        Self::Reset,
        Self::Refused,
        Self::OneWay,
        Self::TwoWay,
    ];

    /// The state with this number in a slot.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The word shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::SynReceived => "syn-received",
            Self::Established => "established",
            Self::InitiatorClosed => "initiator-closed",
            Self::ResponderClosed => "responder-closed",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::OneWay => "one-way",
            Self::TwoWay => "two-way",
        }
    }

    /// Whether the flow is over: it does not count towards its opener's quota and goes first when the table
    /// is full.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Closed | Self::Reset | Self::Refused)
    }

    /// Whether only the initiator has been heard.
    #[must_use]
    pub fn is_embryonic(self) -> bool {
        matches!(self, Self::SynSent | Self::OneWay)
    }
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is tracked of one direction of a TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The highest sequence number after any segment forwarded.
    pub sequence_end: u32,
    /// The highest acknowledgment sent.
    pub acknowledged: u32,
}

impl Progress {
    /// The progress after `tcp`. A SYN starts anew; before it, all is zero.
    pub(crate) fn after(self, tcp: &Tcp) -> Self {
        let end = tcp.sequence_end();
        let sequence_end = if tcp.flags.has(TcpFlags::SYN) || self == Self::default() {
            end
        } else {
            later(self.sequence_end, end)
        };
        let acknowledged = match (tcp.flags.has(TcpFlags::ACK), self.acknowledged) {
            (false, old) => old,
            (true, 0) => tcp.acknowledgment,
            (true, old) => later(old, tcp.acknowledgment),
        };
        Self { sequence_end, acknowledged }
    }
}

/// The later of two sequence numbers, modulo 2^32 (RFC 9293 section 3.4).
fn later(a: u32, b: u32) -> u32 {
    if b.wrapping_sub(a) < 1 << 31 { b } else { a }
}

/// The state after a TCP segment that is not an opening SYN. `own` is the sender's progress before it, `peer`
/// the other end's.
pub(crate) fn after_segment(
    state: FlowState,
    from_initiator: bool,
    tcp: &Tcp,
    own: Progress,
    peer: Progress,
) -> FlowState {
    use FlowState::{Closed, Established, InitiatorClosed, ResponderClosed, SynReceived, SynSent};
    if tcp.flags.has(TcpFlags::RST) {
        // The receiver takes it only if it is exactly next (RFC 5961), or answers its SYN.
        let answers_syn = state == SynSent && !from_initiator && tcp.acknowledgment == peer.sequence_end;
        let exact = tcp.sequence == peer.acknowledged || tcp.sequence == own.sequence_end;
        return if answers_syn || exact { Closed } else { state };
    }
    let state = match (state, from_initiator) {
        (SynSent, false) if tcp.flags.has(TcpFlags::ACK) => SynReceived,
        (SynReceived, true) if tcp.flags.has(TcpFlags::ACK) => Established,
        (state, _) => state,
    };
    if !tcp.flags.has(TcpFlags::FIN) {
        return state;
    }
    match (state, from_initiator) {
        (SynReceived | Established, true) => InitiatorClosed,
        (SynReceived | Established, false) => ResponderClosed,
        (InitiatorClosed, false) | (ResponderClosed, true) => Closed,
        (state, _) => state,
    }
}
