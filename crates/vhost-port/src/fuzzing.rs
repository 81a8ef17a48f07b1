// SPDX-License-Identifier: Apache-2.0
//! Rings full of anything, of two guests on one poll thread: frames of the first go to the second, whose own rings are
//! in order.

use crate::batch::Batch;
use crate::features::Features;
use crate::outgoing::Outgoing;
use crate::tests::driver::{BUFFERS, Bench, Guest, MEMORY_BYTES, linux, scribble_packed, without};
use crate::tests::packed_driver::PackedGuest;

/// Descriptors of a ring.
const RING: u16 = 16;
/// Times that the first guest rewrites its rings.
const ROUNDS_MAX: usize = 4;
/// Bytes that describe one descriptor: what its address is near to, the distance, length, flags, next.
const DESCRIPTOR_BYTES: usize = 8;
/// Bytes that describe a ring: its descriptors, its heads, and the index.
const RING_BYTES: usize = (DESCRIPTOR_BYTES + 1) * RING as usize + 2;

/// Bytes that describe both packed rings and what the guest wants to be told of.
const PACKED_ROUND_BYTES: usize = 2 * 8 * (RING as usize + 1);

/// One run: features, then for each round what both rings hold.
pub fn run(bytes: &[u8]) {
    let Some((&features, rest)) = bytes.split_first() else { return };
    if features & 0x80 != 0 {
        return run_packed(rest);
    }
    let mut offered = linux();
    for (bit, feature) in [Features::MRG_RXBUF, Features::EVENT_IDX].into_iter().enumerate() {
        if features & 1 << bit != 0 {
            offered = without(offered, feature);
        }
    }
    let guest = Guest::new(RING, offered);
    let mut peer = Guest::new(RING, linux());
    (0..RING).for_each(|index| peer.post(index, 1526));
    let (mut bench, mut other) = (Bench::serving(&guest), Bench::serving(&peer));
    let mut batch = Batch::new();
    for round in rest.as_chunks::<{ 2 * RING_BYTES + 1 }>().0.iter().take(ROUNDS_MAX) {
        let (completed, rings) = (usize::from(round[0]), &round[1..]);
        write(&guest, true, &rings[..RING_BYTES]);
        write(&guest, false, &rings[RING_BYTES..]);
        let count = bench.port.receive(0, &mut batch).unwrap_or(0);
        assert!(count <= usize::from(RING), "no more frames than descriptors");
        let _ = other.port.send_all(count, |number| Outgoing {
            spread: 0,
            header: 0,
            head: &[],
            rest: Some((batch.chain(number), crate::VNET_HEADER_BYTES)),
        });
        send_some(&mut bench, completed);
        bench.port.complete(0, completed);
        bench.port.arm_kicks(0);
        bench.port.suppress_kicks();
        bench.port.flush();
        other.port.flush();
    }
    assert!(other.port.is_running(), "the neighbour noticed");
}

/// The same for packed rings, with nobody beside.
fn run_packed(bytes: &[u8]) {
    let guest = PackedGuest::new(RING, linux());
    let mut bench = guest.serving();
    let mut batch = Batch::new();
    for round in bytes.chunks(PACKED_ROUND_BYTES).take(ROUNDS_MAX) {
        let words = round.as_chunks::<8>().0;
        scribble_packed(&guest.guest, words);
        let count = bench.port.receive(0, &mut batch).unwrap_or(0);
        assert!(count <= usize::from(RING), "no more frames than descriptors");
        send_some(&mut bench, usize::from(round[0] / 20));
        bench.port.complete(0, usize::from(round[0] % 20));
        bench.port.arm_kicks(0);
        bench.port.suppress_kicks();
        bench.port.flush();
    }
}

/// Sends frames of several lengths together, for some of which buffers were looked at before; the guest may have rewritten
/// its ring since.
fn send_some(bench: &mut Bench, ahead: usize) {
    let bytes = [7; 3000];
    let lens = [100, 1500, 100, bytes.len()];
    let _ = bench.port.send_all(lens.len(), |number| Outgoing {
        spread: 0,
        header: 0,
        head: &bytes[..lens[number]],
        rest: None,
    });
    bench.port.expect_to_send(0, ahead);
}

/// Fills one ring, and the place where indirect tables are likely to lie, as `bytes` say.
fn write(guest: &Guest, transmit: bool, bytes: &[u8]) {
    let place = if transmit { guest.transmit.addresses } else { guest.receive.addresses };
    let (descriptors, rest) = bytes.split_at(DESCRIPTOR_BYTES * usize::from(RING));
    for (index, descriptor) in (0..).zip(descriptors.as_chunks::<DESCRIPTOR_BYTES>().0) {
        let [kind, near, nearer, len, longer, flags, next, _] = *descriptor;
        let offset = u64::from(u16::from_le_bytes([near, nearer]));
        let address = match kind % 8 {
            0 => MEMORY_BYTES.wrapping_sub(100).wrapping_add(offset),
            1 => offset << 3,
            2 => offset << 48,
            _ => BUFFERS + offset % 0x1000,
        };
        let len = u32::from(u16::from_le_bytes([len, longer]));
        let len = if kind & 0x80 != 0 { len << 16 | 0xffff } else { len };
        let flags = if kind & 0x40 != 0 { u16::from(flags) << 8 } else { u16::from(flags % 8) };
        let next = if kind & 0x20 != 0 { u16::from(next) << 8 } else { u16::from(next) % RING };
        guest.describe(place.descriptors, index, address, len, flags, next);
        guest.describe(BUFFERS, index, address, len, flags, next);
    }
    let (heads, index) = rest.split_at(usize::from(RING));
    let available = guest.window(place.available, 4 + 2 * usize::from(RING));
    for (at, head) in heads.iter().enumerate() {
        let head = if head & 0x80 != 0 { u16::from(*head) << 8 } else { u16::from(*head) % RING };
        available.write_u16(4 + 2 * at, head);
    }
    let index = u16::from_le_bytes([index[0], index[1]]);
    // Mostly indices that a ring can hold.
    available.write_u16(2, if index & 0x8000 != 0 { index } else { index % (RING + 1) });
}
