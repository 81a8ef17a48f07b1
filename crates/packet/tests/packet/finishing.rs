// SPDX-License-Identifier: Apache-2.0
//! Partial checksums and super-frames, finished here and read by `etherparse`.

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, NetHeaders, PacketBuilder, PacketHeaders,
    TcpHeader, TransportHeader,
};
use packet::checksum::Sum;
use packet::finish::{Cut, PIECES_MAX, complete_checksum};
use packet::{OffloadError, VnetHeader};
use proptest::prelude::*;

const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DESTINATION: [u8; 6] = [2, 0, 0, 0, 0, 2];
const V4: ([u8; 4], [u8; 4]) = ([10, 0, 0, 1], [10, 0, 0, 2]);
const V6: ([u8; 16], [u8; 16]) = ([0xfd; 16], [0xfc; 16]);
/// Where IPv4 starts.
const NETWORK: usize = 14;

fn tcp_header(sequence: u32, flags: u8, options: &[u8]) -> TcpHeader {
    let mut tcp = TcpHeader::new(4711, 80, sequence, 512);
    (tcp.acknowledgment_number, tcp.ack) = (99, true);
    (tcp.fin, tcp.psh, tcp.cwr, tcp.ece) =
        (flags & 1 != 0, flags & 8 != 0, flags & 0x80 != 0, flags & 0x40 != 0);
    tcp.set_options_raw(options).unwrap();
    tcp
}

fn super_frame(v6: bool, udp: bool, tcp: TcpHeader, id: u16, ip_options: &[u8], data: &[u8]) -> Vec<u8> {
    let start = PacketBuilder::ethernet2(SOURCE, DESTINATION);
    let start = if v6 {
        start.ipv6(V6.0, V6.1, 64)
    } else {
        let mut ip = Ipv4Header::new(0, 64, IpNumber::TCP, V4.0, V4.1).unwrap();
        (ip.identification, ip.dont_fragment) = (id, true);
        ip.options = Ipv4Options::try_from(ip_options).unwrap();
        start.ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
    };
    let mut frame = Vec::new();
    if udp {
        start.udp(53, 54).write(&mut frame, data).unwrap();
    } else {
        start.tcp_header(tcp).write(&mut frame, data).unwrap();
    }
    frame
}

fn vnet(v6: bool, udp: bool, size: usize) -> VnetHeader {
    let gso_type = match (udp, v6) {
        (true, _) => 5,
        (false, false) => 1,
        (false, true) => 4,
    };
    VnetHeader { flags: 1, gso_type, gso_size: size as u16, ..VnetHeader::default() }
}

/// What a receiver reads of one piece, its checksums having been right.
struct Piece {
    network: NetHeaders,
    transport: TransportHeader,
    data: Vec<u8>,
}

