// SPDX-License-Identifier: Apache-2.0
//! Flows to virtual addresses: there, back, and when endpoints fail.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use model::{
    AcceptQueue, Attribution, Balancing, Directory, Endpoint, EndpointState, FlowQuery, Level, Listener,
    Name, Offer, OfferIndex, Party, PortMatch, Protocol, Ranges, RuleId, Sight, UnknownReason, VmIndex,
};
use packet::checksum::Sum;
use packet::{TcpFlags, emit};
use vswitch::{DropReason, FlowChange, Frame, How, PortId, Preview, Verdict};

use crate::external::tuple;
use crate::world::*;

const VIP: Ipv4Addr = Ipv4Addr::new(100, 97, 0, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0, 0, 0, 0, 0, 0, 1);

/// One service of acme on TCP and UDP port 80, at machines of acme.
#[derive(Clone, Debug)]
pub struct OneService {
    pub offers: Vec<Offer>,
    called: Vec<OfferIndex>,
    /// Machines that do not see it.
    hidden_from: Vec<VmIndex>,
    /// The program that must be listening.
    exe: Option<&'static str>,
}

impl OneService {
    pub fn at(endpoints: &[PortId]) -> Self {
        let address = |port: PortId, like: IpAddr| {
            MACHINES[usize::from(port.0)]
                .1
                .iter()
                .map(|cidr| ip(cidr.split('/').next().unwrap()))
                .find(|own| own.is_ipv4() == like.is_ipv4())
        };
        let endpoint = |port: &PortId| Endpoint {
            vm: VmIndex(port.0.into()),
            v4: address(*port, VIP.into())
                .and_then(|ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None }),
            v6: address(*port, VIP6.into())
                .and_then(|ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None }),
            group: Some(0),
        };
        let ports =
            [Protocol::Tcp, Protocol::Udp].map(|protocol| PortMatch { ports: Some(80.into()), protocol });
        let offer = Offer {
            id: RuleId("acme/s".into()),
            tenant: 0,
            hostname: "s".parse().unwrap(),
            level: Level::Tenant,
            v4: VIP,
            v6: VIP6,
            ports: ports.to_vec(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            names_listener: false,
            balancing: Balancing::default(),
            inserted: None,
            health: None,
        };
        Self { offers: vec![offer], called: vec![OfferIndex(0)], hidden_from: Vec::new(), exe: None }
    }

    fn for_everyone(mut self) -> Self {
        self.offers[0].level = Level::Infrastructure;
        self
    }

    fn hidden_from(mut self, port: PortId) -> Self {
        self.hidden_from.push(VmIndex(port.0.into()));
        self
    }

    fn by(mut self, exe: &'static str) -> Self {
        self.offers[0].names_listener = true;
        self.exe = Some(exe);
        self
    }
}

impl Directory for OneService {
    fn offers(&self) -> &[Offer] {
        &self.offers
    }

    fn callers(&self) -> (model::Cidr, model::Cidr) {
        Ranges::default().callers()
    }

    fn owns(&self, address: IpAddr) -> bool {
        Ranges::default().contains(address)
    }

    fn at(&self, address: IpAddr) -> Option<OfferIndex> {
        (address == IpAddr::V4(VIP) || address == IpAddr::V6(VIP6)).then_some(OfferIndex(0))
    }

    fn called(&self, hostname: &Name) -> &[OfferIndex] {
        if *hostname == self.offers[0].hostname { &self.called } else { &[] }
    }

    fn sees(&self, _: OfferIndex, client: Party<'_>) -> Sight {
        let Some(vm) = client.vm else { return Sight::Hidden };
        let foreign = vm.0 >= 3 && self.offers[0].level != Level::Infrastructure;
        if foreign || self.hidden_from.contains(&vm) { Sight::Hidden } else { Sight::Seen }
    }

