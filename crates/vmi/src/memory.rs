// SPDX-License-Identifier: Apache-2.0
//! What the library knows of a guest's RAM: reads of guest-physical memory, and where it is resident.

use std::ops::Range;

/// The address is not backed by guest RAM (or not by all of it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest-physical address is not backed by memory")]
pub struct Unmapped;

/// Read-only guest-physical memory.
///
/// Implementations must not make sparse pages resident: a page that the guest never touched reads as
/// zeros without being allocated. The guest runs meanwhile, so two reads of one address may differ.
pub trait PhysicalMemory: Send + Sync {
    /// Copies `out.len()` bytes from `gpa` on; whole or nothing.
    ///
    /// # Errors
    /// [`Unmapped`] when a byte of the range is not backed by memory.
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped>;

    /// As [`PhysicalMemory::read`], for what is looked at once: an implementation need not prepare to be asked
    /// about the place again.
    ///
    /// # Errors
    /// As there.
    fn read_once(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
        self.read(gpa, out)
    }

    /// Resident ranges of guest-physical addresses, ascending and disjoint. Only these are scanned. Takes time for each
    /// page of memory.
    fn extents(&self) -> Vec<Range<u64>>;
}

/// The offset of a member that the guest's kernel does not describe. No address lies there: reading it is a fault.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// Where every such member is: in the hole between the two halves of the address space, far from its ends.
const HOLE: Gva = Gva(1 << 62);

/// Whether a member is described.
pub(crate) fn is_described(offset_bytes: u32) -> bool {
    offset_bytes != NOWHERE
}

/// A guest-virtual address in the kernel's half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Gva(pub(crate) u64);

impl Gva {
    /// The address `offset_bytes` further; wraps, since the guest may have chosen the base.
    pub(crate) fn at(self, offset_bytes: u32) -> Self {
        if !is_described(offset_bytes) {
            return HOLE;
        }
        Self(self.0.wrapping_add(u64::from(offset_bytes)))
    }

    /// The address `index` elements of `size_bytes` further.
    pub(crate) fn element(self, index: u64, size_bytes: u32) -> Self {
        Self(self.0.wrapping_add(index.wrapping_mul(u64::from(size_bytes))))
    }

    /// The start of the structure that has this address as its member at `offset_bytes`.
    pub(crate) fn container(self, offset_bytes: u32) -> Self {
        if !is_described(offset_bytes) {
            return HOLE;
        }
        Self(self.0.wrapping_sub(u64::from(offset_bytes)))
    }

    /// Whether it lies in one of the two halves of the address space, as large as processors have it (57 bits).
    pub(crate) fn is_canonical(self) -> bool {
        matches!(self.0 >> 56, 0 | 0xff)
    }

    pub(crate) fn is_null(self) -> bool {
        self.0 == 0
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fixture {
    use super::*;

    /// One run of RAM from address zero, for tests.
    #[derive(Clone)]
    pub(crate) struct Ram(pub(crate) Vec<u8>);

    impl PhysicalMemory for Ram {
        fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
            let start = usize::try_from(gpa).map_err(|_| Unmapped)?;
            let end = start.checked_add(out.len()).ok_or(Unmapped)?;
            out.copy_from_slice(self.0.get(start..end).ok_or(Unmapped)?);
            Ok(())
        }

        fn extents(&self) -> Vec<Range<u64>> {
            std::iter::once(0..self.0.len() as u64).collect()
        }
    }
}
