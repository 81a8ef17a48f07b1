// SPDX-License-Identifier: Apache-2.0
//! Frames that are cut off or lie about themselves.

use std::net::Ipv6Addr;

use model::{MacAddr, Protocol};
use packet::arp::{Arp, Operation};
use packet::emit::{self, Link, Segment};
use packet::icmp::Quoted;
use packet::nd::Solicitation;
use packet::{
    Addresses, EXTENSION_HEADERS_MAX, Fragment, GsoKind, Head, Ip, Layer, Network, OffloadError, Packet,
    ParseError, TcpFlags, Transport, VnetHeader,
};
use proptest::prelude::*;

const LINK: Link = Link { source: MacAddr([2, 0, 0, 0, 0, 1]), destination: MacAddr([2, 0, 0, 0, 0, 2]) };
const V4: Addresses = Addresses::V4 {
    source: std::net::Ipv4Addr::new(10, 0, 0, 1),
    destination: std::net::Ipv4Addr::new(10, 0, 0, 2),
};
const V6: Addresses = Addresses::V6 {
    source: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
    destination: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
};
/// Offset of the network header.
const NET: usize = 14;

fn tcp(addresses: Addresses) -> Vec<u8> {
    let segment =
        Segment { source_port: 1, destination_port: 2, sequence: 3, acknowledgment: 4, flags: TcpFlags::ACK };
    emit::tcp(LINK, addresses, segment)
}

fn udp(addresses: Addresses) -> Vec<u8> {
    emit::udp(LINK, addresses, (1, 2), b"payload")
}

fn parse(frame: &[u8]) -> Result<Packet, ParseError> {
    Packet::parse(Head::whole(frame))
}

fn ip(frame: &[u8]) -> Ip {
    match parse(frame).unwrap().network {
        Network::Ip(ip) => ip,
        other => panic!("not IP: {other:?}"),
    }
}

/// An IPv6 frame whose payload is a chain of headers, the first of them of kind `first`.
fn chained(first: u8, chain: &[u8]) -> Vec<u8> {
    emit::ip(LINK, V6, Protocol::Other(first), 64, chain)
}

