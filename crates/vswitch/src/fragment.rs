// SPDX-License-Identifier: Apache-2.0
//! Pieces of packets: only the first carries ports, so the others follow what was decided about it.
//!
//! Nothing is reassembled or held. Each port has a short list of packets of which pieces are still to come; a
//! piece must start where, or after, the one before it ended. So pieces never overlap (RFC 5722, RFC 3128), and
//! one that comes before its first is dropped. A packet of which any piece was refused is forgotten, and what
//! is left of it is refused too.

use std::collections::VecDeque;
use std::time::Duration;

use model::{Moment, Protocol};
use packet::{Addresses, Fragment, Ip, Transport};

use crate::DropReason;
use crate::key::FlowKey;

/// Longest packet, in bytes: more would overflow whoever puts it together.
const PACKET_LEN_BYTES_MAX: u32 = 65_535;

/// What all pieces of a packet share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PacketId {
    addresses: Addresses,
    protocol: Protocol,
    id: u32,
}

impl PacketId {
    /// The protocol of a later piece over IPv6 is that of its own header, and may differ (RFC 8200 section
    /// 4.5 says the first one's counts); then it is another packet here.
    fn of(ip: &Ip, piece: Fragment) -> Self {
        Self { addresses: ip.addresses, protocol: ip.protocol, id: piece.id }
    }
}

/// A packet that was begun.
#[derive(Clone, Copy, Debug)]
struct Begun {
    id: PacketId,
    flow: FlowKey,
    /// TCP: what to add a piece's end to for the sequence number after it.
    sequence_base: Option<u32>,
    next_offset_bytes: u32,
    since: Moment,
}

/// What a later piece belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Followed {
    pub flow: FlowKey,
    /// TCP: the sequence number after the piece.
    pub sequence_end: Option<u32>,
    position: usize,
    end_bytes: u32,
}

/// The packets that one port has begun, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fragments(VecDeque<Begun>);

impl Fragments {
    /// Remembers a packet of at most `count_max`, whose first piece was forwarded as part of `flow`. The
    /// oldest is forgotten if there are too many.
    pub(crate) fn begin(&mut self, now: Moment, ip: &Ip, piece: Fragment, flow: FlowKey, count_max: usize) {
        let id = PacketId::of(ip, piece);
        self.0.retain(|begun| begun.id != id);
        while self.0.len() >= count_max.max(1) {
            self.0.pop_front();
        }
        let end_bytes = end_bytes(ip, piece);
        let sequence_base = match &ip.transport {
            Transport::Tcp(tcp) => Some(tcp.sequence_end().wrapping_sub(end_bytes)),
            _ => None,
        };
        if count_max > 0 {
            self.0.push_back(Begun { id, flow, sequence_base, next_offset_bytes: end_bytes, since: now });
        }
    }

    /// Finds what a later piece belongs to. Nothing changes unless the piece is refused.
    pub(crate) fn find(
        &mut self,
        now: Moment,
        ip: &Ip,
        piece: Fragment,
        timeout: Duration,
    ) -> Result<Followed, DropReason> {
        while self.0.front().is_some_and(|begun| now.since(begun.since) > timeout) {
            self.0.pop_front();
        }
        let id = PacketId::of(ip, piece);
        let position = self.0.iter().position(|begun| begun.id == id).ok_or(DropReason::FragmentUnknown)?;
        let begun = self.0[position];
        let end_bytes = end_bytes(ip, piece);
        let refusal = if piece.offset_bytes < begun.next_offset_bytes {
            Some(DropReason::FragmentOverlap)
        } else {
            is_malformed(ip, piece).then_some(DropReason::Malformed)
        };
        if let Some(reason) = refusal {
            self.0.remove(position);
            return Err(reason);
        }
        let sequence_end = begun.sequence_base.map(|base| base.wrapping_add(end_bytes));
        Ok(Followed { flow: begun.flow, sequence_end, position, end_bytes })
    }

    /// Notes that a piece just found was forwarded.
    pub(crate) fn advance(&mut self, followed: Followed, piece: Fragment) {
        if !piece.more {
            self.0.remove(followed.position);
        } else if let Some(begun) = self.0.get_mut(followed.position) {
            begun.next_offset_bytes = followed.end_bytes;
        }
    }
}

/// Whether no honest sender makes such a piece (RFC 791 section 3.2, RFC 8200 section 4.5).
pub(crate) fn is_malformed(ip: &Ip, piece: Fragment) -> bool {
    let ragged = piece.more && !ip.payload_len_bytes().is_multiple_of(8);
    ragged || ip.payload_len_bytes() == 0 || end_bytes(ip, piece) > PACKET_LEN_BYTES_MAX
}

/// Where a piece ends in the packet's payload.
fn end_bytes(ip: &Ip, piece: Fragment) -> u32 {
    piece.offset_bytes.saturating_add(u32::try_from(ip.payload_len_bytes()).unwrap_or(u32::MAX))
}
