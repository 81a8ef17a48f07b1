// SPDX-License-Identifier: Apache-2.0
//! Policy: who is asked for, what is denied, and what a change does to live flows.

use std::time::Duration;

use model::Action;
use vswitch::{Ask, DropReason, FlowChange, FlowEvent, FlowState, How, Question, Verdict};

use crate::world::*;

fn needs_both() -> Rules {
    deny().but(Rule { from_exe: Some("/bin/a"), to_exe: Some("/bin/b"), ..Rule::default() }, Action::Allow)
}

#[test]
fn both_ends_are_asked_for_and_nothing_changes_until_the_answer() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, needs_both());
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    let syn = dialogue.out(SYN, 1000, 0, 0);
    for _ in 0..2 {
        let Verdict::Ask(Question { initiator, responder }) = world.offer(WEB, &syn) else {
            panic!("nobody was asked for")
        };
        let (initiator, responder) = (initiator.unwrap(), responder.unwrap());
        assert_eq!((initiator.port, initiator.how), (WEB, How::Frame));
        assert_eq!(initiator.tuple.to_string(), "tcp 10.0.0.11:40000 -> 10.0.0.12:80");
        let there = Ask { port: API, how: How::Listener, tuple: initiator.tuple.reversed() };
        assert_eq!(responder, there);
        assert_eq!(world.switch.flows().count(), 0);
        assert!(world.changes().is_empty());
    }
    assert_eq!(world.offer_as(WEB, &syn, process("/bin/a"), process("/bin/b")), Verdict::Forward(API));
    let flow = world.flow();
    assert_eq!(flow.initiator.attribution, process("/bin/a"));
    assert_eq!(flow.responder.attribution, process("/bin/b"));
    assert_eq!(flow.judgement.unwrap().decided_by.to_string(), "test/0");
    // The answers have been given once and for all.
    world.forwards(WEB, &syn, API);
}

#[test]
fn missing_answers_count_as_unknown() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, needs_both());
    let syn = Dialogue::new(WEB, API, 40_000, 80).out(SYN, 1000, 0, 0);
    for (initiator, responder) in [
        (None, None),
        (process("/bin/a"), None),
        (None, process("/bin/b")),
        (process("/bin/b"), process("/bin/a")),
    ] {
        let verdict = world.offer_as(WEB, &syn, initiator, responder);
        assert_eq!(verdict, Verdict::Drop(DropReason::Denied));
    }
}

#[test]
fn nobody_is_asked_for_when_no_rule_cares() {
    let mut memory = memory(64);
    let rules =
        allow().but(Rule { to_port: Some(22), from_exe: Some("/bin/a"), ..Rule::default() }, Action::Deny);
    let mut world = World::new(&mut memory, rules);
    world.connect(WEB, API, 80);
    let ssh = Dialogue::new(WEB, API, 40_000, 22).out(SYN, 1000, 0, 0);
    assert!(matches!(world.offer(WEB, &ssh), Verdict::Ask(Question { initiator: Some(_), responder: None })));
}

#[test]
fn a_denied_connection_is_reset_at_its_first_segment() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, deny());
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    world.drops(WEB, &dialogue.out(SYN, 1000, 0, 0), DropReason::Denied);
    let frame = world.emitted_one(WEB);
    let reset = segment(&frame);
    assert_eq!((reset.flags, reset.sequence, reset.acknowledgment), (RST | ACK, 0, 1001));
    let (ethernet, ip) = parsed(&frame);
    assert_eq!((ethernet.source, ethernet.destination), (mac(API), mac(WEB)));
    assert_eq!((ip.addresses.source(), ip.addresses.destination()), (v4(API), v4(WEB)));
    let events = world.events();
    assert_eq!(events.len(), 1);
    let record = &events[0].record;
    assert_eq!(events[0].change, FlowChange::Denied);
    assert_eq!(record.judgement.as_ref().unwrap().decided_by.to_string(), "test/default");
    assert_eq!(record.generation, model::Generation(1));
    assert_eq!(
        (record.initiator.nic.clone(), record.responder.nic.clone()),
        (Some(nic(WEB)), Some(nic(API)))
    );
    assert_eq!(world.switch.flows().count(), 0);
}

#[test]
fn denied_datagrams_are_judged_once_in_a_while() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, deny());
    let datagram = udp(WEB, API, (1000, 53));
    for _ in 0..10 {
        world.drops(WEB, &datagram, DropReason::Denied);
    }
    assert_eq!(world.changes(), [FlowChange::Denied]);
    let errors = world.emitted(WEB);
    assert_eq!(errors.len(), 10);
    assert_eq!(icmp_kind(&errors[0]), (3, 13));
    world.pass_time(Duration::from_secs(6));
    world.drops(WEB, &datagram, DropReason::Denied);
    assert_eq!(world.changes(), [FlowChange::Denied]);
    // And at once when policy changes.
    world.install(allow());
    world.forwards(WEB, &datagram, API);
}

