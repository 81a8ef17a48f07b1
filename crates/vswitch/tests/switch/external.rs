// SPDX-License-Identifier: Apache-2.0
//! Out of the mesh and into it, under addresses that mean something there.

use std::net::IpAddr;

use model::{ExternalNetwork, MacAddr, Protocol, Published};
use packet::checksum::Sum;
use packet::emit::{self, Link};
use packet::{Transport, arp};
use vswitch::{DropReason, FlowChange, FlowState, PortId, SwitchConfig, Verdict};

use crate::world::*;

pub const SERVER: &str = "198.51.100.7";
const SERVER_6: &str = "2001:db8::7";
pub const ACME_OUTSIDE: &str = "192.0.2.10";
const ACME_OUTSIDE_6: &str = "2001:db8:1::10";

pub fn network(tenant: &str, addresses: &[&str]) -> ExternalNetwork {
    ExternalNetwork {
        tenant: tenant.parse().unwrap(),
        name: "internet".parse().unwrap(),
        interface: "tap0".to_owned(),
        reaches: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        published: Vec::new(),
    }
}

/// Acme's network, at which port 8080 is port 80 of its `api`.
pub fn acme() -> ExternalNetwork {
    let published = Published {
        address: ip(ACME_OUTSIDE),
        protocol: Protocol::Tcp,
        port: 8080,
        vm: "api".parse().unwrap(),
        vm_port: 80,
    };
    ExternalNetwork { published: vec![published], ..network("acme", &[ACME_OUTSIDE, ACME_OUTSIDE_6]) }
}

pub fn to_gateway(from: PortId) -> Link {
    Link { source: mac(from), destination: config().gateway_mac }
}

pub fn datagram(from: PortId, source: IpAddr, destination: IpAddr, ports: (u16, u16)) -> Vec<u8> {
    emit::udp(to_gateway(from), between(source, destination), ports, b"datagram")
}

/// Addresses and ports of a frame, all of whose checksums must be right.
#[track_caller]
pub fn tuple(frame: &[u8]) -> (IpAddr, u16, IpAddr, u16) {
    let (_, ip) = parsed(frame);
    let transport = &frame[ip.transport_offset..ip.end];
    let pseudo = match ip.protocol {
        Protocol::Icmp => Sum::default(),
        protocol => Sum::pseudo(ip.addresses, protocol, transport.len()),
    };
    assert_eq!(pseudo.bytes(transport).finish(), 0, "the transport's checksum");
    if ip.addresses.source().is_ipv4() {
        assert_eq!(Sum::default().bytes(&frame[14..34]).finish(), 0, "the header's checksum");
    }
    let (source_port, destination_port) = match ip.transport {
        Transport::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
        Transport::Udp(udp) => (udp.source_port, udp.destination_port),
        Transport::Icmp(icmp) => (u16::from_be_bytes([icmp.rest[0], icmp.rest[1]]), 0),
        Transport::Other => (0, 0),
    };
    (ip.addresses.source(), source_port, ip.addresses.destination(), destination_port)
}

#[test]
fn machines_appear_under_their_tenants_address_and_get_the_answers() {
    for (own, outside, server) in [(v4(WEB), ACME_OUTSIDE, SERVER), (v6(WEB), ACME_OUTSIDE_6, SERVER_6)] {
        let (outside, server) = (ip(outside), ip(server));
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        world.install_networks(allow(), vec![acme()]);
        let sent = world.forwards(WEB, &datagram(WEB, own, server, (4000, 53)), UPLINK);
        assert_eq!(tuple(sent.bytes()), (outside, 4000, server, 53));
        let (ethernet, ip) = parsed(sent.bytes());
        assert_eq!((ethernet.source, ethernet.destination, ip.ttl), (config().gateway_mac, mac(UPLINK), 63));

        let answer = world.forwards(UPLINK, &datagram(UPLINK, server, outside, (53, 4000)), WEB);
        assert_eq!(tuple(answer.bytes()), (server, 53, own, 4000));
        assert_eq!(world.flow().state, FlowState::TwoWay);
        // From another server, nobody has asked for it.
        let stranger = datagram(UPLINK, next(server), outside, (53, 4000));
        world.drops(UPLINK, &stranger, DropReason::NoEndpoint);
        world.emits_nothing();
    }
}

