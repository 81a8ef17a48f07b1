// SPDX-License-Identifier: Apache-2.0
//! The ring engine against the `virtio-queue` crate: the same guest, written twice, must see the same.

use std::fs::File;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::driver::{BUFFERS, Bench, Guest, INDIRECT, MEMORY_BYTES, linux, without};
use crate::batch::Batch;
use crate::chain::FRAME_BYTES_MIN;
use crate::features::Features;

const RING: u16 = 64;
/// Where indirect tables are, one page each.
const TABLES: u64 = BUFFERS + 0x30_0000;

#[derive(Clone, Debug)]
struct Frame {
    parts: Vec<u16>,
    indirect: bool,
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let parts = prop::collection::vec(1_u16..2000, 1..7).prop_filter("long enough", |parts| {
        parts.iter().map(|p| usize::from(*p)).sum::<usize>() >= FRAME_BYTES_MIN
    });
    let frame = (parts, any::<bool>()).prop_map(|(parts, indirect)| Frame { parts, indirect });
    prop::collection::vec(frame, 1..9)
}

/// Writes frames into a guest, with its wish to be called, and makes them available.
fn transmit(guest: &mut Guest, frames: &[Frame], event: u16) {
    let ring = guest.transmit.addresses.descriptors;
    let mut first = 0;
    let mut at = BUFFERS;
    for (index, frame) in frames.iter().enumerate() {
        let mut buffers = Vec::new();
        for (number, len) in frame.parts.iter().enumerate() {
            let bytes: Vec<u8> =
                (0..*len).map(|i| (usize::from(i) * 31 + number * 7 + index) as u8).collect();
            guest.write(at, &bytes);
            buffers.push((at, u32::from(*len)));
            at += u64::from(*len) + 5;
        }
        if frame.indirect {
            let table = TABLES + index as u64 * 4096;
            guest.describe_chain(table, 0, &buffers, 0);
            guest.describe(ring, first, table, 16 * buffers.len() as u32, INDIRECT, 0);
            guest.offer(true, first);
            first += 1;
        } else {
            guest.describe_chain(ring, first, &buffers, 0);
            guest.offer(true, first);
            first += buffers.len() as u16;
        }
    }
    let available = guest.window(guest.transmit.addresses.available, 6 + 2 * usize::from(RING));
    available.write_u16(available.len() - 2, event);
}

/// What the guest sees and the device read: frames by first descriptor, the used area, whether it was called.
type Seen = (Vec<(u16, Vec<u8>)>, Vec<u8>, bool);

fn used_area(guest: &Guest) -> Vec<u8> {
    guest.read(guest.transmit.addresses.used + 2, 2 + 8 * usize::from(RING))
}

fn ours(guest: &Guest, bench: &mut Bench) -> Seen {
    let mut batch = Batch::new();
    let count = bench.port.receive(0, &mut batch).unwrap();
    let read = batch.iter().map(|chain| {
        let mut bytes = vec![0; chain.len_bytes() + 1];
        assert_eq!(chain.copy_out(0, &mut bytes), chain.len_bytes());
        bytes.pop();
        (chain.head(), bytes)
    });
    let read = read.collect();
    bench.port.complete(0, count);
    bench.port.flush();
    (read, used_area(guest), guest.transmit.called.drain())
}

fn theirs(guest: &Guest, queue: &mut Queue, memory: &GuestMemoryMmap) -> Seen {
    let mut read = Vec::new();
    let chains: Vec<_> = queue.iter(memory).unwrap().collect();
    for chain in chains {
        let head = chain.head_index();
        let mut bytes = Vec::new();
        for descriptor in chain.readable() {
            let mut part = vec![0; descriptor.len() as usize];
            memory.read_slice(&mut part, descriptor.addr()).unwrap();
            bytes.extend(part);
        }
        queue.add_used(memory, head, 0).unwrap();
        read.push((head, bytes));
    }
    let called = queue.needs_notification(memory).unwrap();
    (read, used_area(guest), called)
}

fn oracle_queue(guest: &Guest, index: u16) -> (Queue, GuestMemoryMmap) {
    let file: File = guest.file.try_clone().unwrap();
    let range = (GuestAddress(0), MEMORY_BYTES as usize, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
    let mut queue = Queue::new(RING).unwrap();
    let place = guest.transmit.addresses;
    queue.set_size(RING);
    queue.try_set_desc_table_address(GuestAddress(place.descriptors)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(place.available)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(place.used)).unwrap();
    queue.set_event_idx(guest.features.has(Features::EVENT_IDX));
    queue.set_next_avail(index);
    queue.set_next_used(index);
    queue.set_ready(true);
    assert!(queue.is_valid(&memory));
    (queue, memory)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn our_engine_and_virtio_queue_show_a_guest_the_same(
        rounds in prop::collection::vec((frames(), -3_i16..10), 1..5),
        start in any::<u16>(),
        event_index in any::<bool>(),
    ) {
        let features = if event_index { linux() } else { without(linux(), Features::EVENT_IDX) };
        let (mut a, mut b) = (Guest::new(RING, features), Guest::new(RING, features));
        a.begin_at(start);
        b.begin_at(start);
        let mut bench = Bench::serving(&a);
        let (mut queue, memory) = oracle_queue(&b, start);
        // The oracle remembers the last index it notified for from its first question on.
        queue.needs_notification(&memory).unwrap();
        for (frames, event) in rounds {
            let event = a.transmit.available.wrapping_add_signed(event);
            transmit(&mut a, &frames, event);
            transmit(&mut b, &frames, event);
            let (ours, mut theirs) = (ours(&a, &mut bench), theirs(&b, &mut queue, &memory));
            if !event_index {
                // It ignores the guest's flag, here zero, and always calls; so do we then.
                theirs.2 = true;
            }
            prop_assert_eq!(ours, theirs);
        }
    }
}
