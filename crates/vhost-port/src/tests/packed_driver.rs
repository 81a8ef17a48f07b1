// SPDX-License-Identifier: Apache-2.0
//! The driver's side of packed rings, written from the specification (virtio 1.2, section 2.8) and nothing else.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};

use super::driver::{Bench, DriverRing, Guest, INDIRECT, NEXT, WRITE};
use crate::device::Rings;
use crate::features::Features;
use crate::link::{Command, Start};
use crate::pair::RINGS;
use crate::port::PortEvent;
use crate::ring::{Journal, Packed};

const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// What the driver is to write: its buffers, whether the device may write them, and whether through a table.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) buffers: Vec<(u64, u32)>,
    pub(crate) writable: bool,
    /// Where the table is, if the chain goes through one.
    pub(crate) table: Option<u64>,
}

/// One ring as its driver sees it.
pub(crate) struct PackedRing {
    place: crate::ring::RingAddresses,
    next: u16,
    wrap: bool,
    used: u16,
    used_wrap: bool,
    /// Slots in use.
    busy: u16,
    /// Length in slots of each chain that the device has, by id.
    chains: HashMap<u16, u16>,
    ids: Vec<u16>,
}

/// A guest whose rings are packed.
pub(crate) struct PackedGuest {
    pub(crate) guest: Guest,
    pub(crate) receive: PackedRing,
    pub(crate) transmit: PackedRing,
    /// Where positions are written down, if they are.
    pub(crate) journal: Option<PathBuf>,
    /// What the VMM says of where the rings stand.
    pub(crate) bases: [u32; RINGS],
}

impl PackedRing {
    fn new(ring: &DriverRing) -> Self {
        let place = ring.addresses;
        // Ids in no particular order: they are the driver's own affair.
        let ids = (0..place.size).rev().collect();
        Self { place, next: 0, wrap: true, used: 0, used_wrap: true, busy: 0, chains: HashMap::new(), ids }
    }

    pub(crate) fn has_room_for(&self, chain: &Chain) -> bool {
        let slots = if chain.table.is_some() { 1 } else { chain.buffers.len() };
        usize::from(self.place.size - self.busy) >= slots && !self.ids.is_empty()
    }

    /// Where the next chain will be, as positions are written.
    pub(crate) fn position(&self) -> u16 {
        self.next | u16::from(self.wrap) << 15
    }

    /// Makes a chain available: its first flags last. Returns its id.
    pub(crate) fn offer(&mut self, guest: &Guest, chain: &Chain) -> u16 {
        let id = self.ids.pop().unwrap();
        let write = if chain.writable { WRITE } else { 0 };
        let mut slots = Vec::new();
        if let Some(table) = chain.table {
            for (index, (address, len)) in (0..).zip(&chain.buffers) {
                guest.describe(table, index, *address, *len, 0, write);
            }
            slots.push((table, 16 * chain.buffers.len() as u32, INDIRECT));
        } else {
            let last = chain.buffers.len() - 1;
            for (index, (address, len)) in chain.buffers.iter().enumerate() {
                slots.push((*address, *len, if index == last { write } else { write | NEXT }));
            }
        }
        let first = (self.next, slots[0].2 | self.turn());
        for (index, (address, len, flags)) in slots.iter().enumerate() {
            let flags = if index == 0 { !self.turn() & (AVAILABLE | USED) } else { flags | self.turn() };
            guest.describe(self.place.descriptors, self.next, *address, *len, id, flags);
            self.next += 1;
            if self.next == self.place.size {
                self.next = 0;
                self.wrap = !self.wrap;
            }
        }
        self.chains.insert(id, slots.len() as u16);
        self.busy += slots.len() as u16;
        guest.window(self.place.descriptors + 16 * u64::from(first.0), 16).release_u16(14, first.1);
        id
    }

    fn turn(&self) -> u16 {
        if self.wrap { AVAILABLE } else { USED }
    }

