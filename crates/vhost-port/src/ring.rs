// SPDX-License-Identifier: Apache-2.0
//! The device's side of one split virtqueue (virtio 1.2, section 2.7).
//!
//! Indices run freely modulo 2^16. Between `next_used` and `next_available` lie the chains that the device holds,
//! between `next_available` and the guest's index those it has not looked at. All three are private; the
//! guest's index is read again only when the last one read is used up, and checked against the ring's size.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::chain::Table;
use crate::fault::RingFault;
use crate::memory::GuestMemory;
use crate::window::Window;

/// Most entries of a ring (section 2.7: a queue's size is at most 32768).
pub(crate) const RING_SIZE_MAX: u32 = 32768;

/// Available flag: the guest does not want to be notified.
const NO_INTERRUPT: u16 = 1;
/// Used flag: the device does not want to be notified.
const NO_NOTIFY: u16 = 1;
/// Offsets in the available and used areas.
const INDEX: usize = 2;
const ENTRIES: usize = 4;
const AVAILABLE_ENTRY_BYTES: usize = 2;
const USED_ENTRY_BYTES: usize = 8;

/// Where a ring is, in guest addresses, and its size in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAddresses {
    /// Entries.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available (driver) area.
    pub available: u64,
    /// The used (device) area.
    pub used: u64,
}

/// Why a ring cannot be where the VMM says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not a power of two of at most 32768.
    #[error("ring of {0} entries")]
    Size(u32),
    /// Not within one memory region, or misaligned.
    #[error("ring part at {0:#x} is misplaced")]
    Place(u64),
}

/// An index that runs freely modulo 2^16.
///
/// It takes 32 bits because compilers like to read a field of 16 bits with its neighbour, and a processor that has just
/// written one of the two then waits until all stores before are done, those to guest memory included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Index(u32);

impl Index {
    #[inline(always)]
    fn new(value: u16) -> Self {
        Self(value.into())
    }

