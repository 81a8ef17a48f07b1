// SPDX-License-Identifier: Apache-2.0
//! Who reaches whom, and how frames are rewritten on the way.

use model::MacAddr;
use packet::{ETHERNET_LEN_BYTES, TcpFlags, VnetHeader, checksum, emit};
use vswitch::{DropReason, FlowState, Frame, PortId, Verdict};

use crate::world::*;

#[test]
fn neighbours_keep_their_frame_and_routed_packets_lose_a_hop() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let near = udp(WEB, API, (1000, 53));
    assert_eq!(world.forwards(WEB, &near, API).bytes(), near);

    let far = udp(WEB, DB, (1000, 53));
    let routed = world.forwards(WEB, &far, DB);
    let (ethernet, ip) = parsed(routed.bytes());
    assert_eq!((ethernet.source, ethernet.destination), (config().gateway_mac, mac(DB)));
    assert_eq!(ip.ttl, 63);
    let header = &routed.bytes()[ETHERNET_LEN_BYTES..ETHERNET_LEN_BYTES + 20];
    assert_eq!(checksum::Sum::default().bytes(header).finish(), 0, "the header's checksum still holds");
}

#[test]
fn the_same_address_in_two_tenants_never_meets() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    for (web, api) in [(WEB, API), (OTHER_WEB, OTHER_API)] {
        let frame = world.forwards(web, &udp(web, api, (1000, 53)), api);
        assert_eq!(parsed(frame.bytes()).0.destination, mac(api));
        world.forwards(api, &udp(api, web, (53, 1000)), web);
    }
    assert_eq!(world.switch.flows().count(), 2);
    // An address that only the other tenant has.
    let stranger = emit::udp(link(OTHER_WEB, DB), between(v4(OTHER_WEB), v4(DB)), (1, 2), b"");
    world.drops(OTHER_WEB, &stranger, DropReason::NoEndpoint);
}

#[test]
fn foreign_sources_are_dropped() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.drops(API, &udp(WEB, API, (1, 2)), DropReason::SpoofedMac);
    let mut own_mac = udp(WEB, API, (1, 2));
    own_mac[6..12].copy_from_slice(&mac(API).0);
    world.drops(API, &own_mac, DropReason::SpoofedAddress);
    // Also when the real owner has such a flow.
    world.forwards(WEB, &udp(WEB, API, (1, 2)), API);
    world.drops(API, &own_mac, DropReason::SpoofedAddress);
    world.drops(PortId(9), &udp(WEB, API, (1, 2)), DropReason::NoPort);
    assert_eq!(world.switch.flows().count(), 1);
}

#[test]
fn groups_and_subnets_are_not_addressed() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    for (destination, reason) in [
        ("255.255.255.255", DropReason::Broadcast),
        ("10.0.0.255", DropReason::Broadcast),
        ("224.0.0.251", DropReason::Multicast),
        ("10.0.0.11", DropReason::ToSelf),
        ("10.0.0.77", DropReason::NoEndpoint),
        ("10.0.0.1", DropReason::NoEndpoint),
        ("192.0.2.1", DropReason::NoEndpoint),
    ] {
        let link = emit::Link { source: mac(WEB), destination: MacAddr::BROADCAST };
        let frame = emit::udp(link, between(v4(WEB), ip(destination)), (5353, 5353), b"");
        world.drops(WEB, &frame, reason);
    }
}

#[test]
fn unknown_destinations_are_refused_at_once() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let to = between(v4(WEB), ip("10.0.0.77"));
    let syn = tcp(link(WEB, API), to, (40_000, 80), SYN, (1000, 0), 0);
    world.drops(WEB, &syn, DropReason::NoEndpoint);
    let reset = segment(&world.emitted_one(WEB));
    assert_eq!((reset.flags, reset.sequence, reset.acknowledgment), (RST | ACK, 0, 1001));
    world.drops(WEB, &emit::udp(link(WEB, API), to, (1, 2), b""), DropReason::NoEndpoint);
    assert_eq!(icmp_kind(&world.emitted_one(WEB)), (3, 1));
}

