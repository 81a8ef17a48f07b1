// SPDX-License-Identifier: Apache-2.0
//! What is done with flows beside forwarding them: another instance, and copies.

use model::{Detour, VmIndex};
use packet::emit;
use vswitch::{DropReason, Frame, PortId, SwitchConfig, Verdict};

use crate::world::*;

/// The machines at these ports, by their position in the inventory.
fn machine(port: PortId) -> VmIndex {
    VmIndex(port.0.into())
}

/// What is for port 80 goes to port 8080 of `DB`.
fn redirecting(rules: Rules) -> Rules {
    Rules { detour: Some((80, Detour { vm: machine(DB), l4_port: Some(8080) })), ..rules }
}

#[test]
fn flows_go_to_another_instance_and_its_answers_seem_to_come_from_the_first() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, redirecting(allow()));
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    let at_db = Dialogue::new(WEB, DB, 40_000, 8080);
    let asked = world.forwards(WEB, &dialogue.out(SYN, 1000, 0, 0), DB);
    let (ethernet, ip) = parsed(asked.bytes());
    assert_eq!((ethernet.destination, ip.addresses.destination()), (mac(DB), v4(DB)));
    assert_eq!(segment(asked.bytes()).destination_port, 8080);
    let answered = world.forwards(DB, &at_db.back(SYN | ACK, 5000, 1001, 0), WEB);
    assert_eq!(parsed(answered.bytes()).1.addresses.source(), v4(API));
    assert_eq!(segment(answered.bytes()).source_port, 80);
    world.forwards(WEB, &dialogue.out(ACK, 1001, 5001, 10), DB);

    // Policy is about where it really goes; a change resets both ends under the names they know.
    world.install(redirecting(deny_port(80)));
    world.forwards(WEB, &dialogue.out(ACK, 1011, 5001, 10), DB);
    world.install(redirecting(deny_port(8080)));
    world.tick();
    let resets: Vec<_> = world
        .switch
        .emissions()
        .map(|reset| {
            (reset.port, parsed(&reset.frame).1.addresses.source(), segment(&reset.frame).source_port)
        })
        .collect();
    assert!(resets.contains(&(WEB, v4(API), 80)) && resets.contains(&(DB, v4(WEB), 40_000)), "{resets:?}");
}

#[test]
fn a_detour_that_is_gone_ends_what_took_it_and_one_that_comes_leaves_the_rest_alone() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, redirecting(allow()));
    let datagram = udp(WEB, API, (1, 80));
    world.forwards(WEB, &datagram, DB);
    world.install(allow());
    world.forwards(WEB, &datagram, API);
    world.install(redirecting(allow()));
    world.forwards(WEB, &datagram, API);
    world.forwards(WEB, &udp(WEB, API, (2, 80)), DB);
    // Who is sent to itself goes where it wanted.
    world.forwards(DB, &emit::udp(link(DB, API), between(v4(DB), v4(API)), (1, 80), b""), API);
}

#[test]
fn a_connection_whose_detour_is_gone_is_reset_at_both_ends_whoever_notices() {
    for by_frame in [false, true] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, redirecting(allow()));
        let dialogue = Dialogue::new(WEB, API, 40_000, 80);
        let at_db = Dialogue::new(WEB, DB, 40_000, 8080);
        world.forwards(WEB, &dialogue.out(SYN, 1000, 0, 0), DB);
        world.forwards(DB, &at_db.back(SYN | ACK, 5000, 1001, 0), WEB);
        world.forwards(WEB, &dialogue.out(ACK, 1001, 5001, 10), DB);

        world.install(allow());
        match by_frame {
            false => world.tick(),
            true => world.drops(WEB, &dialogue.out(ACK, 1011, 5001, 10), DropReason::Reset),
        }
        let mut resets: Vec<_> = world.switch.emissions().map(|reset| reset.port).collect();
        resets.sort_unstable();
        resets.dedup();
        assert_eq!(resets, [WEB, DB], "by a frame: {by_frame}");
        world.forwards(WEB, &dialogue.out(SYN, 9000, 0, 0), API);
    }
}

