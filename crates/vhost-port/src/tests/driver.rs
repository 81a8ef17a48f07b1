// SPDX-License-Identifier: Apache-2.0
//! A guest in a memfd with the driver's side of two rings.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use platform::EventFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::device::Rings;
use crate::features::Features;
use crate::link::{Command, Envelope, Start};
use crate::memory::{GuestMemory, RegionRequest};
use crate::pair::{Bases, RINGS};
use crate::port::{Port, PortEvent};
use crate::ring::{Call, RingAddresses, Split};
use crate::shared::Shared;
use crate::window::Window;

pub(crate) const MEMORY_BYTES: u64 = 8 << 20;
/// What the pretended VMM adds to a guest address.
pub(crate) const VMM_BASE: u64 = 0x7f00_0000_0000;
/// Where buffers begin; rings lie below.
pub(crate) const BUFFERS: u64 = 0x10_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Everything that a Linux guest accepts from us, unless it is told to use packed rings.
pub(crate) fn linux() -> Features {
    without(Features::offered(true), Features::IN_ORDER.with(Features::RING_PACKED).with(Features::LOG_ALL))
}

pub(crate) fn without(features: Features, bit: Features) -> Features {
    Features(features.0 & !bit.0)
}

/// A sealed memfd.
pub(crate) fn memfd(size_bytes: u64) -> File {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(fd);
    file.set_len(size_bytes).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    file
}

/// The driver's side of one ring.
pub(crate) struct DriverRing {
    pub(crate) addresses: RingAddresses,
    pub(crate) call: OwnedFd,
    pub(crate) called: EventFd,
    pub(crate) kick: EventFd,
    pub(crate) available: u16,
    pub(crate) seen: u16,
}

pub(crate) struct Guest {
    pub(crate) file: File,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) receive: DriverRing,
    pub(crate) transmit: DriverRing,
    pub(crate) features: Features,
}

impl DriverRing {
    fn new(base: u64, size: u16) -> Self {
        let addresses =
            RingAddresses { size, descriptors: base, available: base + 0x10000, used: base + 0x20000 };
        let (called, kick) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let call = rustix::io::dup(&called).unwrap();
        Self { addresses, call, called, kick, available: 0, seen: 0 }
    }

    /// Another handle of the descriptor that the device notifies through.
    pub(crate) fn call(&self) -> Call {
        Call::new(Some(rustix::io::dup(&self.call).unwrap()))
    }
}

impl Guest {
    pub(crate) fn new(size: u16, features: Features) -> Self {
        let file = memfd(MEMORY_BYTES);
        let memory = Arc::new(map(&file));
        let (receive, transmit) = (DriverRing::new(0, size), DriverRing::new(0x40000, size));
        Self { file, memory, receive, transmit, features }
    }

    /// Another queue pair of the same guest.
    pub(crate) fn second_pair(&self) -> Self {
        let size = self.receive.addresses.size;
        let (receive, transmit) = (DriverRing::new(0x80000, size), DriverRing::new(0xc0000, size));
        let (file, memory) = (self.file.try_clone().unwrap(), Arc::clone(&self.memory));
        Self { file, memory, receive, transmit, features: self.features }
    }

    /// Sets both rings' indices, as if that many frames had gone through.
    pub(crate) fn begin_at(&mut self, index: u16) {
        let memory = Arc::clone(&self.memory);
        for ring in [&mut self.receive, &mut self.transmit] {
            ring.available = index;
            ring.seen = index;
            memory.window(ring.addresses.available, 4).unwrap().write_u16(2, index);
            memory.window(ring.addresses.used, 4).unwrap().write_u16(2, index);
        }
    }

