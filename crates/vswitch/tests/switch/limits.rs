// SPDX-License-Identifier: Apache-2.0
//! Frames that exceed a limit wait; none is dropped.

use std::time::Duration;

use model::{BitRate, LatencyClass, Limit, Moment, Part, Qos};
use packet::emit;
use vswitch::{DropReason, FRAME_COST_BYTES, Frame, PortId, QUANTUM_BYTES, Turn, Verdict};

use crate::world::*;

fn limit(bits_per_second: u64) -> Limit {
    Limit { rate: BitRate::new(bits_per_second).unwrap(), burst_bytes: 0 }
}

fn limiting(port: u16, bits_per_second: u64) -> Rules {
    Rules { limit: Some((port, limit(bits_per_second))), ..allow() }
}

/// A datagram of 1,000 bytes, headers included, which takes a second at 8 kbit/s.
fn datagram(from: PortId, to: PortId, ports: (u16, u16)) -> Vec<u8> {
    emit::udp(link(from, to), between(v4(from), v4(to)), ports, &[7; 1000 - 42])
}

/// Offers a frame for as long as it is held; how long that was.
#[track_caller]
fn held_for(world: &mut World<'_>, from: PortId, bytes: &[u8], to: PortId) -> Duration {
    let mut frame = Frame::copy_of(bytes);
    let start = world.now;
    match world.switch.process(world.now, from, &mut frame, None) {
        Verdict::Hold(until) => {
            assert_eq!(frame.bytes(), bytes, "a held frame was rewritten");
            world.now = until;
            assert_eq!(world.switch.process(until, from, &mut frame, None), Verdict::Forward(to));
        }
        verdict => assert_eq!(verdict, Verdict::Forward(to)),
    }
    world.now.since(start)
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn frames_beyond_the_rate_wait_their_time_each_way_for_itself() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, limiting(53, 8000));
    let (out, back) = (datagram(WEB, API, (1, 53)), datagram(API, WEB, (53, 1)));
    assert_eq!(held_for(&mut world, WEB, &out, API), Duration::ZERO);
    assert_eq!(held_for(&mut world, API, &back, WEB), Duration::ZERO);
    assert_eq!(held_for(&mut world, WEB, &out, API), SECOND);
    // The answers' clock went on meanwhile.
    assert_eq!(held_for(&mut world, API, &back, WEB), Duration::ZERO);
    assert_eq!(held_for(&mut world, API, &back, WEB), SECOND);
    // Others are not limited.
    assert_eq!(held_for(&mut world, WEB, &datagram(WEB, API, (1, 54)), API), Duration::ZERO);
    let dropped: u64 = world.switch.counters().drops_by_reason().map(|(_, count)| count).sum();
    assert_eq!((world.switch.counters().held, dropped), (2, 0));

    let [answers, calls] = world
        .switch
        .meters(world.now)
        .try_into()
        .map(|meters: [_; 2]| {
            let [a, b] = meters;
            if a.answers { [a, b] } else { [b, a] }
        })
        .unwrap();
    assert!(answers.answers && !calls.answers && calls.name.0.as_ref() == "test/limit");
    assert_eq!((calls.frames, calls.bytes, calls.held_frames), (2, 2000, 1));
    assert_eq!((calls.held, calls.held_max, calls.limit), (SECOND, SECOND, limit(8000).rate));
}

#[test]
fn whoever_opens_flow_after_flow_is_held_to_the_same_limit() {
    let mut memory = memory(256);
    let mut world = World::new(&mut memory, limiting(53, 8000));
    assert_eq!(held_for(&mut world, WEB, &datagram(WEB, API, (1, 53)), API), Duration::ZERO);
    for port in 2..6 {
        let first = datagram(WEB, API, (port, 53));
        assert!(matches!(world.offer(WEB, &first), Verdict::Hold(_)), "a first frame has passed");
        assert_eq!(world.switch.flow_count(), usize::from(port) - 1, "a flow exists before its time");
        // That offer took a turn, too.
        assert_eq!(held_for(&mut world, WEB, &first, API), 2 * SECOND);
    }
    assert!(world.changes().iter().all(|change| *change == vswitch::FlowChange::Opened));
}

#[test]
fn a_connection_is_tracked_when_its_segments_leave() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, limiting(80, 8000));
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    held_for(&mut world, WEB, &dialogue.out(SYN, 1000, 0, 0), API);
    held_for(&mut world, API, &dialogue.back(SYN | ACK, 5000, 1001, 0), WEB);
    held_for(&mut world, WEB, &dialogue.out(ACK, 1001, 5001, 0), API);
    let data = dialogue.out(ACK, 1001, 5001, 1000);
    held_for(&mut world, WEB, &data, API);
    let next = dialogue.out(ACK, 2001, 5001, 1000);
    assert!(held_for(&mut world, WEB, &next, API) > SECOND);
    assert_eq!(world.flow().initiator.sent_frames, 4);
}

