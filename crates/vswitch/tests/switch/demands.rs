// SPDX-License-Identifier: Apache-2.0
//! What services demand of flows that rules allow: proven ends, and no frame in the clear.

use std::sync::Arc;

use model::{Attribution, Confidence, ServiceFlags, UnknownReason};
use vswitch::{Ask, DropReason, FlowChange, How, Question, Verdict};

use crate::external::{ACME_OUTSIDE, SERVER, acme, datagram, to_gateway};
use crate::world::*;

fn demanding(port: u16, services: ServiceFlags) -> Rules {
    Rules { demands: vec![(port, services)], ..allow() }
}

fn sure(confidence: Confidence) -> Option<Arc<Attribution>> {
    let process = process("/bin/a").expect("a process");
    Some(Arc::new(Attribution { confidence, ..Attribution::clone(&process) }))
}

fn unknown(reason: UnknownReason) -> Option<Arc<Attribution>> {
    Some(Arc::new(Attribution::unknown(reason)))
}

fn no_owner() -> Option<Arc<Attribution>> {
    let attribution = Attribution::unknown(UnknownReason::NoOwner);
    Some(Arc::new(Attribution { confidence: Confidence::Socket, ..attribution }))
}

/// What the latest event says was decided by which rule, and why.
#[track_caller]
fn denial(world: &mut World<'_>) -> (String, String) {
    let event = world.events().pop().expect("something has happened");
    let judgement = event.record.judgement.expect("it was judged");
    assert_eq!(judgement.matched.first(), Some(&judgement.decided_by));
    let unmet = judgement.unmet.expect("something is not met");
    (judgement.decided_by.to_string(), unmet.to_string())
}

#[test]
fn a_flow_passes_where_both_ends_are_proven_and_nowhere_else() {
    let proven = || sure(Confidence::Descriptor);
    let table = || sure(Confidence::Table);
    for (tcp, source, destination, why) in [
        (true, proven(), table(), None),
        (true, table(), table(), None),
        (false, proven(), table(), None),
        (false, table(), table(), Some("source is not proven: its process has confidence table only")),
        (true, sure(Confidence::Socket), table(), Some("source is not proven: its process has confidence")),
        (true, no_owner(), table(), Some("source is not proven: no process is known (no-owner)")),
        (true, unknown(UnknownReason::NoSocket), table(), Some("source is not proven: no process")),
        (true, None, table(), Some("source is not proven: nothing is known")),
        (true, proven(), no_owner(), Some("destination is not proven: no process is known (no-owner)")),
        (true, proven(), unknown(UnknownReason::TimedOut), Some("(timed-out)")),
        (true, proven(), None, Some("destination is not proven: nothing is known but the machine")),
    ] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, demanding(80, ServiceFlags::AUTHENTICATE));
        let frame = match tcp {
            true => Dialogue::new(WEB, API, 40_000, 80).out(SYN, 1000, 0, 0),
            false => udp(WEB, API, (1, 80)),
        };
        let verdict = world.offer_as(WEB, &frame, source.clone(), destination.clone());
        let Some(why) = why else {
            assert_eq!(verdict, Verdict::Forward(API), "{source:?} to {destination:?}");
            continue;
        };
        assert_eq!(verdict, Verdict::Drop(DropReason::Denied), "{why}");
        let (rule, because) = denial(&mut world);
        assert_eq!(rule, "test/authenticate");
        assert!(because.contains(why), "{because} is not {why}");
        let answer = world.emitted_one(WEB);
        match tcp {
            true => assert_eq!(segment(&answer).flags, RST | ACK),
            false => assert_eq!(icmp_kind(&answer), (3, 13)),
        }
    }
}

#[test]
fn who_must_be_proven_is_asked_for() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, demanding(80, ServiceFlags::AUTHENTICATE));
    let syn = Dialogue::new(WEB, API, 40_000, 80).out(SYN, 1000, 0, 0);
    let Verdict::Ask(Question { initiator: Some(source), responder: Some(destination) }) =
        world.offer(WEB, &syn)
    else {
        panic!("both ends must be asked for")
    };
    assert_eq!((source.port, source.how), (WEB, How::Frame));
    assert_eq!((destination.port, destination.how), (API, How::Listener));
    world.forwards(WEB, &udp(WEB, API, (1, 81)), API);
}

