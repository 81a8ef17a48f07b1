// SPDX-License-Identifier: Apache-2.0
//! Any bytes as a frame, whole or with only its head copied: parsed, edited, answered.
#![no_main]

use std::net::{Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use packet::icmp::Quoted;
use packet::nd::Solicitation;
use packet::{Addresses, Head, Ip, Network, Packet, VNET_LEN_BYTES, VnetHeader, edit, emit};

/// A frame is longer than its head by this at most.
const REST_BYTES_MAX: usize = 65_536;

fuzz_target!(|bytes: &[u8]| {
    let Some((vnet, frame)) = bytes.split_first_chunk::<VNET_LEN_BYTES>() else { return };
    let Some((rest, frame)) = frame.split_first_chunk::<2>() else { return };
    let total_len_bytes = frame.len() + usize::from(u16::from_le_bytes(*rest)) % REST_BYTES_MAX;
    let vnet = VnetHeader::from_bytes(*vnet);
    assert_eq!(VnetHeader::from_bytes(vnet.to_bytes()), vnet);

    for head in [Head::whole(frame), Head::new(frame, total_len_bytes)] {
        let Ok(packet) = Packet::parse(head) else { continue };
        match packet.network {
            Network::Arp(arp) => {
                let answer = arp.reply(packet.ethernet.source).emit(packet.ethernet.source);
                assert!(Packet::parse(Head::whole(&answer)).is_ok(), "our own ARP answer is not ARP");
            }
            Network::Ip(ip) => use_ip(head, &packet, &ip, vnet),
            Network::Other => {}
        }
    }
});

fn use_ip(head: Head<'_>, packet: &Packet, ip: &Ip, vnet: VnetHeader) {
    assert!(ip.transport_offset <= ip.end && ip.end <= head.total_len_bytes());
    let _ = vnet.forwarded(head.total_len_bytes(), Some(ip));
    let _ = Quoted::parse(head, ip);
    let _ = Solicitation::parse(head, ip);

    let mut copy = head.bytes().to_vec();
    edit::decrement_ttl(&mut copy, ip);
    edit::set_source(&mut copy, packet.ethernet.destination);
    edit::set_destination(&mut copy, packet.ethernet.source);

    let link = emit::Link { source: packet.ethernet.destination, destination: packet.ethernet.source };
    let ours = match ip.addresses {
        Addresses::V4 { source, .. } => Addresses::V4 { source: Ipv4Addr::LOCALHOST, destination: source },
        Addresses::V6 { source, .. } => Addresses::V6 { source: Ipv6Addr::LOCALHOST, destination: source },
    };
    let error = emit::unreachable(link, ours, emit::Unreachable::Prohibited, head, ip);
    assert!(Packet::parse(Head::whole(&error)).is_ok(), "our own ICMP error is malformed");
    let _ = emit::echo_reply(link, head, ip);
}