    pub(crate) fn window(&self, gpa: u64, len: usize) -> Window<'_> {
        self.memory.window(gpa, len).unwrap()
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        assert_eq!(self.window(gpa, bytes.len()).copy_in(bytes), bytes.len());
    }

    pub(crate) fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.window(gpa, len).copy_out(&mut out);
        out
    }

    /// Writes a descriptor into a table at `table`.
    pub(crate) fn describe(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }

    /// A table's descriptors from `first` on, one for each buffer.
    pub(crate) fn describe_chain(&self, table: u64, first: u16, buffers: &[(u64, u32)], flags: u16) {
        for (index, (address, len)) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            let (next_flag, next) = if last { (0, 0) } else { (NEXT, index + 1) };
            self.describe(table, index, *address, *len, flags | next_flag, next);
        }
    }

    /// Makes a descriptor available and publishes it.
    pub(crate) fn offer(&mut self, transmit: bool, head: u16) {
        let memory = Arc::clone(&self.memory);
        let ring = if transmit { &mut self.transmit } else { &mut self.receive };
        let size = ring.addresses.size;
        let window = memory.window(ring.addresses.available, 6 + 2 * usize::from(size)).unwrap();
        window.write_u16(4 + 2 * usize::from(ring.available % size), head);
        ring.available = ring.available.wrapping_add(1);
        window.release_u16(2, ring.available);
    }

    /// Sends a frame of one buffer per part, through descriptors from `first` on. Buffers lie one after another from
    /// `BUFFERS + first * 0x1000` on.
    pub(crate) fn transmit(&mut self, first: u16, parts: &[&[u8]]) {
        let mut at = BUFFERS + u64::from(first) * 0x1000;
        let mut buffers = Vec::new();
        for part in parts {
            self.write(at, part);
            buffers.push((at, part.len() as u32));
            at += part.len() as u64;
        }
        self.describe_chain(self.transmit.addresses.descriptors, first, &buffers, 0);
        self.offer(true, first);
    }

    /// Posts a receive buffer of `len` bytes at descriptor `index`.
    pub(crate) fn post(&mut self, index: u16, len: u32) {
        let address = BUFFERS + 0x40_0000 + u64::from(index) * 0x4000;
        self.describe(self.receive.addresses.descriptors, index, address, len, WRITE, 0);
        self.offer(false, index);
    }

    /// Asks for a call when the next chain is given back.
    pub(crate) fn want_call(&self, transmit: bool) {
        let ring = if transmit { &self.transmit } else { &self.receive };
        let window = self.window(ring.addresses.available, 6 + 2 * usize::from(ring.addresses.size));
        window.write_u16(window.len() - 2, ring.seen);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// Chains given back since the last call: first descriptor and bytes written.
    pub(crate) fn collect(&mut self, transmit: bool) -> Vec<(u32, u32)> {
        let memory = Arc::clone(&self.memory);
        let ring = if transmit { &mut self.transmit } else { &mut self.receive };
        let size = usize::from(ring.addresses.size);
        let window = memory.window(ring.addresses.used, 4 + 8 * size).unwrap();
        let index = window.acquire_u16(2);
        let mut done = Vec::new();
        while ring.seen != index {
            let entry = window.skip(4 + 8 * (usize::from(ring.seen) % size));
            let mut bytes = [0; 8];
            entry.copy_out(&mut bytes);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            done.push((word(0), word(4)));
            ring.seen = ring.seen.wrapping_add(1);
        }
        done
    }

    /// Receives what was posted and filled: the frames.
    pub(crate) fn received(&mut self) -> Vec<Vec<u8>> {
        let done = self.collect(false);
        self.frames_in(&done)
    }

    /// The frames in buffers that were given back, merged from as many buffers as their headers say. Those that were not
    /// filled are left out.
    pub(crate) fn frames_in(&self, done: &[(u32, u32)]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut done = done.iter().filter(|(_, len)| *len > 0);
        while let Some((head, len)) = done.next() {
            let mut frame = self.buffer(*head, *len);
            let buffers = u16::from_le_bytes([frame[10], frame[11]]);
            for _ in 1..buffers {
                let (head, len) = done.next().expect("all buffers of a frame appear at once");
                frame.extend(self.buffer(*head, *len));
            }
            frames.push(frame);
        }
        frames
    }

    fn buffer(&self, head: u32, len: u32) -> Vec<u8> {
        let mut address = [0; 8];
        self.window(self.receive.addresses.descriptors + 16 * u64::from(head), 8).copy_out(&mut address);
        self.read(u64::from_le_bytes(address), len as usize)
    }

    /// Rings as the port takes them up.
    pub(crate) fn start(&self) -> Start {
        self.start_with(|memory| {
            let ring = |ring: &DriverRing| {
                let event_index = self.features.has(Features::EVENT_IDX);
                Split::new(ring.addresses, memory, event_index, ring.call()).unwrap()
            };
            Rings::Split([ring(&self.receive), ring(&self.transmit)])
        })
    }

    /// As [`Guest::start`], with rings of any kind.
    pub(crate) fn start_with(&self, rings: impl FnOnce(&Arc<GuestMemory>) -> Rings) -> Start {
        let memory = Arc::new(map(&self.file));
        Start {
            pair: 0,
            rings: rings(&memory),
            addresses: [self.receive.addresses, self.transmit.addresses],
            kick: None,
            features: self.features,
            memory,
            marks: None,
        }
    }
}

