// SPDX-License-Identifier: Apache-2.0
//! Frames that arrive, and notifications that wake.

use super::driver::{BUFFERS, Bench, Guest, INDIRECT, WRITE, frame, linux, without};
use crate::batch::Batch;
use crate::fault::SendError;
use crate::features::{Features, VNET_HEADER_BYTES};
use crate::link::Command;
use crate::port::{Port, PortEvent};

/// Carries everything that `from`'s guest has sent to `to`'s; says how many frames arrived.
fn carry(from: &mut Bench, to: &mut Bench, head_bytes: usize) -> usize {
    let mut batch = Batch::new();
    let mut arrived = 0;
    loop {
        let count = from.port.receive(0, &mut batch).unwrap();
        if count == 0 {
            break;
        }
        let mut head = vec![0; head_bytes];
        for chain in batch.iter() {
            let len = chain.copy_out(0, &mut head);
            let rest = (len < chain.len_bytes()).then_some((chain, len));
            arrived += usize::from(to.port.send(0, &head[..len], rest).is_ok());
        }
        from.port.complete(0, count);
    }
    Port::flush_all(&mut [from, to], |bench| Some(&mut bench.port));
    arrived
}

/// The frame without `num_buffers`, which the port writes.
fn body(frame: &[u8]) -> &[u8] {
    &frame[VNET_HEADER_BYTES..]
}

#[test]
fn frames_of_every_shape_arrive_whole_and_in_order() {
    for features in [linux(), without(linux(), Features::MRG_RXBUF), without(linux(), Features::EVENT_IDX)] {
        let (mut a, mut b) = (Guest::new(64, features), Guest::new(64, features));
        let (mut from, mut to) = (Bench::serving(&a), Bench::serving(&b));
        let mut expected = Vec::new();
        for (index, len) in [26, 27, 64, 140, 141, 1514, 1526, 3000].into_iter().enumerate() {
            let whole = frame(len, index);
            let (header, rest) = whole.split_at(VNET_HEADER_BYTES);
            let (middle, end) = rest.split_at(rest.len() / 2);
            let first = index as u16 * 4;
            match index % 3 {
                0 => a.transmit(first, &[&whole]),
                1 => a.transmit(first, &[header, rest]),
                _ => a.transmit(first, &[header, middle, end]),
            }
            b.post(index as u16, 4096);
            expected.push(whole);
        }
        assert_eq!(carry(&mut from, &mut to, 100), expected.len());
        let received = b.received();
        assert_eq!(received.len(), expected.len());
        for (received, expected) in received.iter().zip(&expected) {
            assert_eq!(body(received), body(expected));
        }
        let heads: Vec<u32> = a.collect(true).iter().map(|(head, _)| *head).collect();
        assert_eq!(heads, [0, 4, 8, 12, 16, 20, 24, 28]);
    }
}

#[test]
fn super_frame_crosses_merged_buffers_with_its_offload_header() {
    let (mut a, mut b) = (Guest::new(64, linux()), Guest::new(64, linux()));
    let (mut from, mut to) = (Bench::serving(&a), Bench::serving(&b));
    let mut whole = frame(65536 + 12, 1);
    // Partial checksum, TCP over IPv4, segments of 1448 bytes.
    whole[..10].copy_from_slice(&[1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0]);
    let parts: Vec<&[u8]> = whole.chunks(4096).collect();
    a.transmit(0, &parts);
    for index in 0..50 {
        b.post(index, 1526);
    }
    assert_eq!(carry(&mut from, &mut to, 128), 1);
    let received = b.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0][..10], whole[..10]);
    assert_eq!(received[0][10..12], 43_u16.to_le_bytes());
    assert_eq!(body(&received[0]), body(&whole));
    // The seven buffers that were not needed are still the guest's to receive into.
    for seed in 0..7 {
        a.transmit(0, &[&frame(1526, seed)]);
        assert_eq!(carry(&mut from, &mut to, 128), 1, "frame {seed}");
    }
    a.transmit(0, &[&frame(1526, 8)]);
    assert_eq!(carry(&mut from, &mut to, 128), 0);
    assert_eq!(b.received().len(), 7);
}

