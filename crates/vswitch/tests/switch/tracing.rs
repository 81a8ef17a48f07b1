// SPDX-License-Identifier: Apache-2.0
//! The moments of traced flows, and which flows are traced.

use std::collections::BTreeSet;
use std::time::Duration;

use model::Sample;
use vswitch::{DropReason, FlowChange, FlowTrace, SwitchConfig};

use crate::world::*;

fn tracing(port: u16, sample: &str, rules: Rules) -> Rules {
    Rules { trace: Some((port, sample.parse().unwrap())), ..rules }
}

fn later(world: &mut World<'_>) -> model::Moment {
    world.pass_time(Duration::from_millis(3));
    world.now
}

/// What the only event since the last look says.
fn ended(world: &mut World<'_>) -> (FlowChange, Option<FlowTrace>) {
    let mut events = world.events();
    assert_eq!(events.len(), 1, "{events:?}");
    let event = events.remove(0);
    (event.change, event.record.trace)
}

#[test]
fn a_connection_shows_when_it_was_complete_first_answered_and_closed() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, tracing(80, "100%", allow()));
    let opened = later(&mut world);
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    world.forwards(WEB, &dialogue.out(SYN, 1000, 0, 0), API);
    later(&mut world);
    world.forwards(API, &dialogue.back(SYN | ACK, 5000, 1001, 0), WEB);
    let connected = later(&mut world);
    world.forwards(WEB, &dialogue.out(ACK, 1001, 5001, 0), API);
    later(&mut world);
    assert_eq!(
        world.forwards(WEB, &dialogue.out(ACK, 1001, 5001, 7), API).services.to_string(),
        "trace,authorize"
    );
    // An acknowledgment is no answer, and what the tracker refuses is none either.
    world.forwards(API, &dialogue.back(ACK, 5001, 1008, 0), WEB);
    world.drops(API, &dialogue.back(ACK, 900_000_000, 1008, 5), DropReason::OutOfWindow);
    let answered = later(&mut world);
    world.forwards(API, &dialogue.back(ACK, 5001, 1008, 5), WEB);
    later(&mut world);
    let frame = world.forwards(API, &dialogue.back(FIN | ACK, 5006, 1008, 0), WEB);
    assert_eq!(frame.services.to_string(), "", "after that its frames cost nothing more");
    let closed = later(&mut world);
    world.forwards(WEB, &dialogue.out(FIN | ACK, 1008, 5007, 0), API);
    later(&mut world);
    world.forwards(API, &dialogue.back(ACK, 5007, 1009, 0), WEB);
    assert_eq!(world.changes(), [FlowChange::Opened]);
    assert_eq!(world.flow().opened, opened);
    world.pass_time(Duration::from_secs(60));
    world.tick();
    let (change, trace) = ended(&mut world);
    let trace = trace.unwrap();
    assert_eq!(change, FlowChange::Closed);
    assert_eq!((trace.sample, trace.whole), (Sample::ALL, true));
    assert_eq!([trace.connected, trace.answered, trace.closed], [connected, answered, closed].map(Some));
}

#[test]
fn datagrams_are_answered_without_a_handshake_and_what_no_rule_names_is_not_traced() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, tracing(53, "100%", allow()));
    world.forwards(WEB, &udp(WEB, API, (1, 53)), API);
    world.forwards(WEB, &udp(WEB, API, (1, 54)), API);
    let answered = later(&mut world);
    world.forwards(API, &udp(API, WEB, (53, 1)), WEB);
    later(&mut world);
    world.forwards(API, &udp(API, WEB, (53, 1)), WEB);
    let traces = world.switch.flows().map(|flow| (flow.tuple.destination_port, flow.trace));
    for (port, trace) in traces {
        let noted = trace.map(|trace| (trace.connected, trace.answered, trace.closed));
        assert_eq!(noted, (port == 53).then_some((None, Some(answered), None)), "{port}");
    }
}

/// Opens many flows; the source ports of those that are traced.
fn traced(world: &mut World<'_>, flows: u16) -> BTreeSet<u16> {
    for port in 0..flows {
        let frame = world.forwards(WEB, &udp(WEB, API, (10_000 + port, 53)), API);
        let flags = frame.services.to_string();
        let sampled = world.events().pop().unwrap().record.trace.is_some();
        assert_eq!(flags, if sampled { "trace,authorize" } else { "authorize" });
    }
    found(world)
}

fn found(world: &World<'_>) -> BTreeSet<u16> {
    world.switch.flows().filter(|flow| flow.trace.is_some()).map(|flow| flow.tuple.source_port).collect()
}