#[test]
fn what_is_outside_proves_nothing() {
    let mut memory = memory(64);
    let rules = || demanding(80, ServiceFlags::AUTHENTICATE);
    let mut world = World::new(&mut memory, rules());
    world.install_networks(rules(), vec![acme()]);
    let addresses = between(v4(WEB), ip(SERVER));
    let syn = tcp(to_gateway(WEB), addresses, (40_000, 80), SYN, (1000, 0), 0);
    let Verdict::Ask(Question { initiator: Some(_), responder: None }) = world.offer(WEB, &syn) else {
        panic!("only a machine can be asked")
    };
    let verdict = world.offer_as(WEB, &syn, sure(Confidence::Descriptor), None);
    assert_eq!(verdict, Verdict::Drop(DropReason::Denied));
    let (_, because) = denial(&mut world);
    assert_eq!(because, "who is behind the destination is not proven: it is outside the mesh");
}

#[test]
fn open_flows_are_held_to_a_demand_that_comes_and_to_one_that_a_restart_asks_anew() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    world.install(demanding(80, ServiceFlags::AUTHENTICATE));
    world.tick();
    let (segment, table) = (dialogue.out(ACK, 1001, 5001, 10), sure(Confidence::Table));
    assert!(matches!(world.offer(WEB, &segment), Verdict::Ask(_)));
    assert_eq!(world.offer_as(WEB, &segment, table.clone(), table.clone()), Verdict::Forward(API));
    drop(world);

    // Where the answers come first, the guest's tables are all there is to ask.
    let mut world = World::new(&mut memory, demanding(80, ServiceFlags::AUTHENTICATE));
    let answer = dialogue.back(ACK, 5001, 1011, 10);
    let Verdict::Ask(Question { initiator: Some(Ask { how: How::Connection, .. }), .. }) =
        world.offer(API, &answer)
    else {
        panic!("the initiator must be asked for")
    };
    let verdict = world.offer_as(API, &answer, table, unknown(UnknownReason::NoSocket));
    assert_eq!(verdict, Verdict::Drop(DropReason::Denied));
    let (rule, because) = denial(&mut world);
    assert_eq!((rule.as_str(), world.flow().state), ("test/authenticate", vswitch::FlowState::Reset));
    assert!(because.contains("behind the destination"), "{because}");
    let mut resets: Vec<_> = world.switch.emissions().map(|reset| reset.port).collect();
    resets.dedup();
    assert_eq!(resets.len(), 2, "both ends are reset");
}

#[test]
fn nothing_leaves_the_host_in_the_clear_nor_comes_to_it() {
    let mut memory = memory(64);
    let rules = || demanding(80, ServiceFlags::ENCRYPT);
    let mut world = World::new(&mut memory, allow());
    world.install_networks(allow(), vec![acme()]);
    let out = |len| tcp(to_gateway(WEB), between(v4(WEB), ip(SERVER)), (40_000, 80), ACK, (1001, 5001), len);
    let syn = tcp(to_gateway(WEB), between(v4(WEB), ip(SERVER)), (40_000, 80), SYN, (1000, 0), 0);
    world.forwards(WEB, &syn, UPLINK);
    let (server, front) = (ip(SERVER), ip(ACME_OUTSIDE));
    let answer = tcp(to_gateway(UPLINK), between(server, front), (80, 40_000), SYN | ACK, (5000, 1001), 0);
    world.forwards(UPLINK, &answer, WEB);
    world.forwards(WEB, &out(0), UPLINK);
    world.events();

    // What is open in the clear is ended.
    world.install_networks(rules(), vec![acme()]);
    world.tick();
    assert_eq!(denial(&mut world).0, "test/encrypt");
    assert_eq!(world.offer(WEB, &out(10)), Verdict::Drop(DropReason::Reset));
    world.switch.emissions().for_each(drop);

    // Nothing is opened either way, whatever the protocol.
    for (port, frame) in [
        (WEB, datagram(WEB, v4(WEB), server, (4000, 80))),
        (WEB, tcp(to_gateway(WEB), between(v4(WEB), server), (2, 80), SYN, (1000, 0), 0)),
        (UPLINK, tcp(to_gateway(UPLINK), between(server, front), (2, 8080), SYN, (1000, 0), 0)),
    ] {
        world.drops(port, &frame, DropReason::Denied);
        let (rule, because) = denial(&mut world);
        let end = if port == WEB { "destination" } else { "source" };
        assert_eq!(rule, "test/encrypt");
        assert_eq!(because, format!("the {end} is outside, and nothing leaves the host but in the clear"));
    }
    world.switch.emissions().for_each(drop);
    // From memory to memory nothing is in the clear on any wire.
    world.connect(WEB, API, 80);
    assert_eq!(world.changes(), [FlowChange::Opened]);
    let frame = world.forwards(WEB, &Dialogue::new(WEB, API, 40_000, 80).out(ACK, 1001, 5001, 10), API);
    assert_eq!(frame.services, ServiceFlags::NONE, "nothing is left to do for a frame");
}
