// SPDX-License-Identifier: Apache-2.0
//! Rules that name domains: what addresses become of names, and what does not.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{RData, Record, RecordType};
use model::Action;
use packet::emit;
use vswitch::{DropReason, FlowSlot, PortId, Verdict};

use crate::dns_upstream::with_upstreams;
use crate::external::network;
use crate::names::*;
use crate::world::*;

const NAME: &str = "www.example.com";
const FOUND: &str = "198.51.100.7";

/// Lets machines reach what is called so, and nothing else.
fn by_name() -> Rules {
    deny().but(Rule { to_name: Some(NAME), ..Rule::default() }, Action::Allow)
}

fn world(memory: &mut [FlowSlot]) -> World<'_> {
    let mut world = World::with_config(memory, with_upstreams(), by_name());
    install(&mut world, by_name());
    world
}

fn install(world: &mut World<'_>, rules: Rules) {
    let networks = vec![network("acme", &["192.0.2.10"]), network("globex", &["192.0.2.20"])];
    world.install_networks(rules, networks);
}

/// An answer that finds the address through an alias.
fn found(address: &str) -> Message {
    let IpAddr::V4(address) = ip(address) else { panic!("not IPv4") };
    let mut message = Message::error_msg(0, OpCode::Query, ResponseCode::NoError);
    let alias = RData::CNAME(CNAME(domain("cdn.example.net.")));
    message.add_answer(Record::from_rdata(domain("www.example.com."), 300, alias));
    message.add_answer(Record::from_rdata(domain("cdn.example.net."), 300, RData::A(A(address))));
    message
}

fn resolve(world: &mut World<'_>, from: PortId) {
    let question = world.asks_outside(from, &question("WWW.example.com.", RecordType::A));
    world.replies(&question, Some(found(FOUND)));
    assert_eq!(world.emitted(from).len(), 1);
}

fn syn(from: PortId, l4_port: u16) -> Vec<u8> {
    tcp(gateway_link(from), between(v4(from), ip(FOUND)), (l4_port, 443), SYN, (1000, 0), 0)
}

#[track_caller]
fn is_denied(world: &mut World<'_>, from: PortId, l4_port: u16) {
    world.drops(from, &syn(from, l4_port), DropReason::Denied);
    assert!(segment(&world.emitted_one(from)).flags.has(RST));
}

#[test]
fn an_address_may_be_reached_once_its_name_was_asked_for_and_by_that_tenant_alone() {
    let mut memory = memory(64);
    let mut world = world(&mut memory);
    is_denied(&mut world, WEB, 4000);
    resolve(&mut world, WEB);
    world.forwards(WEB, &syn(WEB, 4001), UPLINK);
    world.forwards(API, &syn(API, 4001), UPLINK);
    is_denied(&mut world, OTHER_WEB, 4001);
}

#[test]
fn names_are_forgotten_in_time_but_open_flows_go_on_until_the_rule_goes() {
    let mut memory = memory(64);
    let mut world = world(&mut memory);
    resolve(&mut world, WEB);
    world.forwards(WEB, &syn(WEB, 4001), UPLINK);
    let outside = between(ip(FOUND), ip("192.0.2.10"));
    let link = emit::Link { source: mac(UPLINK), destination: config().gateway_mac };
    let answer = tcp(link, outside, (443, 4001), SYN | ACK, (5000, 1001), 0);
    world.forwards(UPLINK, &answer, WEB);
    let segment =
        |number| tcp(gateway_link(WEB), between(v4(WEB), ip(FOUND)), (4001, 443), ACK, (number, 5001), 1);
    world.forwards(WEB, &segment(1001), UPLINK);
    world.pass_time(Duration::from_secs(301));
    is_denied(&mut world, WEB, 4002);
    install(&mut world, by_name());
    world.forwards(WEB, &segment(1002), UPLINK);
    install(&mut world, by_name());
    world.tick();
    world.forwards(WEB, &segment(1003), UPLINK);
    install(&mut world, deny());
    world.drops(WEB, &segment(1004), DropReason::Denied);
}

