// SPDX-License-Identifier: Apache-2.0
//! The Address Resolution Protocol for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use model::MacAddr;

use crate::head::be16;
use crate::{ETHERNET_LEN_BYTES, EtherType, Ethernet, Head, Layer, ParseError};

const ARP_LEN_BYTES: usize = 28;
const HARDWARE_ETHERNET: u16 = 1;

/// What an ARP packet does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has it.
    Reply,
}

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Question or answer.
    pub operation: Operation,
    /// The sender's Ethernet address.
    pub sender_mac: MacAddr,
    /// The sender's IPv4 address; unspecified in a probe (RFC 5227).
    pub sender: Ipv4Addr,
    /// The target's Ethernet address; meaningless in a request.
    pub target_mac: MacAddr,
    /// The address asked for.
    pub target: Ipv4Addr,
}

impl Arp {
    pub(crate) fn parse(head: Head<'_>) -> Result<Self, ParseError> {
        let b: &[u8; ARP_LEN_BYTES] = head.read(ETHERNET_LEN_BYTES, Layer::Arp)?;
        let shape = (be16(b, 0), be16(b, 2), b[4], b[5]);
        if shape != (HARDWARE_ETHERNET, EtherType::Ipv4.number(), 6, 4) {
            return Err(ParseError::Illegal(Layer::Arp));
        }
        let operation = match be16(b, 6) {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(ParseError::Illegal(Layer::Arp)),
        };
        Ok(Self {
            operation,
            sender_mac: MacAddr([b[8], b[9], b[10], b[11], b[12], b[13]]),
            sender: Ipv4Addr::new(b[14], b[15], b[16], b[17]),
            target_mac: MacAddr([b[18], b[19], b[20], b[21], b[22], b[23]]),
            target: Ipv4Addr::new(b[24], b[25], b[26], b[27]),
        })
    }

    /// The frame that carries this packet from its sender to `destination`.
    #[must_use]
    pub fn emit(&self, destination: MacAddr) -> Vec<u8> {
        let mut out = Vec::with_capacity(ETHERNET_LEN_BYTES + ARP_LEN_BYTES);
        Ethernet { destination, source: self.sender_mac, ether_type: EtherType::Arp }.emit(&mut out);
        out.extend_from_slice(&HARDWARE_ETHERNET.to_be_bytes());
        out.extend_from_slice(&EtherType::Ipv4.number().to_be_bytes());
        out.extend_from_slice(&[6, 4, 0]);
        out.push(match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        });
        out.extend_from_slice(&self.sender_mac.0);
        out.extend_from_slice(&self.sender.octets());
        out.extend_from_slice(&self.target_mac.0);
        out.extend_from_slice(&self.target.octets());
        out
    }

    /// The answer to this request: `mac` has the target address.
    #[must_use]
    pub fn reply(&self, mac: MacAddr) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        }
    }
}