    fn reaches(&self, query: &FlowQuery<'_>) -> Sight {
        let offered =
            self.offers[0].endpoints.iter().any(|endpoint| Some(endpoint.vm) == query.destination.vm)
                && self.offers[0].covers(query.tuple.protocol, query.tuple.destination_port);
        if offered { self.sees(OfferIndex(0), query.source) } else { Sight::Seen }
    }

    fn listens(&self, _: OfferIndex, listener: &Attribution) -> bool {
        let exe = listener.process.as_ref().and_then(|process| process.exe.as_deref());
        self.exe.is_none_or(|wanted| exe == Some(wanted))
    }
}

/// A call from a machine to the virtual address.
pub struct Call {
    pub from: PortId,
    pub source_port: u16,
}

impl Call {
    pub fn out(&self, flags: TcpFlags, numbers: (u32, u32)) -> Vec<u8> {
        let link = emit::Link { source: mac(self.from), destination: config().gateway_mac };
        tcp(link, between(v4(self.from), VIP.into()), (self.source_port, 80), flags, numbers, 0)
    }

    /// What an endpoint that saw `seen` answers.
    pub fn answer(seen: &[u8], flags: TcpFlags, numbers: (u32, u32), by: PortId) -> Vec<u8> {
        let (ethernet, packet) = parsed(seen);
        let asked = segment(seen);
        let link = emit::Link { source: mac(by), destination: ethernet.source };
        let ports = (asked.destination_port, asked.source_port);
        tcp(link, packet.addresses.reversed(), ports, flags, numbers, 0)
    }
}

#[track_caller]
fn is_sound(frame: &Frame) {
    let bytes = frame.bytes();
    let (_, ip) = parsed(bytes);
    let transport = &bytes[ip.transport_offset..ip.end];
    assert_eq!(Sum::pseudo(ip.addresses, ip.protocol, transport.len()).bytes(transport).finish(), 0);
}

pub fn goes(world: &mut World<'_>, port: PortId, bytes: &[u8]) -> (PortId, Vec<u8>) {
    let mut frame = Frame::copy_of(bytes);
    match world.switch.process(world.now, port, &mut frame, None) {
        Verdict::Forward(to) => {
            is_sound(&frame);
            (to, frame.bytes().to_vec())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn call_reaches_an_endpoint_and_the_answer_comes_from_the_virtual_address() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API, DB]));
    let call = Call { from: WEB, source_port: 40_000 };
    let (to, seen) = goes(&mut world, WEB, &call.out(SYN, (1000, 0)));
    assert!([API, DB].contains(&to));
    let (_, delivered) = parsed(&seen);
    assert_eq!((delivered.addresses.source(), delivered.addresses.destination()), (v4(WEB), v4(to)));
    let (back, answer) = goes(&mut world, to, &Call::answer(&seen, SYN | ACK, (5000, 1001), to));
    assert_eq!((back, parsed(&answer).1.addresses.source()), (WEB, VIP.into()));
    let (again, _) = goes(&mut world, WEB, &call.out(ACK, (1001, 5001)));
    assert_eq!(again, to);
    let record = world.flow();
    assert_eq!(record.tuple.destination, IpAddr::V4(VIP));
    assert_eq!(record.responder.port, to);
}

#[test]
fn datagrams_and_ipv6_are_translated_alike() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API]));
    let link = emit::Link { source: mac(WEB), destination: config().gateway_mac };
    for vip in [IpAddr::V4(VIP), IpAddr::V6(VIP6)] {
        let own = if vip.is_ipv4() { v4(WEB) } else { v6(WEB) };
        let (to, seen) = goes(&mut world, WEB, &emit::udp(link, between(own, vip), (4000, 80), b"question"));
        assert_eq!(to, API);
        let back = emit::Link { source: mac(API), destination: config().gateway_mac };
        let answer = emit::udp(back, parsed(&seen).1.addresses.reversed(), (80, 4000), b"answer");
        let (to, answer) = goes(&mut world, API, &answer);
        assert_eq!((to, parsed(&answer).1.addresses.source()), (WEB, vip));
    }
}

