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
        let network = match ethernet.ether_type {
            EtherType::Arp => Network::Arp(Arp::parse(head)?),
            EtherType::Ipv4 => Network::Ip(Ip::parse_v4(head, NETWORK_OFFSET, true)?.with_transport(head)?),
            EtherType::Ipv6 => Network::Ip(Ip::parse_v6(head, NETWORK_OFFSET, true)?.with_transport(head)?),
            EtherType::Other(_) => Network::Other,
        };
        Ok(Self { ethernet, network })
    }
}
