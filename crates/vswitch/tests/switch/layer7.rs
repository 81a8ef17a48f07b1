// SPDX-License-Identifier: Apache-2.0
//! What is spoken: told by the first bytes, and held to what rules name, however they are sent.

use model::{AppProtocol, AppProtocols, Spoken};
use proptest::collection::vec;
use proptest::prelude::*;
use vswitch::{
    Detection, DropReason, FlowChange, FlowState, PREFIX_LEN_BYTES_MAX, PortId, SwitchConfig, Verdict, detect,
};

use crate::world::*;

const GET: &[u8] = b"GET /index.html HTTP/1.1\r\nHost: api\r\n\r\n";
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const SSH: &[u8] = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n";
const MYSQL: &[u8] = b"\x4a\0\0\0\x0a8.0.35\0";
const HELLO: &[u8] = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03";
const STARTUP: &[u8] = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0";

fn told(protocol: AppProtocol) -> Option<Spoken> {
    Some(Spoken::Known(protocol))
}

/// Rules about port 80 under which it is told what is spoken, and perhaps held to something.
fn telling(wanted: &[AppProtocol]) -> Rules {
    let protocols: AppProtocols = wanted.iter().copied().collect();
    Rules { layer7: Some((80, (!wanted.is_empty()).then_some(protocols))), ..allow() }
}

/// A segment with bytes that begin so far behind the first, from the caller or whom it called.
fn says(by_caller: bool, offset: u32, bytes: &[u8]) -> (PortId, Vec<u8>) {
    let (port, ends, ports, numbers) = match by_caller {
        true => (WEB, (WEB, API), (40_000, 80), (1001 + offset, 5001)),
        false => (API, (API, WEB), (80, 40_000), (5001 + offset, 1001)),
    };
    let addresses = between(v4(ends.0), v4(ends.1));
    (port, tcp_saying(link(ends.0, ends.1), addresses, ports, ACK, numbers, bytes))
}

/// The caller, or whom it called, acknowledges what the other has said.
fn hears(by_caller: bool, said: usize) -> (PortId, Vec<u8>) {
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    match by_caller {
        true => (WEB, dialogue.out(ACK, 1001, 5001 + said as u32, 0)),
        false => (API, dialogue.back(ACK, 5001, 1001 + said as u32, 0)),
    }
}

#[track_caller]
fn passes(world: &mut World<'_>, (port, frame): (PortId, Vec<u8>)) -> bool {
    let verdict = world.offer(port, &frame);
    match verdict {
        Verdict::Forward(_) => true,
        Verdict::Drop(DropReason::ProtocolUntold) => false,
        other => panic!("{other:?}"),
    }
}

/// Whether frames of the flow still have a stage to go through.
#[track_caller]
fn is_attended(world: &mut World<'_>) -> bool {
    let (port, frame) = hears(true, 0);
    let to = if port == WEB { API } else { WEB };
    world.forwards(port, &frame, to).services != model::ServiceFlags::NONE
}

#[test]
fn the_first_bytes_of_each_protocol_tell_it_and_fewer_do_not() {
    let cases: [(AppProtocol, bool, &[u8], usize); 14] = [
        (AppProtocol::Http, true, GET, 23),
        (AppProtocol::Http, true, b"OPTIONS * HTTP/1.0\r\n", 17),
        (AppProtocol::Http2, true, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24),
        (AppProtocol::Tls, true, HELLO, 6),
        (AppProtocol::Ssh, true, SSH, 8),
        (AppProtocol::Ssh, false, SSH, 8),
        (AppProtocol::Ssh, false, b"SSH-1.99-old\n", 9),
        (AppProtocol::Redis, true, PING, 5),
        (AppProtocol::Redis, true, b"*1000000\r\n$3\r\nDEL", 11),
        (AppProtocol::Postgres, true, STARTUP, 8),
        (AppProtocol::Postgres, true, b"\0\0\0\x08\x04\xd2\x16\x2f", 8),
        (AppProtocol::Postgres, true, b"\0\0\0\x08\x04\xd2\x16\x30", 8),
        (AppProtocol::Postgres, true, b"\0\0\0\x10\x04\xd2\x16\x2e", 8),
        (AppProtocol::Mysql, false, MYSQL, 6),
    ];
    for (protocol, by_caller, bytes, enough) in cases {
        for len in 0..bytes.len() {
            match detect(by_caller, &bytes[..len]) {
                Detection::Told(spoken) => assert_eq!((Some(spoken), len >= enough), (told(protocol), true)),
                Detection::Open(open) => assert!(open.has(protocol) && len < enough, "{protocol} {len}"),
            }
        }
    }
}

