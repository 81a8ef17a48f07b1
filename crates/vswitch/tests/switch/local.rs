// SPDX-License-Identifier: Apache-2.0
//! What the switch answers itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use model::{MacAddr, Protocol};
use packet::arp::{Arp, Operation};
use packet::emit::Link;
use packet::nd::{ALL_NODES, group_mac};
use packet::{Head, Network, Packet, Transport, emit};
use vswitch::{DropReason, Frame, PortId, Verdict};

use crate::world::*;

fn arp(from: PortId, sender: &str, target: &str) -> Vec<u8> {
    let request = Arp {
        operation: Operation::Request,
        sender_mac: mac(from),
        sender: sender.parse().unwrap(),
        target_mac: MacAddr::default(),
        target: target.parse().unwrap(),
    };
    request.emit(MacAddr::BROADCAST)
}

#[test]
fn addresses_on_the_link_are_resolved_within_the_tenant() {
    let gateway = config().gateway_mac;
    for (port, target, answer) in [
        (WEB, "10.0.0.12", Ok(mac(API))),
        (OTHER_WEB, "10.0.0.12", Ok(mac(OTHER_API))),
        (WEB, "10.0.0.1", Ok(gateway)),
        (WEB, "169.254.1.53", Ok(gateway)),
        (DB, "10.0.1.1", Ok(gateway)),
        (WEB, "10.0.0.77", Err(DropReason::NoEndpoint)),
        (WEB, "10.0.1.13", Err(DropReason::NoEndpoint)),
        (WEB, "10.0.0.11", Err(DropReason::NothingToAnswer)),
    ] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, deny());
        let verdict = world.offer(port, &arp(port, &v4(port).to_string(), target));
        match answer {
            Err(reason) => assert_eq!(verdict, Verdict::Drop(reason), "{target}"),
            Ok(holder) => {
                assert_eq!(verdict, Verdict::Answered, "{target}");
                let reply = world.emitted_one(port);
                let packet = Packet::parse(Head::whole(&reply)).unwrap();
                let Network::Arp(reply) = packet.network else { panic!("not ARP") };
                assert_eq!(packet.ethernet.destination, mac(port));
                assert_eq!((reply.operation, reply.sender_mac), (Operation::Reply, holder));
                assert_eq!((IpAddr::V4(reply.sender), IpAddr::V4(reply.target)), (ip(target), v4(port)));
            }
        }
    }
}

#[test]
fn arp_for_others_is_spoofing() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.drops(WEB, &arp(WEB, "10.0.0.12", "10.0.0.13"), DropReason::SpoofedAddress);
    let mut foreign = arp(WEB, "10.0.0.11", "10.0.0.12");
    foreign[22] ^= 0xff;
    world.drops(WEB, &foreign, DropReason::SpoofedMac);
    // Probing for one's own address, or another's, before it is used (RFC 5227).
    world.drops(WEB, &arp(WEB, "0.0.0.0", "10.0.0.11"), DropReason::NothingToAnswer);
    assert_eq!(world.offer(WEB, &arp(WEB, "0.0.0.0", "10.0.0.12")), Verdict::Answered);
}

#[test]
fn a_machine_may_be_the_gateway() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.install_machines(allow(), &[("acme/web", &["10.0.0.11/24"]), ("acme/api", &["10.0.0.1/24"])]);
    assert_eq!(world.offer(WEB, &arp(WEB, "10.0.0.11", "10.0.0.1")), Verdict::Answered);
    assert_eq!(world.emitted_one(WEB)[6..12], mac(API).0);
}

fn solicit(from: PortId, source: &str, target: &str, hop_limit: u8) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let link = Link { source: mac(from), destination: group_mac(group) };
    emit::ip(link, between(ip(source), group.into()), Protocol::Icmpv6, hop_limit, &message)
}

#[test]
fn neighbours_are_discovered_within_the_tenant() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, deny());
    for (source, target, holder) in [
        ("fd00::11", "fd00::12", mac(API)),
        ("fe80::5", "fd00::12", mac(API)),
        ("::", "fd00::12", mac(API)),
        ("fd00::11", "fd00::1", config().gateway_mac),
        ("fe80::5", "fe80::1", config().gateway_mac),
    ] {
        assert_eq!(world.offer(WEB, &solicit(WEB, source, target, 255)), Verdict::Answered, "{target}");
        let reply = world.emitted_one(WEB);
        let (ethernet, packet) = parsed(&reply);
        assert_eq!(icmp_kind(&reply), (136, 0));
        assert_eq!(ethernet.source, holder);
        assert_eq!(reply[reply.len() - 6..], holder.0);
        let to = if source == "::" { ip(&ALL_NODES.to_string()) } else { ip(source) };
        assert_eq!((packet.addresses.source(), packet.addresses.destination()), (ip(target), to));
        assert_eq!(packet.ttl, 255);
    }
    world.drops(WEB, &solicit(WEB, "fd00::11", "fd00::77", 255), DropReason::NoEndpoint);
    world.drops(WEB, &solicit(WEB, "fd00::12", "fd00::1", 255), DropReason::SpoofedAddress);
    world.drops(WEB, &solicit(WEB, "::", "fd00::11", 255), DropReason::NothingToAnswer);
    world.drops(WEB, &solicit(WEB, "fd00::11", "fd00::12", 64), DropReason::Malformed);
}

