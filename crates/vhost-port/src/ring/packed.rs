// SPDX-License-Identifier: Apache-2.0
//! The device's side of one packed virtqueue (virtio 1.2, section 2.8).
//!
//! Driver and device write into the same ring of descriptors. A slot is available in a lap when its two flags differ and
//! the first equals that lap's wrap counter; it is used when both equal it. Chains lie one after another, so the
//! next chain's place is known only from the length of the one before; lengths are read once, when a chain is first
//! looked at, and kept.
//!
//! As in a split ring, `next_used` to `next_available` is what the device holds. Everything given back goes into the
//! [`Journal`] first, and from there into the ring when it is published.

use std::sync::Arc;

use platform::write_then_read;

use super::journal::{Entry, Step};
use super::{Call, Head, Journal, LayoutError, Position, RING_SIZE_MAX, RingAddresses, Vring, part};
use crate::chain::{self, CHAIN_DESCRIPTORS_MAX, Direction, Rules, Table, Tally};
use crate::fault::{ChainFault, RingFault};
use crate::memory::GuestMemory;
use crate::window::Window;

/// Descriptor flags of this kind of ring, besides those of both.
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Where length, id and flags are in a descriptor, as one word.
const STATE: usize = 8;
const WRAP: u16 = 1 << 15;
/// Event suppression areas (section 2.8.14): a position, then flags.
const EVENT_BYTES: usize = 4;
const EVENT_DISABLE: u16 = 1;
const EVENT_POSITION: u16 = 2;
/// A position that is none: it tells a device area that was written from one that the driver has just made.
const NO_POSITION: u16 = u16::MAX;

#[derive(Debug)]
pub(crate) struct Packed {
    size: u16,
    event_index: bool,
    descriptors: Window<'static>,
    driver: Window<'static>,
    device: Window<'static>,
    next_available: Position,
    next_used: Position,
    published: Position,
    /// What the guest was told of, if it wanted to be.
    told: Position,
    journal: Journal,
    call: Call,
    /// Holds the mapping of the windows above; dropped after them.
    memory: Arc<GuestMemory>,
}

impl Packed {
    /// Takes up a ring where the journal says, if it is of this very ring, else where the VMM says: `base`.
    pub(crate) fn new(
        addresses: RingAddresses,
        memory: &Arc<GuestMemory>,
        event_index: bool,
        call: Call,
        base: u32,
        journal: Journal,
    ) -> Result<Self, LayoutError> {
        let size = addresses.size;
        // The lower half is where the next available chain is, and what was available but not used is gone with
        // whoever had it; both halves are equal from everyone who returns chains in order.
        let base = base as u16;
        if size == 0 || u32::from(size) > RING_SIZE_MAX || base & !WRAP >= size {
            return Err(LayoutError::Size(size.into()));
        }
        let descriptors = part(memory, addresses.descriptors, usize::from(size) * Table::ENTRY_BYTES, 16)?;
        let driver = part(memory, addresses.available, EVENT_BYTES, 4)?;
        let device = part(memory, addresses.used, EVENT_BYTES, 4)?;
        let at = Position::new(base);
        let mut ring = Self {
            size,
            event_index,
            descriptors,
            driver,
            device,
            next_available: at,
            next_used: at,
            published: at,
            told: at,
            journal,
            call,
            memory: Arc::clone(memory),
        };
        ring.resume();
        ring.journal.begin(memory.owner(), ring.next_used);
        Ok(ring)
    }

    /// Goes on where a predecessor ended, and ends what it had begun.
    fn resume(&mut self) {
        // The driver zeroes the device area when it makes the ring; we never leave it so.
        if self.device.read_u32(0) == 0 {
            return;
        }
        let Some((step, entries)) = self.journal.last(self.memory.owner()) else { return };
        let slots = entries.iter().map(|entry| entry.at).chain([step.from, step.to]);
        if slots.into_iter().any(|at| slot(at) >= self.size) {
            return;
        }
        let first = self.descriptors.acquire_u64(state_of(step.from));
        if is_available((first >> 48) as u16, step.from)
            && let [first, rest @ ..] = &entries[..]
        {
            rest.iter().for_each(|entry| show(&self.descriptors, *entry));
            show(&self.descriptors, *first);
        }
        (self.next_available, self.next_used) = (step.to, step.to);
        (self.published, self.told) = (step.to, step.to);
    }