/// Fills both descriptor rings of sixteen, and both driver areas, with what is nearly right.
pub(crate) fn scribble_packed(guest: &Guest, words: &[[u8; 8]]) {
    let mut words = words.iter();
    for ring in [&guest.receive, &guest.transmit] {
        for slot in 0..16 {
            let Some([kind, near, nearer, len, longer, flags, turn, id]) = words.next() else { return };
            let offset = u64::from(u16::from_le_bytes([*near, *nearer]));
            let address = if kind % 4 == 0 { offset << (kind % 49) } else { BUFFERS + offset };
            let len = u32::from(u16::from_le_bytes([*len, *longer])) << if kind & 0x80 != 0 { 16 } else { 0 };
            let id = if kind & 0x40 != 0 { u16::from(*id) } else { u16::from(*id % 16) };
            let flags = u16::from(*flags % 8) | u16::from(*turn & 1) << 7 | u16::from(*turn >> 1 & 1) << 15;
            guest.describe(ring.addresses.descriptors, slot, address, len, id, flags);
            guest.describe(BUFFERS, slot, address, len, id, flags);
        }
        let Some(wish) = words.next() else { return };
        guest.write(ring.addresses.available, &wish[..4]);
    }
}

pub(crate) fn region(file: &File) -> RegionRequest {
    RegionRequest {
        gpa: 0,
        size_bytes: MEMORY_BYTES,
        vmm_address: VMM_BASE,
        file_offset: 0,
        file: file.try_clone().unwrap(),
    }
}

fn map(file: &File) -> GuestMemory {
    GuestMemory::map(vec![region(file)]).unwrap()
}

/// A port without a socket.
pub(crate) struct Bench {
    pub(crate) port: Port,
    commands: SyncSender<Envelope>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let (commands, inbox) = sync_channel(1);
        let shared = Arc::new(Shared::new("test".into()).unwrap());
        Self { port: Port::new(inbox, shared), commands }
    }

    /// A port that serves a guest.
    pub(crate) fn serving(guest: &Guest) -> Self {
        let mut bench = Self::new();
        bench.start(guest);
        // A start notifies, whatever happened before.
        assert!(guest.receive.called.drain());
        assert!(guest.transmit.called.drain());
        bench
    }

    pub(crate) fn start(&mut self, guest: &Guest) {
        self.start_pair(0, guest);
    }

    pub(crate) fn start_pair(&mut self, pair: usize, guest: &Guest) {
        let start = Start { pair, ..guest.start() };
        let (event, _) = self.command(Command::Start(Box::new(start)));
        assert!(matches!(event, Some(PortEvent::Started { .. })));
    }

    pub(crate) fn command(&mut self, command: Command) -> (Option<PortEvent>, Bases) {
        let (done, answer) = sync_channel(1);
        self.commands.try_send(Envelope { command, done }).unwrap();
        let event = self.port.service();
        assert_eq!(RINGS, 2);
        (event, answer.try_recv().unwrap())
    }
}

/// A virtio-net header without offloads, and a frame of `len` bytes in all that tells itself apart.
pub(crate) fn frame(len: usize, seed: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (at, byte) in bytes.iter_mut().enumerate().skip(crate::VNET_HEADER_BYTES) {
        *byte = (at * 7 + at / 251 + seed * 13) as u8;
    }
    bytes
}
