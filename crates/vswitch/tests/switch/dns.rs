// SPDX-License-Identifier: Apache-2.0
//! Names of the mesh, asked for over UDP.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SRV};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use model::{Endpoint, Level, VmIndex};
use packet::emit;
use proptest::prelude::*;
use proptest::sample::select;
use vswitch::{DropReason, FlowSlot, How, PortId, SwitchConfig, Verdict};

use crate::names::*;
use crate::world::*;

/// The same name at three levels; the innermost only for one machine.
fn api() -> Names {
    Names::new(vec![
        entry("api", Level::Infrastructure, &[WEB, API, DB, OTHER_WEB]),
        entry("api", Level::Tenant, &[WEB, API, DB]),
        entry("api", Level::Instance, &[API]),
    ])
}

fn world(memory: &mut [FlowSlot], names: Names) -> World<'_> {
    World::with_services(memory, deny(), names)
}

fn a(position: usize) -> RData {
    RData::A(A(virtual_addresses(position).0))
}

fn aaaa(position: usize) -> RData {
    RData::AAAA(AAAA(virtual_addresses(position).1))
}

/// The owner of the SOA that a negative answer carries.
#[track_caller]
fn denied_by(answer: &Message) -> String {
    assert!(answer.answers.is_empty(), "{answer}");
    let [soa] = answer.authorities.as_slice() else { panic!("no SOA: {answer}") };
    let RData::SOA(data) = &soa.data else { panic!("no SOA: {answer}") };
    assert_eq!((soa.ttl, data.minimum), (5, 5));
    soa.name.to_string()
}

#[test]
fn a_name_means_the_innermost_service_of_who_asks() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, api());
    for (from, position) in [(WEB, 1), (API, 2), (DB, 1), (OTHER_WEB, 0)] {
        for name in ["api.mesh.internal.", "api.", "API.Mesh.Internal."] {
            let answer = world.looks_up(from, name, RecordType::A);
            assert_eq!(data(&answer), [&a(position)], "{from} {name}");
            assert_eq!(answer.answers[0].name.to_string(), name, "as it was asked");
            assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert_eq!(data(&world.looks_up(from, name, RecordType::AAAA)), [&aaaa(position)]);
            assert_eq!(data(&world.looks_up(from, name, RecordType::ANY)), [&a(position), &aaaa(position)]);
        }
    }
    assert_eq!(world.switch.flows().count(), 0, "answers take no flow");
}

#[test]
fn each_level_has_a_zone_of_its_own() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, api());
    for (from, zone, found) in [
        (API, "instance", Some(2)),
        (API, "tenant", Some(1)),
        (API, "infra", Some(0)),
        (API, "app", None),
        (WEB, "instance", None),
        (WEB, "tenant", Some(1)),
        (OTHER_WEB, "tenant", None),
        (OTHER_WEB, "infra", Some(0)),
        (OTHER_API, "infra", None),
    ] {
        let answer = world.looks_up(from, &format!("api.{zone}.mesh.internal."), RecordType::A);
        match found {
            Some(position) => assert_eq!(data(&answer), [&a(position)], "{from} {zone}"),
            None => {
                assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{from} {zone}");
                assert_eq!(denied_by(&answer), format!("{zone}.mesh.internal."));
            }
        }
    }
}

#[test]
fn what_is_hidden_and_what_nobody_has_get_the_same_answer() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, Names::new(vec![entry("api", Level::Application, &[API])]));
    for (hidden, absent) in [
        ("api.app.mesh.internal.", "xyz.app.mesh.internal."),
        ("api.mesh.internal.", "xyz.mesh.internal."),
        ("api.", "xyz."),
        ("_tcp.api.mesh.internal.", "_tcp.xyz.mesh.internal."),
        ("1.0.97.100.in-addr.arpa.", "9.0.97.100.in-addr.arpa."),
    ] {
        for kind in [RecordType::A, RecordType::SRV, RecordType::TXT, RecordType::PTR] {
            let mut hidden_answer = world.looks_up(WEB, hidden, kind);
            let mut absent_answer = world.looks_up(WEB, absent, kind);
            assert_eq!(hidden_answer.metadata.response_code, ResponseCode::NXDomain, "{hidden}");
            hidden_answer.queries.clear();
            absent_answer.queries.clear();
            assert_eq!(hidden_answer, absent_answer);
        }
    }
}

