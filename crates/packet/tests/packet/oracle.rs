// SPDX-License-Identifier: Apache-2.0
//! `etherparse` agrees about what frames say and about their checksums.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use model::MacAddr;
use packet::{
    Addresses, ETHERNET_LEN_BYTES, Head, Ip, Network, Packet, Tcp, TcpFlags, Transport, checksum, edit,
};
use proptest::prelude::*;

const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DESTINATION: [u8; 6] = [2, 0, 0, 0, 0, 2];

#[derive(Clone, Debug)]
enum Kind {
    Tcp { sequence: u32, acknowledgment: u32, flags: u8, window: u16 },
    Udp,
}

#[derive(Clone, Debug)]
struct Recipe {
    v6: bool,
    source: [u8; 16],
    destination: [u8; 16],
    ttl: u8,
    ports: (u16, u16),
    kind: Kind,
    payload: Vec<u8>,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let kind = prop_oneof![
        (any::<u32>(), any::<u32>(), 0..32_u8, any::<u16>()).prop_map(
            |(sequence, acknowledgment, flags, window)| {
                Kind::Tcp { sequence, acknowledgment, flags, window }
            }
        ),
        Just(Kind::Udp),
    ];
    let payload = prop::collection::vec(any::<u8>(), 0..1500);
    (any::<bool>(), any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u8>(), any::<(u16, u16)>(), kind, payload)
        .prop_map(|(v6, mut source, mut destination, ttl, ports, kind, payload)| {
            // Not IPv4-mapped.
            (source[0], destination[0]) = (0xfd, 0xfd);
            Recipe { v6, source, destination, ttl, ports, kind, payload }
        })
}

/// The frame, made by the other implementation.
fn built(recipe: &Recipe) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(SOURCE, DESTINATION);
    let first4 = |bytes: [u8; 16]| [bytes[0], bytes[1], bytes[2], bytes[3]];
    let ip = if recipe.v6 {
        link.ipv6(recipe.source, recipe.destination, recipe.ttl)
    } else {
        link.ipv4(first4(recipe.source), first4(recipe.destination), recipe.ttl)
    };
    let mut frame = Vec::new();
    match recipe.kind {
        Kind::Udp => ip.udp(recipe.ports.0, recipe.ports.1).write(&mut frame, &recipe.payload).unwrap(),
        Kind::Tcp { sequence, acknowledgment, flags, window } => {
            let mut tcp = ip.tcp(recipe.ports.0, recipe.ports.1, sequence, window);
            tcp = if flags & 1 != 0 { tcp.fin() } else { tcp };
            tcp = if flags & 2 != 0 { tcp.syn() } else { tcp };
            tcp = if flags & 4 != 0 { tcp.rst() } else { tcp };
            tcp = if flags & 8 != 0 { tcp.psh() } else { tcp };
            tcp = if flags & 16 != 0 { tcp.ack(acknowledgment) } else { tcp };
            tcp.write(&mut frame, &recipe.payload).unwrap();
        }
    }
    frame
}

fn parsed(frame: &[u8]) -> (packet::Ethernet, Ip) {
    let packet = Packet::parse(Head::whole(frame)).unwrap();
    match packet.network {
        Network::Ip(ip) => (packet.ethernet, ip),
        other => panic!("not IP: {other:?}"),
    }
}

/// Whether the transport checksum of a frame is right.
fn is_sound(frame: &[u8], ip: &Ip) -> bool {
    let transport = &frame[ip.transport_offset..ip.end];
    checksum::Sum::pseudo(ip.addresses, ip.protocol, transport.len()).bytes(transport).finish() == 0
}