#[test]
fn lies_are_told_apart() {
    type Edit = (usize, &'static [u8]);
    let check = |frame: Vec<u8>, (at, bytes): Edit, error: ParseError| {
        let mut frame = frame;
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(parse(&frame), Err(error), "{at} {bytes:?}");
    };
    check(tcp(V4), (NET, &[0x44]), ParseError::HeaderLength(Layer::Ipv4));
    check(tcp(V4), (NET, &[0x65]), ParseError::Version(Layer::Ipv4));
    check(tcp(V4), (NET, &[0x4f]), ParseError::HeaderLength(Layer::Ipv4));
    check(tcp(V4), (NET + 2, &[0, 19]), ParseError::HeaderLength(Layer::Ipv4));
    check(tcp(V4), (NET + 2, &[0, 41]), ParseError::Overlong(Layer::Ipv4));
    check(tcp(V4), (NET + 2, &[0xff, 0xff]), ParseError::Overlong(Layer::Ipv4));
    check(tcp(V4), (NET + 2, &[0, 39]), ParseError::Truncated(Layer::Tcp));
    check(tcp(V4), (NET + 20 + 12, &[0x40]), ParseError::HeaderLength(Layer::Tcp));
    check(tcp(V4), (NET + 20 + 12, &[0x60]), ParseError::Truncated(Layer::Tcp));
    check(udp(V4), (NET + 20 + 4, &[0, 7]), ParseError::HeaderLength(Layer::Udp));
    check(udp(V4), (NET + 20 + 4, &[0, 16]), ParseError::Overlong(Layer::Udp));
    check(tcp(V6), (NET, &[0x40]), ParseError::Version(Layer::Ipv6));
    check(tcp(V6), (NET + 4, &[0, 21]), ParseError::Overlong(Layer::Ipv6));
    check(tcp(V6), (NET + 4, &[0, 19]), ParseError::Truncated(Layer::Tcp));
    check(tcp(V6), (NET + 6, &[1]), ParseError::Illegal(Layer::Icmp));
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    for at in [NET + 8, NET + 24] {
        let mut frame = tcp(V6);
        frame[at..at + 16].copy_from_slice(&mapped);
        assert_eq!(parse(&frame), Err(ParseError::MappedAddress));
    }
}

#[test]
fn arp_other_than_ipv4_over_ethernet_is_illegal() {
    let arp = Arp {
        operation: Operation::Request,
        sender_mac: LINK.source,
        sender: [10, 0, 0, 1].into(),
        target_mac: MacAddr::default(),
        target: [10, 0, 0, 2].into(),
    };
    let frame = arp.emit(MacAddr::BROADCAST);
    assert_eq!(parse(&frame).unwrap().network, Network::Arp(arp));
    for at in [NET, NET + 2, NET + 4, NET + 5, NET + 7] {
        let mut wrong = frame.clone();
        wrong[at] ^= 0x40;
        assert_eq!(parse(&wrong), Err(ParseError::Illegal(Layer::Arp)), "{at}");
    }
}

#[test]
fn extension_headers_are_followed_within_bounds() {
    // Hop-by-hop, destination options of 16 bytes, then UDP.
    let mut chain = vec![60, 0, 0, 0, 0, 0, 0, 0];
    chain.extend_from_slice(&[17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    chain.extend_from_slice(&[0, 1, 0, 2, 0, 8, 0, 0]);
    let packet = ip(&chained(0, &chain));
    assert_eq!(packet.protocol, Protocol::Udp);
    assert_eq!(packet.transport_offset, NET + 40 + 24);
    assert!(matches!(packet.transport, Transport::Udp(udp) if udp.destination_port == 2));

    let options = |count: usize| {
        let mut chain = [60, 0, 0, 0, 0, 0, 0, 0].repeat(count - 1);
        chain.extend_from_slice(&[59, 0, 0, 0, 0, 0, 0, 0]);
        parse(&chained(60, &chain))
    };
    assert!(options(EXTENSION_HEADERS_MAX - 1).is_ok());
    assert_eq!(options(EXTENSION_HEADERS_MAX + 1), Err(ParseError::ExtensionChain));
    assert_eq!(parse(&chained(43, &[17, 0, 0, 0, 0, 0, 0, 0])), Err(ParseError::RoutingHeader));
    assert_eq!(parse(&chained(0, &[17, 200])), Err(ParseError::Truncated(Layer::Ipv6)));
    let twice = [44, 0, 0, 1, 0, 0, 0, 1, 17, 0, 0, 1, 0, 0, 0, 1];
    assert_eq!(parse(&chained(44, &twice)), Err(ParseError::Illegal(Layer::Ipv6)));
}

#[test]
fn only_a_first_fragment_has_ports() {
    let mut frame = udp(V4);
    for (bits, fragment) in [
        (0x4000_u16, None),
        (0x2000, Some(Fragment { id: 0, offset_bytes: 0, more: true })),
        (0x2002, Some(Fragment { id: 0, offset_bytes: 16, more: true })),
        (0x1fff, Some(Fragment { id: 0, offset_bytes: 65_528, more: false })),
    ] {
        frame[NET + 6..NET + 8].copy_from_slice(&bits.to_be_bytes());
        let packet = ip(&frame);
        assert_eq!(packet.fragment, fragment);
        let has_ports = fragment.is_none_or(|piece| piece.offset_bytes == 0);
        assert_eq!(matches!(packet.transport, Transport::Udp(_)), has_ports);
    }
    let piece = [17, 0, 0, 0x19, 0, 0, 0, 7, 1, 2, 3];
    let packet = ip(&chained(44, &piece));
    assert_eq!(packet.fragment, Some(Fragment { id: 7, offset_bytes: 24, more: true }));
    assert_eq!(packet.transport, Transport::Other);
}

#[test]
fn a_cut_frame_is_truncated_and_a_cut_head_needs_more() {
    for frame in [tcp(V4), udp(V4), tcp(V6), udp(V6)] {
        let parsed = parse(&frame).unwrap();
        for len in 0..frame.len() {
            assert!(matches!(parse(&frame[..len]), Err(ParseError::Truncated(_) | ParseError::Overlong(_))));
            match Packet::parse(Head::new(&frame[..len], frame.len())) {
                Ok(packet) => assert_eq!(packet, parsed),
                Err(ParseError::NeedMore { need_bytes }) => {
                    assert!(len < need_bytes && need_bytes <= frame.len())
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn offloads_are_checked_against_the_frame() {
    let tso = VnetHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1400,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 3,
    };
    let (tcp4, tcp6, udp4) = (ip(&tcp(V4)), ip(&tcp(V6)), ip(&udp(V4)));
    for (header, packet, outcome) in [
        (tso, &tcp4, Ok(GsoKind::Tcp4)),
        (VnetHeader { gso_type: 0x81, ..tso }, &tcp4, Ok(GsoKind::Tcp4)),
        (VnetHeader { gso_type: 4, ..tso }, &tcp6, Ok(GsoKind::Tcp6)),
        (VnetHeader { gso_type: 5, ..tso }, &udp4, Ok(GsoKind::Udp)),
        (VnetHeader { gso_type: 3, ..tso }, &udp4, Ok(GsoKind::UdpFragments)),
        (VnetHeader { gso_type: 0, ..tso }, &udp4, Ok(GsoKind::None)),
        (tso, &tcp6, Err(OffloadError::GsoProtocol)),
        (tso, &udp4, Err(OffloadError::GsoProtocol)),
        (VnetHeader { gso_type: 5, ..tso }, &tcp4, Err(OffloadError::GsoProtocol)),
        (VnetHeader { gso_type: 2, ..tso }, &tcp4, Err(OffloadError::GsoType(2))),
        (VnetHeader { gso_size: 0, ..tso }, &tcp4, Err(OffloadError::GsoSize)),
        (VnetHeader { flags: 0, ..tso }, &tcp4, Err(OffloadError::GsoSize)),
        (VnetHeader { csum_start: 1999, ..tso }, &tcp4, Err(OffloadError::ChecksumOutside)),
        (
            VnetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..tso },
            &tcp4,
            Err(OffloadError::ChecksumOutside),
        ),
    ] {
        let out = header.forwarded(2000, Some(packet));
        assert_eq!(out.map(|out| out.gso().unwrap()), outcome, "{header:?}");
    }
    assert_eq!(tso.forwarded(2000, None), Err(OffloadError::GsoProtocol));
    let plain = VnetHeader { flags: 0xfe, hdr_len: 9, num_buffers: 9, ..VnetHeader::default() };
    assert_eq!(plain.forwarded(60, None), Ok(VnetHeader::default()), "only what the receiver needs is kept");
}

#[test]
fn a_quote_is_read_without_trusting_its_lengths() {
    let mut quoted = tcp(V4)[NET..NET + 28].to_vec();
    quoted[2..4].copy_from_slice(&u16::MAX.to_be_bytes());
    let message = |quote: &[u8]| {
        emit::ip(LINK, V4.reversed(), Protocol::Icmp, 64, &[&[3, 1, 0, 0, 0, 0, 0, 0], quote].concat())
    };
    let read = |frame: &[u8]| Quoted::parse(Head::whole(frame), &ip(frame));
    let quote = read(&message(&quoted)).unwrap();
    assert_eq!((quote.addresses, quote.protocol, quote.ports), (V4, Protocol::Tcp, [1, 2]));
    assert_eq!(quote.rest, [0, 0, 0, 3]);
    for len in 0..quoted.len() {
        assert!(matches!(read(&message(&quoted[..len])), Err(ParseError::Truncated(_))), "{len}");
    }
    quoted[7] = 1;
    assert_eq!(read(&message(&quoted)), Err(ParseError::Illegal(Layer::Icmp)), "a later piece has no ports");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn random_bytes_are_never_more_than_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0..256),
        ether_type in prop::sample::select(vec![0x0800_u16, 0x0806, 0x86dd, 0x8100]),
        version in prop::sample::select(vec![0x45_u8, 0x46, 0x60]),
        longer in 0..70_000_usize,
    ) {
        if bytes.len() > NET {
            bytes[12..14].copy_from_slice(&ether_type.to_be_bytes());
            bytes[NET] = version;
        }
        let head = Head::new(&bytes, bytes.len() + longer);
        if let Ok(packet) = Packet::parse(head)
            && let Network::Ip(ip) = packet.network
        {
            prop_assert!(ip.transport_offset <= ip.end && ip.end <= head.total_len_bytes());
            if let Transport::Udp(udp) = ip.transport {
                prop_assert!(udp.payload_offset + udp.payload_len_bytes <= ip.end);
            }
            let _ = Quoted::parse(head, &ip);
            let _ = Solicitation::parse(head, &ip);
            let _ = emit::echo_reply(LINK, head, &ip);
            let _ = emit::unreachable(LINK, ip.addresses.reversed(), emit::Unreachable::Host, head, &ip);
            packet::edit::decrement_ttl(&mut bytes, &ip);
        }
    }

    #[test]
    fn virtio_headers_read_back(bytes in any::<[u8; 12]>(), len in 0..70_000_usize) {
        let header = VnetHeader::from_bytes(bytes);
        prop_assert_eq!(header.to_bytes(), bytes);
        let _ = header.forwarded(len, None);
    }
}