#[test]
fn a_machines_limit_counts_what_it_sends_whoever_has_called() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let qos = Qos { limit: Some(limit(8000)), ..Qos::default() };
    world.install_qos(allow(), &[(WEB, qos)]);
    assert_eq!(held_for(&mut world, WEB, &datagram(WEB, API, (1, 53)), API), Duration::ZERO);
    let answer = datagram(API, WEB, (53, 1));
    (0..3).for_each(|_| assert_eq!(held_for(&mut world, API, &answer, WEB), Duration::ZERO));
    assert_eq!(held_for(&mut world, DB, &datagram(DB, WEB, (1, 53)), WEB), Duration::ZERO);
    assert_eq!(held_for(&mut world, WEB, &datagram(WEB, DB, (53, 1)), DB), SECOND);
    assert_eq!(held_for(&mut world, WEB, &datagram(WEB, API, (1, 53)), API), SECOND);
    let flow = world.switch.flows().next().unwrap();
    assert_eq!(flow.judgement.unwrap().inserted[0].rule.0.as_ref(), "acme/web/(vm)");
    let names: Vec<_> = world.switch.meters(world.now).into_iter().map(|meter| meter.name.0).collect();
    assert_eq!(names, ["acme/web/(vm)".into()]);
}

/// Offers frames of two flows for so long, each as soon as the one before has left; bytes that left of each.
fn both_backlogged(world: &mut World<'_>, flows: [&[u8]; 2], span: Duration) -> [u64; 2] {
    let end = world.now.after(span);
    let mut waiting = flows.map(|bytes| (world.now, Frame::copy_of(bytes)));
    let mut left = [0; 2];
    loop {
        let flow = usize::from(waiting[1].0 < waiting[0].0);
        let (now, frame) = &mut waiting[flow];
        world.now = *now;
        if *now >= end {
            return left;
        }
        match world.switch.process(*now, WEB, frame, None) {
            Verdict::Hold(until) => *now = until,
            verdict => {
                assert_eq!(verdict, Verdict::Forward(API));
                left[flow] += flows[flow].len() as u64;
                *frame = Frame::copy_of(flows[flow]);
            }
        }
    }
}

#[test]
fn flows_of_two_rules_share_their_machines_limit_and_one_alone_has_it_all() {
    let part = |shares| Part { shares, reservation: None };
    let rules = Rules { parts: vec![(53, part(300)), (54, part(100))], ..allow() };
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    world.install_qos(rules, &[(WEB, Qos { limit: Some(limit(8_000_000)), ..Qos::default() })]);
    let (gold, bronze) = (datagram(WEB, API, (1, 53)), datagram(WEB, API, (1, 54)));
    let [more, less] = both_backlogged(&mut world, [&gold, &bronze], 10 * SECOND);
    let whole = 10_000_000;
    assert!(more.abs_diff(whole * 3 / 4) * 50 <= whole * 3 / 4, "{more}");
    assert!(less.abs_diff(whole / 4) * 50 <= whole / 4, "{less}");
    let meters = world.switch.meters(world.now);
    let shown: Vec<_> =
        meters[0].classes.iter().map(|class| (&*class.name.0, class.bits_per_second)).collect();
    let [("", 0), ("test/part-53", fast), ("test/part-54", slow)] = shown[..] else { panic!("{shown:?}") };
    assert!(fast.abs_diff(6_000_000) < 120_000 && slow.abs_diff(2_000_000) < 40_000, "{shown:?}");
    let [one, other] = both_backlogged(&mut world, [&bronze, &bronze], 10 * SECOND);
    assert!((one + other).abs_diff(whole) * 50 <= whole, "{one} and {other}");
}

/// Offers a frame of one flow every so often, and of two others as soon as the one before has left, for so long. What left
/// of the first and of the others together, and the longest wait of the first.
fn beside_a_flood(
    world: &mut World<'_>,
    (paced, every): (&[u8], Duration),
    flood: [&[u8]; 2],
    span: Duration,
) -> ([u64; 2], Duration) {
    let end = world.now.after(span);
    let all = [paced, flood[0], flood[1]];
    let mut waiting = all.map(|bytes| (world.now, world.now, Frame::copy_of(bytes)));
    let (mut left, mut longest) = ([0; 2], Duration::ZERO);
    loop {
        let flow = (0..all.len()).min_by_key(|flow| waiting[*flow].0).unwrap();
        let (now, offered, frame) = &mut waiting[flow];
        world.now = *now;
        if *now >= end {
            return (left, longest);
        }
        match world.switch.process(*now, WEB, frame, None) {
            Verdict::Hold(until) => *now = until,
            verdict => {
                assert_eq!(verdict, Verdict::Forward(API));
                left[flow.min(1)] += all[flow].len() as u64;
                if flow == 0 {
                    longest = longest.max(now.since(*offered));
                    *offered = offered.after(every);
                    *now = (*now).max(*offered);
                }
                *frame = Frame::copy_of(all[flow]);
            }
        }
    }
}

