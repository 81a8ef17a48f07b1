// SPDX-License-Identifier: Apache-2.0
//! Pages that the device wrote are marked, and hardly any others.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use model::SocketMode;
use platform::EventFd;

use super::driver::{BUFFERS, Bench, Guest, MEMORY_BYTES, frame, linux, memfd};
use super::frontend::{Frontend, PollThread, SET_FEATURES, SET_LOG_BASE, Scratch, open_at};
use super::packed_driver::{Chain, PackedGuest};
use crate::batch::Batch;
use crate::features::Features;
use crate::link::{Command, Start};
use crate::log::{DirtyLog, Marks};

const PAGE: usize = 4096;
const PAGES: usize = MEMORY_BYTES as usize / PAGE;

/// A VMM's bitmap.
struct Bitmap {
    file: File,
    log: Arc<DirtyLog>,
}

impl Bitmap {
    fn new() -> Self {
        let file = memfd(PAGES as u64 / 8);
        let log = Arc::new(DirtyLog::map(&file, PAGES as u64 / 8, 0).unwrap());
        Self { file, log }
    }

    /// Pages marked since the last call.
    fn take(&self) -> Vec<usize> {
        let mut bits = [0; PAGES / 8];
        self.file.read_exact_at(&mut bits, 0).unwrap();
        self.file.write_all_at(&[0; PAGES / 8], 0).unwrap();
        (0..PAGES).filter(|page| bits[page / 8] & 1 << (page % 8) != 0).collect()
    }

    fn start(&self, start: Start, packed: bool) -> Command {
        let marks = Some(Marks::new(&self.log, &start.memory, &start.addresses, packed));
        Command::Start(Box::new(Start { marks, ..start }))
    }
}

fn contents(guest: &Guest) -> Vec<u8> {
    guest.read(0, MEMORY_BYTES as usize)
}

/// All that a device does, while the guest does nothing.
fn work(bench: &mut Bench, round: usize) {
    let mut batch = Batch::new();
    let count = bench.port.receive(0, &mut batch).unwrap();
    bench.port.complete(0, count);
    for seed in 0..3 {
        bench.port.send(0, &frame(5000, round + seed), None).unwrap();
    }
    bench.port.flush();
    bench.port.arm_kicks(0);
    bench.port.suppress_kicks();
}

/// Every page that changed must be marked.
fn check(before: &[u8], after: &[u8], marked: &[usize], name: &str) {
    let changed = |page: &usize| before[page * PAGE..][..PAGE] != after[page * PAGE..][..PAGE];
    let changed: Vec<usize> = (0..PAGES).filter(changed).collect();
    assert!(changed.len() > 3, "{name}: it works");
    for page in &changed {
        assert!(marked.contains(page), "{name}: page {page} was written");
    }
    assert!(marked.len() < changed.len() + 16, "{name}: {marked:?} for {changed:?}");
}

#[test]
fn every_page_that_a_split_device_writes_is_marked() {
    for features in [linux(), super::driver::without(linux(), Features::EVENT_IDX)] {
        let mut guest = Guest::new(64, features);
        let bitmap = Bitmap::new();
        let mut bench = Bench::new();
        bench.command(bitmap.start(guest.start(), false));
        for round in 0..40 {
            for slot in 0..6 {
                guest.post((round as u16 * 6 + slot) % 64, 3000);
            }
            guest.transmit(round as u16 % 64, &[&frame(100, round)]);
            bitmap.take();
            let before = contents(&guest);
            work(&mut bench, round);
            check(&before, &contents(&guest), &bitmap.take(), "split");
            assert_eq!((guest.received().len(), guest.collect(true).len()), (3, 1));
        }
    }
}

