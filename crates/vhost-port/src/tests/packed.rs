// SPDX-License-Identifier: Apache-2.0
//! Packed rings: against an independent driver, across crashes, and full of anything.

use proptest::prelude::*;

use super::driver::{BUFFERS, Bench, MEMORY_BYTES, frame, linux, scribble_packed, without};
use super::frontend::Scratch;
use super::packed_driver::{Chain, PackedGuest, journal_in};
use crate::batch::Batch;
use crate::chain::FRAME_BYTES_MIN;
use crate::fault::{ChainFault, RingFault, SendError};
use crate::features::Features;
use crate::link::Command;

/// Indirect tables, one page each.
const TABLES: u64 = BUFFERS + 0x30_0000;
/// Places for frames that are sent: more than a ring has chains, so none in flight is written over.
const PLACES: usize = 96;
/// Receive buffers.
const INBOX: u64 = BUFFERS + 0x40_0000;

/// Writes the frame of this number, of these parts, into a place of its own and describes it.
fn outgoing(guest: &PackedGuest, parts: &[u16], number: usize, indirect: bool) -> (Chain, Vec<u8>) {
    let whole = frame(parts.iter().map(|part| usize::from(*part)).sum(), number);
    let mut at = BUFFERS + (number % PLACES) as u64 * 0x8000;
    let (mut buffers, mut left) = (Vec::new(), &whole[..]);
    for part in parts {
        let (now, later) = left.split_at(usize::from(*part));
        guest.guest.write(at, now);
        buffers.push((at, u32::from(*part)));
        at += u64::from(*part) + 3;
        left = later;
    }
    let table = indirect.then_some(TABLES + (number % PLACES) as u64 * 4096);
    (Chain { buffers, writable: false, table }, whole)
}

/// A receive buffer of so many bytes, in `parts` descriptors.
fn inbox(number: usize, len: u32, parts: u32) -> Chain {
    let address = INBOX + number as u64 % 256 * 0x2000;
    let part = len / parts;
    let buffers = (0..parts).map(|index| (address + u64::from(index * part), part)).collect();
    Chain { buffers, writable: true, table: None }
}

fn bytes_of(batch: &Batch) -> Vec<(u16, Vec<u8>)> {
    let read = batch.iter().map(|chain| {
        let mut bytes = vec![0; chain.len_bytes()];
        assert_eq!(chain.copy_out(0, &mut bytes), bytes.len());
        (chain.head(), bytes)
    });
    read.collect()
}

