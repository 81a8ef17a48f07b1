// SPDX-License-Identifier: Apache-2.0
//! The device's side of one virtqueue, split or packed.
//!
//! Both kinds are used alike: chains are looked at from [`Vring::next`] on, [`Vring::take`]n in order, [`Vring::put`] back
//! in the same order, [`Vring::show`]n to the guest, and [`Vring::tell`]s it of that. Where a ring stands after its process died is its own
//! business: a split ring asks the guest's memory, a packed one its [`Journal`].

mod journal;
mod packed;
mod split;

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub(crate) use journal::Journal;
pub(crate) use packed::Packed;
pub(crate) use split::Split;

use crate::chain::{Direction, Rules};
use crate::fault::{ChainFault, RingFault};
use crate::memory::GuestMemory;
use crate::window::Window;

/// Most entries of a ring (sections 2.7 and 2.8: a queue's size is at most 32768).
pub(crate) const RING_SIZE_MAX: u32 = 32768;

/// Where a ring is, in guest addresses, and its size in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAddresses {
    /// Entries.
    pub size: u16,
    /// The descriptor table, or descriptor ring.
    pub descriptors: u64,
    /// The available (driver) area.
    pub available: u64,
    /// The used (device) area.
    pub used: u64,
}

impl RingAddresses {
    /// What the device writes of a ring. Generous: it is a few pages.
    pub(crate) fn written(&self, packed: bool) -> [Range<u64>; 2] {
        let entries = u64::from(self.size);
        if packed {
            [self.descriptors..self.descriptors + 16 * entries, self.used..self.used + 4]
        } else {
            [self.used..self.used + 6 + 8 * entries, 0..0]
        }
    }
}

/// Why a ring cannot be where the VMM says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// More than 32768, none, or for a split ring not a power of two.
    #[error("ring of {0} entries")]
    Size(u32),
    /// Not within one memory region, or misaligned.
    #[error("ring part at {0:#x} is misplaced")]
    Place(u64),
}

/// A place in the order of chains: for a split ring an index that runs freely modulo 2^16, for a packed one a slot in the
/// lower 15 bits and the wrap counter in the highest.
///
/// It takes 32 bits because compilers like to read a field of 16 bits with its neighbour, and a processor that has just
/// written one of the two then waits until all stores before are done, those to guest memory included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position(u32);

impl Position {
    #[inline(always)]
    pub(crate) fn new(value: u16) -> Self {
        Self(value.into())
    }

    #[inline(always)]
    pub(crate) fn value(self) -> u16 {
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

/// A chain that the guest made available.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Head {
    /// What the chain is given back under, and what the driver keeps its own note of it under.
    pub(crate) id: u16,
    /// Its first descriptor.
    pub(crate) first: u16,
    /// How far the next chain is behind this one.
    slots: u16,
}

impl Head {
    /// What gives back a run of chains at once, this one and others before `next`, and `next`: named by the last, and as
    /// long as all of them (in-order use of descriptors: sections 2.7.9 and 2.8.9).
    #[inline(always)]
    pub(crate) fn through(self, next: Self) -> Self {
        // All together at most as many as the ring has.
        Self { slots: self.slots + next.slots, ..next }
    }
}

/// The device's side of one virtqueue.
pub(crate) trait Vring: fmt::Debug {
    /// Most chains that can be given back so that all become visible at once.
    const BUFFERS_MAX: usize;

    fn memory(&self) -> &Arc<GuestMemory>;

    /// Entries, and so the most chains that can be held.
    fn size(&self) -> u16;

    /// Where the ring is resumed, as the protocol's messages say it.
    fn base(&self) -> u32;

    /// The place of the first chain not taken.
    fn next(&self) -> Position;

    /// The place behind the chain that was found at `at`.
    fn after(&self, at: Position, head: Head) -> Position;

    /// The chain at a place at or behind [`Vring::next`], if it is there. All chains before it must be.
    fn peek(&mut self, at: Position) -> Result<Option<Head>, RingFault>;

    /// Hints at what [`Vring::walk`] will read first.
    fn prefetch_descriptor(&self, head: Head);

    /// The buffer of a chain that is nothing but one buffer of this direction.
    fn lone_buffer(&self, head: Head, direction: Direction) -> Option<Window<'_>>;

    /// Walks a chain and hands over its buffers; returns their length in bytes. On a fault, some may have been handed
    /// over. `memory` is the ring's.
    fn walk<'s>(
        &self,
        memory: &'s GuestMemory,
        head: Head,
        rules: &Rules,
        push: impl FnMut(Window<'s>),
    ) -> Result<usize, ChainFault>;

    /// Takes the next chain, which was peeked at.
    fn take(&mut self, head: Head);

    /// Sees to it that so many chains can be put without any becoming visible early.
    #[inline(always)]
    fn make_room(&mut self, _chains: usize) {}

    /// Gives the oldest chain taken back, or a run of them, not yet visibly; `written` bytes of it were filled.
    fn put(&mut self, head: Head, written: u32);

    /// Makes visible what was given back, and tells whether there was any.
    fn show(&mut self) -> bool;

    /// Notifies the guest of what was shown since the last time, if it asked for that. A full fence lies between the two:
    /// the guest writes its wish, then looks at the ring.
    fn tell(&mut self);

    /// How the guest is notified.
    fn call(&mut self) -> &mut Call;

    /// Asks the guest for a notification when it makes the next chain available. Tells whether one waits already,
    /// in which case no notification may come.
    fn arm(&mut self) -> Result<bool, RingFault>;

    /// Asks the guest not to notify; it may do so all the same.
    fn suppress(&mut self);
}

/// Looks at as many waiting chains from `at` on as there are heads to fill, and says how many there were. Their
/// descriptors are being fetched.
#[inline(always)]
pub(crate) fn peek_all(
    ring: &mut impl Vring,
    mut at: Position,
    heads: &mut [Head],
) -> Result<usize, RingFault> {
    for (count, slot) in heads.iter_mut().enumerate() {
        let Some(head) = ring.peek(at)? else { return Ok(count) };
        ring.prefetch_descriptor(head);
        at = ring.after(at, head);
        *slot = head;
    }
    Ok(heads.len())
}

/// The descriptor that tells the guest of used chains, if it has one.
#[derive(Debug, Default)]
pub(crate) struct Call(Option<OwnedFd>);

impl Call {
    pub(crate) fn new(fd: Option<OwnedFd>) -> Self {
        Self(fd)
    }

    /// Notifies the guest.
    pub(crate) fn notify(&self) {
        if let Some(call) = &self.0 {
            // A full counter is a pending notification, and a broken descriptor is the VMM's loss alone.
            let _ = rustix::io::write(call, &1_u64.to_ne_bytes());
        }
    }

    /// Takes another way of notifying, and uses it once: the guest may have missed one on the old way.
    pub(crate) fn replace(&mut self, fd: Option<OwnedFd>) {
        self.0 = fd;
        self.notify();
    }
}

/// A part of a ring, without its lifetime: the ring keeps `memory` and drops its windows before it.
fn part(memory: &GuestMemory, gpa: u64, len: usize, align: usize) -> Result<Window<'static>, LayoutError> {
    let window = memory.window(gpa, len).filter(|window| window.is_aligned(align));
    let window = window.ok_or(LayoutError::Place(gpa))?;
    // SAFETY: both kinds of ring hold the memory in their last field.
    Ok(unsafe { window.detach() })
}