#[test]
fn indirect_tables_are_read_alone_and_after_direct_descriptors() {
    let (mut a, mut b) = (Guest::new(8, linux()), Guest::new(8, linux()));
    let (mut from, mut to) = (Bench::serving(&a), Bench::serving(&b));
    let whole = frame(600, 3);
    a.write(BUFFERS, &whole);
    let table = BUFFERS + 0x8000;
    let ring = a.transmit.addresses.descriptors;
    a.describe_chain(table, 0, &[(BUFFERS, 12), (BUFFERS + 12, 400), (BUFFERS + 412, 188)], 0);
    a.describe(ring, 3, table, 48, INDIRECT, 0);
    a.offer(true, 3);
    a.describe_chain(table + 0x100, 0, &[(BUFFERS + 12, 400), (BUFFERS + 412, 188)], 0);
    a.describe(ring, 5, BUFFERS, 12, super::driver::NEXT, 6);
    a.describe(ring, 6, table + 0x100, 32, INDIRECT, 0);
    a.offer(true, 5);
    b.post(0, 2048);
    b.post(1, 2048);
    assert_eq!(carry(&mut from, &mut to, 64), 2);
    assert!(b.received().iter().all(|frame| body(frame) == body(&whole)));
}

#[test]
fn indices_wrap_and_small_rings_are_used_again_and_again() {
    let (mut a, mut b) = (Guest::new(4, linux()), Guest::new(4, linux()));
    a.begin_at(65_500);
    b.begin_at(65_530);
    let (mut from, mut to) = (Bench::serving(&a), Bench::serving(&b));
    for round in 0..200 {
        for slot in 0..4 {
            a.transmit(slot, &[&frame(64, round + usize::from(slot))]);
            b.post(slot, 2048);
        }
        assert_eq!(carry(&mut from, &mut to, 128), 4);
        assert_eq!(a.collect(true), [(0, 0), (1, 0), (2, 0), (3, 0)]);
        let received = b.received();
        assert_eq!(received.len(), 4);
        for (slot, received) in received.iter().enumerate() {
            assert_eq!(body(received), body(&frame(64, round + slot)));
        }
    }
    assert_eq!(from.port.counters().received_frames, 800);
    assert_eq!(to.port.counters().sent_bytes, 800 * 64);
}