#[test]
fn what_is_needed_of_a_flows_other_direction_is_known_ahead() {
    let mut memory = memory(1024);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API]));
    let call = Call { from: WEB, source_port: 40_000 };
    let (_, seen) = goes(&mut world, WEB, &call.out(SYN, (1000, 0)));
    let plain = world.connect(WEB, DB, 22);
    let previewer = world.switch.previewer();
    let preview = |port: PortId, bytes: &[u8]| {
        let mut preview = Preview::default();
        previewer.preview(port, &Frame::copy_of(bytes), &mut preview);
        preview
    };
    let out = preview(WEB, &call.out(ACK, (1001, 5001)));
    let back = preview(API, &Call::answer(&seen, SYN | ACK, (5000, 1001), API));
    let lines = |preview: &Preview| previewer.likely_lines(preview).unwrap();
    let further = |world: &World<'_>, preview: &Preview| world.switch.likely_partner_lines(preview);
    assert_eq!(further(&world, &out), [Some(lines(&back)[0]), None]);
    assert_eq!(further(&world, &back), [Some(lines(&out)[0]), None]);
    let [out, back] = [(WEB, plain.out(ACK, 1001, 5001, 0)), (DB, plain.back(ACK, 5001, 1001, 0))]
        .map(|(port, bytes)| preview(port, &bytes));
    assert_eq!(further(&world, &out), [Some(lines(&back)[1]), None], "limits of the other end");
    let [first, answer] = [(WEB, udp(WEB, DB, (4000, 4001))), (DB, udp(DB, WEB, (4001, 4000)))]
        .map(|(port, bytes)| preview(port, &bytes));
    assert_eq!(further(&world, &first), lines(&answer).map(Some), "where the answers will be entered");
    world.forwards(WEB, &udp(WEB, DB, (4000, 4001)), DB);
    assert_eq!(further(&world, &first), [None; 2]);
}

#[test]
fn errors_of_an_endpoint_come_from_the_virtual_address_and_quote_what_was_sent() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API]));
    let link = |from: PortId| emit::Link { source: mac(from), destination: config().gateway_mac };
    for vip in [IpAddr::V4(VIP), IpAddr::V6(VIP6)] {
        let (own, endpoint, protocol, mut message) = match vip.is_ipv4() {
            true => (v4(WEB), v4(API), Protocol::Icmp, vec![3, 3, 0, 0, 0, 0, 0, 0]),
            false => (v6(WEB), v6(API), Protocol::Icmpv6, vec![1, 4, 0, 0, 0, 0, 0, 0]),
        };
        let question = emit::udp(link(WEB), between(own, vip), (4000, 80), b"question");
        let (_, seen) = goes(&mut world, WEB, &question);
        message.extend_from_slice(&seen[14..]);
        let error = emit::ip(link(API), between(endpoint, own), protocol, 64, &message);
        let passed = world.forwards(API, &error, WEB);
        let (source, _, destination, _) = tuple(passed.bytes());
        assert_eq!((source, destination), (vip, own));
        let (_, ip) = parsed(passed.bytes());
        let quote = [&passed.bytes()[..14], &passed.bytes()[ip.transport_offset + 8..ip.end]].concat();
        assert_eq!(tuple(&quote), (own, 4000, vip, 80));
    }
}

#[test]
fn translated_flows_outlive_the_process() {
    let mut memory = memory(64);
    let call = Call { from: WEB, source_port: 40_000 };
    let seen = {
        let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API]));
        let (to, seen) = goes(&mut world, WEB, &call.out(SYN, (1000, 0)));
        goes(&mut world, to, &Call::answer(&seen, SYN | ACK, (5000, 1001), to));
        goes(&mut world, WEB, &call.out(ACK, (1001, 5001)));
        seen
    };
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API]));
    assert_eq!(world.switch.counters().flows_adopted, 1);
    let (to, answer) = goes(&mut world, API, &Call::answer(&seen, ACK, (5001, 1001), API));
    assert_eq!((to, parsed(&answer).1.addresses.source()), (WEB, VIP.into()));
}

