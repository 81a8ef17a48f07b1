// SPDX-License-Identifier: Apache-2.0
//! The headers of plain packets, read in one go.
//!
//! Nearly all packets are alike: Ethernet, IP without options, extension headers or pieces, then TCP or UDP. Of these,
//! [`Plain::read`] says what [`crate::Packet::parse`] says, in a part of the time; of all others it says nothing.

use model::{MacAddr, Protocol};

use crate::head::{be16, be32};
use crate::ip::{IPV4_LEN_BYTES, IPV6_LEN_BYTES, NETWORK_OFFSET};
use crate::transport::{TCP_LEN_BYTES, UDP_LEN_BYTES};
use crate::{EtherType, Head, Tcp};

/// IPv4, and a header of five words.
const VERSION_4_PLAIN: u8 = 0x45;
/// Of the field for pieces: more of them follow, or the offset of this one.
const PIECE: u16 = 0x3fff;
/// Upper half of an IPv4-mapped IPv6 address, and the upper half of what follows (RFC 4291 section 2.5.5.2).
const MAPPED: (u64, u64) = (0, 0xffff);

/// A packet with nothing special about its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Who sent the frame.
    pub ethernet_source: MacAddr,
    /// Whom the frame is for.
    pub ethernet_destination: MacAddr,
    /// Whether it is IPv4.
    pub is_v4: bool,
    /// High and low half of the sender's address as a number; an IPv4 address has only a low half.
    pub source: [u64; 2],
    /// The receiver's, likewise.
    pub destination: [u64; 2],
    /// Sender's and receiver's port.
    pub ports: (u16, u16),
    /// The segment if it is TCP, else it is UDP.
    pub tcp: Option<Tcp>,
}

impl Plain {
    /// Reads the headers, if they are plain, right, and all in the head.
    #[must_use]
    #[inline]
    pub fn read(head: Head<'_>) -> Option<Self> {
        let link: &[u8; NETWORK_OFFSET] = head.bytes().first_chunk()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *link;
        let ether_type = be16(link, 12);
        let is_v4 = ether_type == EtherType::Ipv4.number();
        let (source, destination, protocol, transport_at, end) = if is_v4 {
            let b: &[u8; IPV4_LEN_BYTES] = head.bytes()[NETWORK_OFFSET..].first_chunk()?;
            if b[0] != VERSION_4_PLAIN || be16(b, 6) & PIECE != 0 {
                return None;
            }
            let address = |at| [0, u64::from(be32(b, at))];
            let end = NETWORK_OFFSET + usize::from(be16(b, 2));
            (address(12), address(16), b[9], NETWORK_OFFSET + IPV4_LEN_BYTES, end)
        } else if ether_type == EtherType::Ipv6.number() {
            let b: &[u8; IPV6_LEN_BYTES] = head.bytes()[NETWORK_OFFSET..].first_chunk()?;
            let half = |at| u64::from(be32(b, at)) << 32 | u64::from(be32(b, at + 4));
            let (source, destination) = ([half(8), half(16)], [half(24), half(32)]);
            let is_mapped = |[high, low]: [u64; 2]| (high, low >> 32) == MAPPED;
            if b[0] >> 4 != 6 || is_mapped(source) || is_mapped(destination) {
                return None;
            }
            let transport_at = NETWORK_OFFSET + IPV6_LEN_BYTES;
            (source, destination, b[6], transport_at, transport_at + usize::from(be16(b, 4)))
        } else {
            return None;
        };
        let payload_len_bytes = end.checked_sub(transport_at)?;
        if end > head.total_len_bytes() {
            return None;
        }
        let rest = head.bytes().get(transport_at..)?;
        let tcp = if protocol == Protocol::Tcp.number() {
            let b: &[u8; TCP_LEN_BYTES] = rest.first_chunk()?;
            let header_len = Tcp::header_len_bytes(b);
            if header_len < TCP_LEN_BYTES {
                return None;
            }
            Some(Tcp::with(b, payload_len_bytes.checked_sub(header_len)?))
        } else if protocol == Protocol::Udp.number() {
            let b: &[u8; UDP_LEN_BYTES] = rest.first_chunk()?;
            if !(UDP_LEN_BYTES..=payload_len_bytes).contains(&usize::from(be16(b, 4))) {
                return None;
            }
            None
        } else {
            return None;
        };
        Some(Self {
            ethernet_source: MacAddr([s0, s1, s2, s3, s4, s5]),
            ethernet_destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            is_v4,
            source,
            destination,
            ports: (be16(rest, 0), be16(rest, 2)),
            tcp,
        })
    }
}