#[test]
fn errors_to_one_port_are_bounded() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let frame = emit::udp(link(WEB, API), between(v4(WEB), ip("10.0.0.77")), (1, 2), b"");
    for _ in 0..1000 {
        world.drops(WEB, &frame, DropReason::NoEndpoint);
    }
    let errors = world.emitted(WEB).len();
    assert_eq!(errors, config().errors_per_second_max as usize);
    let other = emit::udp(link(API, WEB), between(v4(API), ip("10.0.0.77")), (1, 2), b"");
    world.drops(API, &other, DropReason::NoEndpoint);
    assert_eq!(world.emitted(API).len(), 1, "another port has its own rate");
}

#[test]
fn the_last_hop_is_reported() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let frame =
        emit::ip(link(WEB, DB), between(v4(WEB), v4(DB)), model::Protocol::Other(47), 1, b"tunnelled");
    world.drops(WEB, &frame, DropReason::TtlExpired);
    assert_eq!(icmp_kind(&world.emitted_one(WEB)), (11, 0));
}

#[test]
fn ipv6_is_forwarded_alike() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let syn = tcp(link(WEB, API), between(v6(WEB), v6(API)), (40_000, 80), SYN, (7, 0), 0);
    world.forwards(WEB, &syn, API);
    let answer = tcp(link(API, WEB), between(v6(API), v6(WEB)), (80, 40_000), SYN | ACK, (9, 8), 0);
    world.forwards(API, &answer, WEB);
    assert_eq!(world.flow().state, FlowState::SynReceived);
    let nobody = emit::udp(link(WEB, API), between(v6(WEB), ip("fd00::77")), (1, 2), b"");
    world.drops(WEB, &nobody, DropReason::NoEndpoint);
    assert_eq!(icmp_kind(&world.emitted_one(WEB)), (1, 3));
}

#[test]
fn echo_is_a_flow_of_the_one_who_asks() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.drops(API, &echo(API, WEB, 0, 7), DropReason::NoConnection);
    world.forwards(WEB, &echo(WEB, API, 8, 7), API);
    world.forwards(API, &echo(API, WEB, 0, 7), WEB);
    assert_eq!(world.flow().state, FlowState::TwoWay);
    let tuple = world.flow().tuple;
    assert_eq!((tuple.source_port, tuple.destination_port), (7, 7));
    // The responder's own request is not part of that flow.
    world.install(deny());
    world.drops(API, &echo(API, WEB, 8, 7), DropReason::Denied);
}

#[test]
fn errors_about_a_flow_reach_its_owner_only() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let datagram = udp(WEB, API, (1000, 53));
    let unreachable = |quote: &[u8]| {
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&quote[ETHERNET_LEN_BYTES..]);
        icmp(API, WEB, &message)
    };
    world.drops(API, &unreachable(&datagram), DropReason::NoConnection);
    world.forwards(WEB, &datagram, API);
    world.forwards(API, &unreachable(&datagram), WEB);
    world.drops(API, &unreachable(&udp(WEB, API, (1001, 53))), DropReason::NoConnection);
    world.drops(API, &unreachable(&udp(WEB, DB, (1000, 53))), DropReason::NoConnection);
    world.drops(API, &unreachable(&datagram[..30]), DropReason::Malformed);
    world.drops(API, &icmp(API, WEB, &[13, 0, 0, 0, 0, 0, 0, 0]), DropReason::IcmpKind);
}

#[test]
fn offloads_pass_whole_and_checked() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    let mut frame = Frame::copy_of(&dialogue.out(ACK | TcpFlags::PSH, 1001, 5001, 60_000));
    assert!(frame.has_only_its_head());
    let tso = VnetHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1400,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 9,
    };
    frame.vnet = tso;
    assert_eq!(world.switch.process(world.now, WEB, &mut frame, None), Verdict::Forward(API));
    assert_eq!(frame.vnet, VnetHeader { num_buffers: 0, ..tso });
    for wrong in [
        VnetHeader { gso_type: 4, ..tso },
        VnetHeader { gso_type: 9, ..tso },
        VnetHeader { gso_size: 0, ..tso },
        VnetHeader { flags: 0, ..tso },
        VnetHeader { csum_start: 65_000, ..tso },
    ] {
        frame.vnet = wrong;
        let verdict = world.switch.process(world.now, WEB, &mut frame, None);
        assert_eq!(verdict, Verdict::Drop(DropReason::BadOffload), "{wrong:?}");
    }
}

trait HeadOnly {
    fn has_only_its_head(&self) -> bool;
}

impl HeadOnly for Frame {
    fn has_only_its_head(&self) -> bool {
        self.head_len_bytes < self.total_len_bytes
    }
}