#[test]
fn service_does_not_exist_for_whoever_does_not_see_it() {
    let mut memory = memory(64);
    let service = OneService::at(&[API]).hidden_from(WEB);
    let mut world = World::with_services(&mut memory, allow(), service);
    let call = Call { from: WEB, source_port: 40_000 };
    world.drops(WEB, &call.out(SYN, (1000, 0)), DropReason::NoEndpoint);
    assert!(segment(&world.emitted_one(WEB)).flags.has(RST));
    let direct = Dialogue::new(WEB, API, 40_000, 80).out(SYN, 1000, 0, 0);
    world.drops(WEB, &direct, DropReason::NoEndpoint);
    assert!(segment(&world.emitted_one(WEB)).flags.has(RST));
    assert_eq!(world.changes(), [], "nothing tells that somebody is there");
    let elsewhere = Dialogue::new(WEB, API, 40_000, 81).out(SYN, 1000, 0, 0);
    world.forwards(WEB, &elsewhere, API);
    let foreign = Call { from: OTHER_WEB, source_port: 40_000 };
    world.drops(OTHER_WEB, &foreign.out(SYN, (1000, 0)), DropReason::NoEndpoint);
}

#[test]
fn open_flow_ends_when_its_service_is_hidden() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API]));
    let call = Call { from: WEB, source_port: 40_000 };
    let (to, seen) = goes(&mut world, WEB, &call.out(SYN, (1000, 0)));
    goes(&mut world, to, &Call::answer(&seen, SYN | ACK, (5000, 1001), to));
    goes(&mut world, WEB, &call.out(ACK, (1001, 5001)));
    world.install_services(allow(), OneService::at(&[API]).hidden_from(WEB));
    world.tick();
    let resets: Vec<_> = world.switch.emissions().collect();
    let source = |port| {
        let reset = resets.iter().find(|emission| emission.port == port).expect("a reset");
        assert!(segment(&reset.frame).flags.has(RST));
        parsed(&reset.frame).1.addresses.source()
    };
    assert_eq!((source(WEB), source(API)), (VIP.into(), v4(WEB)), "each end knows its own peer");
}

#[test]
fn infrastructure_serves_other_tenants_under_an_address_of_their_own() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, deny(), OneService::at(&[DB]).for_everyone());
    let call = Call { from: OTHER_WEB, source_port: 40_000 };
    let (to, seen) = goes(&mut world, OTHER_WEB, &call.out(SYN, (1000, 0)));
    let source = parsed(&seen).1.addresses.source();
    assert_eq!(to, DB);
    assert!(Ranges::default().callers().0.contains(source), "{source}");
    let (to, answer) = goes(&mut world, DB, &Call::answer(&seen, SYN | ACK, (5000, 1001), DB));
    assert_eq!((to, parsed(&answer).1.addresses.source()), (OTHER_WEB, VIP.into()));
    let probe = emit::udp(
        emit::Link { source: mac(DB), destination: config().gateway_mac },
        between(v4(DB), source),
        (1, 2),
        b"knock",
    );
    world.drops(DB, &probe, DropReason::NoEndpoint);
}

#[test]
fn endpoint_that_calls_itself_sees_the_virtual_address() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[WEB]));
    let call = Call { from: WEB, source_port: 40_000 };
    let (to, seen) = goes(&mut world, WEB, &call.out(SYN, (1000, 0)));
    let addresses = parsed(&seen).1.addresses;
    assert_eq!((to, addresses.source(), addresses.destination()), (WEB, VIP.into(), v4(WEB)));
    let (to, answer) = goes(&mut world, WEB, &Call::answer(&seen, SYN | ACK, (5000, 1001), WEB));
    let addresses = parsed(&answer).1.addresses;
    assert_eq!((to, addresses.source(), addresses.destination()), (WEB, VIP.into(), v4(WEB)));
}

