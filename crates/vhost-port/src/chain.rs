// SPDX-License-Identifier: Apache-2.0
//! Descriptor chains: walked once, with every bound checked, into windows on the guest's memory.

use crate::fault::ChainFault;
use crate::features::VNET_HEADER_BYTES;
use crate::memory::GuestMemory;
use crate::window::Window;

/// Most descriptors of one chain. Drivers use at most 19 (Linux) to about 256 (others).
pub(crate) const CHAIN_DESCRIPTORS_MAX: usize = 1024;
/// Longest frame with its virtio-net header, in bytes: an IP packet of 64 KiB behind Ethernet and tags, rounded up.
pub(crate) const FRAME_BYTES_MAX: usize = 68 * 1024;
/// How far apart prefetches are, in bytes.
pub(crate) const CACHE_LINE_BYTES: usize = 64;
/// Shortest frame with its virtio-net header, in bytes: an Ethernet header and nothing in it.
pub(crate) const FRAME_BYTES_MIN: usize = VNET_HEADER_BYTES + 14;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Which way a chain's bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device reads: frames that the guest sends.
    FromGuest,
    /// The device writes: buffers for frames that the guest receives.
    ToGuest,
}

/// A table of descriptors: a ring's own, or an indirect one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'m>(Window<'m>);

pub(crate) struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline(always)]
    pub(crate) fn is_indirect(&self) -> bool {
        self.flags & INDIRECT != 0
    }

    /// The same, of a buffer that the device only reads.
    #[inline(always)]
    pub(crate) fn read_only(self) -> Self {
        Self { flags: self.flags & !WRITE, ..self }
    }

    /// Its buffer, if it is all of a chain of this direction, and one that a frame fits.
    #[inline(always)]
    pub(crate) fn lone_buffer<'m>(
        &self,
        memory: &'m GuestMemory,
        direction: Direction,
    ) -> Option<Window<'m>> {
        let (flags, len_max) = match direction {
            Direction::FromGuest => (0, FRAME_BYTES_MAX),
            Direction::ToGuest => (WRITE, usize::MAX),
        };
        let len = self.len as usize;
        let is_lone = self.flags & (INDIRECT | NEXT | WRITE) == flags;
        if is_lone && (FRAME_BYTES_MIN..=len_max).contains(&len) {
            memory.window(self.address, len)
        } else {
            None
        }
    }
}

impl<'m> Table<'m> {
    pub(crate) const ENTRY_BYTES: usize = 16;

    /// `window` is a whole number of descriptors, aligned to eight bytes.
    pub(crate) fn new(window: Window<'m>) -> Self {
        Self(window)
    }

    pub(crate) fn entries(&self) -> usize {
        self.0.len() / Self::ENTRY_BYTES
    }

    /// Reads a descriptor once.
    #[inline(always)]
    pub(crate) fn read(&self, index: usize) -> Descriptor {
        let [address, rest] = self.0.read_u64_pair(index * Self::ENTRY_BYTES);
        Descriptor { address, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// Reads a descriptor of a packed ring, or of its indirect tables, once.
    #[inline(always)]
    pub(crate) fn read_packed(&self, index: usize) -> Descriptor {
        let [address, rest] = self.0.read_u64_pair(index * Self::ENTRY_BYTES);
        Descriptor { address, len: rest as u32, flags: (rest >> 48) as u16, next: 0 }
    }

    /// Walks the chain that begins at `head`, which is in the table, and appends its buffers to `segments`.
    /// Returns their length in bytes. On a fault, some may have been appended.
    #[inline(always)]
    pub(crate) fn walk<'s>(
        self,
        memory: &'s GuestMemory,
        head: u16,
        rules: &Rules,
        mut push: impl FnMut(Window<'s>),
    ) -> Result<usize, ChainFault>
    where
        'm: 's,
    {
        let mut table: Table<'s> = self;
        let mut index = usize::from(head);
        let mut indirect = false;
        let mut tally = Tally::default();
        let mut left = table.entries().min(CHAIN_DESCRIPTORS_MAX);
        loop {
            let descriptor = table.read(index);
            if descriptor.is_indirect() {
                if indirect || descriptor.flags & NEXT != 0 {
                    return Err(ChainFault::Nested);
                }
                table = rules.indirect_table(memory, &descriptor)?;
                indirect = true;
                index = 0;
                left = table.entries();
                continue;
            }
            push(tally.add(memory, rules, &descriptor)?);
            if descriptor.flags & NEXT == 0 {
                return tally.total();
            }
            left -= 1;
            if left == 0 {
                return Err(ChainFault::Loop);
            }
            index = usize::from(descriptor.next);
            if index >= table.entries() {
                return Err(ChainFault::DescriptorIndex);
            }
        }
    }
}

/// The length of a chain that is being walked, in bytes.
#[derive(Default)]
pub(crate) struct Tally(usize);

impl Tally {
    /// The buffer of one descriptor more.
    #[inline(always)]
    pub(crate) fn add<'s>(
        &mut self,
        memory: &'s GuestMemory,
        rules: &Rules,
        descriptor: &Descriptor,
    ) -> Result<Window<'s>, ChainFault> {
        let len = descriptor.len as usize;
        if (descriptor.flags & WRITE != 0) != (rules.direction == Direction::ToGuest) {
            return Err(ChainFault::Direction);
        }
        if len == 0 {
            return Err(ChainFault::Empty);
        }
        self.0 += len;
        if rules.direction == Direction::FromGuest && self.0 > FRAME_BYTES_MAX {
            return Err(ChainFault::TooLong);
        }
        memory.window(descriptor.address, len).ok_or(ChainFault::Address)
    }