/// The next address.
fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(a) => std::net::Ipv4Addr::from_bits(a.to_bits() + 1).into(),
        IpAddr::V6(a) => std::net::Ipv6Addr::from_bits(a.to_bits() + 1).into(),
    }
}

#[test]
fn a_connection_goes_out_survives_a_restart_and_is_reset_on_both_sides() {
    let mut memory = memory(64);
    let (own, outside, server) = (v4(WEB), ip(ACME_OUTSIDE), ip(SERVER));
    let out =
        |flags, numbers, len| tcp(to_gateway(WEB), between(own, server), (40_000, 80), flags, numbers, len);
    let back = |flags, numbers, len| {
        tcp(to_gateway(UPLINK), between(server, outside), (80, 40_000), flags, numbers, len)
    };
    let mut world = World::new(&mut memory, allow());
    world.install_networks(allow(), vec![acme()]);
    world.forwards(WEB, &out(SYN, (1000, 0), 0), UPLINK);
    let answer = world.forwards(UPLINK, &back(SYN | ACK, (5000, 1001), 0), WEB);
    assert_eq!(tuple(answer.bytes()), (server, 80, own, 40_000));
    world.forwards(WEB, &out(ACK, (1001, 5001), 0), UPLINK);
    drop(world);

    let mut world = World::new(&mut memory, allow());
    assert_eq!(world.switch.counters().flows_adopted, 1);
    world.install_networks(allow(), vec![acme()]);
    let sent = world.forwards(WEB, &out(ACK, (1001, 5001), 10), UPLINK);
    assert_eq!(tuple(sent.bytes()), (outside, 40_000, server, 80));
    world.events();

    world.install_networks(deny(), vec![acme()]);
    world.tick();
    let resets: Vec<_> = world.switch.emissions().collect();
    let named: Vec<_> = resets.iter().map(|reset| (reset.port, tuple(&reset.frame))).collect();
    assert!(named.contains(&(UPLINK, (outside, 40_000, server, 80))), "{named:?}");
    assert!(named.contains(&(WEB, (server, 80, own, 40_000))), "{named:?}");
    assert_eq!(world.changes(), [FlowChange::Reset]);
    world.drops(UPLINK, &back(ACK, (5001, 1011), 0), DropReason::Reset);
}

#[test]
fn tenants_with_equal_addresses_stay_apart_even_under_one_external_address() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let (outside, server) = (ip(ACME_OUTSIDE), ip(SERVER));
    world.install_networks(allow(), vec![acme(), network("globex", &[ACME_OUTSIDE])]);
    let frame = |from| datagram(from, v4(from), server, (4000, 53));
    let first = world.forwards(WEB, &frame(WEB), UPLINK);
    let second = world.forwards(OTHER_WEB, &frame(OTHER_WEB), UPLINK);
    let (.., first_port, _, _) = tuple(first.bytes());
    let (source, second_port, ..) = tuple(second.bytes());
    assert_eq!((source, first_port), (outside, 4000));
    assert_ne!(second_port, 4000);
    for (port, owner) in [(first_port, WEB), (second_port, OTHER_WEB)] {
        let answer = world.forwards(UPLINK, &datagram(UPLINK, server, outside, (53, port)), owner);
        assert_eq!(tuple(answer.bytes()), (server, 53, v4(owner), 4000));
    }
}

#[test]
fn echo_is_translated_by_its_identifier() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let (outside, server) = (ip(ACME_OUTSIDE), ip(SERVER));
    world.install_networks(allow(), vec![acme()]);
    let echo = |from, addresses, kind, id: u16| {
        let [a, b] = id.to_be_bytes();
        emit::ip(to_gateway(from), addresses, Protocol::Icmp, 64, &[kind, 0, 0, 0, a, b, 0, 1])
    };
    let mut ids = Vec::new();
    for from in [WEB, API] {
        let asked = world.forwards(from, &echo(from, between(v4(from), server), 8, 7000), UPLINK);
        let (source, id, ..) = tuple(asked.bytes());
        assert_eq!(source, outside);
        ids.push(id);
    }
    assert_eq!(ids[0], 7000);
    assert_ne!(ids[1], 7000);
    let answer = world.forwards(UPLINK, &echo(UPLINK, between(server, outside), 0, ids[1]), API);
    assert_eq!(tuple(answer.bytes()), (server, 7000, v4(API), 0));
}