#[test]
fn the_noise_of_an_idle_link_is_dropped_by_kind() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let link = Link { source: mac(WEB), destination: group_mac(ALL_NODES) };
    // Router solicitation, multicast listener report.
    for (source, kind) in [("fe80::5", 133), ("::", 143)] {
        let message = [kind, 0, 0, 0, 0, 0, 0, 0];
        let frame = emit::ip(link, between(ip(source), ip("ff02::2")), Protocol::Icmpv6, 255, &message);
        world.drops(WEB, &frame, DropReason::Multicast);
    }
    let mut lldp = vec![0; 60];
    lldp[6..12].copy_from_slice(&mac(WEB).0);
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    world.drops(WEB, &lldp, DropReason::EtherType);
    world.emits_nothing();
}

#[test]
fn the_gateway_answers_echo_and_only_echo() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, deny());
    let link = Link { source: mac(WEB), destination: config().gateway_mac };
    let request = [8, 0, 0, 0, 0, 7, 0, 1, b'h', b'i', b'!'];
    let ping = emit::ip(link, between(v4(WEB), ip("10.0.0.1")), Protocol::Icmp, 64, &request);
    assert_eq!(world.offer(WEB, &ping), Verdict::Answered);
    let reply = world.emitted_one(WEB);
    assert_eq!(icmp_kind(&reply), (0, 0));
    assert_eq!(reply[reply.len() - 7..], request[4..]);
    let syn = tcp(link, between(v4(WEB), ip("10.0.0.1")), (1, 22), SYN, (1, 0), 0);
    world.drops(WEB, &syn, DropReason::NoEndpoint);
    assert_eq!(segment(&world.emitted_one(WEB)).flags, RST | ACK);

    let mut long = Frame::copy_of(&emit::ip(
        link,
        between(v4(WEB), ip("10.0.0.1")),
        Protocol::Icmp,
        64,
        &[&request[..], &[0; 5000]].concat(),
    ));
    let verdict = world.switch.process(world.now, WEB, &mut long, None);
    assert_eq!(verdict, Verdict::Drop(DropReason::Unanswerable));
}

fn dhcp(from: PortId, edit: impl FnOnce(&mut Message)) -> Vec<u8> {
    let nobody = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(7, nobody, nobody, nobody, nobody, &mac(from).0);
    edit(&mut message);
    dhcp_frame(from, &message)
}

fn dhcp_frame(from: PortId, message: &Message) -> Vec<u8> {
    let mut payload = Vec::new();
    message.encode(&mut Encoder::new(&mut payload)).unwrap();
    let link = Link { source: mac(from), destination: MacAddr::BROADCAST };
    emit::udp(link, between(ip("0.0.0.0"), ip("255.255.255.255")), (68, 67), &payload)
}

fn kind(message: &mut Message, kind: MessageType) {
    message.opts_mut().insert(DhcpOption::MessageType(kind));
}

#[track_caller]
fn dhcp_reply(world: &mut World<'_>, port: PortId) -> (packet::Ip, Message) {
    let frame = world.emitted_one(port);
    let (_, packet) = parsed(&frame);
    let Transport::Udp(udp) = packet.transport else { panic!("not UDP") };
    assert_eq!((udp.source_port, udp.destination_port), (67, 68));
    (packet, Message::decode(&mut Decoder::new(&frame[udp.payload_offset..])).unwrap())
}

