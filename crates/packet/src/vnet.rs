// SPDX-License-Identifier: Apache-2.0
//! The header before each frame in a virtio-net queue (virtio 1.2 section 5.1.6).

use model::Protocol;

use crate::{Addresses, Ip};

/// Length of the header, with `num_buffers`.
pub const VNET_LEN_BYTES: usize = 12;

const NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;

/// How a super-frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GsoKind {
    /// It is not.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// UDP by IP fragmentation.
    UdpFragments,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, a datagram per piece.
    Udp,
}

/// The header's fields, in the order and units of the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// `NEEDS_CSUM` (1), `DATA_VALID` (2), `RSC_INFO` (4).
    pub flags: u8,
    /// What the frame is to be cut into; bit 7 means ECN.
    pub gso_type: u8,
    /// Length of all headers, a hint.
    pub hdr_len: u16,
    /// Largest payload of a piece.
    pub gso_size: u16,
    /// Where the checksum starts to cover, from the frame's start.
    pub csum_start: u16,
    /// Where to store it, from `csum_start`.
    pub csum_offset: u16,
    /// Number of buffers the frame spans; meaningful towards the guest only.
    pub num_buffers: u16,
}

/// A request for offload that contradicts the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OffloadError {
    /// The checksum field lies outside the frame.
    #[error("the checksum to complete lies outside the frame")]
    ChecksumOutside,
    /// A segmentation type that does not exist.
    #[error("segmentation type {0} does not exist")]
    GsoType(u8),
    /// Segmentation into pieces of nothing, or without the checksum that every piece needs.
    #[error("segmentation asked for without a size or a checksum")]
    GsoSize,
    /// Segmentation of a protocol that the frame does not carry.
    #[error("segmentation does not fit the packet's protocol")]
    GsoProtocol,
}

impl VnetHeader {
    /// Reads the little-endian header.
    #[must_use]
    pub fn from_bytes(bytes: [u8; VNET_LEN_BYTES]) -> Self {
        let number = bytes.iter().rev().fold(0, |number, byte| number << 8 | u128::from(*byte));
        Self::from_number(number)
    }

    /// Reads the header from its bytes as a little-endian number.
    #[must_use]
    #[inline]
    pub fn from_number(number: u128) -> Self {
        let (first, second) = (number as u64, (number >> 64) as u32);
        Self {
            flags: first as u8,
            gso_type: (first >> 8) as u8,
            hdr_len: (first >> 16) as u16,
            gso_size: (first >> 32) as u16,
            csum_start: (first >> 48) as u16,
            csum_offset: second as u16,
            num_buffers: (second >> 16) as u16,
        }
    }

    /// The little-endian header.
    #[must_use]
    #[inline]
    pub fn to_bytes(self) -> [u8; VNET_LEN_BYTES] {
        let bytes = self.to_number().to_le_bytes();
        *bytes.first_chunk().expect("a number of 128 bits has more bytes")
    }

    /// The header's bytes as a little-endian number, which stays in registers: a processor that reads in one piece what it
    /// has just written in several waits for all writes before.
    #[must_use]
    #[inline]
    pub fn to_number(self) -> u128 {
        let first = u64::from(self.flags)
            | u64::from(self.gso_type) << 8
            | u64::from(self.hdr_len) << 16
            | u64::from(self.gso_size) << 32
            | u64::from(self.csum_start) << 48;
        let second = u32::from(self.csum_offset) | u32::from(self.num_buffers) << 16;
        u128::from(first) | u128::from(second) << 64
    }

    /// Whether the frame's transport checksum holds only the pseudo header's sum.
    #[must_use]
    pub fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// How the frame is to be cut.
    ///
    /// # Errors
    /// When the type does not exist.
    pub fn gso(&self) -> Result<GsoKind, OffloadError> {
        match self.gso_type & !GSO_ECN {
            0 => Ok(GsoKind::None),
            1 => Ok(GsoKind::Tcp4),
            3 => Ok(GsoKind::UdpFragments),
            4 => Ok(GsoKind::Tcp6),
            5 => Ok(GsoKind::Udp),
            _ => Err(OffloadError::GsoType(self.gso_type)),
        }
    }

    /// The header to hand to another guest with a frame of `total_len_bytes` that carries `ip`: what the
    /// receiver must know, checked, and nothing else.
    ///
    /// # Errors
    /// When the header contradicts the frame.
    #[inline]
    pub fn forwarded(&self, total_len_bytes: usize, ip: Option<&Ip>) -> Result<Self, OffloadError> {
        let mut out = Self::default();
        if self.needs_checksum() {
            let field = usize::from(self.csum_start) + usize::from(self.csum_offset);
            if field + 2 > total_len_bytes {
                return Err(OffloadError::ChecksumOutside);
            }
            out.flags = NEEDS_CSUM;
            (out.csum_start, out.csum_offset) = (self.csum_start, self.csum_offset);
        }
        let kind = self.gso()?;
        if kind == GsoKind::None {
            return Ok(out);
        }
        if self.gso_size == 0 || !self.needs_checksum() {
            return Err(OffloadError::GsoSize);
        }
        let fits = ip.is_some_and(|ip| match (kind, ip.protocol) {
            (GsoKind::Tcp4, Protocol::Tcp) => matches!(ip.addresses, Addresses::V4 { .. }),
            (GsoKind::Tcp6, Protocol::Tcp) => matches!(ip.addresses, Addresses::V6 { .. }),
            (GsoKind::Udp | GsoKind::UdpFragments, Protocol::Udp) => true,
            _ => false,
        });
        if !fits {
            return Err(OffloadError::GsoProtocol);
        }
        out.gso_type = self.gso_type;
        out.gso_size = self.gso_size;
        out.hdr_len = self.hdr_len.min(u16::try_from(total_len_bytes).unwrap_or(u16::MAX));
        Ok(out)
    }
}
