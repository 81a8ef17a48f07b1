// SPDX-License-Identifier: Apache-2.0
//! A successor takes over the flows that its predecessor left, and trusts nothing else.

use proptest::prelude::*;
use vswitch::{DropReason, FlowSlot, FlowState, How, Question, SwitchConfig, Verdict};
use zerocopy::IntoBytes;

use crate::world::*;

#[test]
fn live_connections_outlive_the_process() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    world.forwards(WEB, &udp(WEB, DB, (1, 2)), DB);
    drop(world);

    let mut world = World::new(&mut memory, allow());
    assert_eq!(world.switch.counters().flows_adopted, 2);
    assert_eq!(world.switch.counters().slots_discarded, 0);
    world.forwards(API, &dialogue.back(ACK, 5001, 1001, 10), WEB);
    world.forwards(WEB, &dialogue.out(ACK, 1001, 5011, 10), API);
    world.forwards(DB, &udp(DB, WEB, (2, 1)), WEB);
    let tcp = world.switch.flows().find(|flow| flow.tuple.destination_port == 80).unwrap();
    assert_eq!((tcp.initiator.port, tcp.state), (WEB, FlowState::Established));
}

#[test]
fn adopted_flows_are_judged_before_their_next_frame() {
    let mut memory = memory(64);
    World::new(&mut memory, allow()).connect(WEB, API, 80);
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    let (out, back) = (dialogue.out(ACK, 1001, 5001, 1), dialogue.back(ACK, 5001, 1001, 1));

    // From the responder's side, the initiator is looked for as a connection in its own guest.
    let mut world = World::new(&mut memory, only_from("/bin/a"));
    for (port, frame, how) in [(WEB, &out, How::Frame), (API, &back, How::Connection)] {
        let Verdict::Ask(Question { initiator: Some(ask), responder: None }) = world.offer(port, frame)
        else {
            panic!("the initiator was not asked for")
        };
        assert_eq!((ask.port, ask.how), (WEB, how));
        assert_eq!(ask.tuple.to_string(), "tcp 10.0.0.11:40000 -> 10.0.0.12:80");
    }
    assert_eq!(world.offer_as(API, &back, process("/bin/a"), None), Verdict::Forward(WEB));
    drop(world);

    // A denied one is reset exactly, from the numbers in the slots.
    let mut world = World::new(&mut memory, deny());
    world.tick();
    let resets: Vec<_> = world.switch.emissions().map(|e| (e.port, segment(&e.frame).sequence)).collect();
    assert!(resets.contains(&(API, 1001)) && resets.contains(&(WEB, 5002)), "{resets:?}");
    world.drops(WEB, &out, DropReason::Reset);
    drop(world);

    let world = World::new(&mut memory, allow());
    assert_eq!(world.switch.flows().count(), 0, "what policy ended is not taken over");
}

#[test]
fn adopted_flows_count_towards_the_quota() {
    let config = SwitchConfig { flows_per_port_max: 1, ..config() };
    let mut memory = memory(64);
    World::with_config(&mut memory, config.clone(), allow()).connect(WEB, API, 80);
    let mut world = World::with_config(&mut memory, config, allow());
    world.drops(WEB, &udp(WEB, API, (1, 2)), DropReason::PortQuota);
}

#[test]
fn flows_of_cards_that_are_gone_are_not_taken_over() {
    let mut memory = memory(64);
    World::new(&mut memory, allow()).connect(WEB, API, 80);
    let mut switch = vswitch::Switch::new(config(), memory);
    assert_eq!(switch.flows().count(), 1);
    let snapshot = model::Snapshot {
        generation: model::Generation(1),
        inventory: inventory(&[("acme/web", &["10.0.0.11/24"])]),
        judge: std::sync::Arc::new(allow()),
        services: std::sync::Arc::new(model::NoServices),
    };
    switch.install(model::Moment(1), std::sync::Arc::new(snapshot), &[(WEB, nic(WEB))], &[]);
    assert_eq!(switch.flows().count(), 0);
}

#[test]
fn another_seed_adopts_nothing() {
    let mut memory = memory(64);
    World::new(&mut memory, allow()).connect(WEB, API, 80);
    let world = World::with_config(&mut memory, SwitchConfig::new(1), allow());
    assert_eq!(world.switch.counters().slots_discarded, 2);
    drop(world);
    assert!(memory.iter().all(|slot| *slot == FlowSlot::FREE));
}

/// How many flows [`populated`] has.
const FLOWS: usize = 6;

/// A table with flows of several protocols, families and states.
fn populated() -> Vec<FlowSlot> {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.connect(WEB, API, 80);
    world.forwards(WEB, &Dialogue::new(WEB, DB, 7, 22).out(SYN, 1, 0, 0), DB);
    world.forwards(API, &udp(API, DB, (1, 53)), DB);
    world.forwards(OTHER_WEB, &udp(OTHER_WEB, OTHER_API, (1, 53)), OTHER_API);
    world.forwards(WEB, &echo(WEB, API, 8, 7), API);
    let six = between(v6(WEB), v6(API));
    world.forwards(WEB, &tcp(link(WEB, API), six, (9, 80), SYN, (1, 0), 0), API);
    drop(world);
    memory
}

/// Every adopted flow is one that the predecessor had: same ends, same tuple.
fn check_adopted(mut memory: Vec<FlowSlot>) -> Result<usize, TestCaseError> {
    let mut original = populated();
    let tuples = |memory: &mut [FlowSlot]| {
        let world = World::new(memory, allow());
        let flows = world.switch.flows();
        flows
            .map(|flow| (flow.tuple.to_string(), flow.initiator.port, flow.responder.port))
            .collect::<Vec<_>>()
    };
    let known = tuples(&mut original);
    prop_assert_eq!(known.len(), FLOWS);
    let adopted = tuples(&mut memory);
    for flow in &adopted {
        prop_assert!(known.contains(flow), "{flow:?} was invented");
    }
    // And the table works.
    let mut world = World::new(&mut memory, allow());
    world.tick();
    world.connect(DB, WEB, 443);
    Ok(adopted.len())
}

proptest! {
    #[test]
    fn random_damage_never_invents_a_flow(
        damage in prop::collection::vec((0..64_usize * 64, any::<u8>()), 0..40),
    ) {
        let mut memory = populated();
        for (at, byte) in damage {
            memory.as_mut_slice().as_mut_bytes()[at] = byte;
        }
        check_adopted(memory)?;
    }

    #[test]
    fn a_torn_write_loses_at_most_its_own_flow(slot in 0..64_usize, torn in 0..64_usize) {
        let before = memory(64);
        let mut memory = populated();
        // The first bytes of one slot had been written, the rest not yet.
        let old = before[slot].as_bytes()[torn..].to_vec();
        let changed = memory[slot].as_bytes()[torn..] != old[..];
        memory.as_mut_slice()[slot].as_mut_bytes()[torn..].copy_from_slice(&old);
        let adopted = check_adopted(memory)?;
        let lost = usize::from(changed);
        prop_assert!(adopted + lost >= FLOWS);
    }

    #[test]
    fn moved_and_copied_slots_are_refused(from in 0..64_usize, to in 0..64_usize) {
        let mut memory = populated();
        memory[to] = memory[from];
        check_adopted(memory)?;
    }
}
