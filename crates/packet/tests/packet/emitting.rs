// SPDX-License-Identifier: Apache-2.0
//! Frames that the switch makes, to the byte where the byte matters.

use std::net::{Ipv4Addr, Ipv6Addr};

use model::{MacAddr, Protocol};
use packet::arp::{Arp, Operation};
use packet::emit::{self, Link, QUOTE_LEN_BYTES_MAX, Segment, Unreachable};
use packet::{
    Addresses, Head, Icmp, Ip, Layer, Network, Packet, ParseError, TcpFlags, Transport, checksum, nd,
};

const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const GATEWAY: MacAddr = MacAddr([2, 0, 0x5e, 0, 1, 1]);
const TO_GUEST: Link = Link { source: GATEWAY, destination: GUEST };
const FROM_GUEST: Link = Link { source: GUEST, destination: GATEWAY };
const V4: Addresses =
    Addresses::V4 { source: Ipv4Addr::new(10, 0, 0, 11), destination: Ipv4Addr::new(10, 0, 0, 1) };
const V6: Addresses = Addresses::V6 {
    source: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x11),
    destination: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
};

#[track_caller]
fn ip(frame: &[u8]) -> Ip {
    match Packet::parse(Head::whole(frame)).unwrap().network {
        Network::Ip(ip) => ip,
        other => panic!("not IP: {other:?}"),
    }
}

#[track_caller]
fn message(frame: &[u8]) -> (Ip, Icmp) {
    let ip = ip(frame);
    let Transport::Icmp(icmp) = ip.transport else { panic!("not ICMP") };
    let bytes = &frame[ip.transport_offset..ip.end];
    let pseudo = match ip.addresses {
        Addresses::V4 { .. } => checksum::Sum::default(),
        Addresses::V6 { .. } => checksum::Sum::pseudo(ip.addresses, ip.protocol, bytes.len()),
    };
    assert_eq!(pseudo.bytes(bytes).finish(), 0, "the message's checksum");
    (ip, icmp)
}

#[test]
fn arp_is_answered_in_the_targets_name() {
    let request = Arp {
        operation: Operation::Request,
        sender_mac: GUEST,
        sender: [10, 0, 0, 11].into(),
        target_mac: MacAddr::default(),
        target: [10, 0, 0, 1].into(),
    };
    let frame = request.reply(GATEWAY).emit(GUEST);
    let expected = [
        [2, 0, 0, 0, 0, 1, 2, 0, 0x5e, 0, 1, 1, 8, 6].as_slice(),
        &[0, 1, 8, 0, 6, 4, 0, 2],
        &[2, 0, 0x5e, 0, 1, 1, 10, 0, 0, 1],
        &[2, 0, 0, 0, 0, 1, 10, 0, 0, 11],
    ];
    assert_eq!(frame, expected.concat());
}

#[test]
fn an_advertisement_carries_the_link_address() {
    let target = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    for (asker, destination, flags) in [
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 5), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 5), 0xe0),
        (Ipv6Addr::UNSPECIFIED, nd::ALL_NODES, 0xa0),
    ] {
        let frame = nd::advertisement(target, GATEWAY, true, (asker, GUEST));
        let (ip, icmp) = message(&frame);
        assert_eq!((icmp.kind, icmp.rest[0], ip.ttl), (136, flags, 255));
        assert_eq!(ip.addresses, Addresses::V6 { source: target, destination });
        assert_eq!(frame[frame.len() - 8..], [2, 1, 2, 0, 0x5e, 0, 1, 1]);
    }
}

#[test]
fn errors_quote_what_they_are_about() {
    for (addresses, why, kind) in [
        (V4, Unreachable::Prohibited, (3, 13)),
        (V4, Unreachable::Host, (3, 1)),
        (V4, Unreachable::TimeExceeded, (11, 0)),
        (V6, Unreachable::Prohibited, (1, 1)),
        (V6, Unreachable::Host, (1, 3)),
        (V6, Unreachable::TimeExceeded, (3, 0)),
    ] {
        for len in [0, 100, 1400] {
            let offending = emit::udp(FROM_GUEST, addresses, (1, 2), &vec![7; len]);
            let parsed = ip(&offending);
            let error =
                emit::unreachable(TO_GUEST, addresses.reversed(), why, Head::whole(&offending), &parsed);
            let (packet, icmp) = message(&error);
            assert_eq!((icmp.kind, icmp.code), kind);
            assert_eq!(packet.addresses, addresses.reversed());
            let quote = &error[packet.transport_offset + 8..];
            assert_eq!(quote, &offending[14..][..quote.len()]);
            assert_eq!(quote.len(), (offending.len() - 14).min(QUOTE_LEN_BYTES_MAX));
        }
    }
}