#[test]
fn a_reservation_is_met_beside_whoever_sends_all_it_can() {
    // Of 8 Mbit/s a thousand bytes take a millisecond; at 2 Mbit/s they come every four.
    let (whole, reserved, every) = (10_000_000_u64, 2_500_000_u64, Duration::from_millis(4));
    let ports = [(1, 53), (1, 54), (2, 54)].map(|ports| datagram(WEB, API, ports));
    let outcome = |reservation| {
        let (small, large) = (Part { shares: 1, reservation }, Part { shares: 10_000, reservation: None });
        let rules = Rules { parts: vec![(53, small), (54, large)], ..allow() };
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        world.install_qos(rules, &[(WEB, Qos { limit: Some(limit(8_000_000)), ..Qos::default() })]);
        beside_a_flood(&mut world, (&ports[0], every), [&ports[1], &ports[2]], 10 * SECOND)
    };
    let ([small, large], longest) = outcome(BitRate::new(2_000_000));
    assert!(small.abs_diff(reserved) * 50 <= reserved, "{small}");
    assert!((small + large).abs_diff(whole) * 50 <= whole, "{small} and {large}");
    assert!(longest <= Duration::from_millis(2), "a frame within the reservation waited for {longest:?}");
    let ([small, _], _) = outcome(None);
    assert!(small * 50 < reserved, "without it, the shares alone give it {small}");
}

#[test]
fn a_limit_that_is_lifted_or_changed_holds_nobody_any_longer() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, limiting(53, 8000));
    let out = datagram(WEB, API, (1, 53));
    held_for(&mut world, WEB, &out, API);
    assert_eq!(held_for(&mut world, WEB, &out, API), SECOND);
    world.install(limiting(53, 16_000));
    assert_eq!(held_for(&mut world, WEB, &out, API), SECOND, "the frame before was counted at the old rate");
    assert_eq!(held_for(&mut world, WEB, &out, API), SECOND / 2);
    world.install(allow());
    (0..5).for_each(|_| assert_eq!(held_for(&mut world, WEB, &out, API), Duration::ZERO));
    // Nobody knows its meters any more.
    world.install(allow());
    assert_eq!(world.switch.meters(world.now), []);
}

#[test]
fn pieces_of_a_packet_wait_behind_the_first() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, limiting(53, 8000));
    let whole = datagram(WEB, API, (1, 53));
    held_for(&mut world, WEB, &whole, API);
    let piece = |offset_bytes: usize, more: bool| {
        let mut frame = whole.clone();
        let mut field = (offset_bytes / 8) as u16;
        if more {
            field |= 0x2000;
        }
        frame[14 + 4..14 + 6].copy_from_slice(&9_u16.to_be_bytes());
        frame[14 + 6..14 + 8].copy_from_slice(&field.to_be_bytes());
        frame[14 + 2..14 + 4].copy_from_slice(&(20 + 480_u16).to_be_bytes());
        frame.truncate(14 + 20 + 480);
        packet_checksum(&mut frame);
        frame
    };
    let mut pieces = [Frame::copy_of(&piece(0, true)), Frame::copy_of(&piece(480, false))];
    let mut offers = |now: Moment, frame: &mut Frame| world.switch.process(now, WEB, frame, None);
    let start = Moment(1_000_000_000_000);
    let [first, second] = &mut pieces;
    let Verdict::Hold(one) = offers(start, first) else { panic!("the first piece passes") };
    let Verdict::Hold(two) = offers(start, second) else { panic!("the second piece passes or is dropped") };
    assert!(one < two);
    assert_eq!(offers(one, first), Verdict::Forward(API));
    assert_eq!(offers(two, second), Verdict::Forward(API));
}

/// Completes the checksum of the IPv4 header.
fn packet_checksum(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum: u32 =
        frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    frame[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

#[test]
fn turns_follow_from_what_machines_are_given() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    assert_eq!(world.switch.turn(WEB), Turn::default());
    let interactive = Qos { class: LatencyClass::Interactive, ..Qos::default() };
    let slight = Qos { shares: 50, ..Qos::default() };
    world.install_qos(allow(), &[(WEB, interactive), (API, slight), (DB, Qos { shares: 1, ..slight })]);
    assert_eq!(world.switch.turn(WEB), Turn { quantum_bytes: QUANTUM_BYTES, interactive: true });
    assert!(world.switch.turn(API).quantum_bytes.abs_diff(QUANTUM_BYTES / 2) <= 1);
    assert_eq!(world.switch.turn(DB).quantum_bytes, FRAME_COST_BYTES);
    world.drops(WEB, &[0; 60], DropReason::SpoofedMac);
}