#[test]
fn the_other_end_may_open_what_was_refused() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, deny_port(53));
    world.drops(WEB, &udp(WEB, API, (1000, 53)), DropReason::Denied);
    world.forwards(API, &udp(API, WEB, (53, 1000)), WEB);
    world.forwards(WEB, &udp(WEB, API, (1000, 53)), API);
    assert_eq!(world.flow().state, FlowState::TwoWay);
}

#[test]
fn reported_denials_are_bounded_and_the_rest_is_counted() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, deny());
    for port in 0..1000 {
        world.drops(WEB, &Dialogue::new(WEB, API, port, 80).out(SYN, 1, 0, 0), DropReason::Denied);
    }
    let max = config().denials_per_second_max;
    assert_eq!(world.changes().len(), max as usize);
    assert_eq!(world.switch.counters().events_lost, u64::from(1000 - max));
    assert_eq!(world.switch.counters().flows_denied, 1000);
}

#[test]
fn a_policy_change_resets_what_is_now_denied_and_nothing_else() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let doomed = world.connect(WEB, API, 80);
    let spared = Dialogue::new(WEB, API, 40_001, 81);
    world.forwards(WEB, &spared.out(SYN, 1, 0, 0), API);
    world.forwards(WEB, &doomed.out(ACK, 1001, 5001, 100), API);
    world.forwards(API, &doomed.back(ACK, 5001, 1101, 7), WEB);
    world.events();

    world.install(deny_port(80));
    world.emits_nothing();
    world.tick();
    let emissions: Vec<_> = world.switch.emissions().collect();
    let resets: Vec<_> = emissions.iter().map(|e| (e.port, segment(&e.frame))).collect();
    // Each end accepts exactly the next number it expects.
    let to_api = resets.iter().find(|(port, tcp)| *port == API && tcp.sequence == 1101).unwrap().1;
    assert_eq!((to_api.flags, to_api.source_port), (RST | ACK, 40_000));
    let to_web = resets.iter().find(|(port, tcp)| *port == WEB && tcp.sequence == 5008).unwrap().1;
    assert_eq!((to_web.flags, to_web.source_port), (RST | ACK, 80));
    assert_eq!(world.changes(), [FlowChange::Reset]);
    world.forwards(API, &spared.back(SYN | ACK, 1, 2, 0), WEB);
    assert_eq!(world.switch.counters().flows_reset, 1);

    // What is left answers late segments until it is forgotten.
    world.drops(WEB, &doomed.out(ACK, 1101, 5001, 5), DropReason::Reset);
    assert_eq!(segment(&world.emitted_one(WEB)).sequence, 5001);
    world.drops(API, &doomed.back(ACK, 5008, 1101, 5), DropReason::Reset);
    assert_eq!(segment(&world.emitted_one(API)).sequence, 1101);
    world.drops(WEB, &doomed.out(SYN, 9000, 0, 0), DropReason::Denied);
    world.pass_time(Duration::from_secs(31));
    world.tick();
    assert!(world.switch.flows().all(|flow| flow.state != FlowState::Reset));
}

#[test]
fn a_closed_connection_is_forgotten_without_a_reset() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    world.forwards(API, &dialogue.back(RST, 5001, 0, 0), WEB);
    world.install(deny());
    world.tick();
    world.emits_nothing();
    assert_eq!(world.switch.flows().count(), 0);
    assert_eq!(world.changes(), [FlowChange::Opened, FlowChange::Closed]);
}

#[test]
fn a_flow_that_goes_on_is_told_of_now_and_then_and_every_byte_once() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    let opened = world.flow().opened;
    let untold = |event: FlowEvent| {
        let (change, mut record) = (event.change, event.record);
        record.leave_untold();
        (change, record.opened, record.initiator.sent_frames, record.responder.sent_frames)
    };
    world.events();
    world.pass_time(config().ongoing_told_every);
    world.tick();
    let first = world.now;
    assert_eq!(
        world.events().into_iter().map(untold).collect::<Vec<_>>(),
        [(FlowChange::Ongoing, opened, 2, 1)]
    );
    // Silence is not told of, and what comes after it at once.
    world.pass_time(2 * config().ongoing_told_every);
    world.tick();
    assert!(world.events().is_empty());
    world.forwards(WEB, &dialogue.out(ACK, 1001, 5001, 10), API);
    world.tick();
    let second = world.now;
    assert_eq!(
        world.events().into_iter().map(untold).collect::<Vec<_>>(),
        [(FlowChange::Ongoing, first, 1, 0)]
    );
    world.forwards(API, &dialogue.back(RST, 5001, 0, 0), WEB);
    world.pass_time(config().timeouts.closed + Duration::from_secs(1));
    world.tick();
    let [end] = &world.events()[..] else { panic!("it is not told of once") };
    assert_eq!(
        (end.record.initiator.sent_frames, end.record.responder.sent_frames),
        (3, 2),
        "the whole is there, too"
    );
    assert_eq!(untold(end.clone()), (FlowChange::Closed, second, 0, 1));
}

