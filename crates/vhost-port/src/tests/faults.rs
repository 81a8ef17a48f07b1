// SPDX-License-Identifier: Apache-2.0
//! Rings as a hostile guest writes them.

use super::driver::{BUFFERS, Bench, Guest, INDIRECT, MEMORY_BYTES, NEXT, WRITE, frame, linux, without};
use crate::batch::Batch;
use crate::fault::{ChainFault, RingFault, SendError};
use crate::features::Features;
use crate::port::PortEvent;

/// Ring and scratch table addresses of a guest with rings of eight.
const TABLE: u64 = BUFFERS + 0x20_0000;

/// A chain of the transmit ring, beginning at descriptor 2, that must be refused.
struct Case {
    name: &'static str,
    fault: ChainFault,
    features: Features,
    write: fn(&Guest, u64),
}

fn cases() -> Vec<Case> {
    use ChainFault as F;
    let case = |name, fault, write| Case { name, fault, features: linux(), write };
    let mut cases = vec![
        case("next at the table's end", F::DescriptorIndex, |g, ring| {
            g.describe(ring, 2, BUFFERS, 64, NEXT, 8)
        }),
        case("next far away", F::DescriptorIndex, |g, ring| g.describe(ring, 2, BUFFERS, 64, NEXT, 65_535)),
        case("loop of one", F::Loop, |g, ring| g.describe(ring, 2, BUFFERS, 64, NEXT, 2)),
        case("loop of two", F::Loop, |g, ring| {
            g.describe(ring, 2, BUFFERS, 64, NEXT, 3);
            g.describe(ring, 3, BUFFERS, 64, NEXT, 2);
        }),
        case("loop in an indirect table", F::Loop, |g, ring| {
            g.describe(ring, 2, TABLE, 32, INDIRECT, 0);
            g.describe(TABLE, 0, BUFFERS, 64, NEXT, 1);
            g.describe(TABLE, 1, BUFFERS, 64, NEXT, 0);
        }),
        case("next outside an indirect table", F::DescriptorIndex, |g, ring| {
            g.describe(ring, 2, TABLE, 32, INDIRECT, 0);
            g.describe(TABLE, 0, BUFFERS, 64, NEXT, 2);
        }),
        case("address outside memory", F::Address, |g, ring| g.describe(ring, 2, MEMORY_BYTES, 64, 0, 0)),
        case("buffer across the end", F::Address, |g, ring| g.describe(ring, 2, MEMORY_BYTES - 63, 64, 0, 0)),
        case("address that wraps", F::Address, |g, ring| g.describe(ring, 2, u64::MAX - 10, 64, 0, 0)),
        case("indirect table outside memory", F::Address, |g, ring| {
            g.describe(ring, 2, MEMORY_BYTES - 16, 32, INDIRECT, 0);
        }),
        case("no bytes", F::Empty, |g, ring| g.describe(ring, 2, BUFFERS, 0, 0, 0)),
        case("no bytes at the end", F::Empty, |g, ring| {
            g.describe(ring, 2, BUFFERS, 64, NEXT, 3);
            g.describe(ring, 3, BUFFERS, 0, 0, 0);
        }),
        case("four gigabytes", F::TooLong, |g, ring| g.describe(ring, 2, BUFFERS, u32::MAX, 0, 0)),
        case("a byte too long", F::TooLong, |g, ring| g.describe(ring, 2, BUFFERS, 68 * 1024 + 1, 0, 0)),
        case("too long in sum", F::TooLong, |g, ring| {
            g.describe(ring, 2, BUFFERS, 60 * 1024, NEXT, 3);
            g.describe(ring, 3, BUFFERS, 60 * 1024, 0, 0);
        }),
        case("a byte too short", F::TooShort, |g, ring| g.describe(ring, 2, BUFFERS, 25, 0, 0)),
        case("writable", F::Direction, |g, ring| g.describe(ring, 2, BUFFERS, 64, WRITE, 0)),
        case("writable at the end", F::Direction, |g, ring| {
            g.describe(ring, 2, BUFFERS, 64, NEXT, 3);
            g.describe(ring, 3, BUFFERS, 64, WRITE, 0);
        }),
        case("indirect in indirect", F::Nested, |g, ring| {
            g.describe(ring, 2, TABLE, 32, INDIRECT, 0);
            g.describe(TABLE, 0, TABLE, 32, INDIRECT, 0);
        }),
        case("indirect with next", F::Nested, |g, ring| g.describe(ring, 2, TABLE, 32, INDIRECT | NEXT, 3)),
        case("indirect of odd length", F::IndirectLength, |g, ring| {
            g.describe(ring, 2, TABLE, 33, INDIRECT, 0);
        }),
        case("indirect of none", F::IndirectLength, |g, ring| g.describe(ring, 2, TABLE, 0, INDIRECT, 0)),
        case("indirect of too many", F::IndirectLength, |g, ring| {
            g.describe(ring, 2, TABLE, 16 * 1025, INDIRECT, 0);
        }),
        case("indirect misaligned", F::IndirectAlignment, |g, ring| {
            g.describe(ring, 2, TABLE + 4, 32, INDIRECT, 0);
        }),
    ];
    cases.push(Case {
        name: "indirect not negotiated",
        fault: F::IndirectRefused,
        features: without(linux(), Features::INDIRECT_DESC),
        write: |g, ring| g.describe(ring, 2, TABLE, 32, INDIRECT, 0),
    });
    cases
}

