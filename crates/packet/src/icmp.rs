// SPDX-License-Identifier: Apache-2.0
//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo and errors.

use model::Protocol;

use crate::head::be16;
use crate::{Addresses, Head, Ip, Layer, ParseError};

pub(crate) const ICMP_LEN_BYTES: usize = 8;

/// An ICMP or ICMPv6 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// The message's type; its meaning depends on the family.
    pub kind: u8,
    /// The type's code.
    pub code: u8,
    /// The four bytes after the checksum.
    pub rest: [u8; 4],
}

/// What a message means to a connection tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Asks for an echo.
    EchoRequest {
        /// Names the conversation.
        id: u16,
    },
    /// Answers with the echo.
    EchoReply {
        /// Names the conversation.
        id: u16,
    },
    /// Reports on a packet, the start of which follows the header.
    Error,
    /// Neighbour discovery's question (RFC 4861 section 4.3).
    NeighborSolicitation,
    /// Anything else.
    Other,
}

impl Icmp {
    pub(crate) fn parse(head: Head<'_>, at: usize) -> Result<Self, ParseError> {
        let b: &[u8; ICMP_LEN_BYTES] = head.read(at, Layer::Icmp)?;
        Ok(Self { kind: b[0], code: b[1], rest: [b[4], b[5], b[6], b[7]] })
    }

    /// What the message means in a packet with these addresses.
    #[must_use]
    pub fn meaning(&self, addresses: Addresses) -> Meaning {
        let id = be16(&self.rest, 0);
        match (addresses, self.kind) {
            (Addresses::V4 { .. }, 8) | (Addresses::V6 { .. }, 128) => Meaning::EchoRequest { id },
            (Addresses::V4 { .. }, 0) | (Addresses::V6 { .. }, 129) => Meaning::EchoReply { id },
            (Addresses::V4 { .. }, 3 | 11 | 12) | (Addresses::V6 { .. }, 1..=4) => Meaning::Error,
            (Addresses::V6 { .. }, 135) => Meaning::NeighborSolicitation,
            _ => Meaning::Other,
        }
    }
}

/// The packet that an ICMP error reports on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// The packet's addresses.
    pub addresses: Addresses,
    /// Its protocol.
    pub protocol: Protocol,
    /// The first four bytes of its transport header: both ports, or an ICMP message's start.
    pub ports: [u16; 2],
    /// The next four bytes: TCP's sequence number, or the identifier of an ICMP echo.
    pub rest: [u8; 4],
    /// Where the quoted packet starts in the frame.
    pub offset: usize,
    /// Where its transport header does.
    pub transport_offset: usize,
}

impl Quoted {
    /// Reads what the error `ip` quotes. Length fields of a quoted packet are not trusted or needed.
    ///
    /// # Errors
    /// When the quote is too short or is itself a later piece of a fragmented packet.
    pub fn parse(head: Head<'_>, ip: &Ip) -> Result<Self, ParseError> {
        let at = ip.transport_offset + ICMP_LEN_BYTES;
        let head = head.until(ip.end);
        let inner = match ip.addresses {
            Addresses::V4 { .. } => Ip::parse_v4(head, at, false)?,
            Addresses::V6 { .. } => Ip::parse_v6(head, at, false)?,
        };
        if inner.fragment.is_some_and(|piece| piece.offset_bytes != 0) {
            return Err(ParseError::Illegal(Layer::Icmp));
        }
        let b: &[u8; 8] = head.read(inner.transport_offset, Layer::Icmp)?;
        Ok(Self {
            addresses: inner.addresses,
            protocol: inner.protocol,
            ports: [be16(b, 0), be16(b, 2)],
            rest: [b[4], b[5], b[6], b[7]],
            offset: at,
            transport_offset: inner.transport_offset,
        })
    }
}