fn read(bytes: &[u8]) -> Piece {
    let read = PacketHeaders::from_ethernet_slice(bytes).unwrap();
    let (network, transport) = (read.net.clone().unwrap(), read.transport.clone().unwrap());
    let data = read.payload.slice().to_vec();
    let checksum = match (&network, &transport) {
        (NetHeaders::Ipv4(ip, _), TransportHeader::Tcp(tcp)) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            (tcp.checksum, tcp.calc_checksum_ipv4(ip, &data).unwrap())
        }
        (NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            (udp.checksum, udp.calc_checksum_ipv4(ip, &data).unwrap())
        }
        (NetHeaders::Ipv6(ip, _), TransportHeader::Tcp(tcp)) => {
            (tcp.checksum, tcp.calc_checksum_ipv6(ip, &data).unwrap())
        }
        (NetHeaders::Ipv6(ip, _), TransportHeader::Udp(udp)) => {
            (udp.checksum, udp.calc_checksum_ipv6(ip, &data).unwrap())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(checksum.0, checksum.1);
    Piece { network, transport, data }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_are_what_the_sender_would_have_sent(
        data in prop::collection::vec(any::<u8>(), 0..20_000),
        size in 100_usize..1500,
        (v6, udp) in any::<(bool, bool)>(),
        (sequence, id, flags) in any::<(u32, u16, u8)>(),
        (tcp_options, ip_options) in (0_usize..10, 0_usize..10),
        padding in 0_usize..20,
    ) {
        let tcp = tcp_header(sequence, flags, &vec![1; 4 * tcp_options]);
        let whole = tcp.clone();
        let mut frame = super_frame(v6, udp, tcp, id, &vec![1; 4 * ip_options], &data);
        frame.resize(frame.len() + padding, 0xee);
        let cut = Cut::plan(&vnet(v6, udp, size), &frame).unwrap();
        prop_assert_eq!(cut.pieces(), data.len().div_ceil(size).max(1));
        let (mut out, mut joined) = (Vec::new(), Vec::new());
        for number in 0..cut.pieces() {
            let last = number + 1 == cut.pieces();
            cut.piece(&frame, number, &mut out);
            prop_assert_eq!(&out[..12], &frame[..12]);
            let piece = read(&out);
            prop_assert!(last || piece.data.len() == size);
            match piece.network {
                NetHeaders::Ipv4(ip, _) => {
                    prop_assert_eq!(ip.identification, id.wrapping_add(number as u16));
                    prop_assert_eq!(usize::from(ip.total_len), out.len() - NETWORK);
                    prop_assert!(ip.dont_fragment && ip.fragment_offset == IpFragOffset::ZERO);
                }
                NetHeaders::Ipv6(ip, _) => {
                    prop_assert_eq!(usize::from(ip.payload_length), out.len() - NETWORK - Ipv6Header::LEN);
                }
                NetHeaders::Arp(_) => unreachable!(),
            }
            match piece.transport {
                TransportHeader::Tcp(tcp) => {
                    prop_assert_eq!(tcp.sequence_number, sequence.wrapping_add(joined.len() as u32));
                    prop_assert_eq!((tcp.fin, tcp.psh), (whole.fin && last, whole.psh && last));
                    prop_assert_eq!((tcp.cwr, tcp.ece), (whole.cwr && number == 0, whole.ece));
                    prop_assert_eq!(&tcp.options, &whole.options);
                    prop_assert!(tcp.ack && tcp.acknowledgment_number == 99);
                }
                TransportHeader::Udp(udp) => prop_assert_eq!(usize::from(udp.length), 8 + piece.data.len()),
                other => panic!("{other:?}"),
            }
            joined.extend(piece.data);
        }
        prop_assert_eq!(joined, data);
    }

    #[test]
    fn a_partial_checksum_becomes_the_whole_one(
        data in prop::collection::vec(any::<u8>(), 0..3000),
        (v6, udp) in any::<(bool, bool)>(),
    ) {
        let mut frame = super_frame(v6, udp, tcp_header(1, 0, &[]), 7, &[], &data);
        let whole = frame.clone();
        let transport = if v6 { NETWORK + 40 } else { NETWORK + 20 };
        let offset = if udp { 6 } else { 16 };
        // As Linux leaves it: the pseudo header's sum, not complemented.
        let addresses = match packet::Packet::parse(packet::Head::whole(&frame)).unwrap().network {
            packet::Network::Ip(ip) => ip,
            other => panic!("{other:?}"),
        };
        let partial = !Sum::pseudo(addresses.addresses, addresses.protocol, frame.len() - transport).finish();
        frame[transport + offset..][..2].copy_from_slice(&partial.to_be_bytes());
        let vnet = VnetHeader {
            flags: 1,
            csum_start: transport as u16,
            csum_offset: offset as u16,
            ..VnetHeader::default()
        };
        complete_checksum(&vnet, &mut frame).unwrap();
        prop_assert_eq!(frame, whole);
    }

    #[test]
    fn nonsense_is_refused_and_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        raw in any::<[u8; 12]>(),
    ) {
        let vnet = VnetHeader::from_bytes(raw);
        let mut copy = bytes.clone();
        let _ = complete_checksum(&vnet, &mut copy);
        if let Ok(cut) = Cut::plan(&vnet, &bytes) {
            let mut out = Vec::new();
            (0..cut.pieces()).for_each(|number| cut.piece(&bytes, number, &mut out));
        }
    }
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let frame = |v6, udp| super_frame(v6, udp, tcp_header(1, 0, &[]), 7, &[], &[1; 3000]);
    let refused = |vnet: VnetHeader, frame: &[u8]| Cut::plan(&vnet, frame).unwrap_err();
    assert_eq!(refused(vnet(true, false, 100), &frame(false, false)), OffloadError::GsoProtocol);
    assert_eq!(refused(vnet(false, false, 100), &frame(false, true)), OffloadError::GsoProtocol);
    assert_eq!(refused(vnet(false, true, 100), &frame(false, false)), OffloadError::GsoProtocol);
    assert_eq!(refused(vnet(false, false, 0), &frame(false, false)), OffloadError::GsoSize);
    let many = super_frame(false, false, tcp_header(1, 0, &[]), 7, &[], &vec![1; 10 * PIECES_MAX + 1]);
    assert_eq!(refused(vnet(false, false, 10), &many), OffloadError::GsoSize);
    assert_eq!(Cut::plan(&vnet(false, false, 11), &many).unwrap().pieces(), 10 * PIECES_MAX / 11 + 1);
    let mut piece = frame(false, false);
    piece[NETWORK + 6] = 0x20;
    assert_eq!(refused(vnet(false, false, 100), &piece), OffloadError::GsoSize);
    let other = VnetHeader { gso_type: 3, ..vnet(false, true, 100) };
    assert_eq!(refused(other, &frame(false, true)), OffloadError::GsoProtocol);
}