#[test]
fn a_malformed_frame_is_counted_and_passed_over_in_order() {
    for case in cases() {
        let mut guest = Guest::new(8, case.features);
        let mut bench = Bench::serving(&guest);
        let mut batch = Batch::new();
        guest.transmit(0, &[&frame(64, 1)]);
        (case.write)(&guest, guest.transmit.addresses.descriptors);
        guest.offer(true, 2);
        guest.transmit(4, &[&frame(80, 2)]);

        assert_eq!(bench.port.receive(0, &mut batch), Ok(2), "{}", case.name);
        assert_eq!(batch.iter().map(|c| (c.head(), c.len_bytes())).collect::<Vec<_>>(), [(0, 64), (4, 80)]);
        let faults = bench.port.counters().chain_faults;
        assert_eq!(faults[case.fault as usize], 1, "{}", case.name);
        assert_eq!(faults.iter().sum::<u64>(), 1, "{}", case.name);
        bench.port.complete(0, 2);
        bench.port.flush();
        assert_eq!(guest.collect(true), [(0, 0), (2, 0), (4, 0)], "{}", case.name);
        assert!(bench.port.is_running());
    }
}

#[test]
fn every_fault_has_a_case_and_a_counter_of_its_own() {
    let cases = cases();
    for (position, fault) in ChainFault::ALL.into_iter().enumerate() {
        assert_eq!(fault as usize, position);
        assert!(cases.iter().any(|case| case.fault == fault), "{fault}");
    }
}

#[test]
fn a_batch_of_malformed_frames_only_is_given_back_at_once() {
    let mut guest = Guest::new(8, linux());
    let mut bench = Bench::serving(&guest);
    for head in 0..3 {
        guest.describe(guest.transmit.addresses.descriptors, head, BUFFERS, 0, 0, 0);
        guest.offer(true, head);
    }
    assert_eq!(bench.port.receive(0, &mut Batch::new()), Ok(0));
    bench.port.flush();
    assert_eq!(guest.collect(true), [(0, 0), (1, 0), (2, 0)]);
}

