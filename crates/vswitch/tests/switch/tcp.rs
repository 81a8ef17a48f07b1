// SPDX-License-Identifier: Apache-2.0
//! Connections: their states, their ends, and what comes without one.

use std::time::Duration;

use vswitch::{DropReason, FlowChange, FlowState};

use crate::world::*;

#[test]
fn a_connection_is_followed_from_open_to_close() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    let out = |flags, seq, ack, len| (WEB, dialogue.out(flags, seq, ack, len));
    let back = |flags, seq, ack, len| (API, dialogue.back(flags, seq, ack, len));
    for ((port, frame), state) in [
        (out(SYN, 1000, 0, 0), FlowState::SynSent),
        (out(SYN, 1000, 0, 0), FlowState::SynSent),
        (back(SYN | ACK, 5000, 1001, 0), FlowState::SynReceived),
        (out(ACK, 1001, 5001, 0), FlowState::Established),
        (out(ACK, 1001, 5001, 100), FlowState::Established),
        (back(ACK, 5001, 1101, 10), FlowState::Established),
        (out(FIN | ACK, 1101, 5011, 0), FlowState::InitiatorClosed),
        (back(ACK, 5011, 1102, 50), FlowState::InitiatorClosed),
        (back(FIN | ACK, 5061, 1102, 0), FlowState::Closed),
        (out(ACK, 1102, 5062, 0), FlowState::Closed),
    ] {
        world.forwards(port, &frame, if port == WEB { API } else { WEB });
        assert_eq!(world.flow().state, state);
    }
    let flow = world.flow();
    assert_eq!((flow.initiator.sent_frames, flow.responder.sent_frames), (6, 4));
    assert_eq!(flow.initiator.sent_bytes, 6 * 54 + 100);
    world.pass_time(Duration::from_secs(31));
    world.tick();
    assert_eq!(world.switch.flows().count(), 0);
    assert_eq!(world.changes(), [FlowChange::Opened, FlowChange::Closed]);
}

#[test]
fn a_handshake_is_timed_unless_a_part_of_it_was_sent_twice() {
    for (repeated, rtt) in [(None, Some(Duration::from_millis(30))), (Some(0), None), (Some(1), None)] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        let dialogue = Dialogue::new(WEB, API, 40_000, 80);
        let parts = [
            (WEB, dialogue.out(SYN, 1000, 0, 0)),
            (API, dialogue.back(SYN | ACK, 5000, 1001, 0)),
            (WEB, dialogue.out(ACK, 1001, 5001, 0)),
        ];
        for (number, (port, frame)) in parts.iter().enumerate() {
            for _ in 0..1 + usize::from(repeated == Some(number)) {
                world.forwards(*port, frame, if *port == WEB { API } else { WEB });
            }
            world.pass_time(Duration::from_millis(15));
        }
        assert_eq!(world.flow().rtt, rtt);
        assert_eq!(
            (world.flow().initiator.sent_flags, world.flow().responder.sent_flags),
            (SYN | ACK, SYN | ACK)
        );
    }
}

#[test]
fn only_a_reset_that_its_receiver_accepts_closes() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    world.forwards(API, &dialogue.back(RST, 12_345, 0, 0), WEB);
    assert_eq!(world.flow().state, FlowState::Established);
    world.forwards(API, &dialogue.back(RST, 5001, 0, 0), WEB);
    assert_eq!(world.flow().state, FlowState::Closed);
}

#[test]
fn a_refused_handshake_closes() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    world.forwards(WEB, &dialogue.out(SYN, 1000, 0, 0), API);
    world.forwards(API, &dialogue.back(RST | ACK, 0, 1001, 0), WEB);
    assert_eq!(world.flow().state, FlowState::Closed);
}

#[test]
fn the_middle_of_nothing_is_reset() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    world.drops(WEB, &dialogue.out(ACK, 1001, 5001, 10), DropReason::NoConnection);
    let reset = segment(&world.emitted_one(WEB));
    assert_eq!((reset.flags, reset.sequence), (RST, 5001));
    assert_eq!((reset.source_port, reset.destination_port), (80, 40_000));
    world.drops(WEB, &dialogue.out(FIN, 1001, 0, 10), DropReason::NoConnection);
    let reset = segment(&world.emitted_one(WEB));
    assert_eq!((reset.flags, reset.acknowledgment), (RST | ACK, 1012));
    world.drops(WEB, &dialogue.out(SYN | ACK, 1, 2, 0), DropReason::NoConnection);
    assert_eq!(segment(&world.emitted_one(WEB)).flags, RST);
    world.drops(WEB, &dialogue.out(RST, 1001, 0, 0), DropReason::NoConnection);
    world.emits_nothing();
    assert_eq!(world.switch.flows().count(), 0);
}