#[test]
fn what_only_begins_like_a_protocol_is_another() {
    for (by_caller, bytes) in [
        (true, &b"GET foo\r\n"[..]),
        (true, b"GETX / HTTP/1.1"),
        (true, b"get / HTTP/1.1"),
        (true, b"GET / HTTP/2.0\r\n"),
        (true, b"PRI * HTTP/1.1\r\n"),
        (true, b"*0\r\n$"),
        (true, b"*12345678\r\n$"),
        (true, b"*\r\n$"),
        (true, b"*1\n"),
        (true, b"\x16\x03\x01\xff\xff\x01"),
        (true, b"\x16\x03\x01\0\x03\x01"),
        (true, b"\x16\x03\x05"),
        (true, b"\x16\x02"),
        (true, b"\x17\x03\x03"),
        (true, b"\x16\x03\x01\x01\0\x02"),
        (true, b"\0\0\0\x08\0\x03\0\0"),
        (true, b"\0\0\0\x09\0\x04\0\0"),
        (true, b"\0\0\x80"),
        (true, MYSQL),
        (false, GET),
        (false, PING),
        (false, HELLO),
        (false, b"220 mail ESMTP\r\n"),
        (false, b"\x4a\0\0\x01\x0a"),
        (false, b"\x4a\0\0\0\x0ax"),
        (false, b"\x4a\x05"),
        (true, b"SSH-1.5-x"),
    ] {
        assert_eq!(detect(by_caller, bytes), Detection::Told(Spoken::Other), "{}", bytes.escape_ascii());
    }
    let long = [&b"GET /"[..], &[b'a'; 100], b" HTTP/1.1\r\n"].concat();
    assert!(matches!(detect(true, &long[..PREFIX_LEN_BYTES_MAX - 1]), Detection::Open(_)));
    assert_eq!(
        detect(true, &long),
        Detection::Told(Spoken::Other),
        "the target is longer than what is looked at"
    );
}

proptest! {
    #[test]
    fn any_bytes_have_an_answer_that_more_of_them_do_not_change(
        by_caller: bool,
        start in prop::sample::select(vec![&b""[..], GET, PING, SSH, MYSQL, HELLO, STARTUP]),
        keep in 0..32_usize,
        rest in vec(any::<u8>(), 0..100),
    ) {
        let bytes = [&start[..keep.min(start.len())], &rest].concat();
        let answers: Vec<_> = (0..=bytes.len()).map(|len| detect(by_caller, &bytes[..len])).collect();
        for pair in answers.windows(2) {
            match (pair[0], pair[1]) {
                (Detection::Told(before), after) => prop_assert_eq!(after, Detection::Told(before)),
                (Detection::Open(before), Detection::Open(after)) => {
                    prop_assert_eq!(before.common(after), after)
                }
                (Detection::Open(before), Detection::Told(Spoken::Known(after))) => {
                    prop_assert!(before.has(after))
                }
                (Detection::Open(_), Detection::Told(Spoken::Other)) => {}
            }
        }
        let is_told = matches!(answers[bytes.len()], Detection::Told(_));
        prop_assert!(is_told || bytes.len() < PREFIX_LEN_BYTES_MAX);
    }

    /// However bytes are cut into segments, and whichever of these come again or too early, the answer is the same.
    #[test]
    fn segments_do_not_change_the_answer(
        by_caller: bool,
        held_to_it: bool,
        start in prop::sample::select(vec![GET, PING, SSH, MYSQL, HELLO, STARTUP, b"220 hello\r\n"]),
        cuts in vec(1..20_usize, 1..40),
        again in vec((0..40_usize, any::<bool>()), 0..20),
    ) {
        let bytes = [start, &[b'z'; 80]].concat();
        let Detection::Told(expected) = detect(by_caller, &bytes) else { panic!("long enough") };
        let all: Vec<_> = AppProtocol::ALL.iter().map(|(protocol, _)| *protocol).collect();
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, telling(if held_to_it { &all } else { &[] }));
        world.connect(WEB, API, 80);
        let (mut at, mut again) = (0, again.into_iter());
        for len in cuts.into_iter().chain([bytes.len()]) {
            let next = (at + len).min(bytes.len());
            if let Some((place, changed)) = again.next() {
                let (from, to) = (place.min(at), (place + 5).min(at));
                let mut old = bytes[from..to].to_vec();
                old.iter_mut().for_each(|byte| *byte ^= u8::from(changed));
                let (port, frame) = says(by_caller, from as u32, &old);
                let _ = world.offer(port, &frame);
            }
            let (port, frame) = says(by_caller, at as u32, &bytes[at..next]);
            let _ = world.offer(port, &frame);
            at = next;
        }
        prop_assert_eq!(world.flow().spoken, Some(expected));
        let ends = held_to_it && expected == Spoken::Other;
        prop_assert_eq!(world.flow().state == FlowState::Reset, ends);
    }
}