    /// The place `slots` further on, at most one lap.
    #[inline(always)]
    fn further(&self, at: Position, slots: u16) -> Position {
        let slot = u32::from(slot(at)) + u32::from(slots);
        let wrap = at.value() & WRAP;
        let size = u32::from(self.size);
        // Below the size, which fits 16 bits.
        if slot < size {
            Position::new(slot as u16 | wrap)
        } else {
            Position::new((slot - size) as u16 | (wrap ^ WRAP))
        }
    }

    /// Slots from the oldest chain held up to a place ahead of it: at most the ring's size.
    #[inline(always)]
    fn held_until(&self, at: Position) -> u16 {
        let lap = if (at.value() ^ self.next_used.value()) & WRAP != 0 { self.size } else { 0 };
        lap.wrapping_add(slot(at)).wrapping_sub(slot(self.next_used))
    }
}

#[inline(always)]
fn slot(at: Position) -> u16 {
    at.value() & !WRAP
}

/// Where the state word of the descriptor at a place is.
#[inline(always)]
fn state_of(at: Position) -> usize {
    usize::from(slot(at)) * Table::ENTRY_BYTES + STATE
}

/// Writes one used element; whoever sees it sees what was written before.
#[inline(always)]
fn show(descriptors: &Window<'_>, entry: Entry) {
    let turn = if entry.at.value() & WRAP != 0 { AVAILABLE | USED } else { 0 };
    let flags = turn | if entry.written > 0 { chain::WRITE } else { 0 };
    let state = u64::from(entry.written) | u64::from(entry.id) << 32 | u64::from(flags) << 48;
    descriptors.release_u64(state_of(entry.at), state);
}

/// Whether a driver with this wish wants to know of what was published in a ring of `size` between two places.
#[inline(always)]
fn is_call_wanted(wish: u32, event_index: bool, size: u16, before: Position, after: Position) -> bool {
    let (event, flags) = (wish as u16, (wish >> 16) as u16 & 3);
    match flags {
        EVENT_DISABLE => false,
        EVENT_POSITION if event_index => {
            // All three relative to the current lap, modulo 2^16 as for a split ring.
            let lap = |at: u16| {
                let other = (at ^ after.value()) & WRAP != 0;
                (at & !WRAP).wrapping_sub(if other { size } else { 0 })
            };
            let since_event = slot(after).wrapping_sub(lap(event)).wrapping_sub(1);
            since_event < slot(after).wrapping_sub(lap(before.value()))
        }
        _ => true,
    }
}

/// Whether a slot with these flags is available in the lap of `at`.
#[inline(always)]
fn is_available(flags: u16, at: Position) -> bool {
    let wrap = at.value() & WRAP != 0;
    (flags & AVAILABLE != 0) == wrap && (flags & USED != 0) != wrap
}

impl Vring for Packed {
    const BUFFERS_MAX: usize = Journal::ENTRIES_MAX;

    #[inline(always)]
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn size(&self) -> u16 {
        self.size
    }

    fn base(&self) -> u32 {
        let at = u32::from(self.published.value());
        at | at << 16
    }

    #[inline(always)]
    fn next(&self) -> Position {
        self.next_available
    }

    #[inline(always)]
    fn after(&self, at: Position, head: Head) -> Position {
        self.further(at, head.slots)
    }

    #[inline(always)]
    fn peek(&mut self, at: Position) -> Result<Option<Head>, RingFault> {
        let mut state = self.descriptors.acquire_u64(state_of(at));
        if !is_available((state >> 48) as u16, at) {
            return Ok(None);
        }
        let room = self.size - self.held_until(at);
        let mut slots = 0;
        loop {
            if slots == room {
                return Err(RingFault::Endless { size: self.size });
            }
            slots += 1;
            if (state >> 48) as u16 & chain::NEXT == 0 {
                break;
            }
            state = self.descriptors.read_u64(state_of(self.further(at, slots)));
        }
        let id = (state >> 32) as u16;
        if id >= self.size {
            return Err(RingFault::Head { head: id, size: self.size });
        }
        Ok(Some(Head { id, first: slot(at), slots }))
    }