    /// Chains given back: id and bytes written.
    pub(crate) fn collect(&mut self, guest: &Guest) -> Vec<(u16, u32)> {
        let mut done = Vec::new();
        loop {
            let slot = guest.window(self.place.descriptors + 16 * u64::from(self.used), 16);
            let flags = slot.acquire_u16(14);
            let both = if self.used_wrap { AVAILABLE | USED } else { 0 };
            if flags & (AVAILABLE | USED) != both || self.busy == 0 {
                return done;
            }
            let (id, len) = (slot.read_u16(12), slot.read_u32(8));
            assert_eq!(flags & WRITE != 0, len > 0, "the device says whether it wrote");
            let slots = self.chains.remove(&id).expect("only what was given is given back");
            self.ids.push(id);
            self.busy -= slots;
            self.used += slots;
            if self.used >= self.place.size {
                self.used -= self.place.size;
                self.used_wrap = !self.used_wrap;
            }
            done.push((id, len));
        }
    }

    /// Where the next used element will be.
    pub(crate) fn used_position(&self) -> u16 {
        self.used | u16::from(self.used_wrap) << 15
    }

    /// Wants to be called: always, never, or when a position is used.
    pub(crate) fn wish(&self, guest: &Guest, flags: u16, position: u16) {
        let area = guest.window(self.place.available, 4);
        area.write_u32(0, u32::from(position) | u32::from(flags) << 16);
        fence(Ordering::SeqCst);
    }

    /// Whether the device wants a kick for the chains made available since `before` (section 2.8.21.3.1).
    pub(crate) fn kick_wanted(&self, guest: &Guest, before: u16) -> bool {
        fence(Ordering::SeqCst);
        let wish = guest.window(self.place.used, 4).read_u32(0);
        let (position, flags) = (wish as u16, wish >> 16);
        if flags != 2 {
            return flags != 1;
        }
        let lap = |at: u16| {
            let other = (at >> 15 == 1) != self.wrap;
            i32::from(at & 0x7fff) - if other { i32::from(self.place.size) } else { 0 }
        };
        (lap(before)..i32::from(self.next)).contains(&lap(position))
    }
}

impl PackedGuest {
    pub(crate) fn new(size: u16, features: Features) -> Self {
        let guest = Guest::new(size, features.with(Features::RING_PACKED));
        let (receive, transmit) = (PackedRing::new(&guest.receive), PackedRing::new(&guest.transmit));
        Self { guest, receive, transmit, journal: None, bases: [1 << 15; RINGS] }
    }

    /// Rings as the port takes them up.
    pub(crate) fn start(&self) -> Start {
        self.guest.start_with(|memory| {
            let open = |ring: usize, driver: &DriverRing| {
                let path = self.journal.as_ref().map(|path| path.with_added_extension(ring.to_string()));
                let journal = Journal::open(path.as_deref()).unwrap();
                let event_index = self.guest.features.has(Features::EVENT_IDX);
                let (place, call, base) = (driver.addresses, driver.call(), self.bases[ring]);
                Packed::new(place, memory, event_index, call, base, journal).unwrap()
            };
            Rings::Packed([open(0, &self.guest.receive), open(1, &self.guest.transmit)])
        })
    }
}

impl PackedGuest {
    /// A port that serves the guest.
    pub(crate) fn serving(&self) -> Bench {
        let mut bench = Bench::new();
        self.serve_with(&mut bench);
        bench
    }

    /// Has a port serve the guest.
    pub(crate) fn serve_with(&self, bench: &mut Bench) {
        let (event, _) = bench.command(Command::Start(Box::new(self.start())));
        assert!(matches!(event, Some(PortEvent::Started { .. })));
        // A start notifies, whatever happened before.
        assert!(self.guest.transmit.called.drain() && self.guest.receive.called.drain());
    }
}

/// A place for journals.
pub(crate) fn journal_in(folder: &Path) -> Option<PathBuf> {
    Some(folder.join("ring"))
}
