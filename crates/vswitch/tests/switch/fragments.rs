// SPDX-License-Identifier: Apache-2.0
//! Packets in pieces, and ICMP errors about whole ones.

use std::time::Duration;

use model::Protocol;
use packet::emit;
use vswitch::{DropReason, FlowState, PortId, SwitchConfig, Verdict};

use crate::world::*;

/// A piece of a packet from `from` to `to`: `data` at `offset` of its payload.
fn piece(ends: (PortId, PortId), six: bool, id: u16, (offset, more): (u16, bool), data: &[u8]) -> Vec<u8> {
    piece_of(Protocol::Udp, ends, six, id, (offset, more), data)
}

fn piece_of(
    protocol: Protocol,
    (from, to): (PortId, PortId),
    six: bool,
    id: u16,
    (offset, more): (u16, bool),
    data: &[u8],
) -> Vec<u8> {
    if six {
        let mut payload = vec![protocol.number(), 0];
        payload.extend((offset | u16::from(more)).to_be_bytes());
        payload.extend(u32::from(id).to_be_bytes());
        payload.extend(data);
        return emit::ip(link(from, to), between(v6(from), v6(to)), Protocol::Other(44), 64, &payload);
    }
    let mut frame = emit::ip(link(from, to), between(v4(from), v4(to)), Protocol::Other(253), 64, data);
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    frame[20..22].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
    frame[23] = protocol.number();
    frame
}

/// The first bytes of a datagram with ports.
fn start(ports: (u16, u16), len: usize) -> Vec<u8> {
    let mut data: Vec<u8> = [ports.0, ports.1, 2000, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    data.resize(len, b'x');
    data
}

#[test]
fn pieces_follow_their_first() {
    for six in [false, true] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, deny_port(22));
        let ends = (WEB, API);
        world.forwards(WEB, &piece(ends, six, 7, (0, true), &start((1, 53), 64)), API);
        world.forwards(WEB, &piece(ends, six, 7, (64, true), &[b'y'; 64]), API);
        // Another packet in between, and one that is refused.
        world.drops(WEB, &piece(ends, six, 8, (0, true), &start((1, 22), 64)), DropReason::Denied);
        world.drops(WEB, &piece(ends, six, 8, (64, false), &[b'y'; 64]), DropReason::FragmentUnknown);
        world.forwards(WEB, &piece(ends, six, 7, (128, false), b"end"), API);
        let flow = world.switch.flows().find(|flow| flow.tuple.destination_port == 53).unwrap();
        assert_eq!((flow.state, flow.initiator.sent_frames), (FlowState::OneWay, 3));
        // That was the last piece.
        world.drops(WEB, &piece(ends, six, 7, (192, false), b"more"), DropReason::FragmentUnknown);
    }
}

#[test]
fn a_whole_packet_with_a_fragment_header_is_whole() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.forwards(WEB, &piece((WEB, API), true, 7, (0, false), &start((1, 53), 64)), API);
    let later = piece((WEB, API), true, 7, (64, false), b"end");
    world.drops(WEB, &later, DropReason::FragmentUnknown);
}

#[test]
fn pieces_that_come_first_overlap_or_are_ragged_are_refused() {
    let ends = (WEB, API);
    for six in [false, true] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        let first = piece(ends, six, 7, (0, true), &start((1, 53), 64));
        let second = piece(ends, six, 7, (64, true), &[0; 64]);
        world.drops(WEB, &second, DropReason::FragmentUnknown);
        for (offset, more, len, reason) in [
            (56, true, 64, DropReason::FragmentOverlap),
            (8, false, 64, DropReason::FragmentOverlap),
            (64, true, 63, DropReason::Malformed),
            (64, false, 0, DropReason::Malformed),
            (65_528, false, 64, DropReason::Malformed),
        ] {
            world.forwards(WEB, &first, API);
            world.drops(WEB, &piece(ends, six, 7, (offset, more), &vec![0; len]), reason);
            // One bad piece spoils the packet.
            world.drops(WEB, &second, DropReason::FragmentUnknown);
        }
        world.drops(WEB, &piece(ends, six, 7, (0, true), &start((1, 53), 63)), DropReason::Malformed);
    }
}

#[test]
fn a_first_piece_holds_the_whole_transport_header() {
    let mut segment = vec![0; 40];
    (segment[12], segment[13]) = (0xa0, 2);
    for six in [false, true] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        for len in [8, 16, 24, 32] {
            let tiny = piece_of(Protocol::Tcp, (WEB, API), six, 7, (0, true), &segment[..len]);
            world.drops(WEB, &tiny, DropReason::TinyFragment);
        }
        let whole = piece_of(Protocol::Tcp, (WEB, API), six, 7, (0, true), &segment);
        world.forwards(WEB, &whole, API);
    }
}

