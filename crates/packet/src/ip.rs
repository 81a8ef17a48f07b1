// SPDX-License-Identifier: Apache-2.0
//! IPv4 and IPv6, as one shape.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::Protocol;

use crate::head::{be16, be32};
use crate::{ETHERNET_LEN_BYTES, Head, Layer, ParseError, Transport};

/// Most IPv6 extension headers that are followed; a sane packet has at most four (RFC 8200 section 4.1).
pub const EXTENSION_HEADERS_MAX: usize = 8;

pub(crate) const IPV4_LEN_BYTES: usize = 20;
pub(crate) const IPV6_LEN_BYTES: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Both addresses of a packet; of one family by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// Who sent the packet.
        source: Ipv4Addr,
        /// Whom it is for.
        destination: Ipv4Addr,
    },
    /// IPv6.
    V6 {
        /// Who sent the packet.
        source: Ipv6Addr,
        /// Whom it is for.
        destination: Ipv6Addr,
    },
}

impl Addresses {
    /// Who sent the packet.
    #[must_use]
    pub fn source(self) -> IpAddr {
        match self {
            Self::V4 { source, .. } => source.into(),
            Self::V6 { source, .. } => source.into(),
        }
    }

    /// Whom the packet is for.
    #[must_use]
    pub fn destination(self) -> IpAddr {
        match self {
            Self::V4 { destination, .. } => destination.into(),
            Self::V6 { destination, .. } => destination.into(),
        }
    }

    /// The addresses of an answer.
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Self::V4 { source, destination } => Self::V4 { source: destination, destination: source },
            Self::V6 { source, destination } => Self::V6 { source: destination, destination: source },
        }
    }
}

/// A piece of a fragmented packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// What all pieces of one packet share.
    pub id: u32,
    /// Where this piece starts in the packet's payload. Pieces other than the first carry no ports.
    pub offset_bytes: u32,
    /// Whether pieces follow.
    pub more: bool,
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source and destination.
    pub addresses: Addresses,
    /// The protocol above IP, after all extension headers.
    pub protocol: Protocol,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Where the transport header starts in the frame.
    pub transport_offset: usize,
    /// Where the packet ends in the frame; bytes after it are padding.
    pub end: usize,
    /// Set when this is only a piece of a packet.
    pub fragment: Option<Fragment>,
    /// The transport header. [`Transport::Other`] for a piece that is not the first.
    pub transport: Transport,
}

impl Ip {
    /// Length of all above IP, in bytes.
    #[must_use]
    #[inline]
    pub fn payload_len_bytes(&self) -> usize {
        self.end - self.transport_offset
    }

    #[inline]
    pub(crate) fn parse_v4(head: Head<'_>, at: usize, strict: bool) -> Result<Self, ParseError> {
        let b: &[u8; IPV4_LEN_BYTES] = head.read(at, Layer::Ipv4)?;
        if b[0] >> 4 != 4 {
            return Err(ParseError::Version(Layer::Ipv4));
        }
        let header_len = usize::from(b[0] & 0x0f) * 4;
        let total_len = usize::from(be16(b, 2));
        if header_len < IPV4_LEN_BYTES || (strict && total_len < header_len) {
            return Err(ParseError::HeaderLength(Layer::Ipv4));
        }
        let end = if strict { at + total_len } else { head.total_len_bytes() };
        if end > head.total_len_bytes() {
            return Err(ParseError::Overlong(Layer::Ipv4));
        }
        if at + header_len > end {
            return Err(ParseError::Truncated(Layer::Ipv4));
        }
        let bits = be16(b, 6);
        let piece = Fragment {
            id: be16(b, 4).into(),
            offset_bytes: u32::from(bits & 0x1fff) * 8,
            more: bits & 0x2000 != 0,
        };
        Ok(Self {
            addresses: Addresses::V4 {
                source: Ipv4Addr::from_bits(be32(b, 12)),
                destination: Ipv4Addr::from_bits(be32(b, 16)),
            },
            protocol: b[9].into(),
            ttl: b[8],
            transport_offset: at + header_len,
            end,
            fragment: (piece.more || piece.offset_bytes != 0).then_some(piece),
            transport: Transport::Other,
        })
    }

