// SPDX-License-Identifier: Apache-2.0
//! The flow table under pressure.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vswitch::{
    DropReason, EMISSIONS_MAX, EVENTS_MAX, FlowChange, FlowState, SLOTS_MIN, SwitchConfig, Verdict,
};

use crate::world::*;

/// As many as the smallest table holds.
const FLOWS: u16 = SLOTS_MIN as u16 / 2;

#[test]
fn full_table_evicts_oldest_idle_flow() {
    let mut memory = memory(SLOTS_MIN);
    let mut world = World::new(&mut memory, allow());
    for port in 0..FLOWS {
        world.forwards(WEB, &udp(WEB, API, (port, 53)), API);
        world.pass_time(Duration::from_millis(10));
    }
    world.forwards(WEB, &udp(WEB, API, (0, 53)), API);
    world.forwards(WEB, &udp(WEB, API, (100, 53)), API);
    let mut left: Vec<_> = world.switch.flows().map(|flow| flow.tuple.source_port).collect();
    left.sort_unstable();
    let expected: Vec<_> = [0].into_iter().chain(2..FLOWS).chain([100]).collect();
    assert_eq!(left, expected, "the first flow was seen again, so the second went");
    assert_eq!(world.switch.counters().flows_evicted, 1);
}

#[test]
fn dead_flows_go_before_unanswered_ones_and_busy_ones_stay() {
    let mut memory = memory(SLOTS_MIN);
    let mut world = World::new(&mut memory, allow());
    let open = |world: &mut World<'_>, port| {
        let dialogue = Dialogue::new(WEB, API, port, 80);
        world.forwards(WEB, &dialogue.out(SYN, 1, 0, 0), API);
        dialogue
    };
    let answered = |world: &mut World<'_>, port| {
        let dialogue = open(world, port);
        world.forwards(API, &dialogue.back(SYN | ACK, 1, 2, 0), WEB);
        dialogue
    };
    let (unanswered, dead) = (FLOWS - 2, FLOWS - 1);
    for port in 0..unanswered {
        answered(&mut world, port);
    }
    open(&mut world, unanswered);
    world.pass_time(Duration::from_millis(10));
    let dialogue = open(&mut world, dead);
    world.forwards(API, &dialogue.back(RST | ACK, 0, 2, 0), WEB);
    let has = |world: &World<'_>, port| world.switch.flows().any(|flow| flow.tuple.source_port == port);
    answered(&mut world, 100);
    assert!(!has(&world, dead) && has(&world, unanswered), "the dead flow went, though it is younger");
    answered(&mut world, 101);
    assert!(!has(&world, unanswered), "the unanswered flow went");
    world.drops(WEB, &Dialogue::new(WEB, API, 102, 80).out(SYN, 1, 0, 0), DropReason::TableFull);
    world.pass_time(Duration::from_secs(11));
    open(&mut world, 102);
}

#[test]
fn a_guest_cannot_take_more_than_its_quota() {
    let config = SwitchConfig { flows_per_port_max: 3, ..config() };
    let mut memory = memory(64);
    let mut world = World::with_config(&mut memory, config, allow());
    for port in 0..3 {
        world.forwards(WEB, &Dialogue::new(WEB, API, port, 80).out(SYN, 1, 0, 0), API);
    }
    let fourth = Dialogue::new(WEB, API, 3, 80);
    world.drops(WEB, &fourth.out(SYN, 1, 0, 0), DropReason::PortQuota);
    // Others open as they like, also towards that guest; and it may replace a flow of its own.
    world.forwards(API, &udp(API, WEB, (1, 2)), WEB);
    world.forwards(WEB, &Dialogue::new(WEB, API, 2, 80).out(SYN, 77, 0, 0), API);
    world.drops(WEB, &fourth.out(SYN, 1, 0, 0), DropReason::PortQuota);
    // A closed flow is free again.
    world.forwards(API, &Dialogue::new(WEB, API, 0, 80).back(RST | ACK, 0, 2, 0), WEB);
    world.forwards(WEB, &fourth.out(SYN, 1, 0, 0), API);
    world.drops(WEB, &Dialogue::new(WEB, API, 0, 80).out(SYN, 9, 0, 0), DropReason::PortQuota);
    world.pass_time(Duration::from_secs(61));
    world.tick();
    for port in 10..13 {
        world.forwards(WEB, &Dialogue::new(WEB, API, port, 80).out(SYN, 1, 0, 0), API);
    }
}

