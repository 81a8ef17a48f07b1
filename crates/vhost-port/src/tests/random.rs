// SPDX-License-Identifier: Apache-2.0
//! Rings full of anything: the port may stop or drop, but never panic, hang or touch anything else.

use proptest::prelude::*;

use super::driver::{BUFFERS, Bench, Guest, MEMORY_BYTES, frame, linux};
use crate::batch::Batch;
use crate::features::Features;

const RING: u16 = 16;

/// A descriptor that is often nearly right, so that walks get somewhere.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        4 => BUFFERS..BUFFERS + 0x1000,
        1 => MEMORY_BYTES - 100..MEMORY_BYTES + 100,
        1 => 0..0x80000_u64,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => 1..2000_u32, 1 => (0..70_u32).prop_map(|n| n * 16), 1 => any::<u32>()];
    let flags = prop_oneof![4 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![4 => 0..RING, 1 => any::<u16>()];
    (address, len, flags, next)
}

#[derive(Debug, Clone)]
struct Ring {
    descriptors: Vec<(u64, u32, u16, u16)>,
    heads: Vec<u16>,
    index: u16,
}

fn ring() -> impl Strategy<Value = Ring> {
    let head = prop_oneof![8 => 0..RING, 1 => any::<u16>()];
    let index = prop_oneof![8 => 0..=RING, 1 => any::<u16>()];
    let descriptors = prop::collection::vec(descriptor(), usize::from(RING));
    (descriptors, prop::collection::vec(head, usize::from(RING)), index)
        .prop_map(|(descriptors, heads, index)| Ring { descriptors, heads, index })
}

fn write(guest: &Guest, transmit: bool, ring: &Ring) {
    let place = if transmit { guest.transmit.addresses } else { guest.receive.addresses };
    for (index, (address, len, flags, next)) in (0..).zip(&ring.descriptors) {
        guest.describe(place.descriptors, index, *address, *len, *flags, *next);
        // The same once more where indirect tables are likely to point.
        guest.describe(BUFFERS, index, *address, *len, *flags, *next);
    }
    let available = guest.window(place.available, 4 + 2 * usize::from(RING));
    for (at, head) in ring.heads.iter().enumerate() {
        available.write_u16(4 + 2 * at, *head);
    }
    available.write_u16(2, ring.index);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_rings_stop_the_port_or_drop_frames_and_no_more(
        rounds in prop::collection::vec((ring(), ring(), 0..40_usize), 1..4),
        mergeable in any::<bool>(),
    ) {
        let features = if mergeable { linux() } else { super::driver::without(linux(), Features::MRG_RXBUF) };
        let guest = Guest::new(RING, features);
        let mut peer = Guest::new(RING, linux());
        (0..RING).for_each(|index| peer.post(index, 1526));
        let (mut bench, mut other) = (Bench::serving(&guest), Bench::serving(&peer));
        let mut batch = Batch::new();
        for (transmit, receive, completed) in rounds {
            write(&guest, true, &transmit);
            write(&guest, false, &receive);
            let count = bench.port.receive(0, &mut batch).unwrap_or(0);
            prop_assert!(count <= usize::from(RING));
            let head = frame(128, 0);
            for chain in batch.iter() {
                prop_assert!(chain.len_bytes() <= 68 * 1024);
                let bytes = frame(12, 0);
                let _ = other.port.send(0, &bytes, Some((chain, 12)));
            }
            for _ in 0..4 {
                let _ = bench.port.send(0, &head, None);
            }
            // Kept until after the ring has changed.
            bench.port.expect_to_send(0, completed);
            for _ in 0..4 {
                let _ = bench.port.send(0, &head, None);
            }
            bench.port.complete(0, completed);
            bench.port.arm_kicks(0);
            bench.port.suppress_kicks();
            bench.port.flush();
            other.port.flush();
        }
        prop_assert!(other.port.is_running(), "the neighbour does not notice");
    }
}
