// SPDX-License-Identifier: Apache-2.0
//! TCP and UDP.

use std::fmt;
use std::ops::BitOr;

use model::Protocol;

use crate::head::{be16, be32};
use crate::{Head, Icmp, Ip, Layer, ParseError};

pub(crate) const TCP_LEN_BYTES: usize = 20;
pub(crate) const UDP_LEN_BYTES: usize = 8;

/// A transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// ICMP, or ICMPv6 over IPv6.
    Icmp(Icmp),
    /// A protocol that is not looked into, or no transport header here.
    Other,
}

impl Transport {
    /// Reads the header at `ip.transport_offset`; `head` must end where the packet ends.
    #[inline]
    pub(crate) fn parse(head: Head<'_>, ip: &Ip) -> Result<Self, ParseError> {
        match (ip.protocol, ip.addresses) {
            (Protocol::Tcp, _) => Tcp::parse(head, ip).map(Self::Tcp),
            (Protocol::Udp, _) => Udp::parse(head, ip).map(Self::Udp),
            (Protocol::Icmp, crate::Addresses::V4 { .. })
            | (Protocol::Icmpv6, crate::Addresses::V6 { .. }) => {
                Icmp::parse(head, ip.transport_offset).map(Self::Icmp)
            }
            // The other family's ICMP means nothing (RFC 4443 section 1).
            (Protocol::Icmp | Protocol::Icmpv6, _) => Err(ParseError::Illegal(Layer::Icmp)),
            (Protocol::Other(_), _) => Ok(Self::Other),
        }
    }
}

/// The control bits of a TCP segment (RFC 9293 section 3.1).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field is significant.
    pub const ACK: Self = Self(0x10);

    /// Whether all of `flags` are set.
    #[must_use]
    pub fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether this opens a connection: SYN without ACK and RST.
    #[must_use]
    pub fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0) == Self::SYN.0
    }
}

impl BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let set = names.iter().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0);
        f.debug_set().entries(set.map(|(_, name)| name)).finish()
    }
}

/// A TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// Number of the first byte.
    pub sequence: u32,
    /// Number of the next byte expected, if ACK is set.
    pub acknowledgment: u32,
    /// Control bits.
    pub flags: TcpFlags,
    /// Receive window, unscaled.
    pub window: u16,
    /// Length of the data, in bytes.
    pub payload_len_bytes: usize,
}

impl Tcp {
    #[inline]
    fn parse(head: Head<'_>, ip: &Ip) -> Result<Self, ParseError> {
        let b: &[u8; TCP_LEN_BYTES] = head.read(ip.transport_offset, Layer::Tcp)?;
        let header_len = Self::header_len_bytes(b);
        if header_len < TCP_LEN_BYTES {
            return Err(ParseError::HeaderLength(Layer::Tcp));
        }
        let payload_len_bytes =
            ip.payload_len_bytes().checked_sub(header_len).ok_or(ParseError::Truncated(Layer::Tcp))?;
        Ok(Self::with(b, payload_len_bytes))
    }

    /// What the header says of its length, options included.
    #[inline]
    pub(crate) fn header_len_bytes(b: &[u8; TCP_LEN_BYTES]) -> usize {
        usize::from(b[12] >> 4) * 4
    }

    /// The segment with this header and so much data.
    #[inline]
    pub(crate) fn with(b: &[u8; TCP_LEN_BYTES], payload_len_bytes: usize) -> Self {
        Self {
            source_port: be16(b, 0),
            destination_port: be16(b, 2),
            sequence: be32(b, 4),
            acknowledgment: be32(b, 8),
            flags: TcpFlags(b[13]),
            window: be16(b, 14),
            payload_len_bytes,
        }
    }

    /// The sequence number after this segment: data, SYN and FIN count.
    #[must_use]
    #[inline]
    pub fn sequence_end(&self) -> u32 {
        // An IP packet has at most 2^16 bytes, so the cast loses nothing.
        let data = self.payload_len_bytes as u32;
        let syn = u32::from(self.flags.has(TcpFlags::SYN));
        let fin = u32::from(self.flags.has(TcpFlags::FIN));
        self.sequence.wrapping_add(data).wrapping_add(syn + fin)
    }
}

/// A UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
    /// Where the data starts in the frame.
    pub payload_offset: usize,
    /// Length of the data, in bytes.
    pub payload_len_bytes: usize,
}

impl Udp {
    #[inline]
    fn parse(head: Head<'_>, ip: &Ip) -> Result<Self, ParseError> {
        let b: &[u8; UDP_LEN_BYTES] = head.read(ip.transport_offset, Layer::Udp)?;
        let len = usize::from(be16(b, 4));
        if len < UDP_LEN_BYTES {
            return Err(ParseError::HeaderLength(Layer::Udp));
        }
        // The first piece of a fragmented datagram carries the length of the whole.
        if len > ip.payload_len_bytes() && ip.fragment.is_none() {
            return Err(ParseError::Overlong(Layer::Udp));
        }
        Ok(Self {
            source_port: be16(b, 0),
            destination_port: be16(b, 2),
            payload_offset: ip.transport_offset + UDP_LEN_BYTES,
            payload_len_bytes: len.min(ip.payload_len_bytes()) - UDP_LEN_BYTES,
        })
    }
}