    #[inline(always)]
    fn value(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    fn plus(self, count: u16) -> Self {
        Self::new(self.value().wrapping_add(count))
    }

    /// How far this one is ahead of `other`.
    #[inline(always)]
    fn ahead_of(self, other: Self) -> u16 {
        self.value().wrapping_sub(other.value())
    }
}

#[derive(Debug)]
pub(crate) struct Ring {
    size: u16,
    mask: u16,
    event_index: bool,
    descriptors: Window<'static>,
    available: Window<'static>,
    used: Window<'static>,
    /// The guest's index as last read.
    guest_index: Index,
    next_available: Index,
    next_used: Index,
    published: Index,
    call: Option<OwnedFd>,
    /// Holds the mapping of the windows above; dropped after them.
    memory: Arc<GuestMemory>,
}

impl Ring {
    /// Takes up a ring where the guest's used index says.
    pub(crate) fn new(
        addresses: RingAddresses,
        memory: &Arc<GuestMemory>,
        event_index: bool,
        call: Option<OwnedFd>,
    ) -> Result<Self, LayoutError> {
        let size = addresses.size;
        if !size.is_power_of_two() || u32::from(size) > RING_SIZE_MAX {
            return Err(LayoutError::Size(size.into()));
        }
        let entries = usize::from(size);
        // Both areas end in an event index, also where it is not used.
        let part = |gpa: u64, entry_bytes: usize, around: usize, align: usize| {
            let window = memory.window(gpa, entries * entry_bytes + around).filter(|w| w.is_aligned(align));
            let window = window.ok_or(LayoutError::Place(gpa))?;
            // SAFETY: the ring keeps `memory` and drops the window before it.
            Ok(unsafe { window.detach() })
        };
        let descriptors = part(addresses.descriptors, Table::ENTRY_BYTES, 0, 16)?;
        let available = part(addresses.available, AVAILABLE_ENTRY_BYTES, ENTRIES + 2, 2)?;
        let used = part(addresses.used, USED_ENTRY_BYTES, ENTRIES + 2, 4)?;
        let done = Index::new(used.acquire_u16(INDEX));
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
            call,
            memory: Arc::clone(memory),
        })
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn table(&self) -> Table<'_> {
        Table::new(self.descriptors)
    }

    /// Chains not looked at yet, reading the guest's index only if fewer than `wanted` are known.
    #[inline(always)]
    pub(crate) fn waiting(&mut self, wanted: u16) -> Result<u16, RingFault> {
        let known = self.guest_index.ahead_of(self.next_available);
        if known >= wanted {
            return Ok(known);
        }
        let guest_index = Index::new(self.available.acquire_u16(INDEX));
        let ahead = guest_index.ahead_of(self.next_used);
        let held = self.next_available.ahead_of(self.next_used);
        if ahead > self.size || ahead < held {
            let (available, used) = (guest_index.value(), self.next_used.value());
            return Err(RingFault::AvailableIndex { available, used, size: self.size });
        }
        self.guest_index = guest_index;
        Ok(ahead - held)
    }

    /// The first descriptor of the chain `ahead` of the next one; the caller knows that it waits.
    #[inline(always)]
    pub(crate) fn head(&self, ahead: u16) -> Result<u16, RingFault> {
        let entry = self.next_available.plus(ahead).value() & self.mask;
        let head = self.available.read_u16(ENTRIES + usize::from(entry) * AVAILABLE_ENTRY_BYTES);
        if head < self.size { Ok(head) } else { Err(RingFault::Head { head, size: self.size }) }
    }

    /// Takes `count` waiting chains.
    #[inline(always)]
    pub(crate) fn advance(&mut self, count: u16) {
        self.next_available = self.next_available.plus(count);
    }

    /// Position, below the ring's size, of the oldest chain held; `None` if none is.
    #[inline(always)]
    pub(crate) fn oldest(&self) -> Option<usize> {
        (self.next_used != self.next_available).then(|| usize::from(self.next_used.value() & self.mask))
    }

    /// Position, below the ring's size, of the chain `ahead` of the next one.
    #[inline(always)]
    pub(crate) fn position(&self, ahead: u16) -> usize {
        usize::from(self.next_available.plus(ahead).value() & self.mask)
    }

    /// Gives a chain back, not yet visibly; `written` bytes of it were filled.
    #[inline(always)]
    pub(crate) fn put(&mut self, head: u16, written: u32) {
        let entry = ENTRIES + usize::from(self.next_used.value() & self.mask) * USED_ENTRY_BYTES;
        self.used.write_u32(entry, u32::from(head));
        self.used.write_u32(entry + 4, written);
        self.next_used = self.next_used.plus(1);
    }

    /// Makes visible what was given back; notifies the guest if it asked for that.
    #[inline(always)]
    pub(crate) fn publish(&mut self) {
        if self.published == self.next_used {
            return;
        }
        let before = self.published;
        self.published = self.next_used;
        self.used.release_u16(INDEX, self.next_used.value());
        // The guest writes its wish, then reads our index; we write our index, then read its wish. Without this fence
        // both could read the old value, and nobody would wake (section 2.7.13.4.1).
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = Index::new(self.available.read_u16(self.available.len() - 2));
            self.next_used.ahead_of(event).wrapping_sub(1) < self.next_used.ahead_of(before)
        } else {
            self.available.read_u16(0) & NO_INTERRUPT == 0
        };
        if wanted {
            self.call();
        }
    }

    /// Notifies the guest.
    pub(crate) fn call(&self) {
        if let Some(call) = &self.call {
            // A full counter is a pending notification, and a broken descriptor is the VMM's loss alone.
            let _ = rustix::io::write(call, &1_u64.to_ne_bytes());
        }
    }

    /// Takes another way of notifying, and uses it once: the guest may have missed one on the old way.
    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
        self.call();
    }

    /// Asks the guest for a notification when it makes the next chain available. Tells whether one waits already,
    /// in which case no notification may come.
    pub(crate) fn arm(&mut self) -> Result<bool, RingFault> {
        if self.event_index {
            self.used.write_u16(self.used.len() - 2, self.next_available.value());
        } else {
            self.used.write_u16(0, 0);
        }
        // As in `publish`, with the roles exchanged.
        fence(Ordering::SeqCst);
        Ok(self.waiting(1)? > 0)
    }

    /// Asks the guest not to notify; it may do so all the same.
    pub(crate) fn suppress(&mut self) {
        // With an event index, the one that `arm` wrote is passed and will not be met again for 65536 chains.
        if !self.event_index {
            self.used.write_u16(0, NO_NOTIFY);
        }
    }

    /// The used index that the guest sees.
    pub(crate) fn used_index(&self) -> u16 {
        self.published.value()
    }

    /// Hints at the parts of the chain `ahead` that [`Ring::head`] and a walk from `head` will read.
    #[inline(always)]
    pub(crate) fn prefetch_descriptor(&self, head: u16) {
        self.descriptors.prefetch(usize::from(head) * Table::ENTRY_BYTES);
    }
}