#[test]
fn looking_ahead_writes_nothing_that_is_not_marked() {
    for marked in [true, false] {
        let mut guest = Guest::new(64, linux());
        guest.write(BUFFERS, &vec![0xa5; (MEMORY_BYTES - BUFFERS) as usize]);
        (0..8).for_each(|index| guest.post(index, 3000));
        let bitmap = Bitmap::new();
        let mut bench = Bench::new();
        bench.command(if marked {
            bitmap.start(guest.start(), false)
        } else {
            Command::Start(Box::new(guest.start()))
        });
        bitmap.take();
        let before = contents(&guest);
        bench.port.expect_to_send(0, Batch::FRAMES_MAX);
        assert_eq!(
            before == contents(&guest),
            marked,
            "claims are writes, and left out while these are logged"
        );
        assert!(bitmap.take().is_empty());
    }
}

#[test]
fn every_page_that_a_packed_device_writes_is_marked() {
    let mut guest = PackedGuest::new(300, linux());
    let bitmap = Bitmap::new();
    let mut bench = Bench::new();
    bench.command(bitmap.start(guest.start(), true));
    for round in 0..120 {
        for slot in 0..6 {
            let address = BUFFERS + 0x10_0000 + (round * 6 + slot) % 100 * 0x4000;
            let chain = Chain { buffers: vec![(address, 3000)], writable: true, table: None };
            guest.receive.offer(&guest.guest, &chain);
        }
        let chain = Chain { buffers: vec![(BUFFERS, 100)], writable: false, table: None };
        guest.transmit.offer(&guest.guest, &chain);
        bitmap.take();
        let before = contents(&guest.guest);
        work(&mut bench, round as usize);
        check(&before, &contents(&guest.guest), &bitmap.take(), "packed");
        assert_eq!(guest.receive.collect(&guest.guest).len(), 6);
        assert_eq!(guest.transmit.collect(&guest.guest).len(), 1);
    }
}

#[test]
fn marking_begins_and_ends_when_the_vmm_says_so_and_nothing_is_lost() {
    let scratch = Scratch::new("dirty");
    let waker = Arc::new(EventFd::new().unwrap());
    let (a, _control_a) = open_at(&scratch.0.join("a"), SocketMode::Listen, &waker).unwrap();
    let (b, _control_b) = open_at(&scratch.0.join("b"), SocketMode::Listen, &waker).unwrap();
    let poll = PollThread::spawn(waker, vec![a, b]);
    let (mut one, mut two) = (Guest::new(64, linux()), Guest::new(64, linux()));
    let (vmm_one, vmm_two) =
        (Frontend::connect(&scratch.0.join("a")), Frontend::connect(&scratch.0.join("b")));
    vmm_one.handshake(&one);
    poll.started();
    vmm_two.handshake(&two);
    poll.started();
    let bitmap = Bitmap::new();
    let place: Vec<u8> = [PAGES as u64 / 8, 0_u64].iter().flat_map(|word| word.to_ne_bytes()).collect();
    vmm_two.send(SET_LOG_BASE, &place, &[bitmap.file.as_fd()]);
    vmm_two.reply(SET_LOG_BASE);
    poll.restarted();
    for (slot, logged) in [(0, false), (1, true), (2, false)] {
        let features = linux().0 | if logged { Features::LOG_ALL.0 } else { 0 };
        assert_eq!(vmm_two.ask(SET_FEATURES, &features.to_ne_bytes(), &[]), 0);
        if slot > 0 {
            poll.restarted();
        }
        two.post(slot, 2048);
        one.transmit(slot, &[&frame(300, slot.into())]);
        while two.received().is_empty() {
            std::thread::yield_now();
        }
        // The mark follows the write; what answers this has seen both.
        assert_eq!(vmm_two.ask(SET_FEATURES, &features.to_ne_bytes(), &[]), 0);
        let buffer = (BUFFERS as usize + 0x40_0000 + usize::from(slot) * 0x4000) / PAGE;
        assert_eq!(bitmap.take().contains(&buffer), logged, "{slot}");
    }
    let bad: Vec<u8> = [PAGES as u64, 0_u64].iter().flat_map(|word| word.to_ne_bytes()).collect();
    vmm_two.send(SET_LOG_BASE, &bad, &[bitmap.file.as_fd()]);
    assert!(vmm_two.is_hung_up(), "a bitmap larger than its file is refused");
    poll.disconnected();
}
