// SPDX-License-Identifier: Apache-2.0
//! Neighbour discovery (RFC 4861): the two messages that resolve addresses.

use std::net::Ipv6Addr;

use model::{MacAddr, Protocol};

use crate::icmp::ICMP_LEN_BYTES;
use crate::{Addresses, Head, Ip, Layer, ParseError, emit};

const ADVERTISEMENT: u8 = 136;
const OPTION_TARGET_LINK: u8 = 2;
/// Proves that no router forwarded the message (RFC 4861 section 7.1.1).
const HOP_LIMIT: u8 = 255;
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// All nodes of a link: ff02::1.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The Ethernet address of an IPv6 group (RFC 2464 section 7).
#[must_use]
pub fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

/// Who has this address?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// The address asked for.
    pub target: Ipv6Addr,
}

impl Solicitation {
    /// Reads the solicitation in `ip`. Its options are not needed: the sender's address is the frame's.
    ///
    /// # Errors
    /// When the message is too short or not legal by RFC 4861 section 7.1.1.
    pub fn parse(head: Head<'_>, ip: &Ip) -> Result<Self, ParseError> {
        let target: &[u8; 16] = head.until(ip.end).read(ip.transport_offset + ICMP_LEN_BYTES, Layer::Icmp)?;
        let target = Ipv6Addr::from(*target);
        if ip.ttl != HOP_LIMIT || target.is_multicast() {
            return Err(ParseError::Illegal(Layer::Icmp));
        }
        Ok(Self { target })
    }
}

/// The frame that tells the asker who has `target`. A `source` that is unspecified was probing for a
/// duplicate and is answered through the group of all nodes.
#[must_use]
pub fn advertisement(target: Ipv6Addr, mac: MacAddr, router: bool, asker: (Ipv6Addr, MacAddr)) -> Vec<u8> {
    let (destination, destination_mac, solicited) = if asker.0.is_unspecified() {
        (ALL_NODES, group_mac(ALL_NODES), 0)
    } else {
        (asker.0, asker.1, SOLICITED)
    };
    let flags = solicited | OVERRIDE | if router { ROUTER } else { 0 };
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[OPTION_TARGET_LINK, 1]);
    message.extend_from_slice(&mac.0);
    let link = emit::Link { source: mac, destination: destination_mac };
    let addresses = Addresses::V6 { source: target, destination };
    emit::ip(link, addresses, Protocol::Icmpv6, HOP_LIMIT, &message)
}