#[test]
fn whoever_speaks_first_tells_it_and_frames_pass_by_from_then_on() {
    for (by_caller, bytes, protocol) in [
        (true, GET, AppProtocol::Http),
        (true, PING, AppProtocol::Redis),
        (true, STARTUP, AppProtocol::Postgres),
        (false, MYSQL, AppProtocol::Mysql),
        (false, SSH, AppProtocol::Ssh),
    ] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, telling(&[]));
        world.connect(WEB, API, 80);
        assert!(is_attended(&mut world));
        assert_eq!(world.flow().spoken, None);
        assert!(passes(&mut world, says(by_caller, 0, bytes)));
        assert_eq!(world.flow().spoken, told(protocol));
        assert!(!is_attended(&mut world), "{protocol}");
        // Nothing is touched where nothing is named, whatever is said.
        assert!(passes(&mut world, says(by_caller, 0, b"other")));
        assert!(passes(&mut world, says(!by_caller, 0, b"answer")));
        assert_eq!(world.flow().spoken, told(protocol));
    }
}

#[test]
fn what_is_not_named_is_reset_at_both_ends_with_the_segment_that_shows_it() {
    for (by_caller, bytes, spoken) in [
        (true, PING, told(AppProtocol::Redis)),
        (true, &b"x"[..], Some(Spoken::Other)),
        (false, SSH, told(AppProtocol::Ssh)),
        // It could still be SSH, which is not named either.
        (false, b"S", Some(Spoken::Other)),
    ] {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, telling(&[AppProtocol::Http, AppProtocol::Tls]));
        world.connect(WEB, API, 80);
        world.events();
        let (port, frame) = says(by_caller, 0, bytes);
        world.drops(port, &frame, DropReason::Denied);
        let mut resets: Vec<_> =
            world.switch.emissions().map(|reset| (reset.port, segment(&reset.frame).sequence)).collect();
        resets.sort_unstable();
        assert_eq!(resets, [(WEB, 5001), (API, 1001)], "neither end has seen a byte");
        let event = world.events().pop().unwrap();
        let judgement = event.record.judgement.unwrap();
        assert_eq!((event.change, event.record.spoken), (FlowChange::Reset, spoken));
        assert_eq!(judgement.decided_by.to_string(), "test/layer7");
        let because = judgement.unmet.unwrap().to_string();
        assert!(because.contains("not http,tls") || because.contains("not speak http,tls"), "{because}");
        world.drops(port, &frame, DropReason::Reset);
    }
}

#[test]
fn only_the_next_bytes_pass_until_it_is_told() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, telling(&[AppProtocol::Http]));
    world.connect(WEB, API, 80);
    // A probe of whether the other end is there says nothing.
    let probe = tcp_saying(link(WEB, API), between(v4(WEB), v4(API)), (40_000, 80), ACK, (1000, 5001), b"?");
    assert!(passes(&mut world, (WEB, probe)));
    assert!(!passes(&mut world, says(true, 4, &GET[4..])), "the first bytes are missing");
    assert!(passes(&mut world, says(true, 0, &GET[..4])));
    assert!(!passes(&mut world, says(true, 8, &GET[8..])), "out of turn");
    assert!(!passes(&mut world, says(false, 0, b"SSH-2.0-x")), "it is not the other end's turn");
    assert!(!passes(&mut world, says(true, 0, b"PUT /")), "other bytes than before");
    assert!(passes(&mut world, says(true, 0, &GET[..4])), "the same again");
    assert!(passes(&mut world, says(true, 2, &GET[2..])), "some again, and more");
    assert_eq!(world.flow().spoken, told(AppProtocol::Http));
    assert!(passes(&mut world, says(false, 0, b"HTTP/1.1 200 OK")), "an answer");
}

#[test]
fn bytes_that_were_judged_by_cannot_be_replaced_until_they_are_acknowledged() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, telling(&[AppProtocol::Http]));
    world.connect(WEB, API, 80);
    assert!(passes(&mut world, says(true, 0, GET)));
    // The receiver may not have taken it, for a wrong checksum say.
    let replaced = [PING, &[b'x'; 40]].concat();
    assert!(!passes(&mut world, says(true, 0, &replaced)));
    assert!(passes(&mut world, hears(false, 10)));
    assert!(!passes(&mut world, says(true, 10, &replaced)));
    assert!(passes(&mut world, says(true, GET.len() as u32, b"more")), "what follows is free");
    assert!(is_attended(&mut world));
    assert!(passes(&mut world, hears(false, GET.len())));
    assert!(!is_attended(&mut world));
}