#[test]
fn negative_answers_say_whether_the_name_exists_and_how_long_that_holds() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, api());
    for (name, kind, code, zone) in [
        ("api.tenant.mesh.internal.", RecordType::TXT, ResponseCode::NoError, "tenant.mesh.internal."),
        ("api.mesh.internal.", RecordType::MX, ResponseCode::NoError, "mesh.internal."),
        ("api.", RecordType::HTTPS, ResponseCode::NoError, "."),
        ("tenant.mesh.internal.", RecordType::A, ResponseCode::NoError, "tenant.mesh.internal."),
        ("mesh.internal.", RecordType::NS, ResponseCode::NoError, "mesh.internal."),
        ("_tcp.api.mesh.internal.", RecordType::A, ResponseCode::NoError, "mesh.internal."),
        ("xyz.mesh.internal.", RecordType::A, ResponseCode::NXDomain, "mesh.internal."),
        ("xyz.", RecordType::A, ResponseCode::NXDomain, "."),
        ("x.api.app.mesh.internal.", RecordType::A, ResponseCode::NXDomain, "app.mesh.internal."),
        ("_81._tcp.api.mesh.internal.", RecordType::SRV, ResponseCode::NXDomain, "mesh.internal."),
        ("_udp.api.mesh.internal.", RecordType::SRV, ResponseCode::NXDomain, "mesh.internal."),
        ("1.0.97.100.in-addr.arpa.", RecordType::A, ResponseCode::NoError, "0.97.100.in-addr.arpa."),
        ("9.0.97.100.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain, "0.97.100.in-addr.arpa."),
    ] {
        let answer = world.looks_up(WEB, name, kind);
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert_eq!(denied_by(&answer), zone, "{name} {kind}");
    }
    let soa = world.looks_up(WEB, "app.mesh.internal.", RecordType::SOA);
    assert!(matches!(data(&soa)[..], [RData::SOA(_)]), "{soa}");
}

#[test]
fn a_service_may_be_called_like_a_level() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, Names::new(vec![entry("app", Level::Tenant, &[WEB])]));
    for name in ["app.tenant.mesh.internal.", "app.mesh.internal.", "app."] {
        assert_eq!(data(&world.looks_up(WEB, name, RecordType::A)), [&a(0)], "{name}");
    }
    let srv = world.looks_up(WEB, "_80._tcp.app.mesh.internal.", RecordType::SRV);
    assert_eq!(srv.answers.len(), 1, "{srv}");
}

#[test]
fn ports_are_told_with_the_addresses_to_reach_them_at() {
    let mut memory = memory(64);
    let ports = vec![tcp_port(5432, 5432), tcp_port(9000, 9001)];
    let db = Entry { ports, ..entry("db", Level::Tenant, &[WEB]) };
    let all = Entry { ports: vec![tcp_port(1, u16::MAX)], ..entry("all", Level::Tenant, &[WEB]) };
    let mut world = world(&mut memory, Names::new(vec![db, all]));
    for (name, told) in [
        ("db.mesh.internal.", &[5432, 9000, 9001][..]),
        ("_tcp.db.tenant.mesh.internal.", &[5432, 9000, 9001]),
        ("_db._tcp.db.mesh.internal.", &[5432, 9000, 9001]),
        ("_postgresql._tcp.db.mesh.internal.", &[5432]),
        ("_9001._tcp.db.mesh.internal.", &[9001]),
        ("_60000._tcp.all.mesh.internal.", &[60_000]),
    ] {
        let answer = world.looks_up(WEB, name, RecordType::SRV);
        let (called, position) = if name.contains("all") { ("all", 1) } else { ("db", 0) };
        let target = domain(&format!("{called}.tenant.mesh.internal."));
        let expected: Vec<RData> =
            told.iter().map(|port| RData::SRV(SRV::new(0, 1, *port, target.clone()))).collect();
        assert_eq!(data(&answer), expected.iter().collect::<Vec<_>>(), "{name}");
        let useful: Vec<&RData> = answer.additionals.iter().map(|record| &record.data).collect();
        assert_eq!(useful, [&a(position), &aaaa(position)]);
        assert!(answer.additionals.iter().all(|record| record.name == target));
    }
    let many = question_with_edns("all.mesh.internal.", RecordType::SRV, 4096);
    let many = world.asks(WEB, &many);
    assert_eq!(many.answers.len(), 16, "not 65,535 of them");
}

