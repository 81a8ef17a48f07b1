// SPDX-License-Identifier: Apache-2.0
//! A packet given other addresses and ports is the packet that would have been made with them.

use std::net::{Ipv4Addr, Ipv6Addr};

use model::{MacAddr, Protocol};
use packet::checksum::Sum;
use packet::emit::{self, Link};
use packet::{Addresses, Head, Ip, Network, Packet, edit};
use proptest::collection::vec;
use proptest::prelude::*;

const LINK: Link = Link { source: MacAddr([2, 0, 0, 0, 0, 1]), destination: MacAddr([2, 0, 0, 0, 0, 2]) };

fn ip(frame: &[u8]) -> Ip {
    match Packet::parse(Head::whole(frame)).unwrap().network {
        Network::Ip(ip) => ip,
        other => panic!("not IP: {other:?}"),
    }
}

fn addresses() -> impl Strategy<Value = (Addresses, Addresses)> {
    let v4 = |(a, b): (u32, u32)| Addresses::V4 {
        source: Ipv4Addr::from_bits(a),
        destination: Ipv4Addr::from_bits(b),
    };
    let v6 = |(a, b): (u128, u128)| Addresses::V6 {
        source: Ipv6Addr::from_bits(a),
        destination: Ipv6Addr::from_bits(b),
    };
    let four = (any::<(u32, u32)>(), any::<(u32, u32)>()).prop_map(move |(a, b)| (v4(a), v4(b)));
    let six = (any::<(u128, u128)>(), any::<(u128, u128)>()).prop_map(move |(a, b)| (v6(a), v6(b)));
    prop_oneof![four, six]
}

/// A frame over `protocol` with ports and a payload; the transport's checksum is right.
fn frame(addresses: Addresses, protocol: Protocol, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    if protocol == Protocol::Udp {
        return emit::udp(LINK, addresses, ports, payload);
    }
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(payload);
    emit::ip(LINK, addresses, Protocol::Tcp, 64, &segment)
}

fn checksum_at(protocol: Protocol) -> usize {
    if protocol == Protocol::Udp { 6 } else { 16 }
}

/// The sum over pseudo header and transport, which is zero when the checksum is right.
fn residue(frame: &[u8]) -> u16 {
    let ip = ip(frame);
    let transport = &frame[ip.transport_offset..ip.end];
    Sum::pseudo(ip.addresses, ip.protocol, transport.len()).bytes(transport).finish()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn checksums_stay_right(
        (from, to) in addresses(), tcp in any::<bool>(), ports in any::<[(u16, u16); 2]>(),
        payload in vec(any::<u8>(), 0..40),
    ) {
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let wanted = frame(to, protocol, ports[1], &payload);
        let mut changed = frame(from, protocol, ports[0], &payload);
        let parsed = ip(&changed);
        edit::readdress(&mut changed, &parsed, false, to, ports[1]);
        prop_assert_eq!(residue(&changed), 0);
        if let Addresses::V4 { .. } = to {
            prop_assert_eq!(Sum::default().bytes(&changed[14..34]).finish(), 0);
        }
        // Checksums have two zeroes; all else is equal to the byte.
        let blank = |frame: &[u8]| {
            let mut frame = frame.to_vec();
            let at = ip(&frame).transport_offset + checksum_at(protocol);
            frame[at..at + 2].fill(0);
            if matches!(to, Addresses::V4 { .. }) {
                frame[24..26].fill(0);
            }
            frame
        };
        prop_assert_eq!(blank(&changed), blank(&wanted));
    }

    /// With only the pseudo header summed, completing the checksum afterwards gives the right one.
    #[test]
    fn partial_checksums_are_completed_rightly(
        (from, to) in addresses(), tcp in any::<bool>(), ports in any::<[(u16, u16); 2]>(),
        payload in vec(any::<u8>(), 0..40),
    ) {
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let mut frame = frame(from, protocol, ports[0], &payload);
        let parsed = ip(&frame);
        let at = parsed.transport_offset + checksum_at(protocol);
        let pseudo = !Sum::pseudo(from, protocol, parsed.payload_len_bytes()).finish();
        frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        edit::readdress(&mut frame, &parsed, true, to, ports[1]);
        let completed = Sum::default().bytes(&frame[parsed.transport_offset..parsed.end]).finish();
        frame[at..at + 2].copy_from_slice(&completed.to_be_bytes());
        prop_assert_eq!(residue(&frame), 0);
    }

    /// Whatever the head holds of the packet, nothing outside of it is touched and nothing panics.
    #[test]
    fn short_heads_are_left_alone((from, to) in addresses(), keep in 0_usize..80) {
        let whole = frame(from, Protocol::Tcp, (1, 2), b"payload");
        let parsed = ip(&whole);
        let mut head = whole[..keep.min(whole.len())].to_vec();
        edit::readdress(&mut head, &parsed, false, to, (3, 4));
        let needed = parsed.transport_offset + 18;
        if keep < needed {
            prop_assert_eq!(&head[..], &whole[..keep]);
        }
    }
}

#[test]
fn absent_udp_checksum_stays_absent() {
    let to = Addresses::V4 { source: [1, 2, 3, 4].into(), destination: [5, 6, 7, 8].into() };
    let from = to.reversed();
    let mut frame = frame(from, Protocol::Udp, (1, 2), b"x");
    let parsed = ip(&frame);
    let at = parsed.transport_offset + 6;
    frame[at..at + 2].fill(0);
    edit::readdress(&mut frame, &parsed, false, to, (3, 4));
    assert_eq!(frame[at..at + 2], [0, 0]);
}
