// SPDX-License-Identifier: Apache-2.0
//! The device's side of one split virtqueue (virtio 1.2, section 2.7).
//!
//! Indices run freely modulo 2^16. Between `next_used` and `next_available` lie the chains that the device holds,
//! between `next_available` and the guest's index those it has not looked at. All three are private; the
//! guest's index is read again only when the last one read is used up, and checked against the ring's size.

use std::sync::Arc;

use platform::write_then_read;

use super::{Call, Head, LayoutError, Position, RING_SIZE_MAX, RingAddresses, Vring, part};
use crate::chain::{Direction, Rules, Table};
use crate::fault::{ChainFault, RingFault};
use crate::memory::GuestMemory;
use crate::window::Window;

/// Available flag: the guest does not want to be notified.
const NO_INTERRUPT: u16 = 1;
/// Used flag: the device does not want to be notified.
const NO_NOTIFY: u16 = 1;
/// Offsets in the available and used areas.
const INDEX: usize = 2;
const ENTRIES: usize = 4;
const AVAILABLE_ENTRY_BYTES: usize = 2;
const USED_ENTRY_BYTES: usize = 8;

#[derive(Debug)]
pub(crate) struct Split {
    size: u16,
    mask: u16,
    event_index: bool,
    descriptors: Window<'static>,
    available: Window<'static>,
    used: Window<'static>,
    /// The guest's index as last read.
    guest_index: Position,
    next_available: Position,
    next_used: Position,
    published: Position,
    /// What the guest was told of, if it wanted to be.
    told: Position,
    call: Call,
    /// Holds the mapping of the windows above; dropped after them.
    memory: Arc<GuestMemory>,
}

impl Split {
    /// Takes up a ring where the guest's used index says.
    pub(crate) fn new(
        addresses: RingAddresses,
        memory: &Arc<GuestMemory>,
        event_index: bool,
        call: Call,
    ) -> Result<Self, LayoutError> {
        let size = addresses.size;
        if !size.is_power_of_two() || u32::from(size) > RING_SIZE_MAX {
            return Err(LayoutError::Size(size.into()));
        }
        let entries = usize::from(size);
        // Both areas end in an event index, also where it is not used.
        let around = ENTRIES + 2;
        let descriptors = part(memory, addresses.descriptors, entries * Table::ENTRY_BYTES, 16)?;
        let available = part(memory, addresses.available, entries * AVAILABLE_ENTRY_BYTES + around, 2)?;
        let used = part(memory, addresses.used, entries * USED_ENTRY_BYTES + around, 4)?;
        let done = Position::new(used.acquire_u16(INDEX));
        Ok(Self {
            size,
            mask: size - 1,
            event_index,
            descriptors,
            available,
            used,
            guest_index: done,
            next_available: done,
            next_used: done,
            published: done,
            told: done,
            call,
            memory: Arc::clone(memory),
        })
    }

    /// Reads the guest's index; tells whether a chain waits at `at`, up to which all that waited is known.
    fn look(&mut self, at: Position) -> Result<bool, RingFault> {
        let guest_index = Position::new(self.available.acquire_u16(INDEX));
        let ahead = guest_index.ahead_of(self.next_used);
        if ahead > self.size || ahead < at.ahead_of(self.next_used) {
            let (available, used) = (guest_index.value(), self.next_used.value());
            return Err(RingFault::AvailableIndex { available, used, size: self.size });
        }
        self.guest_index = guest_index;
        Ok(guest_index != at)
    }
}

impl Vring for Split {
    const BUFFERS_MAX: usize = RING_SIZE_MAX as usize;

    #[inline(always)]
    fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    fn size(&self) -> u16 {
        self.size
    }

    fn base(&self) -> u32 {
        self.published.value().into()
    }

    #[inline(always)]
    fn next(&self) -> Position {
        self.next_available
    }

    #[inline(always)]
    fn after(&self, at: Position, _head: Head) -> Position {
        at.plus(1)
    }

    #[inline(always)]
    fn peek(&mut self, at: Position) -> Result<Option<Head>, RingFault> {
        if at == self.guest_index && !self.look(at)? {
            return Ok(None);
        }
        let entry = usize::from(at.value() & self.mask);
        let id = self.available.read_u16(ENTRIES + entry * AVAILABLE_ENTRY_BYTES);
        if id >= self.size {
            return Err(RingFault::Head { head: id, size: self.size });
        }
        Ok(Some(Head { id, first: id, slots: 1 }))
    }

    #[inline(always)]
    fn prefetch_descriptor(&self, head: Head) {
        self.descriptors.prefetch(usize::from(head.first) * Table::ENTRY_BYTES);
    }

    #[inline(always)]
    fn lone_buffer(&self, head: Head, direction: Direction) -> Option<Window<'_>> {
        Table::new(self.descriptors).read(head.first.into()).lone_buffer(&self.memory, direction)
    }

    #[inline(always)]
    fn walk<'s>(
        &self,
        memory: &'s GuestMemory,
        head: Head,
        rules: &Rules,
        push: impl FnMut(Window<'s>),
    ) -> Result<usize, ChainFault> {
        Table::new(self.descriptors).walk(memory, head.first, rules, push)
    }

    #[inline(always)]
    fn take(&mut self, _head: Head) {
        self.next_available = self.next_available.plus(1);
    }

    #[inline(always)]
    fn put(&mut self, head: Head, written: u32) {
        let entry = ENTRIES + usize::from(self.next_used.value() & self.mask) * USED_ENTRY_BYTES;
        self.used.write_u32_pair(entry, [head.id.into(), written]);
        self.next_used = self.next_used.plus(head.slots);
    }

    #[inline(always)]
    fn show(&mut self) -> bool {
        if self.published == self.next_used {
            return false;
        }
        self.published = self.next_used;
        self.used.release_u16(INDEX, self.published.value());
        true
    }

    #[inline(always)]
    fn tell(&mut self) {
        let (before, after) = (std::mem::replace(&mut self.told, self.published), self.published);
        if before == after {
            return;
        }
        let wanted = if self.event_index {
            let event = Position::new(self.available.read_u16(self.available.len() - 2));
            after.ahead_of(event).wrapping_sub(1) < after.ahead_of(before)
        } else {
            self.available.read_u16(0) & NO_INTERRUPT == 0
        };
        if wanted {
            self.call.notify();
        }
    }

    fn call(&mut self) -> &mut Call {
        &mut self.call
    }

    fn arm(&mut self) -> Result<bool, RingFault> {
        let (used, at, event_index) = (self.used, self.next_available, self.event_index);
        let wish = || {
            if event_index {
                used.write_u16(used.len() - 2, at.value());
            } else {
                used.write_u16(0, 0);
            }
        };
        // The guest writes its index, then reads our wish.
        write_then_read(wish, || self.peek(at)).map(|head| head.is_some())
    }

    fn suppress(&mut self) {
        // With an event index, the one that `arm` wrote is passed and will not be met again for 65536 chains.
        if !self.event_index {
            self.used.write_u16(0, NO_NOTIFY);
        }
    }
}