#[derive(Clone, Debug)]
struct Round {
    frames: Vec<(Vec<u16>, bool)>,
    buffers: Vec<(u32, u32)>,
    lens: Vec<usize>,
    completed: usize,
    wish: (u16, i16),
    /// The process dies after this round, and the next one takes over.
    dies: bool,
    /// The VMM stops and starts the rings after this round.
    stops: bool,
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let parts = prop::collection::vec(1_u16..1500, 1..5).prop_filter("long enough", |parts| {
        parts.iter().map(|p| usize::from(*p)).sum::<usize>() >= FRAME_BYTES_MIN
    });
    let frames = prop::collection::vec((parts, any::<bool>()), 0..8);
    let buffers = prop::collection::vec((60_u32..4000, 1_u32..3), 0..8);
    let lens = prop::collection::vec(FRAME_BYTES_MIN..6000, 0..5);
    let wish = (0_u16..4, -4_i16..12);
    let round =
        (frames, buffers, lens, 0_usize..12, wish, prop::bool::weighted(0.2), prop::bool::weighted(0.1));
    let round = round.prop_map(|(frames, buffers, lens, completed, wish, dies, stops)| Round {
        frames,
        buffers,
        lens,
        completed,
        wish,
        dies,
        stops,
    });
    prop::collection::vec(round, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_independent_driver_gets_every_frame_once_and_in_order_whoever_dies(
        rounds in rounds(),
        size in prop_oneof![Just(16_u16), Just(64), Just(23)],
        event_index in any::<bool>(),
        mergeable in any::<bool>(),
    ) {
        let mut features = linux();
        if !event_index { features = without(features, Features::EVENT_IDX); }
        if !mergeable { features = without(features, Features::MRG_RXBUF); }
        let scratch = Scratch::new(&format!("packed-{size}-{event_index}-{mergeable}"));
        let mut guest = PackedGuest::new(size, features);
        guest.journal = journal_in(&scratch.0);
        let mut bench = guest.serving();
        let (mut seed, mut frames_sent, mut buffers_posted) = (0, 0, 0);
        // Of the frames sent and not yet completed, those that the device has taken.
        let mut taken = 0;
        // Sent by the guest and not yet completed; received by it and posted.
        let mut sent = std::collections::VecDeque::new();
        let mut posted = std::collections::VecDeque::new();
        for round in rounds {
            for (parts, indirect) in &round.frames {
                let (chain, whole) = outgoing(&guest, parts, frames_sent, *indirect);
                if guest.transmit.has_room_for(&chain) {
                    frames_sent += 1;
                    let before = guest.transmit.position();
                    let id = guest.transmit.offer(&guest.guest, &chain);
                    prop_assert!(!guest.transmit.kick_wanted(&guest.guest, before), "it is polled");
                    sent.push_back((id, whole));
                }
            }
            for (len, parts) in &round.buffers {
                let chain = inbox(buffers_posted, *len, *parts);
                if guest.receive.has_room_for(&chain) {
                    buffers_posted += 1;
                    posted.push_back((guest.receive.offer(&guest.guest, &chain), chain));
                }
            }
            let (flags, ahead) = round.wish;
            let wish = (guest.transmit.used_position() & 0x7fff).wrapping_add_signed(ahead) % size;
            let wish = wish | guest.transmit.used_position() & 0x8000;
            guest.transmit.wish(&guest.guest, flags, wish);

            let mut batch = Batch::new();
            let count = bench.port.receive(0, &mut batch).unwrap();
            // Frames of a batch that was not completed whole are the device's already; a batch has room for some.
            let seen = bytes_of(&batch);
            prop_assert_eq!(count, (sent.len() - taken).min(Batch::FRAMES_MAX));
            prop_assert!(seen.iter().eq(sent.iter().skip(taken).take(count)), "frames as they were sent");
            let completed = round.completed.min(sent.len());
            taken = taken + count - completed;
            bench.port.complete(0, round.completed);
            prop_assert!(guest.transmit.collect(&guest.guest).is_empty(), "nothing is visible before a flush");

            let mut arrived = Vec::new();
            for len in &round.lens {
                seed += 1;
                let whole = frame(*len, seed);
                if bench.port.send(0, &whole, None).is_ok() { arrived.push(whole); }
            }
            bench.port.flush();

            let back: Vec<u16> = guest.transmit.collect(&guest.guest).into_iter().map(|(id, _)| id).collect();
            let expected: Vec<u16> = sent.drain(..completed).map(|(id, _)| id).collect();
            prop_assert_eq!(&back, &expected);
            let called = guest.guest.transmit.called.drain();
            match flags {
                1 => prop_assert!(!called),
                2 if event_index => {}
                _ => prop_assert_eq!(called, completed > 0),
            }
            let mut frames = guest.receive.collect(&guest.guest).into_iter();
            for whole in arrived {
                let mut got = Vec::new();
                while got.len() < whole.len() {
                    let (id, len) = frames.next().expect("all of a frame at once");
                    let (expected, chain) = posted.pop_front().unwrap();
                    prop_assert_eq!(id, expected);
                    let mut left = len as usize;
                    for (address, room) in chain.buffers {
                        let now = left.min(room as usize);
                        got.extend(guest.guest.read(address, now));
                        left -= now;
                    }
                }
                prop_assert_eq!(&got[12..], &whole[12..]);
            }
            prop_assert!(frames.next().is_none());
            guest.guest.receive.called.drain();

            if round.stops || round.dies {
                taken = 0;
            }
            if round.stops {
                let (_, bases) = bench.command(Command::Stop { pair: 0 });
                guest.bases = bases;
                for ring in ["ring.0", "ring.1"] { crate::ring::Journal::discard(&scratch.0.join(ring)); }
                guest.serve_with(&mut bench);
            } else if round.dies {
                // Nothing is said to the old process; what the VMM knows is old.
                drop(bench);
                bench = guest.serving();
            }
        }
    }
}

/// A ring with a merged frame of three buffers in it, shown in part as a process leaves it that dies meanwhile.
#[test]
fn a_frame_shown_in_part_is_shown_whole_by_the_successor_and_only_once() {
    // Which of the second and third buffer are shown; the first comes last.
    for shown in [[false, false], [true, false], [false, true], [true, true]] {
        for first in [false, true] {
            let scratch = Scratch::new("packed-part");
            let mut guest = PackedGuest::new(8, linux());
            guest.journal = journal_in(&scratch.0);
            let mut bench = guest.serving();
            // The frame crosses the ring's end.
            for number in 0..7 {
                guest.receive.offer(&guest.guest, &inbox(number, 100, 1));
            }
            for number in 0..6 {
                bench.port.send(0, &frame(100, number), None).unwrap();
            }
            bench.port.flush();
            assert_eq!(guest.receive.collect(&guest.guest).len(), 6);
            for number in 7..13 {
                guest.receive.offer(&guest.guest, &inbox(number, 100, 1));
            }
            let ring = guest.guest.receive.addresses.descriptors;
            let before = guest.guest.read(ring, 8 * 16);
            let whole = frame(280, 77);
            bench.port.send(0, &whole, None).unwrap();
            bench.port.flush();
            let after = guest.guest.read(ring, 8 * 16);
            for (slot, shown) in [(6_usize, first), (7, shown[0]), (0, shown[1])] {
                let bytes = if shown || first { &after } else { &before };
                guest.guest.write(ring + 16 * slot as u64, &bytes[16 * slot..][..16]);
            }
            drop(bench);

            let mut bench = guest.serving();
            let lens: Vec<u32> =
                guest.receive.collect(&guest.guest).into_iter().map(|(_, len)| len).collect();
            assert_eq!(lens, [100, 100, 80], "{shown:?} {first}");
            bench.port.send(0, &frame(64, 1), None).unwrap();
            bench.port.flush();
            assert_eq!(guest.receive.collect(&guest.guest).len(), 1, "{shown:?} {first}");
        }
    }
}

#[test]
fn a_step_that_was_never_begun_is_taken_again() {
    let scratch = Scratch::new("packed-again");
    let mut guest = PackedGuest::new(8, linux());
    guest.journal = journal_in(&scratch.0);
    let mut bench = guest.serving();
    let (chain, whole) = outgoing(&guest, &[100, 100, 100], 1, false);
    guest.transmit.offer(&guest.guest, &chain);
    let mut batch = Batch::new();
    assert_eq!(bench.port.receive(0, &mut batch), Ok(1));
    // Completed, but not flushed.
    bench.port.complete(0, 1);
    drop(bench);
    let mut bench = guest.serving();
    assert_eq!(bench.port.receive(0, &mut batch), Ok(1));
    assert_eq!(bytes_of(&batch)[0].1, whole);
}

#[test]
fn another_guest_a_new_ring_and_the_vmms_word_come_before_the_journal() {
    let scratch = Scratch::new("packed-owner");
    let with_journal = || {
        let mut guest = PackedGuest::new(8, linux());
        guest.journal = journal_in(&scratch.0);
        guest
    };
    let mut batch = Batch::new();
    let mut sends_one = |guest: &mut PackedGuest, name: &str| {
        let mut bench = guest.serving();
        let (chain, _) = outgoing(guest, &[100, 100], 1, false);
        guest.transmit.offer(&guest.guest, &chain);
        assert_eq!(bench.port.receive(0, &mut batch), Ok(1), "{name}");
        bench.port.complete(0, 1);
        bench.port.flush();
        assert_eq!(guest.transmit.collect(&guest.guest).len(), 1, "{name}");
    };
    let mut one = with_journal();
    sends_one(&mut one, "the first guest");
    sends_one(&mut one, "the same guest again");
    let mut two = with_journal();
    sends_one(&mut two, "another guest in its place");
    // The driver begins anew in the same memory, as after a reset that nobody here noticed.
    let mut again = with_journal();
    let file = two.guest.file.try_clone().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; 0x80000], 0).unwrap();
    again.guest.file = file;
    again.guest.memory = two.guest.start().memory;
    sends_one(&mut again, "the same memory with new rings");
}