#[test]
fn policy_decides_about_what_is_outside() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.install_networks(deny_port(53), vec![acme()]);
    let refused = datagram(WEB, v4(WEB), ip(SERVER), (4000, 53));
    world.drops(WEB, &refused, DropReason::Denied);
    assert_eq!(icmp_kind(&world.emitted_one(WEB)), (3, 13));
    world.forwards(WEB, &datagram(WEB, v4(WEB), ip(SERVER), (4000, 54)), UPLINK);
    // Only those that have a network get out, and no further than it reaches.
    world.drops(OTHER_WEB, &datagram(OTHER_WEB, v4(OTHER_WEB), ip(SERVER), (1, 2)), DropReason::NoEndpoint);
    let narrow = ExternalNetwork { reaches: vec!["198.51.100.0/25".parse().unwrap()], ..acme() };
    world.install_networks(allow(), vec![narrow]);
    world.forwards(WEB, &datagram(WEB, v4(WEB), ip(SERVER), (4000, 55)), UPLINK);
    let beyond = datagram(WEB, v4(WEB), ip("198.51.100.200"), (4000, 55));
    world.drops(WEB, &beyond, DropReason::NoEndpoint);
    // The answers to what went out before find no flow when the network is gone.
    world.install_networks(allow(), Vec::new());
    let late = datagram(UPLINK, ip(SERVER), ip(ACME_OUTSIDE), (55, 4000));
    world.drops(UPLINK, &late, DropReason::NoEndpoint);
}

#[test]
fn published_ports_are_reached_from_outside_and_from_inside() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let (outside, client) = (ip(ACME_OUTSIDE), ip("203.0.113.5"));
    world.install_networks(allow(), vec![acme()]);
    for (from, client) in [(UPLINK, client), (WEB, v4(WEB))] {
        let ask = |flags, numbers| {
            tcp(to_gateway(from), between(client, outside), (50_000, 8080), flags, numbers, 0)
        };
        let answer = |flags, numbers| {
            let link = if from == WEB { link(API, WEB) } else { to_gateway(API) };
            tcp(link, between(v4(API), client), (80, 50_000), flags, numbers, 0)
        };
        let asked = world.forwards(from, &ask(SYN, (1000, 0)), API);
        assert_eq!(tuple(asked.bytes()), (client, 50_000, v4(API), 80));
        let answered = world.forwards(API, &answer(SYN | ACK, (5000, 1001)), from);
        assert_eq!(tuple(answered.bytes()), (outside, 8080, client, 50_000));
        world.forwards(from, &ask(ACK, (1001, 5001)), API);
    }
    // Policy is about the machine's own port, not the one out there.
    world.install_networks(deny_port(80), vec![acme()]);
    let syn = tcp(to_gateway(UPLINK), between(client, outside), (50_001, 8080), SYN, (1, 0), 0);
    world.drops(UPLINK, &syn, DropReason::Denied);
    world.install_networks(deny_port(8080), vec![acme()]);
    world.forwards(UPLINK, &syn, API);
    // Nothing else comes in.
    let other = tcp(to_gateway(UPLINK), between(client, outside), (50_001, 8081), SYN, (1, 0), 0);
    world.drops(UPLINK, &other, DropReason::NoEndpoint);
    let direct = tcp(to_gateway(UPLINK), between(client, v4(API)), (50_001, 80), SYN, (1, 0), 0);
    world.drops(UPLINK, &direct, DropReason::NoEndpoint);
}