#[test]
fn frames_in_both_directions_are_copied_to_the_collector_until_policy_says_otherwise() {
    let mirroring = || Rules { mirror: Some((53, machine(DB))), ..allow() };
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, mirroring());
    let copied = |world: &mut World<'_>, port, bytes: &[u8]| {
        let mut frame = Frame::copy_of(bytes);
        let verdict = world.switch.process(world.now, port, &mut frame, None);
        assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
        frame.mirror
    };
    let (question, answer) = (udp(WEB, API, (1, 53)), udp(API, WEB, (53, 1)));
    for _ in 0..2 {
        assert_eq!(copied(&mut world, WEB, &question), Some(DB));
        assert_eq!(copied(&mut world, API, &answer), Some(DB));
    }
    assert_eq!(copied(&mut world, WEB, &udp(WEB, API, (1, 54))), None);
    // The collector's own flows are not copied to it.
    assert_eq!(copied(&mut world, WEB, &udp(WEB, DB, (1, 53))), None);
    world.install(allow());
    assert_eq!(copied(&mut world, API, &answer), None);
    world.install(mirroring());
    world.tick();
    assert_eq!(copied(&mut world, WEB, &question), Some(DB));
    world.install(Rules { mirror: Some((53, machine(DB))), ..deny() });
    world.drops(WEB, &question, DropReason::Denied);
}

#[test]
fn what_happens_to_flows_is_marked_for_the_log_where_a_rule_asks_for_it_and_within_a_rate() {
    let mut memory = memory(256);
    let config = SwitchConfig { logged_per_second_max: 3, ..config() };
    let mut world = World::with_config(&mut memory, config, Rules { log: Some(53), ..allow() });
    let marked = |world: &mut World<'_>| world.events().iter().map(|event| event.logged).collect::<Vec<_>>();
    world.forwards(WEB, &udp(WEB, API, (1, 53)), API);
    world.forwards(WEB, &udp(WEB, API, (1, 54)), API);
    assert_eq!(marked(&mut world), [true, false]);
    let services =
        world.switch.flows().map(|flow| (flow.tuple.destination_port, flow.judgement.unwrap().services()));
    let mut services: Vec<_> = services.map(|(port, services)| (port, services.to_string())).collect();
    services.sort();
    assert_eq!(services, [(53, "authorize,log".to_owned()), (54, "authorize".to_owned())]);
    // What is not told is counted.
    (2..5).for_each(|port| _ = world.forwards(WEB, &udp(WEB, API, (port, 53)), API));
    assert_eq!(marked(&mut world), [true, true, false]);
    assert_eq!(world.switch.counters().log_lost, 1);
    // A policy that says so later is about open flows, too.
    world.install(allow());
    world.tick();
    world.install(Rules { log: Some(54), ..deny() });
    world.pass_time(std::time::Duration::from_secs(1));
    world.tick();
    let ends = world.events().into_iter().map(|event| (event.record.tuple.destination_port, event.logged));
    assert!(ends.clone().count() == 5 && ends.into_iter().all(|(port, logged)| logged == (port == 54)));
}

#[test]
fn a_frame_carries_the_flags_of_the_stages_it_goes_through() {
    let mut memory = memory(64);
    let mut world =
        World::new(&mut memory, Rules { mirror: Some((53, machine(DB))), log: Some(53), ..allow() });
    let services = |world: &mut World<'_>, port| {
        (0..2).for_each(|_| _ = world.forwards(WEB, &udp(WEB, API, (1, port)), API));
        world.forwards(WEB, &udp(WEB, API, (1, port)), API).services.to_string()
    };
    assert_eq!(services(&mut world, 53), "authorize,mirror,log");
    // Nothing to do is not even looked up.
    assert_eq!(services(&mut world, 54), "");
}
