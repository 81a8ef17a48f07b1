// SPDX-License-Identifier: Apache-2.0
//! What is read of plain packets in one go is what the parser says of them, and nothing is said of others.

use packet::emit::{self, Link, Segment};
use packet::{Addresses, Head, Network, Packet, ParseError, Plain, TcpFlags, Transport};
use proptest::prelude::*;

const LINK: Link =
    Link { source: model::MacAddr([2, 0, 0, 0, 0, 1]), destination: model::MacAddr([2, 0, 0, 0, 0, 2]) };

fn addresses(v6: bool) -> Addresses {
    if v6 {
        Addresses::V6 { source: "fd00::1".parse().unwrap(), destination: "fd00:7::2".parse().unwrap() }
    } else {
        Addresses::V4 { source: [10, 0, 0, 1].into(), destination: [10, 0, 7, 2].into() }
    }
}

fn frame(v6: bool, tcp: bool) -> Vec<u8> {
    let addresses = addresses(v6);
    if !tcp {
        return emit::udp(LINK, addresses, (1024, 53), b"payload");
    }
    let flags = TcpFlags::ACK | TcpFlags::PSH;
    let segment = Segment { source_port: 1024, destination_port: 80, sequence: 7, acknowledgment: 9, flags };
    emit::tcp(LINK, addresses, segment)
}

/// Whether the parser says the same, or would ask for more of the frame.
fn check(head: Head<'_>) -> Result<bool, TestCaseError> {
    let Some(plain) = Plain::read(head) else { return Ok(false) };
    let packet = Packet::parse(head);
    let Ok(Packet { ethernet, network: Network::Ip(ip) }) = packet else {
        return Err(TestCaseError::fail(format!("{plain:?}, but {packet:?}")));
    };
    prop_assert_eq!(
        (plain.ethernet_source, plain.ethernet_destination),
        (ethernet.source, ethernet.destination)
    );
    let halves = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => [0, address.to_bits().into()],
        std::net::IpAddr::V6(address) => [(address.to_bits() >> 64) as u64, address.to_bits() as u64],
    };
    prop_assert_eq!(plain.source, halves(ip.addresses.source()));
    prop_assert_eq!(plain.destination, halves(ip.addresses.destination()));
    prop_assert_eq!(plain.is_v4, matches!(ip.addresses, Addresses::V4 { .. }));
    prop_assert_eq!(ip.fragment, None);
    match ip.transport {
        Transport::Tcp(tcp) => {
            prop_assert_eq!(plain.tcp, Some(tcp));
            prop_assert_eq!(plain.ports, (tcp.source_port, tcp.destination_port));
        }
        Transport::Udp(udp) => {
            prop_assert_eq!(plain.tcp, None);
            prop_assert_eq!(plain.ports, (udp.source_port, udp.destination_port));
        }
        other => return Err(TestCaseError::fail(format!("{plain:?}, but {other:?}"))),
    }
    Ok(true)
}

#[test]
fn every_plain_packet_is_known_as_one_once_its_headers_are_there() {
    for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
        let frame = frame(v6, tcp);
        for copied in 0..=frame.len() {
            let head = Head::new(&frame[..copied], frame.len());
            let needs_more = matches!(Packet::parse(head), Err(ParseError::NeedMore { .. }));
            assert_eq!(check(head).unwrap(), !needs_more, "{copied} bytes of {frame:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn what_is_read_is_what_the_parser_says(
        shape in any::<(bool, bool)>(),
        changes in prop::collection::vec((12..74_usize, any::<u8>()), 0..4),
        cut in prop::option::of(0..90_usize),
        longer in prop_oneof![Just(0_usize), 0..2000_usize],
    ) {
        let mut frame = frame(shape.0, shape.1);
        for (at, byte) in changes {
            if let Some(field) = frame.get_mut(at) {
                *field = byte;
            }
        }
        frame.truncate(cut.unwrap_or(usize::MAX));
        check(Head::new(&frame, frame.len() + longer))?;
    }

    #[test]
    fn random_bytes_are_read_as_the_parser_reads_them(
        mut bytes in prop::collection::vec(any::<u8>(), 14..128),
        kind in prop::sample::select(vec![([8, 0], 0x45_u8), ([0x86, 0xdd], 0x60), ([8, 6], 0)]),
        protocol in prop::sample::select(vec![6_u8, 17, 44, 0]),
        longer in 0..70_000_usize,
    ) {
        bytes[12..14].copy_from_slice(&kind.0);
        for (at, byte) in [(14, kind.1), (20, 0), (if kind.1 == 0x45 { 23 } else { 20 }, protocol)] {
            if let Some(field) = bytes.get_mut(at) {
                *field = byte;
            }
        }
        check(Head::new(&bytes, bytes.len() + longer))?;
    }
}