    #[inline(always)]
    fn prefetch_descriptor(&self, head: Head) {
        // The chain after this one: this one has just been read.
        self.descriptors.prefetch((usize::from(head.first) + usize::from(head.slots)) * Table::ENTRY_BYTES);
    }

    #[inline(always)]
    fn lone_buffer(&self, head: Head, direction: Direction) -> Option<Window<'_>> {
        Table::new(self.descriptors).read_packed(head.first.into()).lone_buffer(&self.memory, direction)
    }

    #[inline(always)]
    fn walk<'s>(
        &self,
        memory: &'s GuestMemory,
        head: Head,
        rules: &Rules,
        mut push: impl FnMut(Window<'s>),
    ) -> Result<usize, ChainFault> {
        if usize::from(head.slots) > CHAIN_DESCRIPTORS_MAX {
            return Err(ChainFault::Loop);
        }
        let ring = Table::new(self.descriptors);
        let mut tally = Tally::default();
        let mut index = usize::from(head.first);
        for _ in 0..head.slots {
            let descriptor = ring.read_packed(index);
            index = if index + 1 == usize::from(self.size) { 0 } else { index + 1 };
            if !descriptor.is_indirect() {
                push(tally.add(memory, rules, &descriptor)?);
                continue;
            }
            // Alone, and its descriptors are all in use, in order (section 2.8.8).
            if head.slots > 1 {
                return Err(ChainFault::Nested);
            }
            let table = rules.indirect_table(memory, &descriptor)?;
            for inner in 0..table.entries() {
                let descriptor = table.read_packed(inner);
                if descriptor.is_indirect() {
                    return Err(ChainFault::Nested);
                }
                // DPDK's driver (22.11) marks the header, which comes first, as one to be written; it is read all the same.
                let descriptor = match rules.direction {
                    Direction::FromGuest => descriptor.read_only(),
                    Direction::ToGuest => descriptor,
                };
                push(tally.add(memory, rules, &descriptor)?);
            }
        }
        tally.total()
    }

    #[inline(always)]
    fn take(&mut self, head: Head) {
        self.next_available = self.further(self.next_available, head.slots);
    }

    #[inline(always)]
    fn make_room(&mut self, chains: usize) {
        if self.journal.room() < chains {
            write_then_read(|| _ = self.show(), || ());
            self.tell();
        }
    }

    #[inline(always)]
    fn put(&mut self, head: Head, written: u32) {
        self.make_room(1);
        self.journal.add(Entry { at: self.next_used, id: head.id, written });
        self.next_used = self.further(self.next_used, head.slots);
    }

    #[inline(always)]
    fn show(&mut self) -> bool {
        if self.published == self.next_used {
            return false;
        }
        let step = Step { from: self.published, to: self.next_used };
        self.published = self.next_used;
        let descriptors = self.descriptors;
        self.journal.step(step, |entry| show(&descriptors, entry));
        true
    }

    #[inline(always)]
    fn tell(&mut self) {
        let (before, after) = (std::mem::replace(&mut self.told, self.published), self.published);
        if before == after {
            return;
        }
        if is_call_wanted(self.driver.read_u32(0), self.event_index, self.size, before, after) {
            self.call.notify();
        }
    }

    fn call(&mut self) -> &mut Call {
        &mut self.call
    }

    fn arm(&mut self) -> Result<bool, RingFault> {
        let wish = if self.event_index {
            u32::from(self.next_available.value()) | u32::from(EVENT_POSITION) << 16
        } else {
            NO_POSITION.into()
        };
        // The guest makes chains available, then reads our wish.
        let device = self.device;
        write_then_read(|| device.write_u32(0, wish), || self.peek(self.next_available))
            .map(|head| head.is_some())
    }

    fn suppress(&mut self) {
        self.device.write_u32(0, u32::from(NO_POSITION) | u32::from(EVENT_DISABLE) << 16);
    }
}