#[test]
fn refusal_is_kept_from_the_caller_whose_next_syn_goes_elsewhere() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API, DB]));
    let call = Call { from: WEB, source_port: 40_000 };
    let (first, seen) = goes(&mut world, WEB, &call.out(SYN, (1000, 0)));
    let refusal = Call::answer(&seen, RST | ACK, (0, 1001), first);
    world.drops(first, &refusal, DropReason::Redirected);
    world.pass_time(Duration::from_secs(1));
    let (second, seen) = goes(&mut world, WEB, &call.out(SYN, (1000, 0)));
    assert_ne!(first, second);
    let flow = world.flow();
    assert_eq!((flow.delivered.ip(), flow.choice.unwrap().retries), (v4(second), 1));
    let (to, refusal) = goes(&mut world, second, &Call::answer(&seen, RST | ACK, (0, 1001), second));
    assert!(to == WEB && segment(&refusal).flags.has(RST), "with nobody else left the truth is told");
}

#[test]
fn refusal_is_kept_from_the_caller_while_another_has_only_to_accept_what_waits() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API, DB]));
    let (id, api, db) = (RuleId("acme/s".into()), nic(API).vm, nic(DB).vm);
    let full = Listener::Present { queue: Some(AcceptQueue { len: 5, max: 4 }) };
    world.switch.set_listener(world.now, &id, &api, full);
    let call = Call { from: WEB, source_port: 40_000 };
    let (to, seen) = goes(&mut world, WEB, &call.out(SYN, (1000, 0)));
    assert_eq!(to, DB);
    let refusal = Call::answer(&seen, RST | ACK, (0, 1001), DB);
    world.drops(DB, &refusal, DropReason::Redirected);
    world.switch.set_listener(world.now, &id, &db, Listener::Absent);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(goes(&mut world, WEB, &call.out(SYN, (1000, 0))).0, API, "a full queue is better than nobody");
}

#[test]
fn unanswered_syn_goes_elsewhere_in_the_end() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API, DB]));
    let call = Call { from: WEB, source_port: 40_000 };
    let mut went = Vec::new();
    let mut whys = Vec::new();
    for _ in 0..4 {
        went.push(goes(&mut world, WEB, &call.out(SYN, (1000, 0))).0);
        whys.push(world.flow().choice.unwrap().to_string());
        world.pass_time(Duration::from_secs(1));
    }
    let why = |retry: &str| format!("maglev, hash of the flow{retry}");
    assert_eq!(whys, ["", ", retry 1", ", retry 2", ", retry 3"].map(why));
    assert_eq!(went[..3], [went[0]; 3], "the same flow hashes to the same endpoint while that is in");
    assert_ne!(went[3], went[0], "three failures in a row eject");
}

#[test]
fn a_syn_sent_again_is_one_failure_however_often_it_is_looked_at() {
    let mut memory = memory(64);
    let service = OneService::at(&[API, DB]).by("/usr/bin/good");
    let mut world = World::with_services(&mut memory, allow(), service);
    let syn = Call { from: WEB, source_port: 40_000 }.out(SYN, (1000, 0));
    let mut went = Vec::new();
    for _ in 0..3 {
        for _ in 0..3 {
            assert!(matches!(world.offer(WEB, &syn), Verdict::Ask(_)));
        }
        went.push(world.offer_as(WEB, &syn, None, process("/usr/bin/good")));
        world.pass_time(Duration::from_secs(1));
    }
    assert!(went.iter().all(|verdict| *verdict == went[0]), "two failures eject nobody");
    assert_eq!(world.flow().choice.unwrap().retries, 2);
}