#[test]
fn what_was_found_and_what_was_opened_by_it_outlive_the_daemon() {
    let mut memory = memory(64);
    let mut first = world(&mut memory);
    resolve(&mut first, WEB);
    first.forwards(WEB, &syn(WEB, 4001), UPLINK);
    let outside = between(ip(FOUND), ip("192.0.2.10"));
    let link = emit::Link { source: mac(UPLINK), destination: config().gateway_mac };
    first.forwards(UPLINK, &tcp(link, outside, (443, 4001), SYN | ACK, (5000, 1001), 0), WEB);
    let left: Vec<_> = first.switch.found(first.now).collect();
    drop(first);

    let mut second = world(&mut memory);
    second.switch.recall(second.now, left.clone());
    let segment = tcp(gateway_link(WEB), between(v4(WEB), ip(FOUND)), (4001, 443), ACK, (1001, 5001), 1);
    second.forwards(WEB, &segment, UPLINK);
    second.forwards(WEB, &syn(WEB, 4002), UPLINK);
    is_denied(&mut second, OTHER_WEB, 4002);
    second.pass_time(Duration::from_secs(301));
    second.switch.recall(second.now, left);
    is_denied(&mut second, WEB, 4003);
}

#[test]
fn a_name_that_a_rule_names_may_be_asked_for_and_no_other() {
    let mut memory = memory(64);
    let mut world = world(&mut memory);
    world.asks_outside(WEB, &question("www.example.com.", RecordType::A));
    let answer = world.asks(WEB, &question("api.example.com.", RecordType::A));
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    assert_eq!(world.switch.dns_questions().count(), 0);
}

#[test]
fn nobody_else_teaches_anything() {
    let mut memory = memory(64);
    let rules = by_name().but(Rule { to_port: Some(40_000), ..Rule::default() }, Action::Allow);
    let rules = rules.but(Rule { to_port: Some(5353), ..Rule::default() }, Action::Allow);
    let mut world = world(&mut memory);
    install(&mut world, rules.but(Rule { to_port: Some(53), ..Rule::default() }, Action::Allow));
    let mut spoofed = found(FOUND);
    spoofed.metadata.id = 77;
    spoofed.add_query(question("www.example.com.", RecordType::A).queries[0].clone());
    let spoofed = spoofed.to_vec().unwrap();

    // A question is on its way, and somebody of the mesh or outside is faster than the upstream.
    let waiting = world.asks_outside(WEB, &question("www.example.com.", RecordType::A));
    world.forwards(API, &emit::udp(link(API, WEB), between(v4(API), v4(WEB)), (53, 40_000), &spoofed), WEB);
    let in_the_resolvers_name =
        emit::udp(link(API, WEB), between(ip(RESOLVER), v4(WEB)), (53, 40_000), &spoofed);
    world.drops(API, &in_the_resolvers_name, DropReason::SpoofedAddress);
    is_denied(&mut world, WEB, 4001);
    // The machine says so itself, to the resolver.
    let own = emit::udp(gateway_link(WEB), between(v4(WEB), ip(RESOLVER)), (40_000, 53), &spoofed);
    world.drops(WEB, &own, DropReason::NothingToAnswer);
    is_denied(&mut world, WEB, 4002);
    // A name server outside on another port.
    let asked = question("www.example.com.", RecordType::A).to_vec().unwrap();
    let elsewhere = ip("203.0.113.1");
    let ask = emit::udp(gateway_link(WEB), between(v4(WEB), elsewhere), (41_000, 5353), &asked);
    world.forwards(WEB, &ask, UPLINK);
    let link = emit::Link { source: mac(UPLINK), destination: config().gateway_mac };
    let answer = emit::udp(link, between(elsewhere, ip("192.0.2.10")), (5353, 41_000), &spoofed);
    world.forwards(UPLINK, &answer, WEB);
    is_denied(&mut world, WEB, 4003);
    // An upstream, about a name that no rule names, or of another name in the same answer.
    let other = world.asks_outside(WEB, &question("other.example.com.", RecordType::A));
    world.replies(&other, Some(found(FOUND)));
    let mut stray = Message::error_msg(0, OpCode::Query, ResponseCode::NoError);
    let address = RData::A(A([198, 51, 100, 7].into()));
    stray.add_answer(Record::from_rdata(domain("other.example.com."), 300, address));
    world.replies(&waiting, Some(stray));
    assert_eq!(world.emitted(WEB).len(), 2);
    is_denied(&mut world, WEB, 4004);
    // The upstream's answer to the very question does.
    resolve(&mut world, WEB);
    assert_eq!(world.offer(WEB, &syn(WEB, 4005)), Verdict::Forward(UPLINK));
}
