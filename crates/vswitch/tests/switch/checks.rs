// SPDX-License-Identifier: Apache-2.0
//! Checks that the switch makes itself: what they say to whom, and what follows.

use std::time::Duration;

use model::{EndpointState, HealthCheck};
use packet::TcpFlags;
use vswitch::{DropReason, PortId, Verdict};

use crate::services::{Call, OneService, goes};
use crate::world::*;

const CHECK: HealthCheck = HealthCheck {
    interval: Duration::from_secs(2),
    timeout: Duration::from_secs(1),
    unhealthy: 3,
    healthy: 2,
};

fn checked(endpoints: &[PortId]) -> OneService {
    let mut service = OneService::at(endpoints);
    service.offers[0].health = Some(CHECK);
    service
}

/// What the switch says now, by port.
fn said(world: &mut World<'_>) -> Vec<(PortId, Vec<u8>)> {
    world.tick();
    world.switch.emissions().map(|emission| (emission.port, emission.frame)).collect()
}

/// An endpoint's answer to a SYN of the switch.
fn answer(to: &[u8], flags: TcpFlags, by: PortId) -> Vec<u8> {
    let syn = segment(to);
    Call::answer(to, flags, (9000, syn.sequence.wrapping_add(1)), by)
}

fn states(world: &World<'_>) -> Vec<EndpointState> {
    world.switch.endpoints(world.now).map(|endpoint| endpoint.state).collect()
}

/// One round of checks in which these endpoints answer with these flags, and the others not at all.
fn round(world: &mut World<'_>, answers: &[(PortId, TcpFlags)]) {
    for (port, syn) in said(world) {
        if let Some((_, flags)) = answers.iter().find(|(by, _)| *by == port) {
            assert_eq!(world.offer(port, &answer(&syn, *flags, port)), Verdict::Answered);
        }
    }
    let _ = world.switch.emissions().count();
    world.pass_time(CHECK.timeout);
    assert_eq!(said(world).len(), 0, "the next are not due");
    world.pass_time(CHECK.interval - CHECK.timeout);
}

#[test]
fn an_attempt_comes_from_the_gateway_and_is_taken_back_before_it_is_a_connection() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, deny(), checked(&[API]));
    let [(port, syn)] = &said(&mut world)[..] else { panic!("one is due") };
    let ((ethernet, ip), tcp) = (parsed(syn), segment(syn));
    assert_eq!((*port, ethernet.source, ethernet.destination), (API, config().gateway_mac, mac(API)));
    assert_eq!((ip.addresses.source(), ip.addresses.destination()), (crate::world::ip("10.0.0.1"), v4(API)));
    assert!(tcp.flags == SYN && tcp.destination_port == 80 && tcp.source_port >= 32_768);
    assert_eq!(world.offer(API, &answer(syn, SYN | ACK, API)), Verdict::Answered);
    let reset = segment(&world.emitted_one(API));
    assert_eq!((reset.flags, reset.sequence), (RST, tcp.sequence.wrapping_add(1)));
    assert_eq!((world.switch.flow_count(), world.changes()), (0, vec![]));
    // It is over: a second answer belongs to nothing.
    world.drops(API, &answer(syn, SYN | ACK, API), DropReason::NoConnection);
}

#[test]
fn nobody_else_can_answer_and_only_what_was_asked_counts() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), checked(&[API]));
    let [(_, syn)] = &said(&mut world)[..] else { panic!("one is due") };
    let wrong = Call::answer(syn, SYN | ACK, (9000, segment(syn).sequence), API);
    world.drops(API, &wrong, DropReason::NoConnection);
    world.drops(API, &answer(syn, ACK, API), DropReason::NoConnection);
    assert_ne!(world.offer(WEB, &answer(syn, SYN | ACK, API)), Verdict::Answered);
    assert_eq!(world.offer(API, &answer(syn, SYN | ACK, API)), Verdict::Answered);
}

#[test]
fn failures_in_a_row_leave_an_endpoint_out_and_answers_in_a_row_bring_it_back() {
    use EndpointState::{CheckFailing, In};
    let mut memory = memory(1024);
    let mut world = World::with_services(&mut memory, allow(), checked(&[API, DB]));
    let db = (DB, SYN | ACK);
    for (answers, state) in [
        (vec![db, (API, RST | ACK)], In),
        (vec![db], In),
        (vec![db, (API, SYN | ACK)], In),
        (vec![db], In),
        (vec![db, (API, RST | ACK)], In),
        (vec![db], CheckFailing),
        (vec![db, (API, SYN | ACK)], CheckFailing),
        (vec![db], CheckFailing),
        (vec![db, (API, SYN | ACK)], CheckFailing),
        (vec![db, (API, SYN | ACK)], In),
    ] {
        round(&mut world, &answers);
        assert_eq!(states(&world), [state, In], "{answers:?}");
    }
    (0..3).for_each(|_| round(&mut world, &[db]));
    for source_port in 40_000..40_040 {
        assert_eq!(goes(&mut world, WEB, &Call { from: WEB, source_port }.out(SYN, (1, 0))).0, DB);
    }
    // It does not matter where nobody else is left.
    (0..3).for_each(|_| round(&mut world, &[]));
    assert_eq!(states(&world), [CheckFailing; 2]);
    goes(&mut world, WEB, &Call { from: WEB, source_port: 41_000 }.out(SYN, (1, 0)));
}

#[test]
fn what_was_found_out_outlives_a_snapshot_that_still_asks_for_it() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), checked(&[API, DB]));
    (0..3).for_each(|_| round(&mut world, &[(DB, SYN | ACK)]));
    world.install_services(allow(), checked(&[DB, API]));
    assert_eq!(states(&world), [EndpointState::In, EndpointState::CheckFailing]);
    world.install_services(allow(), OneService::at(&[DB, API]));
    assert_eq!(states(&world), [EndpointState::In; 2]);
    assert_eq!(said(&mut world).len(), 0);
}

#[test]
fn attempts_are_bounded_at_a_time_and_in_a_second() {
    let mut memory = memory(64);
    let mut service = checked(&[API, DB]);
    let port = |port: u16| model::PortMatch { ports: Some(port.into()), protocol: model::Protocol::Tcp };
    service.offers[0].ports = (1000..2000).map(port).collect();
    let mut world = World::with_services(&mut memory, allow(), service);
    let begun: Vec<usize> = (0..15)
        .map(|_| {
            let begun = said(&mut world).len();
            world.pass_time(Duration::from_millis(100));
            begun
        })
        .collect();
    // A hundred at once and in each tenth of a second, 256 at a time, each for a second.
    assert_eq!(begun[..10], [101, 100, 55, 0, 0, 0, 0, 0, 0, 0], "{begun:?}");
    assert!(begun[10..].iter().all(|begun| *begun <= 101), "{begun:?}");
    assert!(begun[10..].iter().sum::<usize>() > 200, "{begun:?}");
}