#[test]
fn first_refusal_is_kept_from_the_caller_while_the_other_has_only_failed() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API, DB]));
    let call = Call { from: WEB, source_port: 40_000 };
    let silent = goes(&mut world, WEB, &call.out(SYN, (1000, 0))).0;
    for _ in 0..3 {
        world.pass_time(Duration::from_secs(1));
        goes(&mut world, WEB, &call.out(SYN, (1000, 0)));
    }
    let call = Call { from: WEB, source_port: 40_001 };
    let (other, seen) = goes(&mut world, WEB, &call.out(SYN, (1000, 0)));
    assert_ne!(other, silent, "three failures in a row eject");
    world.drops(other, &Call::answer(&seen, RST | ACK, (0, 1001), other), DropReason::Redirected);
}

#[test]
fn endpoint_is_asked_who_listens_before_it_gets_a_packet() {
    let mut memory = memory(64);
    let service = OneService::at(&[API, DB]).by("/usr/bin/good");
    let mut world = World::with_services(&mut memory, allow(), service);
    let syn = Call { from: WEB, source_port: 40_000 }.out(SYN, (1000, 0));
    let Verdict::Ask(question) = world.offer(WEB, &syn) else { panic!("nobody is asked") };
    let asked = question.responder.expect("the listener is asked about");
    assert_eq!((asked.how, asked.tuple.source, asked.tuple.source_port), (How::Listener, v4(asked.port), 80));
    assert_eq!(question.initiator, None);
    // Somebody else listens there: the other endpoint is asked about.
    let Verdict::Ask(question) = world.offer_as(WEB, &syn, None, process("/usr/bin/bad")) else {
        panic!("nobody else is asked")
    };
    let other = question.responder.expect("the listener is asked about").port;
    assert_ne!(other, asked.port);
    assert_eq!(world.offer_as(WEB, &syn, None, process("/usr/bin/good")), Verdict::Forward(other));
    assert_eq!(world.flow().choice.unwrap().retries, 1);
    // The first comes back when its process does.
    let (first, second) = (&nic(asked.port).vm, &nic(other).vm);
    let id = RuleId("acme/s".into());
    world.switch.set_listener(world.now, &id, first, Listener::Present { queue: None });
    world.switch.set_listener(world.now, &id, second, Listener::Absent);
    let syn = Call { from: WEB, source_port: 40_001 }.out(SYN, (1000, 0));
    let Verdict::Ask(question) = world.offer(WEB, &syn) else { panic!("nobody is asked") };
    assert_eq!(question.responder.map(|ask| ask.port), Some(asked.port));
}

#[test]
fn an_endpoint_that_cannot_be_read_just_now_is_asked_again_and_stays_in() {
    let mut memory = memory(64);
    let service = OneService::at(&[API]).by("/usr/bin/good");
    let mut world = World::with_services(&mut memory, allow(), service);
    let syn = Call { from: WEB, source_port: 40_000 }.out(SYN, (1000, 0));
    for reason in [UnknownReason::Inconsistent, UnknownReason::TimedOut] {
        assert!(matches!(world.offer(WEB, &syn), Verdict::Ask(_)));
        let unread = Some(Arc::new(Attribution::unknown(reason)));
        let verdict = world.offer_as(WEB, &syn, None, unread);
        assert_eq!(verdict, Verdict::Drop(DropReason::UnreadListener));
        let states: Vec<_> = world.switch.endpoints(world.now).map(|endpoint| endpoint.state).collect();
        assert_eq!(states, [EndpointState::In]);
    }
    assert!(matches!(world.offer(WEB, &syn), Verdict::Ask(_)));
    assert_eq!(world.offer_as(WEB, &syn, None, process("/usr/bin/good")), Verdict::Forward(API));
}

