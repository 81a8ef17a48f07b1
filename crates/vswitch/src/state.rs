// SPDX-License-Identifier: Apache-2.0
//! The states of a flow.
//!
//! ```text
//! SynSent -> SynReceived -> Established -> InitiatorClosed | ResponderClosed -> Closed
//! ```
//! A reset that its receiver will accept leads to `Closed` from anywhere; see `tcp` for how segments move a
//! connection. Other protocols know `OneWay` and, once answered, `TwoWay`. `Reset` and `Refused` are the
//! switch's own doing: no frame passes in them.

use std::fmt;

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
    pub(crate) const ALL: [Self; 10] = [
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

    /// Whether this is a TCP connection whose handshake is not complete.
    #[must_use]
    pub fn is_half_open(self) -> bool {
        matches!(self, Self::SynSent | Self::SynReceived)
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