#[test]
fn a_packet_meets_the_new_policy_before_any_sweep() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    world.forwards(WEB, &udp(WEB, API, (1, 53)), API);
    world.install(deny());
    world.drops(API, &dialogue.back(ACK, 5001, 1001, 1), DropReason::Denied);
    let resets: Vec<_> = world.switch.emissions().map(|e| e.port).collect();
    assert!(resets.contains(&WEB) && resets.contains(&API));
    world.drops(API, &udp(API, WEB, (53, 1)), DropReason::Denied);
    assert_eq!(icmp_kind(&world.emitted_one(API)), (3, 13));
    // A datagram that answered before now opens, and is judged by itself.
    world.drops(WEB, &udp(WEB, API, (1, 53)), DropReason::Denied);
}

#[test]
fn a_reset_connection_may_be_opened_again_when_allowed() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.connect(WEB, API, 80);
    world.install(deny());
    world.tick();
    world.install(allow());
    world.tick();
    world.connect(WEB, API, 80);
    assert_eq!(world.flow().state, FlowState::Established);
}

#[test]
fn known_identities_serve_a_new_policy_and_unknown_ones_are_asked_for() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    world.install(needs_both());
    world.tick();
    assert_eq!(world.flow().generation, model::Generation(1), "a sweep cannot ask");
    for (port, frame, hows) in [
        (WEB, dialogue.out(ACK, 1001, 5001, 1), (How::Frame, How::Connection)),
        (API, dialogue.back(ACK, 5001, 1001, 1), (How::Connection, How::Frame)),
    ] {
        let Verdict::Ask(question) = world.offer(port, &frame) else { panic!("nobody was asked for") };
        let (initiator, responder) = (question.initiator.unwrap(), question.responder.unwrap());
        assert_eq!((initiator.how, responder.how), hows);
        assert_eq!((initiator.port, responder.port), (WEB, API));
        assert_eq!(initiator.tuple, responder.tuple.reversed());
    }
    let frame = dialogue.back(ACK, 5001, 1001, 1);
    assert_eq!(world.offer_as(API, &frame, process("/bin/a"), process("/bin/b")), Verdict::Forward(WEB));
    assert_eq!(world.flow().generation, model::Generation(2));
    // Now a sweep knows enough.
    world.install(only_from("/bin/a"));
    world.tick();
    assert_eq!(world.flow().generation, model::Generation(3));
    world.install(only_from("/bin/z"));
    world.tick();
    assert_eq!(world.flow().state, FlowState::Reset);
}

#[test]
fn many_generations_are_never_confused() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    // Without any sweep, the short number of the snapshot comes round to where it was.
    for _ in 0..254 {
        world.install(allow());
    }
    world.install(deny());
    world.drops(WEB, &dialogue.out(ACK, 1001, 5001, 1), DropReason::Denied);
}

#[test]
fn flows_end_with_their_cards() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    world.forwards(WEB, &udp(WEB, DB, (1, 2)), DB);
    let without_api: [(&str, &[&str]); 3] =
        [("acme/web", &["10.0.0.11/24"]), ("globex/x", &["10.0.0.12/24"]), ("acme/db", &["10.0.1.13/24"])];
    world.install_machines(allow(), &without_api);
    world.drops(WEB, &dialogue.out(ACK, 1001, 5001, 1), DropReason::NoConnection);
    world.forwards(DB, &udp(DB, WEB, (2, 1)), WEB);
    assert_eq!(world.changes(), [FlowChange::Opened, FlowChange::Opened, FlowChange::Closed]);
}

#[test]
fn flows_end_when_an_address_moves() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let dialogue = world.connect(WEB, API, 80);
    let moved: [(&str, &[&str]); 2] = [("acme/web", &["10.0.0.11/24"]), ("acme/api", &["10.0.0.99/24"])];
    world.install_machines(allow(), &moved);
    world.drops(WEB, &dialogue.out(ACK, 1001, 5001, 1), DropReason::Reset);
    world.drops(API, &dialogue.back(ACK, 5001, 1001, 1), DropReason::Reset);
    // The address that it had is somebody else's now, or nobody's.
    let other = Dialogue::new(API, WEB, 40_001, 80);
    world.drops(API, &other.out(SYN, 1000, 0, 0), DropReason::SpoofedAddress);
}