#[test]
fn kicks_are_wanted_between_arming_and_suppressing_only() {
    for features in [linux(), without(linux(), Features::EVENT_IDX)] {
        let mut guest = PackedGuest::new(8, features);
        let mut bench = guest.serving();
        for round in 0..20 {
            let chain = outgoing(&guest, &[100; 3][..1 + round % 3], round, false).0;
            assert!(!bench.port.arm_kicks(0));
            let before = guest.transmit.position();
            guest.transmit.offer(&guest.guest, &chain);
            assert!(guest.transmit.kick_wanted(&guest.guest, before), "{round}");
            assert!(bench.port.arm_kicks(0), "a frame that came before arming is told of");
            bench.port.suppress_kicks();
            let mut batch = Batch::new();
            assert_eq!(bench.port.receive(0, &mut batch), Ok(1));
            bench.port.complete(0, 1);
            bench.port.flush();
            assert_eq!(guest.transmit.collect(&guest.guest).len(), 1);
            assert!(!guest.transmit.kick_wanted(&guest.guest, guest.transmit.position() ^ 0x8000));
        }
    }
}

#[test]
fn the_guest_is_called_exactly_when_its_position_is_passed() {
    // Two chains of two slots each are published in a ring of seven, from slot 5 over the end to slot 2.
    for (event, called) in [
        (4 | 0x8000, false),
        (5 | 0x8000, true),
        (6 | 0x8000, true),
        (0, true),
        (1, true),
        (2, false),
        (3, false),
    ] {
        let mut guest = PackedGuest::new(7, linux());
        let mut bench = guest.serving();
        let mut batch = Batch::new();
        let mut send = |guest: &mut PackedGuest, bench: &mut Bench, parts: &[u16], seed| {
            let chain = outgoing(guest, parts, seed, false).0;
            guest.transmit.offer(&guest.guest, &chain);
            let count = bench.port.receive(0, &mut batch).unwrap();
            bench.port.complete(0, count);
        };
        send(&mut guest, &mut bench, &[50; 5], 0);
        bench.port.flush();
        guest.transmit.collect(&guest.guest);
        guest.guest.transmit.called.drain();
        guest.transmit.wish(&guest.guest, 2, event);
        send(&mut guest, &mut bench, &[50; 2], 1);
        send(&mut guest, &mut bench, &[50; 2], 2);
        bench.port.flush();
        assert_eq!(guest.guest.transmit.called.drain(), called, "{event:#x}");
    }
}

