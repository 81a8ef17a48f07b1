// SPDX-License-Identifier: Apache-2.0
//! From a head to values.

use crate::arp::Arp;
use crate::ip::NETWORK_OFFSET;
use crate::{EtherType, Ethernet, Head, Ip, ParseError};

/// What an Ethernet frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// ARP.
    Arp(Arp),
    /// IPv4 or IPv6.
    Ip(Ip),
    /// Something that is not looked into.
    Other,
}

/// A parsed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The link header.
    pub ethernet: Ethernet,
    /// What it carries.
    pub network: Network,
}

impl Packet {
    /// Reads all headers up to TCP, UDP or ICMP.
    ///
    /// # Errors
    /// `NeedMore` when the head is shorter than the headers; anything else means the frame is malformed.
    #[inline]
    pub fn parse(head: Head<'_>) -> Result<Self, ParseError> {
        let ethernet = Ethernet::parse(head)?;
        let mut ip = match ethernet.ether_type {
            EtherType::Arp => return Ok(Self { ethernet, network: Network::Arp(Arp::parse(head)?) }),
            EtherType::Other(_) => return Ok(Self { ethernet, network: Network::Other }),
            EtherType::Ipv4 => Ip::parse_v4(head, NETWORK_OFFSET, true)?,
            EtherType::Ipv6 => Ip::parse_v6(head, NETWORK_OFFSET, true)?,
        };
        ip.read_transport(head)?;
        Ok(Self { ethernet, network: Network::Ip(ip) })
    }
}