#[test]
fn a_rule_traces_its_part_and_a_restarted_daemon_and_greater_parts_trace_the_same_flows() {
    const FLOWS: u16 = 2000;
    let mut memory = memory(1 << 14);
    let mut world = World::new(&mut memory, tracing(53, "10%", allow()));
    let tenth = traced(&mut world, FLOWS);
    // A binomial distribution: within four standard deviations.
    assert!((146..=254).contains(&tenth.len()), "{}", tenth.len());
    let ids: BTreeSet<u128> = world.switch.flows().filter_map(|flow| Some(flow.trace?.id)).collect();
    assert_eq!(ids.len(), tenth.len(), "no two are called alike");
    drop(world);

    let mut world = World::new(&mut memory, tracing(53, "10%", allow()));
    later(&mut world);
    world.tick();
    assert_eq!(found(&world), tenth);
    assert!(world.switch.flows().filter_map(|flow| flow.trace).all(|trace| !trace.whole));
    // From either side.
    let port = *tenth.first().unwrap();
    world.forwards(API, &udp(API, WEB, (53, port)), WEB);
    let answered = world.switch.flows().find(|flow| flow.tuple.source_port == port).unwrap();
    assert_eq!(answered.trace.unwrap().answered, Some(world.now));

    world.install(tracing(53, "50%", allow()));
    world.tick();
    let half = found(&world);
    assert!(half.is_superset(&tenth) && (910..=1090).contains(&half.len()), "{}", half.len());
    world.install(tracing(53, "0%", allow()));
    world.tick();
    assert_eq!(found(&world).len(), 0);
}

#[test]
fn a_port_has_so_many_traced_flows_and_what_exceeds_that_is_counted() {
    let mut memory = memory(256);
    let config = SwitchConfig { traced_per_port_max: 2, ..config() };
    let mut world = World::with_config(&mut memory, config, tracing(53, "100%", allow()));
    (1..=3).for_each(|port| _ = world.forwards(WEB, &udp(WEB, API, (port, 53)), API));
    assert_eq!(found(&world), [1, 2].into());
    assert_eq!(world.switch.counters().traces_lost, 1);
    // Another port's are its own.
    world.forwards(API, &udp(API, WEB, (9, 53)), WEB);
    assert_eq!(found(&world), [1, 2, 9].into());
    // Whoever is forgotten leaves room: idle ones, and those that no rule wants any more.
    world.pass_time(Duration::from_secs(31));
    world.tick();
    (4..=5).for_each(|port| _ = world.forwards(WEB, &udp(WEB, API, (port, 53)), API));
    assert_eq!(found(&world), [4, 5].into());
    world.install(allow());
    world.tick();
    world.install(tracing(54, "100%", allow()));
    (6..=7).for_each(|port| _ = world.forwards(WEB, &udp(WEB, API, (port, 54)), API));
    assert_eq!((found(&world), world.switch.counters().traces_lost), ([6, 7].into(), 1));
}

#[test]
fn denied_and_reset_flows_are_traced_within_the_rate_of_their_port() {
    let mut memory = memory(64);
    let config = SwitchConfig { denials_per_second_max: 2, ..config() };
    let mut world = World::with_config(&mut memory, config, tracing(80, "100%", allow()));
    world.connect(WEB, API, 80);
    world.events();
    world.install(tracing(80, "100%", deny_port(80)));
    world.tick();
    let (change, trace) = ended(&mut world);
    assert!(change == FlowChange::Reset && trace.is_some_and(|trace| trace.connected.is_some()));
    for source_port in 1..=3 {
        let syn = Dialogue::new(WEB, API, source_port, 80).out(SYN, 1000, 0, 0);
        world.drops(WEB, &syn, DropReason::Denied);
    }
    let told = world.events();
    assert!(told.len() == 2 && told.iter().all(vswitch::FlowEvent::tells_span), "{told:?}");
    assert_eq!(world.switch.counters().traces_lost, 1);
    // A refused flow that is remembered needs no second span.
    world.pass_time(Duration::from_secs(1));
    world.install(tracing(53, "100%", deny()));
    world.drops(WEB, &udp(WEB, API, (1, 53)), DropReason::Denied);
    let (change, trace) = ended(&mut world);
    assert!(change == FlowChange::Denied && trace.is_some());
    world.pass_time(Duration::from_secs(60));
    world.tick();
    assert_eq!(world.changes(), []);
}