#[test]
fn neither_pieces_nor_a_syn_carry_bytes_past_it() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, telling(&[AppProtocol::Http]));
    let addresses = between(v4(WEB), v4(API));
    let syn = tcp_saying(link(WEB, API), addresses, (40_000, 80), SYN, (1000, 0), PING);
    world.drops(WEB, &syn, DropReason::ProtocolUntold);
    assert_eq!(world.switch.flows().count(), 0);
    let dialogue = Dialogue::new(WEB, API, 40_000, 80);
    world.forwards(WEB, &dialogue.out(SYN, 1000, 0, 0), API);
    let back = between(v4(API), v4(WEB));
    let answer = tcp_saying(link(API, WEB), back, (80, 40_000), SYN | ACK, (5000, 1001), SSH);
    world.drops(API, &answer, DropReason::ProtocolUntold);
    world.forwards(API, &dialogue.back(SYN | ACK, 5000, 1001, 0), WEB);
    world.forwards(WEB, &dialogue.out(ACK, 1001, 5001, 0), API);
    // A piece has a multiple of 8 bytes; the header's checksum is not looked at.
    let (port, mut piece) = says(true, 0, &GET[..12]);
    piece[20] |= 0x20;
    world.drops(port, &piece, DropReason::ProtocolUntold);
}

#[test]
fn other_protocols_than_tcp_are_refused_where_something_is_named_and_let_be_elsewhere() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, telling(&[AppProtocol::Http]));
    world.drops(WEB, &udp(WEB, API, (1, 80)), DropReason::Denied);
    let judgement = world.events().pop().unwrap().record.judgement.unwrap();
    assert_eq!(judgement.unmet.unwrap().to_string(), "only of TCP it is told whether it speaks http");
    world.install(telling(&[]));
    let frame = world.forwards(WEB, &udp(WEB, API, (1, 80)), API);
    assert_eq!(frame.services.to_string(), "authorize,layer7");
    let frame = world.forwards(WEB, &udp(WEB, API, (1, 80)), API);
    assert_eq!((frame.services.to_string().as_str(), world.flow().spoken), ("", None));
}

#[test]
fn a_later_policy_holds_what_is_known_to_it_and_lets_be_what_is_not() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, telling(&[]));
    world.connect(WEB, API, 80);
    assert!(passes(&mut world, says(true, 0, PING)));
    world.install(telling(&[AppProtocol::Redis, AppProtocol::Ssh]));
    world.tick();
    assert_eq!(world.flow().state, FlowState::Established);
    world.install(telling(&[AppProtocol::Ssh]));
    world.tick();
    assert_eq!((world.flow().state, world.flow().spoken), (FlowState::Reset, told(AppProtocol::Redis)));
    drop(world);

    // What was open before, and what a predecessor has left, is in the middle of its talk.
    let mut fresh = crate::world::memory(64);
    let mut world = World::new(&mut fresh, allow());
    world.connect(WEB, API, 80);
    world.install(telling(&[AppProtocol::Ssh]));
    assert!(passes(&mut world, says(true, 0, PING)));
    drop(world);
    let mut world = World::new(&mut fresh, telling(&[AppProtocol::Ssh]));
    assert!(passes(&mut world, says(true, PING.len() as u32, PING)));
    assert_eq!((world.flow().spoken, is_attended(&mut world)), (None, false));
}

#[test]
fn connections_that_are_not_told_yet_are_bounded() {
    let mut memory = memory(64);
    let config = SwitchConfig { undecided_per_port_max: 1, ..config() };
    let mut world = World::with_config(&mut memory, config, telling(&[]));
    let dialogue = world.connect(WEB, API, 80);
    let second = Dialogue::new(WEB, API, 40_001, 80);
    world.forwards(WEB, &second.out(SYN, 1000, 0, 0), API);
    assert_eq!(world.switch.counters().protocols_untold, 1);
    world.install(telling(&[AppProtocol::Http]));
    let third = Dialogue::new(WEB, API, 40_002, 80);
    world.drops(WEB, &third.out(SYN, 1000, 0, 0), DropReason::UndecidedQuota);
    world.emits_nothing();
    // One that is told makes room, and so does one that ends.
    assert!(passes(&mut world, says(true, 0, GET)));
    assert!(passes(&mut world, hears(false, GET.len())));
    world.forwards(WEB, &third.out(SYN, 1000, 0, 0), API);
    let fourth = Dialogue::new(WEB, API, 40_003, 80);
    world.drops(WEB, &fourth.out(SYN, 1000, 0, 0), DropReason::UndecidedQuota);
    world.forwards(API, &third.back(RST | ACK, 0, 1001, 0), WEB);
    world.forwards(WEB, &fourth.out(SYN, 1000, 0, 0), API);
    let _ = dialogue;
}
