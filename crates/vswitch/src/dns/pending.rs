// SPDX-License-Identifier: Apache-2.0
//! Questions that an upstream is asked, and what waits for its answers.

use hickory_proto::op::{Message, Query};
use model::{Moment, Name};

use super::message::Request;
use super::stream::Ends;
use crate::PortId;

/// A question that an upstream is to be asked.
#[derive(Clone, Debug)]
pub struct DnsQuestion {
    /// Names the question; to be given back with the answer.
    pub ticket: DnsTicket,
    /// The tenant whose machine asks: its answers are no other tenant's business.
    pub tenant: Name,
    /// What is asked.
    pub query: Query,
    /// Whether DNSSEC's records are wanted.
    pub dnssec_ok: bool,
    /// Whether the asker checks DNSSEC itself.
    pub checking_disabled: bool,
}

/// Names a [`DnsQuestion`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DnsTicket {
    /// The port of whoever asks.
    pub port: PortId,
    /// Differs between all questions of a switch.
    pub number: u64,
}

/// What an upstream has said to a [`DnsQuestion`].
#[derive(Clone, Debug)]
pub struct DnsReply {
    /// The question's.
    pub ticket: DnsTicket,
    /// The answer, with as much time to live as it has left; `None` if there is none.
    pub message: Option<Message>,
}

/// A question that waits for an upstream's answer.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(super) number: u64,
    pub(super) since: Moment,
    pub(super) request: Request,
    pub(super) back: Back,
    /// The tenant that a rule lets reach addresses by the name that is asked for, and the name.
    pub(super) wanted: Option<(Name, String)>,
}

/// The way back to whoever asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Back {
    Datagram(Ends, usize),
    /// By the connection of this number.
    Stream(u64),
}
