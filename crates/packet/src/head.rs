// SPDX-License-Identifier: Apache-2.0
//! The readable part of a frame, and what can be wrong with it.

use std::fmt;

/// The header that was being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// Ethernet II.
    Ethernet,
    /// ARP (RFC 826).
    Arp,
    /// IPv4 (RFC 791).
    Ipv4,
    /// IPv6 (RFC 8200) with its extension headers.
    Ipv6,
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
    /// ICMP (RFC 792) or ICMPv6 (RFC 4443).
    Icmp,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ethernet => "Ethernet",
            Self::Arp => "ARP",
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
        })
    }
}

/// Why a frame was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ParseError {
    /// The copied head ends too early; the frame itself goes on. Copy more and parse again.
    #[error("the first {need_bytes} bytes are needed, fewer were copied")]
    NeedMore {
        /// How many bytes of the frame the failed read needs; more may be needed after it.
        need_bytes: usize,
    },
    /// The frame, or the packet in it, ends within a header.
    #[error("the packet ends within its {0} header")]
    Truncated(Layer),
    /// A header length field is smaller than the smallest header.
    #[error("the {0} header claims an impossible length")]
    HeaderLength(Layer),
    /// A length field claims more than there is.
    #[error("{0} claims more bytes than the packet has")]
    Overlong(Layer),
    /// The version field contradicts the Ethernet type.
    #[error("the {0} header has the wrong version")]
    Version(Layer),
    /// A field must have one value and has another.
    #[error("the {0} header holds a forbidden value")]
    Illegal(Layer),
    /// More IPv6 extension headers than [`crate::EXTENSION_HEADERS_MAX`].
    #[error("the packet has too many IPv6 extension headers")]
    ExtensionChain,
    /// An IPv6 routing header, which would send the packet past policy (RFC 5095).
    #[error("the packet has an IPv6 routing header")]
    RoutingHeader,
    /// The first piece of a packet without all of its transport header (RFC 1858, RFC 7112).
    #[error("the first piece of the packet does not hold its whole transport header")]
    TinyFragment,
    /// An IPv4-mapped address on the wire.
    #[error("the packet has an IPv4-mapped IPv6 address")]
    MappedAddress,
}

/// The first bytes of a frame in private memory, with the length of the whole frame.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    bytes: &'a [u8],
    total_len_bytes: usize,
}

impl<'a> Head<'a> {
    /// The head of a frame of `total_len_bytes`; bytes beyond that are not part of it.
    #[must_use]
    #[inline]
    pub fn new(bytes: &'a [u8], total_len_bytes: usize) -> Self {
        Self { bytes: &bytes[..bytes.len().min(total_len_bytes)], total_len_bytes }
    }

    /// A frame that is here as a whole.
    #[must_use]
    pub fn whole(bytes: &'a [u8]) -> Self {
        Self { bytes, total_len_bytes: bytes.len() }
    }

    /// Length of the whole frame.
    #[must_use]
    pub fn total_len_bytes(&self) -> usize {
        self.total_len_bytes
    }

    /// The bytes that are here.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The same head, of a frame that ends at `end` at the latest.
    #[must_use]
    #[inline]
    pub(crate) fn until(self, end: usize) -> Self {
        Self::new(self.bytes, self.total_len_bytes.min(end))
    }

    /// The `N` bytes at `at`.
    ///
    /// # Errors
    /// `NeedMore` when the frame has them but the head does not, `Truncated` when the frame has not.
    #[inline]
    pub(crate) fn read<const N: usize>(&self, at: usize, layer: Layer) -> Result<&'a [u8; N], ParseError> {
        let end = at.checked_add(N).ok_or(ParseError::Truncated(layer))?;
        match self.bytes.get(at..end).and_then(|slice| slice.try_into().ok()) {
            Some(array) => Ok(array),
            None if end <= self.total_len_bytes => Err(ParseError::NeedMore { need_bytes: end }),
            None => Err(ParseError::Truncated(layer)),
        }
    }

    /// The bytes from `start` to `end`, all of which must be here.
    ///
    /// # Errors
    /// As [`Head::read`].
    pub fn slice(&self, start: usize, end: usize, layer: Layer) -> Result<&'a [u8], ParseError> {
        match self.bytes.get(start..end) {
            Some(slice) => Ok(slice),
            None if start <= end && end <= self.total_len_bytes => {
                Err(ParseError::NeedMore { need_bytes: end })
            }
            None => Err(ParseError::Truncated(layer)),
        }
    }
}

/// The big-endian number in the two bytes at `at` of an array.
#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian number in the four bytes at `at` of an array.
#[inline]
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