#[test]
fn addresses_are_of_families_that_an_endpoint_has() {
    let mut memory = memory(64);
    let endpoint = |vm: PortId, v6: bool| Endpoint {
        vm: VmIndex(vm.0.into()),
        v4: Some([10, 0, 0, 1].into()),
        v6: v6.then(|| "fd00::1".parse().unwrap()),
        group: Some(0),
    };
    let with = |called, endpoints| Entry { endpoints, ..entry(called, Level::Tenant, &[WEB]) };
    let names = Names::new(vec![
        with("v4", vec![endpoint(DB, false)]),
        with("both", vec![endpoint(DB, false), endpoint(API, true)]),
    ]);
    let mut world = world(&mut memory, names);
    let answer = world.looks_up(WEB, "v4.mesh.internal.", RecordType::AAAA);
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(data(&world.looks_up(WEB, "v4.mesh.internal.", RecordType::A)), [&a(0)]);
    assert_eq!(data(&world.looks_up(WEB, "both.mesh.internal.", RecordType::AAAA)), [&aaaa(1)]);
}

#[test]
fn virtual_addresses_have_names_for_those_who_see_them() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, api());
    let v6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.8.6.3.7.5.6.d.6.d.f.ip6.arpa.";
    for name in ["2.0.97.100.in-addr.arpa.", v6] {
        let target = RData::PTR(PTR(domain("api.tenant.mesh.internal.")));
        assert_eq!(data(&world.looks_up(WEB, name, RecordType::PTR)), [&target]);
        let hidden = world.looks_up(OTHER_WEB, name, RecordType::PTR);
        assert_eq!(hidden.metadata.response_code, ResponseCode::NXDomain);
    }
}

#[test]
fn whomever_a_machine_asks_it_gets_the_meshs_answer_from_there() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), api());
    let asked = question("api.mesh.internal.", RecordType::A);
    for to in ["10.0.0.1", "8.8.8.8", "10.0.0.12", "fd00::1", "2001:db8::53"] {
        let frame = datagram_to(WEB, ip(to), &asked);
        assert_eq!(world.offer(WEB, &frame), Verdict::Answered, "{to}");
        assert_eq!(data(&answer_in(&world.emitted_one(WEB), ip(to))), [&a(1)], "{to}");
    }
    // In another's name, or on another port, it is what it is.
    let spoofed =
        emit::udp(gateway_link(WEB), between(v4(API), ip(RESOLVER)), (40_000, 53), &asked.to_vec().unwrap());
    world.drops(WEB, &spoofed, DropReason::SpoofedAddress);
    let elsewhere =
        emit::udp(link(WEB, API), between(v4(WEB), v4(API)), (53, 5353), &asked.to_vec().unwrap());
    world.forwards(WEB, &elsewhere, API);
}

#[test]
fn a_machine_of_the_mesh_may_serve_other_names() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), api());
    let frame = datagram_to(WEB, v4(API), &question("www.example.com.", RecordType::A));
    world.forwards(WEB, &frame, API);
}

#[test]
fn without_upstreams_only_the_mesh_is_known_at_the_resolver() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, api());
    for name in ["www.example.com.", "com.", "1.1.1.1.in-addr.arpa."] {
        for kind in [RecordType::NS, RecordType::SOA] {
            let answer = world.asks(WEB, &question_with_edns(name, kind, 1232));
            assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{name}");
            assert_eq!(extended_error(&answer), Some(20));
        }
    }
    assert_eq!(extended_error(&world.looks_up(WEB, "www.example.com.", RecordType::A)), None, "nor EDNS");
    // Anywhere else it is a flow like any other.
    let frame = datagram_to(WEB, ip("8.8.8.8"), &question("www.example.com.", RecordType::A));
    world.drops(WEB, &frame, DropReason::NoEndpoint);
}