    /// All of it, at the chain's end.
    #[inline(always)]
    pub(crate) fn total(self) -> Result<usize, ChainFault> {
        if self.0 < FRAME_BYTES_MIN { Err(ChainFault::TooShort) } else { Ok(self.0) }
    }
}

/// What a chain of a ring must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) direction: Direction,
    pub(crate) indirect: bool,
}

impl Rules {
    pub(crate) fn indirect_table<'m>(
        &self,
        memory: &'m GuestMemory,
        descriptor: &Descriptor,
    ) -> Result<Table<'m>, ChainFault> {
        if !self.indirect {
            return Err(ChainFault::IndirectRefused);
        }
        let len = descriptor.len as usize;
        let entries = len / Table::ENTRY_BYTES;
        if !len.is_multiple_of(Table::ENTRY_BYTES) || entries == 0 || entries > CHAIN_DESCRIPTORS_MAX {
            return Err(ChainFault::IndirectLength);
        }
        let window = memory.window(descriptor.address, len).ok_or(ChainFault::Address)?;
        if window.is_aligned(8) { Ok(Table(window)) } else { Err(ChainFault::IndirectAlignment) }
    }
}

/// A frame in a guest's memory: the virtio-net header, then Ethernet.
///
/// The guest can change it at any time. Copy what is to be decided on, once, and decide on the copy.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'b> {
    pub(crate) segments: &'b [Window<'static>],
    pub(crate) len: usize,
    pub(crate) head: u16,
}

impl Chain<'_> {
    /// Length with the virtio-net header, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    /// What the chain is known by: in a split ring the index of its first descriptor, in a packed one its buffer id. The
    /// guest's driver keeps its own note of the frame under this number until the chain is completed.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The virtio-net header's bytes as a little-endian number.
    #[must_use]
    #[inline(always)]
    pub fn header(&self) -> u128 {
        let start = &self.segments[0];
        let words = start.take().map(u64::from_le_bytes).zip(start.skip(8).take().map(u32::from_le_bytes));
        match words {
            Some((first, last)) => u128::from(first) | u128::from(last) << 64,
            None => {
                let mut header = [0; size_of::<u128>()];
                self.copy_out(0, &mut header[..VNET_HEADER_BYTES]);
                u128::from_le_bytes(header)
            }
        }
    }

    /// Copies bytes from `offset` on, the virtio-net header included; as many as there are and fit, and says how many.
    #[inline(always)]
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) -> usize {
        let mut copied = 0;
        let mut skip = offset;
        for segment in self.segments {
            if copied == out.len() {
                break;
            }
            if skip < segment.len() {
                copied += segment.skip(skip).copy_out(&mut out[copied..]);
            }
            skip = skip.saturating_sub(segment.len());
        }
        copied
    }

    #[inline(always)]
    pub(crate) fn segments(&self) -> &[Window<'static>] {
        self.segments
    }
}