proptest! {
    #[test]
    fn what_another_wrote_is_read_as_meant(recipe in recipe()) {
        let frame = built(&recipe);
        let (ethernet, ip) = parsed(&frame);
        prop_assert_eq!((ethernet.source, ethernet.destination), (MacAddr(SOURCE), MacAddr(DESTINATION)));
        prop_assert_eq!(ip.ttl, recipe.ttl);
        match ip.addresses {
            Addresses::V4 { source, destination } => {
                prop_assert!(!recipe.v6);
                prop_assert_eq!(&source.octets()[..], &recipe.source[..4]);
                prop_assert_eq!(&destination.octets()[..], &recipe.destination[..4]);
            }
            Addresses::V6 { source, destination } => {
                prop_assert!(recipe.v6);
                prop_assert_eq!((source.octets(), destination.octets()), (recipe.source, recipe.destination));
            }
        }
        match (ip.transport, &recipe.kind) {
            (Transport::Udp(udp), Kind::Udp) => {
                prop_assert_eq!((udp.source_port, udp.destination_port), recipe.ports);
                prop_assert_eq!(&frame[udp.payload_offset..][..udp.payload_len_bytes], &recipe.payload[..]);
            }
            (Transport::Tcp(tcp), Kind::Tcp { sequence, acknowledgment, flags, window }) => {
                let expected = Tcp {
                    source_port: recipe.ports.0,
                    destination_port: recipe.ports.1,
                    sequence: *sequence,
                    acknowledgment: if flags & 16 != 0 { *acknowledgment } else { 0 },
                    flags: TcpFlags(*flags),
                    window: *window,
                    payload_len_bytes: recipe.payload.len(),
                };
                prop_assert_eq!(tcp, expected);
            }
            other => prop_assert!(false, "{:?}", other),
        }
        prop_assert!(is_sound(&frame, &ip));
    }

    #[test]
    fn a_lost_hop_leaves_a_right_header(recipe in recipe()) {
        let mut frame = built(&recipe);
        let (_, ip) = parsed(&frame);
        edit::set_source(&mut frame, MacAddr([6; 6]));
        edit::set_destination(&mut frame, MacAddr([8; 6]));
        edit::decrement_ttl(&mut frame, &ip);
        let (ethernet, after) = parsed(&frame);
        prop_assert_eq!((ethernet.source, ethernet.destination), (MacAddr([6; 6]), MacAddr([8; 6])));
        prop_assert_eq!(after, Ip { ttl: recipe.ttl.saturating_sub(1), ..ip });
        if !recipe.v6 {
            let header = &frame[ETHERNET_LEN_BYTES..ETHERNET_LEN_BYTES + 20];
            prop_assert_eq!(checksum::Sum::default().bytes(header).finish(), 0);
        }
        prop_assert!(is_sound(&frame, &ip));
    }

    #[test]
    fn an_updated_checksum_equals_a_computed_one(mut words in prop::collection::vec(any::<u16>(), 2..40), new: u16) {
        let sum = |words: &[u16]| words.iter().fold(checksum::Sum::default(), |sum, word| sum.word(*word));
        let before = sum(&words).finish();
        let old = std::mem::replace(&mut words[0], new);
        let updated = checksum::updated(before, old, new);
        // Zero and its complement are the same number to whoever verifies.
        prop_assert_eq!(sum(&words).word(updated).finish(), 0);
    }

    #[test]
    fn what_is_written_another_reads_as_meant(recipe in recipe()) {
        let (_, ip) = parsed(&built(&recipe));
        let link = packet::emit::Link { source: MacAddr(SOURCE), destination: MacAddr(DESTINATION) };
        let frame = packet::emit::udp(link, ip.addresses, recipe.ports, &recipe.payload);
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        match (sliced.net.unwrap(), ip.addresses) {
            (NetSlice::Ipv4(theirs), Addresses::V4 { source, destination }) => {
                let header = theirs.header();
                prop_assert_eq!((header.source_addr(), header.destination_addr()), (source, destination));
                prop_assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
            }
            (NetSlice::Ipv6(theirs), Addresses::V6 { source, destination }) => {
                let header = theirs.header();
                prop_assert_eq!((header.source_addr(), header.destination_addr()), (source, destination));
            }
            _ => prop_assert!(false, "another family"),
        }
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("not UDP") };
        prop_assert_eq!((udp.source_port(), udp.destination_port()), recipe.ports);
        prop_assert_eq!(udp.payload(), &recipe.payload[..]);
        let (_, ours) = parsed(&frame);
        prop_assert!(is_sound(&frame, &ours));
    }
}