#[test]
fn an_error_never_quotes_padding() {
    let mut offending = emit::udp(FROM_GUEST, V4, (1, 2), b"");
    let parsed = ip(&offending);
    offending.resize(60, 0xee);
    let error =
        emit::unreachable(TO_GUEST, V4.reversed(), Unreachable::Host, Head::whole(&offending), &parsed);
    assert!(!error.contains(&0xee));
}

#[test]
fn an_echo_returns_what_was_sent() {
    for (addresses, protocol, kinds) in [(V4, Protocol::Icmp, (8, 0)), (V6, Protocol::Icmpv6, (128, 129))] {
        let request = [kinds.0, 0, 0, 0, 0, 7, 0, 1, b'd', b'a', b't', b'a', b'!'];
        let frame = emit::ip(FROM_GUEST, addresses, protocol, 3, &request);
        let parsed = ip(&frame);
        let reply = emit::echo_reply(TO_GUEST, Head::whole(&frame), &parsed).unwrap();
        let (packet, icmp) = message(&reply);
        assert_eq!((icmp.kind, packet.addresses, packet.ttl), (kinds.1, addresses.reversed(), emit::TTL));
        assert_eq!(reply[packet.transport_offset + 4..], request[4..]);
        let cut = Head::new(&frame[..frame.len() - 1], frame.len());
        let error = emit::echo_reply(TO_GUEST, cut, &parsed).unwrap_err();
        assert_eq!(error, ParseError::NeedMore { need_bytes: frame.len() });
    }
    assert_eq!(Layer::Icmp.to_string(), "ICMP");
}

#[test]
fn a_reset_is_a_whole_segment() {
    let segment = Segment {
        source_port: 80,
        destination_port: 40_000,
        sequence: 7,
        acknowledgment: 9,
        flags: TcpFlags::RST | TcpFlags::ACK,
    };
    for addresses in [V4, V6] {
        let frame = emit::tcp(TO_GUEST, addresses, segment);
        let packet = ip(&frame);
        let Transport::Tcp(tcp) = packet.transport else { panic!("not TCP") };
        assert_eq!((tcp.sequence, tcp.acknowledgment, tcp.flags), (7, 9, segment.flags));
        assert_eq!(tcp.sequence_end(), 7);
        let bytes = &frame[packet.transport_offset..];
        assert_eq!(checksum::Sum::pseudo(addresses, Protocol::Tcp, bytes.len()).bytes(bytes).finish(), 0);
    }
}

#[test]
fn sequence_space_counts_syn_and_fin() {
    for (flags, payload, end) in [
        (TcpFlags::SYN, 0, 0),
        (TcpFlags::FIN | TcpFlags::ACK, 3, 3),
        (TcpFlags::ACK, 3, 2),
        (TcpFlags::ACK, 0, u32::MAX),
    ] {
        let mut tcp = match ip(&emit::tcp(
            TO_GUEST,
            V4,
            Segment { source_port: 1, destination_port: 2, sequence: u32::MAX, acknowledgment: 0, flags },
        ))
        .transport
        {
            Transport::Tcp(tcp) => tcp,
            other => panic!("not TCP: {other:?}"),
        };
        tcp.payload_len_bytes = payload;
        assert_eq!(tcp.sequence_end(), end, "{flags:?}");
    }
}

#[test]
fn oversized_payloads_are_cut() {
    let frame = emit::udp(TO_GUEST, V4, (1, 2), &vec![0; 100_000]);
    assert_eq!(ip(&frame).end, frame.len());
    assert!(frame.len() <= 14 + 65_535);
}