#[test]
fn consecutive_ports_spread_whatever_the_key() {
    for seed in 0..200 {
        let mut memory = memory(1024);
        let mut world = World::with_config(&mut memory, SwitchConfig::new(seed), allow());
        for port in 0..100 {
            world.forwards(WEB, &udp(WEB, API, (port, 53)), API);
        }
        assert_eq!(world.switch.counters().flows_evicted, 0, "seed {seed}");
    }
}

#[test]
fn a_sweep_stays_within_its_budget_and_gets_round() {
    let mut memory = memory(1024);
    let mut world = World::new(&mut memory, allow());
    for port in 0..100 {
        world.forwards(WEB, &udp(WEB, API, (port, 53)), API);
    }
    world.events();
    world.install(deny());
    for round in 1..=10 {
        world.switch.tick(world.now, 10);
        assert_eq!(world.switch.flows().count(), 100 - round * 10);
    }
    assert_eq!(world.changes(), [FlowChange::Reset; 100]);
    world.switch.tick(world.now, 10);
}

#[test]
fn a_sweep_with_room_for_all_looks_at_all_wherever_the_last_one_stopped() {
    for stopped in 0..10 {
        let mut memory = memory(1024);
        let mut world = World::new(&mut memory, allow());
        for port in 0..10 {
            world.forwards(WEB, &udp(WEB, API, (port, 50 + port)), API);
        }
        world.switch.tick(world.now, stopped);
        let even = (50..60).filter(|port| port % 2 == 0);
        let rules = even.fold(allow(), |rules, port| {
            rules.but(Rule { to_port: Some(port), ..Rule::default() }, model::Action::Deny)
        });
        world.install(rules);
        world.switch.tick(world.now, 10);
        let left: Vec<_> = world.switch.flows().collect();
        assert_eq!(left.len(), 5);
        assert!(left.iter().all(|flow| flow.generation == model::Generation(2)));
    }
}

#[test]
fn queues_are_bounded_and_losses_counted() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let stray = Dialogue::new(WEB, API, 1, 80).out(ACK, 1, 1, 0);
    for _ in 0..EMISSIONS_MAX + 5 {
        world.drops(WEB, &stray, DropReason::NoConnection);
    }
    assert_eq!(world.switch.counters().emissions_lost, 5);
    assert_eq!(world.emitted(WEB).len(), EMISSIONS_MAX);
    let syn = |seq| Dialogue::new(WEB, API, 1, 80).out(SYN, seq, 0, 0);
    for seq in 0..EVENTS_MAX as u32 {
        // Each but the first closes one flow and opens another.
        world.forwards(WEB, &syn(seq * 10), API);
    }
    assert_eq!(world.events().len(), EVENTS_MAX);
    assert_eq!(world.switch.counters().events_lost, EVENTS_MAX as u64 - 1);
}

#[test]
fn thousands_of_flows_find_their_way() {
    let mut memory = memory(16_384);
    let mut world = World::new(&mut memory, allow());
    for port in 0..4096 {
        world.forwards(WEB, &udp(WEB, API, (port, 53)), API);
    }
    for port in 0..4096 {
        world.forwards(API, &udp(API, WEB, (53, port)), WEB);
    }
    assert_eq!(world.switch.flows().filter(|flow| flow.state == FlowState::TwoWay).count(), 4096);
    assert_eq!(world.switch.counters().flows_evicted, 0);
    assert_eq!(world.offer(WEB, &udp(WEB, API, (9, 53))), Verdict::Forward(API));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// In a table so small that most keys live elsewhere than where they would best.
    #[test]
    fn a_flow_is_found_exactly_while_it_is_there(steps in vec((0..100_u16, 0..3_u64), 1..300)) {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        for (port, seconds) in steps {
            let is_there = world.switch.flows().any(|flow| flow.tuple.source_port == port);
            let hits = world.switch.counters().hits;
            let verdict = world.offer(WEB, &udp(WEB, API, (port, 53)));
            prop_assert!(matches!(verdict, Verdict::Forward(API) | Verdict::Drop(DropReason::TableFull)));
            prop_assert_eq!(world.switch.counters().hits - hits, u64::from(is_there));
            world.pass_time(Duration::from_secs(seconds));
            world.tick();
        }
    }
}
