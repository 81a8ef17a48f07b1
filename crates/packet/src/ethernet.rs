// SPDX-License-Identifier: Apache-2.0
//! Ethernet II.

use model::MacAddr;

use crate::{Head, Layer, ParseError};

/// Length of the header, without tags.
pub const ETHERNET_LEN_BYTES: usize = 14;

/// What an Ethernet frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EtherType {
    /// 0x0800.
    Ipv4,
    /// 0x0806.
    Arp,
    /// 0x86dd.
    Ipv6,
    /// Any other value, VLAN tags and lengths of IEEE 802.3 included.
    Other(u16),
}

impl EtherType {
    /// The number in the header.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Ipv4 => 0x0800,
            Self::Arp => 0x0806,
            Self::Ipv6 => 0x86dd,
            Self::Other(number) => number,
        }
    }
}

impl From<u16> for EtherType {
    fn from(number: u16) -> Self {
        match number {
            0x0800 => Self::Ipv4,
            0x0806 => Self::Arp,
            0x86dd => Self::Ipv6,
            other => Self::Other(other),
        }
    }
}

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Whom the frame is for.
    pub destination: MacAddr,
    /// Who sent it.
    pub source: MacAddr,
    /// What it carries.
    pub ether_type: EtherType,
}

impl Ethernet {
    /// Reads the header at the start of the frame.
    #[inline]
    pub(crate) fn parse(head: Head<'_>) -> Result<Self, ParseError> {
        let bytes: &[u8; ETHERNET_LEN_BYTES] = head.read(0, Layer::Ethernet)?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *bytes;
        Ok(Self {
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            ether_type: u16::from_be_bytes([t0, t1]).into(),
        })
    }

    /// Appends the header.
    pub(crate) fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.destination.0);
        out.extend_from_slice(&self.source.0);
        out.extend_from_slice(&self.ether_type.number().to_be_bytes());
    }
}
