// SPDX-License-Identifier: Apache-2.0
//! Frames that the switch makes itself. All carry complete checksums.

use model::{MacAddr, Protocol};

use crate::checksum::Sum;
use crate::icmp::ICMP_LEN_BYTES;
use crate::ip::{IPV4_LEN_BYTES, IPV6_LEN_BYTES, NETWORK_OFFSET};
use crate::transport::{TCP_LEN_BYTES, UDP_LEN_BYTES};
use crate::{Addresses, ETHERNET_LEN_BYTES, EtherType, Ethernet, Head, Ip, Layer, ParseError, TcpFlags};

/// Time to live of what the switch sends (RFC 1700's default).
pub const TTL: u8 = 64;

/// Most bytes of the offending packet quoted in an ICMP error: keeps it within 576 bytes (RFC 1812
/// section 4.3.2.3).
pub const QUOTE_LEN_BYTES_MAX: usize = 528;

/// Longest payload of one packet, in bytes, so that no length field overflows.
const PAYLOAD_LEN_BYTES_MAX: usize = 65_535 - IPV4_LEN_BYTES;

/// The Ethernet addresses of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Who sends it.
    pub source: MacAddr,
    /// Whom it is for.
    pub destination: MacAddr,
}

/// A frame with one IP packet. The checksum of TCP, UDP, ICMP and ICMPv6 is computed over `transport`,
/// where its field must be zero. Payload beyond the largest IP packet is cut off.
#[must_use]
pub fn ip(link: Link, addresses: Addresses, protocol: Protocol, ttl: u8, transport: &[u8]) -> Vec<u8> {
    let transport = &transport[..transport.len().min(PAYLOAD_LEN_BYTES_MAX)];
    let len = transport.len() as u16;
    let mut out = Vec::with_capacity(ETHERNET_LEN_BYTES + IPV6_LEN_BYTES + transport.len());
    let ethernet = |ether_type| Ethernet { destination: link.destination, source: link.source, ether_type };
    match addresses {
        Addresses::V4 { source, destination } => {
            ethernet(EtherType::Ipv4).emit(&mut out);
            let mut header = [0; IPV4_LEN_BYTES];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(len + IPV4_LEN_BYTES as u16).to_be_bytes());
            header[6] = 0x40; // Do not fragment; the identification may then be zero (RFC 6864).
            header[8] = ttl;
            header[9] = protocol.number();
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let sum = Sum::default().bytes(&header).finish();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            out.extend_from_slice(&header);
        }
        Addresses::V6 { source, destination } => {
            ethernet(EtherType::Ipv6).emit(&mut out);
            out.extend_from_slice(&[0x60, 0, 0, 0]);
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&[protocol.number(), ttl]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
    }
    let at = out.len();
    out.extend_from_slice(transport);
    fill_checksum(&mut out[at..], addresses, protocol);
    out
}

/// Writes the transport checksum into its field, if the protocol has one and the header is there.
fn fill_checksum(transport: &mut [u8], addresses: Addresses, protocol: Protocol) {
    let pseudo = Sum::pseudo(addresses, protocol, transport.len());
    let (field, sum) = match protocol {
        Protocol::Tcp => (16, pseudo),
        Protocol::Udp => (6, pseudo),
        Protocol::Icmp => (2, Sum::default()),
        Protocol::Icmpv6 => (2, pseudo),
        Protocol::Other(_) => return,
    };
    let mut sum = sum.bytes(transport).finish();
    if sum == 0 && protocol == Protocol::Udp {
        sum = 0xffff; // Zero means "no checksum" in UDP (RFC 768).
    }
    if let Some(field) = transport.get_mut(field..field + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// A TCP segment without data or options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// Control bits.
    pub flags: TcpFlags,
}

/// The frame that carries `segment`; for resets mostly.
#[must_use]
pub fn tcp(link: Link, addresses: Addresses, segment: Segment) -> Vec<u8> {
    tcp_data(link, addresses, segment, Stream::default(), &[])
}

/// What a segment of an open connection says beside its [`Segment`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// How many bytes the sender would take, unscaled.
    pub window: u16,
    /// The largest segment that the sender takes, in bytes of data; said in a SYN only (RFC 9293 section 3.7.1).
    pub segment_len_bytes_max: Option<u16>,
}