#[test]
fn a_name_for_certain_processes_is_told_to_them_only() {
    let mut memory = memory(64);
    let inner = Entry { exe: Some("/bin/shop"), ..entry("api", Level::Instance, &[WEB]) };
    let names = Names::new(vec![inner, entry("api", Level::Tenant, &[WEB])]);
    let mut world = world(&mut memory, names);
    let frame = datagram_to(WEB, ip(RESOLVER), &question("api.mesh.internal.", RecordType::A));
    let Verdict::Ask(asked) = world.offer(WEB, &frame) else { panic!("not asked") };
    let ask = asked.initiator.unwrap();
    assert_eq!((ask.port, ask.how, asked.responder), (WEB, How::Frame, None));
    world.emits_nothing();
    for (who, position) in [(process("/bin/shop"), 0), (process("/bin/other"), 1), (None, 1)] {
        assert_eq!(world.offer_as(WEB, &frame, who, None), Verdict::Answered);
        assert_eq!(data(&answer_in(&world.emitted_one(WEB), ip(RESOLVER))), [&a(position)]);
    }
    let outer = datagram_to(WEB, ip(RESOLVER), &question("api.tenant.mesh.internal.", RecordType::A));
    assert_eq!(world.offer(WEB, &outer), Verdict::Answered, "that does not depend on the process");
}

#[test]
fn answers_are_no_longer_than_the_asker_takes_and_say_so() {
    let mut memory = memory(64);
    let many = Entry { ports: vec![tcp_port(1, 1000)], ..entry("many", Level::Tenant, &[WEB]) };
    let mut world = world(&mut memory, Names::new(vec![many]));
    let name = "many.tenant.mesh.internal.";
    let plain = world.looks_up(WEB, name, RecordType::SRV);
    assert!(plain.metadata.truncation && plain.answers.is_empty() && plain.edns.is_none(), "{plain}");
    let small = world.asks(WEB, &question_with_edns(name, RecordType::SRV, 100));
    assert!(small.metadata.truncation, "512 bytes are for everyone, but not more");
    let large = world.asks(WEB, &question_with_edns(name, RecordType::SRV, 4096));
    assert!(!large.metadata.truncation, "{large}");
    assert_eq!(large.answers.len(), 16);
    assert_eq!(large.edns.unwrap().max_payload(), 1232);
}

#[test]
fn questions_that_mean_nothing_get_the_error_for_it() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, api());
    let name = "api.mesh.internal.";
    let mut version = question(name, RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    version.set_edns(edns);
    assert_eq!(u16::from(world.asks(WEB, &version).metadata.response_code), 16, "BADVERS");
    let mut chaos = question(name, RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(world.asks(WEB, &chaos).metadata.response_code, ResponseCode::Refused);

    let mut answer_to = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = question(name, RecordType::A).to_vec().unwrap();
        change(&mut bytes);
        let frame = emit::udp(gateway_link(WEB), between(v4(WEB), ip(RESOLVER)), (40_000, 53), &bytes);
        match world.offer(WEB, &frame) {
            Verdict::Answered => {
                Some(answer_in(&world.emitted_one(WEB), ip(RESOLVER)).metadata.response_code)
            }
            verdict => {
                assert_eq!(verdict, Verdict::Drop(DropReason::NothingToAnswer));
                None
            }
        }
    };
    assert_eq!(answer_to(&|bytes| bytes[2] = u8::from(OpCode::Update) << 3), Some(ResponseCode::NotImp));
    assert_eq!(answer_to(&|bytes| bytes[5] = 2), Some(ResponseCode::FormErr));
    assert_eq!(answer_to(&|bytes| bytes[4..6].fill(0xff)), Some(ResponseCode::FormErr));
    assert_eq!(answer_to(&|bytes| bytes.truncate(20)), Some(ResponseCode::FormErr));
    assert_eq!(answer_to(&|bytes| bytes[2] |= 0x80), None, "nobody waits for an answer to an answer");
    assert_eq!(answer_to(&|bytes| bytes.truncate(11)), None);
}