    #[inline]
    pub(crate) fn parse_v6(head: Head<'_>, at: usize, strict: bool) -> Result<Self, ParseError> {
        let b: &[u8; IPV6_LEN_BYTES] = head.read(at, Layer::Ipv6)?;
        if b[0] >> 4 != 6 {
            return Err(ParseError::Version(Layer::Ipv6));
        }
        let end = if strict { at + IPV6_LEN_BYTES + usize::from(be16(b, 4)) } else { head.total_len_bytes() };
        if end > head.total_len_bytes() {
            return Err(ParseError::Overlong(Layer::Ipv6));
        }
        let address = |from: usize| {
            Ipv6Addr::from(<[u8; 16]>::try_from(&b[from..from + 16]).expect("sixteen bytes were sliced"))
        };
        let (source, destination) = (address(8), address(24));
        if source.to_ipv4_mapped().is_some() || destination.to_ipv4_mapped().is_some() {
            return Err(ParseError::MappedAddress);
        }
        let chain = Chain::follow(head.until(end), b[6], at + IPV6_LEN_BYTES)?;
        Ok(Self {
            addresses: Addresses::V6 { source, destination },
            protocol: chain.protocol.into(),
            ttl: b[7],
            transport_offset: chain.at,
            end,
            fragment: chain.fragment,
            transport: Transport::Other,
        })
    }

    /// Reads the transport header, unless this is a later piece of a packet.
    #[inline]
    pub(crate) fn read_transport(&mut self, head: Head<'_>) -> Result<(), ParseError> {
        if self.fragment.is_none_or(|piece| piece.offset_bytes == 0) {
            self.transport = Transport::parse(head.until(self.end), self).map_err(|error| match error {
                ParseError::Truncated(_) if self.fragment.is_some() => ParseError::TinyFragment,
                error => error,
            })?;
        }
        Ok(())
    }
}

/// What the chain of IPv6 extension headers leads to.
struct Chain {
    protocol: u8,
    at: usize,
    fragment: Option<Fragment>,
}

impl Chain {
    fn follow(head: Head<'_>, first: u8, at: usize) -> Result<Self, ParseError> {
        let mut chain = Self { protocol: first, at, fragment: None };
        for _ in 0..EXTENSION_HEADERS_MAX {
            match chain.protocol {
                HOP_BY_HOP | DESTINATION_OPTIONS => {
                    let &[next, len] = head.read(chain.at, Layer::Ipv6)?;
                    chain.at += 8 + usize::from(len) * 8;
                    chain.protocol = next;
                    if chain.at > head.total_len_bytes() {
                        return Err(ParseError::Truncated(Layer::Ipv6));
                    }
                }
                FRAGMENT if chain.fragment.is_none() => {
                    let b: &[u8; 8] = head.read(chain.at, Layer::Ipv6)?;
                    let bits = be16(b, 2);
                    let piece = Fragment {
                        id: be32(b, 4),
                        offset_bytes: u32::from(bits & 0xfff8),
                        more: bits & 1 != 0,
                    };
                    chain.fragment = Some(piece);
                    chain.at += 8;
                    chain.protocol = b[0];
                    if piece.offset_bytes != 0 {
                        return Ok(chain);
                    }
                }
                FRAGMENT => return Err(ParseError::Illegal(Layer::Ipv6)),
                ROUTING => return Err(ParseError::RoutingHeader),
                _ => return Ok(chain),
            }
        }
        Err(ParseError::ExtensionChain)
    }
}

/// Where the network header of a frame starts.
pub(crate) const NETWORK_OFFSET: usize = ETHERNET_LEN_BYTES;