/// The frame that carries `segment` with data.
#[must_use]
pub fn tcp_data(
    link: Link,
    addresses: Addresses,
    segment: Segment,
    stream: Stream,
    payload: &[u8],
) -> Vec<u8> {
    let mut out = vec![0; TCP_LEN_BYTES];
    out[0..2].copy_from_slice(&segment.source_port.to_be_bytes());
    out[2..4].copy_from_slice(&segment.destination_port.to_be_bytes());
    out[4..8].copy_from_slice(&segment.sequence.to_be_bytes());
    out[8..12].copy_from_slice(&segment.acknowledgment.to_be_bytes());
    out[13] = segment.flags.0;
    out[14..16].copy_from_slice(&stream.window.to_be_bytes());
    if let Some(len) = stream.segment_len_bytes_max {
        let [a, b] = len.to_be_bytes();
        out.extend_from_slice(&[2, 4, a, b]);
    }
    out[12] = (out.len() as u8 / 4) << 4;
    out.extend_from_slice(payload);
    ip(link, addresses, Protocol::Tcp, TTL, &out)
}

/// The frame that carries one UDP datagram.
#[must_use]
pub fn udp(link: Link, addresses: Addresses, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(PAYLOAD_LEN_BYTES_MAX - UDP_LEN_BYTES)];
    let len = (UDP_LEN_BYTES + payload.len()) as u16;
    let mut datagram = Vec::with_capacity(usize::from(len));
    datagram.extend_from_slice(&ports.0.to_be_bytes());
    datagram.extend_from_slice(&ports.1.to_be_bytes());
    datagram.extend_from_slice(&len.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    ip(link, addresses, Protocol::Udp, TTL, &datagram)
}

/// Why a packet could not be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unreachable {
    /// Policy forbids it.
    Prohibited,
    /// Nobody has the address.
    Host,
    /// Its time to live ran out.
    TimeExceeded,
}

/// The ICMP error about the packet `ip` in `head`, which quotes as much of it as is there, at most
/// [`QUOTE_LEN_BYTES_MAX`]. `addresses` are those of the error itself.
#[must_use]
pub fn unreachable(link: Link, addresses: Addresses, why: Unreachable, head: Head<'_>, ip: &Ip) -> Vec<u8> {
    let (protocol, kind, code) = match (addresses, why) {
        (Addresses::V4 { .. }, Unreachable::Prohibited) => (Protocol::Icmp, 3, 13),
        (Addresses::V4 { .. }, Unreachable::Host) => (Protocol::Icmp, 3, 1),
        (Addresses::V4 { .. }, Unreachable::TimeExceeded) => (Protocol::Icmp, 11, 0),
        (Addresses::V6 { .. }, Unreachable::Prohibited) => (Protocol::Icmpv6, 1, 1),
        (Addresses::V6 { .. }, Unreachable::Host) => (Protocol::Icmpv6, 1, 3),
        (Addresses::V6 { .. }, Unreachable::TimeExceeded) => (Protocol::Icmpv6, 3, 0),
    };
    let packet = head.bytes().get(NETWORK_OFFSET..).unwrap_or_default();
    let packet = &packet[..packet.len().min(ip.end.saturating_sub(NETWORK_OFFSET)).min(QUOTE_LEN_BYTES_MAX)];
    let mut message = Vec::with_capacity(ICMP_LEN_BYTES + packet.len());
    message.extend_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(packet);
    self::ip(link, addresses, protocol, TTL, &message)
}

/// The echo that answers the request `ip`, which must be in `head` as a whole.
///
/// # Errors
/// When it is not.
pub fn echo_reply(link: Link, head: Head<'_>, ip: &Ip) -> Result<Vec<u8>, ParseError> {
    let mut message = head.slice(ip.transport_offset, ip.end, Layer::Icmp)?.to_vec();
    if message.len() < ICMP_LEN_BYTES {
        return Err(ParseError::Truncated(Layer::Icmp));
    }
    message[0] = match ip.addresses {
        Addresses::V4 { .. } => 0,
        Addresses::V6 { .. } => 129,
    };
    message[2..4].fill(0);
    Ok(self::ip(link, ip.addresses.reversed(), ip.protocol, TTL, &message))
}
