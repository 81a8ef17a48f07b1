// SPDX-License-Identifier: Apache-2.0
//! An IP packet on its way.

use packet::{Ethernet, Ip, ParseError, TcpFlags, Transport, VnetHeader};

use crate::{Answers, DropReason, Frame, PortId, Verdict};

/// An IP packet on its way.
///
/// What was parsed stays where the parser put it: a copy would read in wide pieces what was just written in
/// narrow ones, and a processor makes that wait.
pub(crate) struct Arrival<'a> {
    pub ingress: PortId,
    pub frame: &'a mut Frame,
    pub ethernet: &'a Ethernet,
    pub ip: &'a Ip,
    /// The offloads to hand on.
    pub vnet: VnetHeader,
    pub answers: Option<&'a Answers>,
}

impl Arrival<'_> {
    /// What the SYN in this packet offers to scale its window by.
    pub(crate) fn window_scale(&self) -> Result<Option<u8>, ParseError> {
        packet::tcp::window_scale(self.frame.parsable(), self.ip)
    }

    /// The flags of a TCP segment; none for anything else.
    #[inline]
    pub(crate) fn tcp_flags(&self) -> TcpFlags {
        match &self.ip.transport {
            Transport::Tcp(tcp) => tcp.flags,
            _ => TcpFlags::default(),
        }
    }
}

/// The verdict on a frame that cannot be parsed.
pub(crate) fn unreadable(error: ParseError, frame: &Frame) -> Verdict {
    match error {
        ParseError::NeedMore { .. } if frame.has_more() => Verdict::NeedMore,
        ParseError::NeedMore { .. } => Verdict::Drop(DropReason::Unanswerable),
        ParseError::TinyFragment => Verdict::Drop(DropReason::TinyFragment),
        _ => Verdict::Drop(DropReason::Malformed),
    }
}
