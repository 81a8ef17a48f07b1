// SPDX-License-Identifier: Apache-2.0
//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use model::Protocol;

use crate::Addresses;

/// A one's complement sum in progress. Chunks but the last must have an even length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// This sum and `bytes`, padded with a zero to an even length.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        // Modulo 2^16 - 1, a number of 32 bits is the sum of its halves.
        let (quads, rest) = bytes.as_chunks::<4>();
        for quad in quads {
            self.0 += u64::from(u32::from_be_bytes(*quad));
        }
        let (pairs, odd) = rest.as_chunks::<2>();
        for pair in pairs {
            self.0 += u64::from(u16::from_be_bytes(*pair));
        }
        if let [last] = odd {
            self.0 += u64::from(*last) << 8;
        }
        self
    }

    /// This sum and a 16-bit word.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// The pseudo header of TCP, UDP and ICMPv6.
    #[must_use]
    pub fn pseudo(addresses: Addresses, protocol: Protocol, transport_len_bytes: usize) -> Self {
        let sum = match addresses {
            Addresses::V4 { source, destination } => {
                Self::default().bytes(&source.octets()).bytes(&destination.octets())
            }
            Addresses::V6 { source, destination } => {
                Self::default().bytes(&source.octets()).bytes(&destination.octets())
            }
        };
        Self(sum.0 + u64::from(protocol.number()) + transport_len_bytes as u64)
    }

    /// The checksum: the complement of the folded sum.
    #[must_use]
    pub fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !(sum as u16)
    }
}

/// The checksum after one 16-bit word of what it covers changed (RFC 1624, equation 3).
#[must_use]
pub fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::default().word(!checksum).word(!old).word(new).finish()
}

/// What a checksum must know of words that were overwritten (RFC 1624, equation 3).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change(Sum);

impl Change {
    /// From bytes that a checksum covers from an even place on to what they have become.
    pub(crate) fn of(old: &[u8], new: &[u8]) -> Self {
        let mut change = Self::default();
        change.write(&mut old.to_vec(), new);
        change
    }

    /// Overwrites bytes of an even number that a checksum covers from an even place on.
    pub(crate) fn write(&mut self, field: &mut [u8], bytes: &[u8]) {
        for (old, new) in field.as_chunks_mut::<2>().0.iter_mut().zip(bytes.as_chunks::<2>().0) {
            self.0 = self.0.word(!u16::from_be_bytes(*old)).word(u16::from_be_bytes(*new));
            *old = *new;
        }
    }

    /// Both changes.
    pub(crate) fn and(self, other: Self) -> Self {
        Self(Sum(self.0.0 + other.0.0))
    }

    /// Brings a checksum up to date.
    pub(crate) fn apply(self, field: &mut [u8]) {
        let Some(field) = field.first_chunk_mut::<2>() else { return };
        *field = self.0.word(!u16::from_be_bytes(*field)).finish().to_be_bytes();
    }
}