#[test]
fn a_new_syn_on_an_old_connection_is_judged_anew() {
    for closed in [true, false] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, only_from("/bin/a"));
        let dialogue = Dialogue::new(WEB, API, 40_000, 80);
        let syn = dialogue.out(SYN, 1000, 0, 0);
        assert_eq!(world.offer_as(WEB, &syn, process("/bin/a"), None), vswitch::Verdict::Forward(API));
        world.forwards(API, &dialogue.back(SYN | ACK, 5000, 1001, 0), WEB);
        world.forwards(WEB, &dialogue.out(ACK, 1001, 5001, 0), API);
        if closed {
            world.forwards(WEB, &dialogue.out(FIN | ACK, 1001, 5001, 0), API);
            world.forwards(API, &dialogue.back(FIN | ACK, 5001, 1002, 0), WEB);
        }
        let again = dialogue.out(SYN, 9000, 0, 0);
        assert!(matches!(world.offer(WEB, &again), vswitch::Verdict::Ask(_)));
        let denied = world.offer_as(WEB, &again, process("/bin/b"), None);
        assert_eq!(denied, vswitch::Verdict::Drop(DropReason::Denied));
        assert_eq!(segment(&world.emitted_one(WEB)).acknowledgment, 9001);
        assert_eq!(world.offer_as(WEB, &again, process("/bin/a"), None), vswitch::Verdict::Forward(API));
        assert_eq!(world.flow().state, FlowState::SynSent);
        let changes = [FlowChange::Opened, FlowChange::Denied, FlowChange::Closed, FlowChange::Opened];
        assert_eq!(world.changes(), changes);
    }
}

#[test]
fn a_different_syn_in_an_open_handshake_is_judged_anew() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    world.forwards(WEB, &dialogue.out(SYN, 1000, 0, 0), API);
    world.install(deny());
    world.drops(WEB, &dialogue.out(SYN, 2000, 0, 0), DropReason::Denied);
}

#[test]
fn the_responders_own_syn_opens_a_flow_of_its_own() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    world.forwards(API, &dialogue.back(SYN, 7000, 0, 0), WEB);
    assert_eq!(world.flow().initiator.port, API);
    assert_eq!(world.flow().state, FlowState::SynSent);
}

#[test]
fn idle_flows_expire_by_state() {
    for (state, idle_s) in [("handshake", 61), ("established", 86_401), ("half", 121)] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        let dialogue = Dialogue::new(WEB, API, 40_000, 80);
        match state {
            "handshake" => drop(world.forwards(WEB, &dialogue.out(SYN, 1000, 0, 0), API)),
            _ => drop(world.connect(WEB, API, 80)),
        }
        if state == "half" {
            world.forwards(WEB, &dialogue.out(FIN | ACK, 1001, 5001, 0), API);
        }
        world.pass_time(Duration::from_secs(idle_s - 2));
        world.tick();
        assert_eq!(world.switch.flows().count(), 1, "{state}");
        world.pass_time(Duration::from_secs(2));
        // Even before a sweep, an expired flow passes nothing.
        world.drops(API, &dialogue.back(ACK, 5001, 1001, 1), DropReason::NoConnection);
        assert_eq!(world.switch.flows().count(), 0, "{state}");
    }
}

#[test]
fn one_busy_direction_keeps_a_flow() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.forwards(WEB, &udp(WEB, API, (1, 2)), API);
    for _ in 0..10 {
        world.pass_time(Duration::from_secs(20));
        world.forwards(API, &udp(API, WEB, (2, 1)), WEB);
        world.tick();
    }
    world.pass_time(Duration::from_secs(100));
    world.forwards(WEB, &udp(WEB, API, (1, 2)), API);
    assert_eq!(world.changes(), [FlowChange::Opened]);
}