#[test]
fn errors_about_translated_packets_name_what_their_sender_sent() {
    for six in [false, true] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        world.install_networks(allow(), vec![acme()]);
        let (own, outside, server, router) = match six {
            false => (v4(API), ip(ACME_OUTSIDE), ip(SERVER), ip("203.0.113.1")),
            true => (v6(API), ip(ACME_OUTSIDE_6), ip(SERVER_6), ip("2001:db8:ffff::1")),
        };
        // Another machine has the port already, so this one's changes.
        let first = if six { v6(WEB) } else { v4(WEB) };
        world.forwards(WEB, &datagram(WEB, first, server, (4000, 53)), UPLINK);
        let sent = world.forwards(API, &datagram(API, own, server, (4000, 53)), UPLINK);
        assert_ne!(tuple(sent.bytes()).1, 4000);
        for reporter in [server, router] {
            let mut message = if six { vec![1, 4, 0, 0, 0, 0, 0, 0] } else { vec![3, 3, 0, 0, 0, 0, 0, 0] };
            message.extend_from_slice(&sent.bytes()[14..]);
            let protocol = if six { Protocol::Icmpv6 } else { Protocol::Icmp };
            let error = emit::ip(to_gateway(UPLINK), between(reporter, outside), protocol, 64, &message);
            let passed = world.forwards(UPLINK, &error, API);
            let (source, _, destination, _) = tuple(passed.bytes());
            assert_eq!((source, destination), (reporter, own));
            // The quote is a frame of its own, if put behind an Ethernet header.
            let (_, ip) = parsed(passed.bytes());
            let quote = [&passed.bytes()[..14], &passed.bytes()[ip.transport_offset + 8..ip.end]].concat();
            assert_eq!(tuple(&quote), (own, 4000, server, 53));
        }
    }
}

#[test]
fn later_pieces_are_translated_too() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.install_networks(allow(), vec![acme()]);
    let whole = datagram(WEB, v4(WEB), ip(SERVER), (4000, 53));
    let piece = |data: &[u8], offset: u16, more: bool| {
        let mut frame =
            emit::ip(to_gateway(WEB), between(v4(WEB), ip(SERVER)), Protocol::Other(253), 64, data);
        frame[20..22].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        frame[23] = 17;
        frame[24..26].fill(0);
        let sum = Sum::default().bytes(&frame[14..34]).finish();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    world.forwards(WEB, &piece(&whole[34..42], 0, true), UPLINK);
    let later = world.forwards(WEB, &piece(&whole[42..], 8, false), UPLINK);
    assert_eq!(parsed(later.bytes()).1.addresses.source(), ip(ACME_OUTSIDE));
    assert_eq!(Sum::default().bytes(&later.bytes()[14..34]).finish(), 0);
}

#[test]
fn external_ports_are_bounded_per_machine_and_never_given_twice() {
    let mut memory = memory(4096);
    let config = SwitchConfig { external_per_port_max: 100, ..config() };
    let mut world = World::with_config(&mut memory, config, allow());
    world.install_networks(allow(), vec![acme()]);
    let mut ports = std::collections::BTreeSet::new();
    for (from, count) in [(WEB, 100), (API, 100)] {
        for port in 0..count {
            let sent = world.forwards(from, &datagram(from, v4(from), ip(SERVER), (2000 + port, 53)), UPLINK);
            assert!(ports.insert(tuple(sent.bytes()).1));
        }
        let one_more = datagram(from, v4(from), ip(SERVER), (9000, 53));
        world.drops(from, &one_more, DropReason::ExternalQuota);
        world.forwards(from, &udp(from, DB, (9000, 53)), DB);
    }
    assert!(ports.iter().all(|port| *port >= 1024));
}

#[test]
fn the_host_finds_external_addresses_and_nothing_else() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.install_networks(allow(), vec![acme()]);
    let asks = |target: &str| {
        let (IpAddr::V4(sender), IpAddr::V4(target)) = (ip("192.0.2.1"), ip(target)) else { panic!("v4") };
        let request = arp::Arp {
            operation: arp::Operation::Request,
            sender_mac: mac(UPLINK),
            sender,
            target_mac: MacAddr::default(),
            target,
        };
        let mut frame = request.emit(MacAddr::BROADCAST);
        frame[6..12].copy_from_slice(&mac(UPLINK).0);
        frame
    };
    assert_eq!(world.offer(UPLINK, &asks(ACME_OUTSIDE)), Verdict::Answered);
    let answer = world.emitted_one(UPLINK);
    assert_eq!(answer[6..12], config().gateway_mac.0);
    assert!(matches!(world.offer(UPLINK, &asks("10.0.0.11")), Verdict::Drop(_)));
    let spoofed = datagram(UPLINK, ip(ACME_OUTSIDE), ip(SERVER), (1, 2));
    world.drops(UPLINK, &spoofed, DropReason::SpoofedAddress);
}