#[test]
fn nobody_asks_more_often_than_the_limit() {
    let mut memory = memory(64);
    let mut limited = config();
    limited.dns.as_mut().unwrap().questions_per_second_max = 3;
    let mut world = World::with_config(&mut memory, limited, deny());
    world.install_services(deny(), api());
    let frame = datagram_to(WEB, ip(RESOLVER), &question("api.", RecordType::A));
    for _ in 0..3 {
        assert_eq!(world.offer(WEB, &frame), Verdict::Answered);
    }
    world.drops(WEB, &frame, DropReason::DnsRate);
    let other = datagram_to(DB, ip(RESOLVER), &question("api.", RecordType::A));
    assert_eq!(world.offer(DB, &other), Verdict::Answered, "a neighbour is not held up");
}

#[test]
fn switched_off_there_is_no_resolver() {
    let mut memory = memory(64);
    let off = SwitchConfig { dns: None, ..config() };
    let mut world = World::with_config(&mut memory, off, allow());
    world.install_services(allow(), api());
    let asked = question("api.", RecordType::A);
    world.drops(WEB, &datagram_to(WEB, ip(RESOLVER), &asked), DropReason::NoEndpoint);
    world.forwards(WEB, &datagram_to(WEB, v4(API), &asked), API);
}

/// The code of the extended error in an answer.
fn extended_error(answer: &Message) -> Option<u16> {
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    match answer.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(_, data) => Some(u16::from_be_bytes([data[0], data[1]])),
        other => panic!("{other:?}"),
    }
}

const CALLED: [&str; 3] = ["api", "db", "app"];
const ASKERS: [PortId; 5] = [WEB, API, DB, OTHER_WEB, OTHER_API];

fn any_entry() -> impl Strategy<Value = Entry> {
    let seen_by = prop::collection::vec(any::<bool>(), 5);
    (select(CALLED.to_vec()), select(Level::ALL.to_vec()), seen_by).prop_map(|(called, level, seen_by)| {
        let seen_by: Vec<PortId> =
            ASKERS.into_iter().zip(seen_by).filter(|(_, seen)| *seen).map(|(port, _)| port).collect();
        entry(called, level, &seen_by)
    })
}

/// The plain reading: of all services that are called so, of that level if one is named, and that the asker sees,
/// the innermost; of several at one level the first.
fn plainly(entries: &[Entry], asker: PortId, called: &str, level: Option<Level>) -> Option<usize> {
    let mut found: Vec<usize> = (0..entries.len())
        .filter(|position| {
            let entry = &entries[*position];
            entry.called == called
                && level.is_none_or(|level| entry.level == level)
                && entry.seen_by.contains(&asker)
        })
        .collect();
    found.sort_by_key(|position| std::cmp::Reverse(entries[*position].level));
    found.first().copied()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever services there are and whoever asks, over names and addresses: the answer is what is seen.
    #[test]
    fn answers_are_the_plain_reading_of_what_the_asker_sees(
        entries in prop::collection::vec(any_entry(), 0..8),
    ) {
        let mut memory = memory(64);
        let mut world = world(&mut memory, Names::new(entries.clone()));
        for asker in ASKERS {
            for called in CALLED {
                for level in [None].into_iter().chain(Level::ALL.map(Some)) {
                    let name = match level {
                        Some(level) => format!("{called}.{}.mesh.internal.", level.zone()),
                        None => format!("{called}.mesh.internal."),
                    };
                    let answer = world.looks_up(asker, &name, RecordType::A);
                    match plainly(&entries, asker, called, level) {
                        Some(position) => prop_assert_eq!(data(&answer), [&a(position)]),
                        None => {
                            // A zone's own name exists whatever is called so.
                            let is_zone = name == "app.mesh.internal.";
                            let code = if is_zone { ResponseCode::NoError } else { ResponseCode::NXDomain };
                            prop_assert_eq!(answer.metadata.response_code, code);
                            prop_assert!(answer.answers.is_empty());
                        }
                    }
                }
            }
            for (position, entry) in entries.iter().enumerate() {
                let IpAddr::V4(address) = IpAddr::from(virtual_addresses(position).0) else { unreachable!() };
                let [a, b, c, d] = address.octets();
                let answer = world.looks_up(asker, &format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR);
                prop_assert_eq!(answer.answers.len(), usize::from(entry.seen_by.contains(&asker)));
            }
        }
    }
}