#[test]
fn what_a_table_of_the_transmit_ring_marks_as_writable_is_read_all_the_same() {
    let mut guest = PackedGuest::new(16, linux());
    let mut bench = guest.serving();
    let (chain, sent) = outgoing(&guest, &[12, 64], 1, true);
    guest.transmit.offer(&guest.guest, &Chain { writable: true, ..chain });
    let mut batch = Batch::new();
    assert_eq!(bench.port.receive(0, &mut batch), Ok(1));
    let mut read = vec![0; sent.len()];
    assert_eq!(batch.chain(0).copy_out(0, &mut read), sent.len());
    assert_eq!(read, sent);
}

#[test]
fn malformed_chains_are_passed_over_whole() {
    let cases: [(ChainFault, Chain); 6] = [
        (ChainFault::Address, readable(&[(BUFFERS, 64), (MEMORY_BYTES, 64), (BUFFERS, 64)])),
        (ChainFault::Empty, readable(&[(BUFFERS, 64), (BUFFERS, 0)])),
        (ChainFault::TooShort, readable(&[(BUFFERS, 25)])),
        (ChainFault::TooLong, readable(&[(BUFFERS, 60 * 1024), (BUFFERS, 60 * 1024)])),
        (ChainFault::Direction, Chain { writable: true, ..readable(&[(BUFFERS, 64)]) }),
        (ChainFault::IndirectAlignment, Chain { table: Some(TABLES + 4), ..readable(&[(BUFFERS, 64)]) }),
    ];
    for (fault, chain) in cases {
        let mut guest = PackedGuest::new(16, linux());
        let mut bench = guest.serving();
        let mut ids = Vec::new();
        for chain in [&outgoing(&guest, &[64], 1, false).0, &chain, &outgoing(&guest, &[80, 4], 2, true).0] {
            ids.push((guest.transmit.offer(&guest.guest, chain), 0));
        }
        let mut batch = Batch::new();
        assert_eq!(bench.port.receive(0, &mut batch), Ok(2), "{fault}");
        assert_eq!(bench.port.counters().chain_faults[fault as usize], 1, "{fault}");
        bench.port.complete(0, 2);
        bench.port.flush();
        assert_eq!(guest.transmit.collect(&guest.guest), ids, "{fault}");
    }
}