#[test]
fn pieces_are_bounded_in_number_and_time_for_each_port() {
    let mut memory = memory(64);
    let config = SwitchConfig { fragmented_per_port_max: 2, ..config() };
    let mut world = World::with_config(&mut memory, config, allow());
    let first = |from, to, id| piece((from, to), false, id, (0, true), &start((1, 53), 64));
    let last = |from, to, id| piece((from, to), false, id, (64, false), b"end");
    for id in 0..3 {
        world.forwards(WEB, &first(WEB, API, id), API);
    }
    world.forwards(DB, &first(DB, API, 0), API);
    world.drops(WEB, &last(WEB, API, 0), DropReason::FragmentUnknown);
    world.forwards(WEB, &last(WEB, API, 1), API);
    world.forwards(DB, &last(DB, API, 0), API);
    world.pass_time(Duration::from_secs(6));
    world.drops(WEB, &last(WEB, API, 2), DropReason::FragmentUnknown);
}

#[test]
fn pieces_meet_a_new_policy_and_the_end_of_their_flow() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let ends = (WEB, API);
    world.forwards(WEB, &piece(ends, false, 7, (0, true), &start((1, 53), 64)), API);
    world.install(deny());
    world.drops(WEB, &piece(ends, false, 7, (64, false), b"end"), DropReason::Denied);
    world.drops(WEB, &piece(ends, false, 7, (64, false), b"end"), DropReason::FragmentUnknown);

    // Whoever must be asked for is asked for once more, and the piece passes with the answer.
    world.install(allow());
    world.forwards(WEB, &piece(ends, false, 8, (0, true), &start((1, 53), 64)), API);
    world.install(only_from("/bin/a"));
    let later = piece(ends, false, 8, (64, false), b"end");
    assert!(matches!(world.offer(WEB, &later), Verdict::Ask(_)));
    assert_eq!(world.offer_as(WEB, &later, process("/bin/a"), None), Verdict::Forward(API));
}

#[test]
fn a_segment_in_pieces_counts_as_a_whole() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    let whole = dialogue.out(ACK, 1001, 5001, 1000);
    let data = &whole[34..];
    world.forwards(WEB, &piece_of(Protocol::Tcp, (WEB, API), false, 7, (0, true), &data[..512]), API);
    world.drops(API, &dialogue.back(ACK, 5001, 2001, 0), DropReason::OutOfWindow);
    world.forwards(WEB, &piece_of(Protocol::Tcp, (WEB, API), false, 7, (512, false), &data[512..]), API);
    world.forwards(API, &dialogue.back(ACK, 5001, 2001, 0), WEB);
    world.drops(API, &dialogue.back(ACK, 5001, 2002, 0), DropReason::OutOfWindow);
}

#[test]
fn what_is_for_the_switch_does_not_come_in_pieces() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let to_gateway = between(v4(WEB), ip("10.0.0.1"));
    let mut ping = emit::ip(link(WEB, DB), to_gateway, Protocol::Icmp, 64, &[8, 0, 0, 0, 0, 1, 0, 1]);
    ping[20..22].copy_from_slice(&0x2000_u16.to_be_bytes());
    world.drops(WEB, &ping, DropReason::Fragment);
    let mut message = icmp(WEB, API, &[3, 3, 0, 0, 0, 0, 0, 0]);
    message[20..22].copy_from_slice(&0x2000_u16.to_be_bytes());
    world.drops(WEB, &message, DropReason::Fragment);
    world.emits_nothing();
}

/// An ICMP error of `API` about a packet that it has received.
fn error(six: bool, kind: u8, code: u8, about: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0, 5, 0];
    message.extend_from_slice(&about[14..]);
    match six {
        true => emit::ip(link(API, WEB), between(v6(API), v6(WEB)), Protocol::Icmpv6, 64, &message),
        false => icmp(API, WEB, &message),
    }
}

#[test]
fn errors_about_a_flow_reach_its_owner_over_both_families() {
    for six in [false, true] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        let addresses = if six { between(v6(WEB), v6(API)) } else { between(v4(WEB), v4(API)) };
        let datagram = emit::udp(link(WEB, API), addresses, (1, 53), b"question");
        let syn = tcp(link(WEB, API), addresses, (40_000, 80), SYN, (1000, 0), 0);
        // Unreachable, too big (or "fragmentation needed"), time exceeded.
        let kinds = if six { [(1, 4), (2, 0), (3, 0)] } else { [(3, 3), (3, 4), (11, 0)] };
        for about in [&datagram, &syn] {
            for (kind, code) in kinds {
                world.drops(API, &error(six, kind, code, about), DropReason::NoConnection);
            }
            world.forwards(WEB, about, API);
            for (kind, code) in kinds {
                world.forwards(API, &error(six, kind, code, about), WEB);
            }
        }
        // About a segment that was never sent.
        let blind = tcp(link(WEB, API), addresses, (40_000, 80), SYN, (900_000, 0), 0);
        world.drops(API, &error(six, kinds[0].0, kinds[0].1, &blind), DropReason::NoConnection);
    }
}