#[test]
fn without_anybody_who_listens_the_call_is_refused_at_once() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API, DB]));
    let id = RuleId("acme/s".into());
    for port in [API, DB] {
        world.switch.set_listener(world.now, &id, &nic(port).vm, Listener::Absent);
    }
    let call = Call { from: WEB, source_port: 40_000 };
    world.drops(WEB, &call.out(SYN, (1000, 0)), DropReason::NoBackend);
    assert!(segment(&world.emitted_one(WEB)).flags.has(RST));
}

#[test]
fn whoever_does_not_accept_keeps_its_flows_and_gets_no_new_ones() {
    let mut memory = memory(256);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API, DB]));
    let queue = |len| Listener::Present { queue: Some(AcceptQueue { len, max: 4 }) };
    let (id, api) = (RuleId("acme/s".into()), nic(API).vm);
    let calls = |world: &mut World<'_>, ports: std::ops::Range<u16>| -> Vec<PortId> {
        let syn = |source_port| Call { from: WEB, source_port }.out(SYN, (1000, 0));
        ports.map(|port| goes(world, WEB, &syn(port)).0).collect()
    };
    let first = calls(&mut world, 40_000..40_040);
    let stalled = 40_000 + first.iter().position(|to| *to == API).expect("some go there") as u16;
    world.switch.set_listener(world.now, &id, &api, queue(5));
    assert!(calls(&mut world, 41_000..41_040).iter().all(|to| *to == DB));
    let states: Vec<_> = world.switch.endpoints(world.now).map(|endpoint| endpoint.state).collect();
    assert_eq!(states, [EndpointState::QueueFull, EndpointState::In]);
    // Its SYN is not answered any more: the first retransmission goes to another, not the third.
    world.pass_time(Duration::from_secs(1));
    assert_eq!(calls(&mut world, stalled..stalled + 1), [DB]);
    world.switch.set_listener(world.now, &id, &api, queue(2));
    assert!(calls(&mut world, 42_000..42_040).contains(&API), "it has drained");
}

#[test]
fn policy_judges_the_endpoint_and_not_the_virtual_address() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, deny_port(80), OneService::at(&[API]));
    let call = Call { from: WEB, source_port: 40_000 };
    world.drops(WEB, &call.out(SYN, (1000, 0)), DropReason::Denied);
    assert_eq!(world.changes(), [FlowChange::Denied]);
}

#[test]
fn virtual_address_answers_ping_and_arp_on_its_own_link_only_for_whoever_sees_it() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), OneService::at(&[API]).hidden_from(DB));
    let ping = |from: PortId| {
        let link = emit::Link { source: mac(from), destination: config().gateway_mac };
        let message = [8, 0, 0, 0, 0, 7, 0, 1, b'p'];
        emit::ip(link, between(v4(from), VIP.into()), Protocol::Icmp, 64, &message)
    };
    assert_eq!(world.offer(WEB, &ping(WEB)), Verdict::Answered);
    assert_eq!(icmp_kind(&world.emitted_one(WEB)), (0, 0));
    world.drops(DB, &ping(DB), DropReason::NoEndpoint);
}

#[test]
fn flows_are_counted_towards_their_endpoint_for_as_long_as_they_live() {
    let mut memory = memory(1024);
    let mut service = OneService::at(&[API, DB]);
    service.offers[0].balancing.method = model::Method::LeastOutstanding;
    let mut world = World::with_services(&mut memory, allow(), service);
    let mut went = [0; 5];
    for source_port in 40_000..40_100 {
        let (to, _) = goes(&mut world, WEB, &Call { from: WEB, source_port }.out(SYN, (1000, 0)));
        went[usize::from(to.0)] += 1;
    }
    assert_eq!((went[1], went[2]), (50, 50));
    world.pass_time(Duration::from_secs(3600));
    world.tick();
    assert_eq!(world.switch.flow_count(), 0);
    let picked: Vec<PortId> = (0..2)
        .map(|n| goes(&mut world, WEB, &Call { from: WEB, source_port: 41_000 + n }.out(SYN, (1000, 0))).0)
        .collect();
    assert_ne!(picked[0], picked[1]);
}