#[test]
fn dhcp_leases_the_cards_own_address() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, deny());
    let web: Ipv4Addr = "10.0.0.11".parse().unwrap();
    let gateway: Ipv4Addr = "10.0.0.1".parse().unwrap();
    let requested = |address: &str| DhcpOption::RequestedIpAddress(address.parse().unwrap());
    let request = |option: DhcpOption| {
        dhcp(WEB, |message| {
            kind(message, MessageType::Request);
            message.opts_mut().insert(option);
        })
    };
    for (frame, answer) in [
        (dhcp(WEB, |m| kind(m, MessageType::Discover)), MessageType::Offer),
        (request(requested("10.0.0.11")), MessageType::Ack),
        (request(requested("10.0.0.12")), MessageType::Nak),
        (
            dhcp(WEB, |m| {
                kind(m, MessageType::Inform);
                m.set_ciaddr(web);
            }),
            MessageType::Ack,
        ),
        (
            dhcp(WEB, |m| {
                kind(m, MessageType::Request);
                m.set_ciaddr(web);
            }),
            MessageType::Ack,
        ),
    ] {
        assert_eq!(world.offer(WEB, &frame), Verdict::Answered);
        let (packet, reply) = dhcp_reply(&mut world, WEB);
        assert_eq!(reply.opts().msg_type(), Some(answer));
        assert_eq!(reply.xid(), 7);
        assert_eq!(packet.addresses.source(), IpAddr::V4(gateway));
        let option = |code| reply.opts().get(code).cloned();
        assert_eq!(option(OptionCode::ServerIdentifier), Some(DhcpOption::ServerIdentifier(gateway)));
        if answer == MessageType::Nak {
            assert_eq!(packet.addresses.destination(), ip("255.255.255.255"));
            continue;
        }
        assert_eq!(option(OptionCode::Router), Some(DhcpOption::Router(vec![gateway])));
        let mask = "255.255.255.0".parse().unwrap();
        assert_eq!(option(OptionCode::SubnetMask), Some(DhcpOption::SubnetMask(mask)));
        assert_eq!(option(OptionCode::InterfaceMtu), Some(DhcpOption::InterfaceMtu(1450)));
        let resolver = "169.254.1.53".parse().unwrap();
        let servers = option(OptionCode::DomainNameServer);
        assert_eq!(servers, Some(DhcpOption::DomainNameServer(vec![resolver])));
        let domains = vec!["mesh.internal.".parse().unwrap()];
        assert_eq!(option(OptionCode::DomainSearch), Some(DhcpOption::DomainSearch(domains)));
        let lease = option(OptionCode::AddressLeaseTime);
        if reply.yiaddr() == web {
            assert_eq!(lease, Some(DhcpOption::AddressLeaseTime(3600)));
        } else {
            assert_eq!((reply.yiaddr(), lease), (Ipv4Addr::UNSPECIFIED, None), "an inform takes no lease");
        }
    }
}

#[test]
fn dhcp_refuses_what_is_not_the_cards() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let other_server = DhcpOption::ServerIdentifier("10.0.0.9".parse().unwrap());
    for (frame, reason) in [
        (dhcp(WEB, |m| kind(m, MessageType::Release)), DropReason::NothingToAnswer),
        (dhcp(WEB, |m| kind(m, MessageType::Decline)), DropReason::NothingToAnswer),
        (
            dhcp(WEB, |m| {
                kind(m, MessageType::Request);
                m.opts_mut().insert(other_server);
            }),
            DropReason::NothingToAnswer,
        ),
        (dhcp(WEB, |m| kind(m, MessageType::Offer)), DropReason::Malformed),
        (dhcp(WEB, |_| ()), DropReason::Malformed),
        (
            dhcp(WEB, |m| {
                kind(m, MessageType::Discover);
                m.set_chaddr(&mac(API).0);
            }),
            DropReason::SpoofedMac,
        ),
    ] {
        world.drops(WEB, &frame, reason);
    }
    // A hardware address longer than its field.
    let mut hlen = dhcp(WEB, |m| kind(m, MessageType::Discover));
    hlen[14 + 20 + 8 + 2] = 255;
    world.drops(WEB, &hlen, DropReason::Malformed);
    let link = Link { source: mac(WEB), destination: MacAddr::BROADCAST };
    let short = emit::udp(link, between(ip("0.0.0.0"), ip("255.255.255.255")), (68, 67), &[1; 239]);
    world.drops(WEB, &short, DropReason::Malformed);
    world.emits_nothing();
}

#[test]
fn dhcp_needs_the_whole_message() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let bytes = dhcp(WEB, |m| kind(m, MessageType::Discover));
    let mut frame = Frame::copy_of(&bytes);
    frame.head_len_bytes = 192;
    assert_eq!(world.switch.process(world.now, WEB, &mut frame, None), Verdict::NeedMore);
    frame.head_len_bytes = bytes.len();
    assert_eq!(world.switch.process(world.now, WEB, &mut frame, None), Verdict::Answered);
}

#[test]
fn a_card_without_ipv4_gets_no_lease() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.install_machines(allow(), &[("acme/web", &["fd00::11/64"])]);
    world.drops(WEB, &dhcp(WEB, |m| kind(m, MessageType::Discover)), DropReason::NoLease);
}