#[test]
fn frames_stay_held_until_completed_and_are_published_only_by_flush() {
    let mut guest = Guest::new(64, linux());
    let mut bench = Bench::serving(&guest);
    for slot in 0..40 {
        guest.transmit(slot, &[&frame(64, 0)]);
    }
    let mut batch = Batch::new();
    assert_eq!(bench.port.receive(0, &mut batch).unwrap(), Batch::FRAMES_MAX);
    assert_eq!(batch.iter().map(|chain| chain.head()).collect::<Vec<_>>(), (0..32).collect::<Vec<_>>());
    bench.port.flush();
    assert!(guest.collect(true).is_empty());
    bench.port.complete(0, 3);
    assert!(guest.collect(true).is_empty());
    bench.port.flush();
    assert_eq!(guest.collect(true), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(bench.port.receive(0, &mut batch).unwrap(), 8);
    bench.port.complete(0, usize::MAX);
    bench.port.flush();
    assert_eq!(guest.collect(true).len(), 37);
    assert_eq!(bench.port.receive(0, &mut batch).unwrap(), 0);
    assert!(batch.is_empty());
}

#[test]
fn stopping_gives_up_held_frames_and_starting_receives_them_again() {
    let mut guest = Guest::new(8, linux());
    guest.begin_at(65_534);
    let mut bench = Bench::serving(&guest);
    let mut batch = Batch::new();
    for slot in 0..4 {
        guest.transmit(slot, &[&frame(64, slot.into())]);
    }
    assert_eq!(bench.port.receive(0, &mut batch).unwrap(), 4);
    bench.port.complete(0, 1);
    let (event, used) = bench.command(Command::Stop { pair: 0 });
    assert!(matches!(event, Some(PortEvent::Stopped { .. })));
    assert_eq!(used, [65_534, 65_535], "completed frames are published before the rings are let go");
    assert!(!bench.port.is_running());
    assert_eq!(bench.port.receive(0, &mut batch).unwrap(), 0);
    bench.port.complete(0, 3);
    bench.port.flush();
    assert_eq!(bench.port.send(0, &frame(64, 0), None), Err(SendError::Stopped));
    assert_eq!(guest.collect(true), [(0, 0)]);

    bench.start(&guest);
    assert_eq!(bench.port.receive(0, &mut batch).unwrap(), 3);
    assert_eq!(batch.chain(0).head(), 1);
    assert!(matches!(bench.command(Command::Disconnect), (Some(PortEvent::Disconnected), _)));
    assert!(matches!(bench.command(Command::Stop { pair: 0 }), (None, _)));
}

#[test]
fn a_batch_outlives_its_device() {
    let mut guest = Guest::new(8, linux());
    let mut bench = Bench::serving(&guest);
    guest.transmit(0, &[&frame(64, 9)]);
    let mut batch = Batch::new();
    bench.port.receive(0, &mut batch).unwrap();
    bench.command(Command::Disconnect);
    drop(guest);
    let mut out = [0; 100];
    assert_eq!(batch.chain(0).copy_out(10, &mut out), 54);
    assert_eq!(out[2..54], frame(64, 9)[12..]);
}

#[test]
fn a_frame_that_finds_no_room_leaves_the_ring_as_it_was() {
    let mut guest = Guest::new(8, linux());
    let mut bench = Bench::serving(&guest);
    assert_eq!(bench.port.send(0, &frame(64, 0), None), Err(SendError::NoBuffers));
    guest.post(0, 200);
    guest.post(1, 200);
    assert_eq!(bench.port.send(0, &frame(500, 0), None), Err(SendError::NoBuffers));
    bench.port.flush();
    assert!(guest.collect(false).is_empty());
    bench.port.send(0, &frame(400, 0), None).unwrap();
    bench.port.flush();
    assert_eq!(guest.collect(false), [(0, 200), (1, 200)]);

    let mut plain = Guest::new(8, without(linux(), Features::MRG_RXBUF));
    let mut bench = Bench::serving(&plain);
    plain.post(0, 200);
    plain.post(1, 200);
    assert_eq!(bench.port.send(0, &frame(201, 0), None), Err(SendError::TooSmall));
    bench.port.send(0, &frame(200, 0), None).unwrap();
    bench.port.flush();
    assert_eq!(plain.collect(false), [(0, 200)]);
}

#[test]
fn only_frames_are_sent() {
    let mut guest = Guest::new(8, linux());
    let mut bench = Bench::serving(&guest);
    guest.post(0, 2048);
    assert_eq!(bench.port.send(0, &[], None), Err(SendError::Malformed));
    assert_eq!(bench.port.send(0, &[0; 11], None), Err(SendError::Malformed));
    assert_eq!(bench.port.send(0, &vec![0; 70_000], None), Err(SendError::Malformed));
}

#[test]
fn offloads_reach_only_guests_that_offered_to_finish_them() {
    let header = |flags: u8, kind: u8| {
        let mut bytes = frame(64, 0);
        bytes[..2].copy_from_slice(&[flags, kind]);
        bytes
    };
    let all = [
        Features::GUEST_CSUM,
        Features::GUEST_TSO4,
        Features::GUEST_TSO6,
        Features::GUEST_USO4,
        Features::GUEST_USO6,
    ];
    let none: &[usize] = &[];
    for (flags, kind, needed) in [(0, 0, none), (1, 0, &[0]), (0, 1, &[1]), (0, 4, &[2]), (0, 5, &[3, 4])] {
        for (missing, feature) in all.into_iter().enumerate() {
            let mut guest = Guest::new(8, without(linux(), feature));
            let mut bench = Bench::serving(&guest);
            guest.post(0, 2048);
            let expected = if needed.contains(&missing) { Err(SendError::Offload) } else { Ok(()) };
            assert_eq!(bench.port.send(0, &header(flags, kind), None), expected, "{flags} {kind} {missing}");
        }
    }
    for kind in [2, 3, 6, 0x81, 255] {
        let mut guest = Guest::new(8, linux());
        let mut bench = Bench::serving(&guest);
        guest.post(0, 2048);
        assert_eq!(bench.port.send(0, &header(0, kind), None), Err(SendError::Offload), "{kind}");
    }
}

#[test]
fn a_guest_may_receive_into_the_buffer_it_sends_from() {
    let mut guest = Guest::new(8, linux());
    let mut bench = Bench::serving(&guest);
    let whole = frame(1000, 5);
    guest.transmit(0, &[&whole]);
    guest.describe(guest.receive.addresses.descriptors, 0, BUFFERS + 4, 2000, WRITE, 0);
    guest.offer(false, 0);
    let mut batch = Batch::new();
    bench.port.receive(0, &mut batch).unwrap();
    let head = whole[..64].to_vec();
    bench.port.send(0, &head, Some((batch.chain(0), 64))).unwrap();
    bench.port.flush();
    // What the frame's start overwrote of its own rest is the guest's own doing; the length is right.
    assert_eq!(guest.collect(false), [(0, 1000)]);
}

#[test]
fn the_guest_is_called_exactly_when_it_wants_to_be() {
    for (wish, called) in [(Wish::Flags(0), true), (Wish::Flags(1), false)] {
        assert_eq!(is_called(without(linux(), Features::EVENT_IDX), wish), called);
    }
    // Two frames are published, from index 65535 to 1.
    for (event, called) in [(65_534, false), (65_535, true), (0, true), (1, false), (40_000, false)] {
        assert_eq!(is_called(linux(), Wish::Event(event)), called, "{event}");
    }
}

enum Wish {
    Flags(u16),
    Event(u16),
}

fn is_called(features: Features, wish: Wish) -> bool {
    let mut guest = Guest::new(8, features);
    guest.begin_at(65_535);
    let mut bench = Bench::serving(&guest);
    let available = guest.window(guest.transmit.addresses.available, 4 + 2 * 8 + 2);
    match wish {
        Wish::Flags(flags) => available.write_u16(0, flags),
        Wish::Event(event) => available.write_u16(4 + 2 * 8, event),
    }
    guest.transmit(0, &[&frame(64, 0)]);
    guest.transmit(1, &[&frame(64, 0)]);
    let mut batch = Batch::new();
    bench.port.receive(0, &mut batch).unwrap();
    bench.port.complete(0, 2);
    assert!(!guest.transmit.called.drain());
    bench.port.flush();
    let called = guest.transmit.called.drain();
    bench.port.flush();
    assert!(!guest.transmit.called.drain(), "nothing new, no call");
    called
}

#[test]
fn kicks_are_wanted_between_arming_and_suppressing_only() {
    for features in [linux(), without(linux(), Features::EVENT_IDX)] {
        let mut guest = Guest::new(8, features);
        guest.begin_at(7);
        let mut bench = Bench::serving(&guest);
        let wants_kick = |guest: &Guest| {
            let used = guest.window(guest.transmit.addresses.used, 4 + 8 * 8 + 2);
            if features.has(Features::EVENT_IDX) {
                used.read_u16(4 + 8 * 8) == guest.transmit.available
            } else {
                used.read_u16(0) & 1 == 0
            }
        };
        assert!(!wants_kick(&guest));
        assert!(!bench.port.arm_kicks(0));
        assert!(wants_kick(&guest));
        bench.port.suppress_kicks();
        guest.transmit(0, &[&frame(64, 0)]);
        assert!(!wants_kick(&guest));
        assert!(bench.port.arm_kicks(0), "a frame that came before arming is told of");
    }
}

#[test]
fn the_kick_descriptor_outlives_its_device_until_the_next_service() {
    let mut guest = Guest::new(8, linux());
    for fault in [false, true] {
        let mut bench = Bench::new();
        let mut start = guest.start();
        start.kick = Some(rustix::io::dup(&guest.transmit.call).unwrap());
        bench.command(Command::Start(Box::new(start)));
        assert!(bench.port.kick_fd(0).is_some());
        if fault {
            guest.offer(true, 8);
            assert!(bench.port.receive(0, &mut Batch::new()).is_err());
            assert!(bench.port.kick_fd(0).is_some());
            assert!(matches!(bench.port.service(), Some(PortEvent::Stopped { .. })));
        } else {
            assert!(matches!(bench.command(Command::Stop { pair: 0 }).0, Some(PortEvent::Stopped { .. })));
        }
        assert!(bench.port.kick_fd(0).is_some());
        assert!(bench.port.service().is_none());
        assert!(bench.port.kick_fd(0).is_none());
    }
}

#[test]
fn a_new_call_descriptor_is_used_at_once() {
    let guest = Guest::new(8, linux());
    let mut bench = Bench::serving(&guest);
    let fresh = platform::EventFd::new().unwrap();
    let call = Some(rustix::io::dup(&fresh).unwrap());
    let (event, _) = bench.command(Command::SetCall { ring: crate::pair::TRANSMIT, call });
    assert!(event.is_none());
    assert!(fresh.drain());
    assert!(!guest.transmit.called.drain());
}

#[test]
fn frames_of_one_flow_stay_in_one_pair_and_pairs_stop_alone() {
    let mut one = Guest::new(8, linux());
    let mut two = one.second_pair();
    let mut bench = Bench::serving(&one);
    bench.start_pair(1, &two);
    assert_eq!(bench.port.running(), [0, 1]);
    let mut batch = Batch::new();
    for (pair, guest) in [(0, &mut one), (1, &mut two)] {
        (0..8).for_each(|index| guest.post(index, 2048));
        guest.transmit(pair as u16, &[&frame(100, pair)]);
        assert_eq!(bench.port.receive(pair, &mut batch), Ok(1));
        bench.port.complete(pair, 1);
    }
    for spread in [0, 1, 2, 1, 1] {
        bench.port.send(spread, &frame(64, 0), None).unwrap();
    }
    bench.port.flush();
    assert_eq!((one.received().len(), two.received().len()), (2, 3));
    assert_eq!((one.collect(true), two.collect(true)), (vec![(0, 0)], vec![(1, 0)]));

    // What is wrong with one pair is no concern of the other's.
    two.offer(true, 8);
    assert!(bench.port.receive(1, &mut batch).is_err());
    assert!(matches!(bench.port.service(), Some(PortEvent::Stopped { pair: 1 })));
    assert!(bench.port.service().is_none());
    assert_eq!(bench.port.running(), [0]);
    bench.port.send(1, &frame(64, 0), None).unwrap();
    bench.port.flush();
    assert_eq!((one.received().len(), two.received().len()), (1, 0));
    let (event, bases) = bench.command(Command::Stop { pair: 0 });
    assert!(matches!(event, Some(PortEvent::Stopped { pair: 0 })));
    assert_eq!(bases, [3, 1]);
    assert_eq!(bench.port.send(0, &frame(64, 0), None), Err(SendError::Stopped));
}

#[test]
fn frames_taken_in_order_are_given_back_by_the_last_one() {
    let mut guest = Guest::new(8, linux().with(Features::IN_ORDER));
    let mut bench = Bench::serving(&guest);
    let mut batch = Batch::new();
    // Round the ring, chains of one and of two descriptors, and one that is refused.
    for round in 0..5_u16 {
        let first = round * 4 % 8;
        guest.transmit(first, &[&frame(64, 1)]);
        guest.transmit(first + 1, &[&frame(64, 2)[..12], &frame(64, 2)[12..]]);
        guest.transmit(first + 3, &[&[0; 5]]);
        assert_eq!(bench.port.receive(0, &mut batch), Ok(2));
        bench.port.complete(0, 1);
        bench.port.flush();
        let first = u32::from(first);
        assert_eq!(guest.collect(true), [(first, 0)]);
        bench.port.complete(0, 1);
        bench.port.flush();
        let done = guest.collect(true);
        assert_eq!(
            (done.len(), done[0]),
            (2, (first + 3, 0)),
            "both, and the last one's number where the first one is"
        );
    }
}