#[test]
fn a_malformed_receive_buffer_is_given_back_empty_with_those_before_it() {
    type Write = fn(&Guest, u64);
    let cases: [(ChainFault, Write); 5] = [
        (ChainFault::Direction, |g, ring| g.describe(ring, 1, BUFFERS, 2048, 0, 0)),
        (ChainFault::Address, |g, ring| g.describe(ring, 1, MEMORY_BYTES, 2048, WRITE, 0)),
        (ChainFault::Empty, |g, ring| g.describe(ring, 1, BUFFERS, 0, WRITE, 0)),
        (ChainFault::Loop, |g, ring| g.describe(ring, 1, BUFFERS, 10, WRITE | NEXT, 1)),
        (ChainFault::TooShort, |g, ring| g.describe(ring, 1, BUFFERS, 20, WRITE, 0)),
    ];
    for (fault, write) in cases {
        let mut guest = Guest::new(8, linux());
        let mut bench = Bench::serving(&guest);
        guest.post(0, 100);
        write(&guest, guest.receive.addresses.descriptors);
        guest.offer(false, 1);
        guest.post(2, 2048);
        assert_eq!(bench.port.send(0, &frame(1000, 0), None), Err(SendError::Chain(fault)));
        assert_eq!(bench.port.counters().chain_faults[fault as usize], 1);
        bench.port.send(0, &frame(1000, 0), None).unwrap();
        bench.port.flush();
        assert_eq!(guest.collect(false), [(0, 0), (1, 0), (2, 1000)], "{fault}");
    }
}

#[test]
fn an_available_index_that_jumps_or_runs_backwards_stops_the_port() {
    for index in [9, 0x7fff, 65_535] {
        let mut guest = Guest::new(8, linux());
        let mut bench = Bench::serving(&guest);
        guest.window(guest.transmit.addresses.available, 4).write_u16(2, index);
        let fault = RingFault::AvailableIndex { available: index, used: 0, size: 8 };
        assert_eq!(bench.port.receive(0, &mut Batch::new()), Err(fault));
        assert!(!bench.port.is_running());
        assert_eq!(bench.port.receive(0, &mut Batch::new()), Ok(0));
        assert!(matches!(bench.port.service(), Some(PortEvent::Stopped { .. })));
        assert!(bench.port.service().is_none());

        bench.start(&{
            guest.begin_at(0);
            guest
        });
        assert!(bench.port.is_running(), "a new start heals");
    }
}

#[test]
fn an_available_index_behind_what_is_held_stops_the_port() {
    let mut guest = Guest::new(8, linux());
    let mut bench = Bench::serving(&guest);
    for slot in 0..4 {
        guest.transmit(slot, &[&frame(64, 0)]);
    }
    let mut batch = Batch::new();
    assert_eq!(bench.port.receive(0, &mut batch), Ok(4));
    guest.window(guest.transmit.addresses.available, 4).write_u16(2, 3);
    assert!(matches!(bench.port.receive(0, &mut batch), Err(RingFault::AvailableIndex { .. })));
    assert!(batch.is_empty());
    bench.port.complete(0, 4);
    bench.port.flush();
    assert_eq!(bench.port.counters().ring_faults, 1);
}

#[test]
fn a_head_outside_the_table_stops_the_port_in_both_directions() {
    let fault = RingFault::Head { head: 8, size: 8 };
    let mut guest = Guest::new(8, linux());
    let mut bench = Bench::serving(&guest);
    guest.offer(true, 8);
    assert_eq!(bench.port.receive(0, &mut Batch::new()), Err(fault));

    let mut guest = Guest::new(8, linux());
    let mut bench = Bench::serving(&guest);
    guest.offer(false, 8);
    assert_eq!(bench.port.send(0, &frame(64, 0), None), Err(SendError::Ring(fault)));
    assert!(!bench.port.is_running());
    assert!(!bench.port.arm_kicks(0));
}

#[test]
fn an_impossible_index_found_while_arming_stops_the_port() {
    let guest = Guest::new(8, linux());
    let mut bench = Bench::serving(&guest);
    guest.window(guest.transmit.addresses.available, 4).write_u16(2, 100);
    assert!(!bench.port.arm_kicks(0));
    assert!(!bench.port.is_running());
}