fn readable(buffers: &[(u64, u32)]) -> Chain {
    Chain { buffers: buffers.to_vec(), writable: false, table: None }
}

#[test]
fn a_chain_without_an_end_stops_the_port() {
    let guest = PackedGuest::new(8, linux());
    let mut bench = guest.serving();
    let ring = guest.guest.transmit.addresses.descriptors;
    for slot in 0..8 {
        guest.guest.describe(ring, slot, BUFFERS, 64, 0, 1 | 1 << 7);
    }
    assert_eq!(bench.port.receive(0, &mut Batch::new()), Err(RingFault::Endless { size: 8 }));
    let guest = PackedGuest::new(8, linux());
    let mut bench = guest.serving();
    guest.guest.describe(guest.guest.transmit.addresses.descriptors, 0, BUFFERS, 64, 8, 1 << 7);
    assert_eq!(bench.port.receive(0, &mut Batch::new()), Err(RingFault::Head { head: 8, size: 8 }));
}

#[test]
fn a_frame_of_more_buffers_than_can_be_shown_at_once_is_refused() {
    let mut guest = PackedGuest::new(2048, linux());
    let mut bench = guest.serving();
    for number in 0..2000 {
        guest.receive.offer(&guest.guest, &inbox(number, 30, 1));
    }
    assert_eq!(bench.port.send(0, &frame(33_000, 0), None), Err(SendError::TooSmall));
    // As many as fit, twice: the first become visible early, whole.
    for seed in 0..2 {
        bench.port.send(0, &frame(900 * 30, seed), None).unwrap();
    }
    assert_eq!(guest.receive.collect(&guest.guest).len(), 900);
    bench.port.flush();
    assert_eq!(guest.receive.collect(&guest.guest).len(), 900);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_packed_rings_stop_the_port_or_drop_frames_and_no_more(
        rounds in prop::collection::vec(prop::collection::vec(any::<[u8; 8]>(), 34), 1..6),
    ) {
        let scratch = Scratch::new("packed-random");
        let mut guest = PackedGuest::new(16, linux());
        guest.journal = journal_in(&scratch.0);
        let mut bench = guest.serving();
        let mut batch = Batch::new();
        for round in rounds {
            scribble_packed(&guest.guest, &round);
            let count = bench.port.receive(0, &mut batch).unwrap_or(0);
            prop_assert!(count <= 16);
            for _ in 0..4 { let _ = bench.port.send(0, &frame(128, 0), None); }
            bench.port.complete(0, usize::from(round[0][0] % 20));
            bench.port.arm_kicks(0);
            bench.port.suppress_kicks();
            bench.port.flush();
            if round[0][1] & 1 != 0 {
                drop(bench);
                bench = guest.serving();
            }
        }
    }
}
