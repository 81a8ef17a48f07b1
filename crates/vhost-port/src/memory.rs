// SPDX-License-Identifier: Apache-2.0
//! A guest's RAM, as the VMM shared it.
//!
//! RAM is a few regions; each is part of a file (a memfd, as a rule) mapped whole. The file is sparse: pages that the
//! guest never touched take no host memory, and reading one through the mapping would allocate it. So whoever looks at
//! memory out of curiosity ([`GuestMemory::read`]) goes through the mapping only for pages known to exist,
//! and asks the file for the others, which answers holes with zeros. Rings and frames are accessed through the mapping
//! always: the guest named those pages itself.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FsWord, SealFlags, fcntl_get_seals, fstat, fstatfs};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::window::Window;

/// Most regions of one guest: what the protocol's message can carry.
pub(crate) const REGIONS_MAX: usize = 32;
/// Most bytes of one guest: 4 TiB, for which the note of existing pages takes 128 MiB.
const MEMORY_BYTES_MAX: u64 = 1 << 42;
/// Granularity of residency, in bytes. Files of larger pages are described right, only in more steps.
const PAGE_BYTES: u64 = 4096;

/// File systems whose files are in memory: tmpfs, memfds among it, and hugetlbfs (linux/magic.h).
const IN_MEMORY: [FsWord; 2] = [0x0102_1994, 0x9584_58f6];

/// All memory of one guest, mapped for as long as this exists.
#[derive(Debug)]
pub struct GuestMemory {
    /// Ordered by guest address, not overlapping.
    regions: Box<[Region]>,
    sealed: bool,
    pageable: bool,
    owner: [u64; 2],
}

/// An address range, or part of it, that is not guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest address {gpa:#x} is not memory")]
pub struct Unmapped {
    /// The first address that could not be read.
    pub gpa: u64,
}

/// Why a VMM's memory table is refused.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// None, or more than the protocol allows.
    #[error("{count} memory regions")]
    Count {
        /// Regions in the table.
        count: usize,
    },
    /// Two regions share guest or VMM addresses.
    #[error("memory regions overlap at {at:#x}")]
    Overlap {
        /// Where the second begins.
        at: u64,
    },
    /// A region of no bytes, that wraps around, is misplaced in its file, or too large.
    #[error("impossible memory region of {size_bytes} bytes at {gpa:#x}")]
    Shape {
        /// Its guest address.
        gpa: u64,
        /// Its size.
        size_bytes: u64,
    },
    /// A region reaches beyond its file: touching it would kill this process.
    #[error("memory region at {gpa:#x} needs a file of {needed_bytes} bytes, it has {file_bytes}")]
    BeyondFile {
        /// Its guest address.
        gpa: u64,
        /// What the region needs.
        needed_bytes: u64,
        /// What the file has.
        file_bytes: u64,
    },
    /// The file cannot be examined or mapped.
    #[error("cannot map memory region at {gpa:#x}")]
    Io {
        /// Its guest address.
        gpa: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// One entry of a VMM's memory table.
#[derive(Debug)]
pub(crate) struct RegionRequest {
    pub(crate) gpa: u64,
    pub(crate) size_bytes: u64,
    /// The VMM's own address of the region, in which it gives ring addresses.
    pub(crate) vmm_address: u64,
    pub(crate) file_offset: u64,
    pub(crate) file: File,
}

#[derive(Debug)]
struct Region {
    gpa: u64,
    size_bytes: u64,
    vmm_address: u64,
    file_offset: u64,
    file: File,
    mapping: Mapping,
    /// One bit for each page: it was seen to exist.
    resident: Box<[AtomicU64]>,
}

/// Memory shared with a VMM.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is an address and a length; it may be unmapped by any thread.
unsafe impl Send for Mapping {}
// SAFETY: shared access to a mapping gives its address only; accesses go through `Window`.
unsafe impl Sync for Mapping {}

impl GuestMemory {
    /// Checks and maps a memory table.
    pub(crate) fn map(requests: Vec<RegionRequest>) -> Result<Self, MapError> {
        if requests.is_empty() || requests.len() > REGIONS_MAX {
            return Err(MapError::Count { count: requests.len() });
        }
        check_layout(&requests)?;
        let (mut sealed, mut pageable) = (true, false);
        let stat = fstat(&requests[0].file);
        let owner = stat.map(|stat| [stat.st_dev, stat.st_ino]);
        let owner = owner.map_err(|errno| MapError::Io { gpa: requests[0].gpa, source: errno.into() })?;
        let mut regions = Vec::with_capacity(requests.len());
        for request in requests {
            sealed &= fcntl_get_seals(&request.file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
            pageable |= !fstatfs(&request.file).is_ok_and(|file| IN_MEMORY.contains(&file.f_type));
            regions.push(Region::map(request)?);
        }
        regions.sort_unstable_by_key(|region| region.gpa);
        Ok(Self { regions: regions.into(), sealed, pageable, owner })
    }

    /// All of the guest's memory, in bytes; how much of it exists is another question.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.size_bytes).sum()
    }

    /// Whether no owner of the files can shrink them any more (`F_SEAL_SHRINK`).
    #[must_use]
    pub fn sealed(&self) -> bool {
        self.sealed
    }

    /// Whether some of it is in a file of a disk's, or an unknown, file system: then an access may have to wait until a page
    /// was read.
    #[must_use]
    pub fn is_pageable(&self) -> bool {
        self.pageable
    }

    /// Tells this memory from that of other guests, also across restarts of this process: device and inode of its
    /// (first) file.
    pub(crate) fn owner(&self) -> [u64; 2] {
        self.owner
    }

    /// Guest address ranges that are memory, in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.regions.iter().map(|region| region.gpa..region.gpa + region.size_bytes)
    }

    /// Guest address ranges whose pages exist, in ascending order; renews what [`GuestMemory::read`] knows of them.
    ///
    /// At most one range for every two pages of memory. A file that cannot tell counts as existing whole.
    #[must_use]
    pub fn extents(&self) -> Vec<Range<u64>> {
        let mut extents = Vec::new();
        for region in &self.regions {
            region.find_extents(&mut extents);
        }
        extents
    }

    /// Copies guest memory out, without making pages exist that do not.
    ///
    /// The guest may write at the same time; what is read is then any mixture. A page that the guest gave back after it
    /// was seen to exist (ballooning) is allocated again by reading it.
    ///
    /// # Errors
    /// When any byte of the range is not memory; `out` is then partly written.
    pub fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
        self.read_by(Region::read, gpa, out)
    }

    /// As [`GuestMemory::read`], for what is looked at once: from the file, which takes less time than a page's
    /// first access through the mapping, and no page table.
    ///
    /// # Errors
    /// As there.
    pub fn read_once(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
        self.read_by(Region::read_file, gpa, out)
    }

    /// Reads page by page.
    fn read_by(
        &self,
        read: impl Fn(&Region, u64, &mut [u8]) -> io::Result<()>,
        gpa: u64,
        out: &mut [u8],
    ) -> Result<(), Unmapped> {
        let mut gpa = gpa;
        let mut out = out;
        while !out.is_empty() {
            let region = self.region(gpa).ok_or(Unmapped { gpa })?;
            let offset = gpa - region.gpa;
            let page_left = PAGE_BYTES - offset % PAGE_BYTES;
            let left = page_left.min(region.size_bytes - offset).min(out.len() as u64);
            // At most a page.
            let (now, later) = out.split_at_mut(left as usize);
            read(region, offset, now).map_err(|_| Unmapped { gpa })?;
            gpa = gpa.wrapping_add(left);
            out = later;
        }
        Ok(())
    }

    fn region(&self, gpa: u64) -> Option<&Region> {
        self.regions.iter().find(|region| gpa.wrapping_sub(region.gpa) < region.size_bytes)
    }

    /// A window on guest addresses, if they lie in one region.
    #[inline(always)]
    pub(crate) fn window(&self, gpa: u64, len: usize) -> Option<Window<'_>> {
        for region in &self.regions {
            let offset = gpa.wrapping_sub(region.gpa);
            if offset < region.size_bytes {
                return region.window(offset, len);
            }
        }
        None
    }

    /// The guest address of a window on this memory.
    pub(crate) fn gpa_of_window(&self, window: &Window<'_>) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = window.address().wrapping_sub(region.mapping.start.addr().get());
            (offset < region.mapping.len).then(|| region.gpa + offset as u64)
        })
    }

    /// The guest address of one of the VMM's.
    pub(crate) fn gpa_of(&self, vmm_address: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = vmm_address.wrapping_sub(region.vmm_address);
            (offset < region.size_bytes).then(|| region.gpa + offset)
        })
    }
}

impl Region {
    fn map(request: RegionRequest) -> Result<Self, MapError> {
        let RegionRequest { gpa, size_bytes, vmm_address, file_offset, file } = request;
        let failed = |errno: Errno| MapError::Io { gpa, source: errno.into() };
        let shape = MapError::Shape { gpa, size_bytes };
        let Ok(len) = usize::try_from(size_bytes) else { return Err(shape) };
        let file_bytes = u64::try_from(fstat(&file).map_err(failed)?.st_size).unwrap_or(0);
        // Neither sum overflows: `check_layout` has seen to it.
        let needed_bytes = file_offset + size_bytes;
        if file_bytes < needed_bytes {
            return Err(MapError::BeyondFile { gpa, needed_bytes, file_bytes });
        }
        let mapping = Mapping::new(&file, len, file_offset).map_err(failed)?;
        let words = len.div_ceil(PAGE_BYTES as usize * 64);
        let resident = std::iter::repeat_with(AtomicU64::default).take(words).collect();
        Ok(Self { gpa, size_bytes, vmm_address, file_offset, file, mapping, resident })
    }

    #[inline(always)]
    fn window(&self, offset: u64, len: usize) -> Option<Window<'_>> {
        if len as u64 > self.size_bytes - offset {
            return None;
        }
        Some(self.mapping.part(offset as usize, len))
    }

    /// Reads within one page.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.is_resident(offset) {
            let window = self.window(offset, out.len()).expect("the caller stays within the region");
            window.copy_out(out);
            return Ok(());
        }
        self.read_file(offset, out)?;
        if out.iter().any(|byte| *byte != 0) {
            // A hole reads as zeros only, so this page exists.
            self.mark(offset / PAGE_BYTES);
        }
        Ok(())
    }

    fn read_file(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, self.file_offset + offset)
    }

    fn is_resident(&self, offset: u64) -> bool {
        let page = offset / PAGE_BYTES;
        self.resident[(page / 64) as usize].load(Ordering::Relaxed) & 1 << (page % 64) != 0
    }

    fn mark(&self, page: u64) {
        self.mark_all(page..page + 1);
    }

    /// Marks a range of pages, up to 64 at a time.
    fn mark_all(&self, pages: Range<u64>) {
        let mut page = pages.start;
        while page < pages.end {
            let (bit, count) = (page % 64, (64 - page % 64).min(pages.end - page));
            let bits = (u64::MAX >> (64 - count)) << bit;
            self.resident[(page / 64) as usize].fetch_or(bits, Ordering::Relaxed);
            page += count;
        }
    }

    fn find_extents(&self, extents: &mut Vec<Range<u64>>) {
        for word in &self.resident {
            word.store(0, Ordering::Relaxed);
        }
        let whole = self.file_offset..self.file_offset + self.size_bytes;
        platform::for_each_data(&self.file, whole, |data| {
            let extent = data.start - self.file_offset..data.end - self.file_offset;
            self.mark_all(extent.start / PAGE_BYTES..extent.end.div_ceil(PAGE_BYTES));
            extents.push(self.gpa + extent.start..self.gpa + extent.end);
        });
    }
}

impl Mapping {
    /// Maps a part of a file that has these bytes.
    pub(crate) fn new(file: &File, len: usize, offset: u64) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses an address where nothing is mapped.
        let start = unsafe { mmap(ptr::null_mut(), len, protection, flags, file, offset) }?;
        let start = NonNull::new(start.cast()).expect("a mapping is never at address zero");
        let mapping = Self { start, len };
        // SAFETY: the range is the mapping just made; the advice only keeps guests out of this process's core dumps.
        let advised = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxDontDump) };
        if let Err(errno) = advised {
            tracing::debug!(%errno, "guest memory stays in core dumps");
        }
        Ok(mapping)
    }

    /// All of it.
    pub(crate) fn window(&self) -> Window<'_> {
        self.part(0, self.len)
    }

    /// A part, which must lie within it.
    #[inline(always)]
    fn part(&self, offset: usize, len: usize) -> Window<'_> {
        debug_assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "parts lie in their mapping"
        );
        // SAFETY: `offset` is within the mapping: callers have checked.
        let start = unsafe { self.start.add(offset) };
        // SAFETY: the bytes lie in the mapping, which lives as long as `self`; nobody makes references into it.
        unsafe { Window::new(start, len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`, of this length; all windows borrowed from its owner.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can always be removed");
    }
}

/// Refuses tables that wrap, overlap, or exceed what can be mapped.
fn check_layout(requests: &[RegionRequest]) -> Result<(), MapError> {
    let mut total: u64 = 0;
    for request in requests {
        let RegionRequest { gpa, size_bytes, vmm_address, file_offset, .. } = *request;
        total = total.saturating_add(size_bytes);
        let wraps =
            [gpa, vmm_address, file_offset].iter().any(|start| start.checked_add(size_bytes).is_none());
        if size_bytes == 0 || wraps || !file_offset.is_multiple_of(PAGE_BYTES) || total > MEMORY_BYTES_MAX {
            return Err(MapError::Shape { gpa, size_bytes });
        }
    }
    check_apart(requests.iter().map(|request| (request.gpa, request.size_bytes)).collect())?;
    check_apart(requests.iter().map(|request| (request.vmm_address, request.size_bytes)).collect())
}

fn check_apart(mut ranges: Vec<(u64, u64)>) -> Result<(), MapError> {
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        Some(pair) => Err(MapError::Overlap { at: pair[1].0 }),
        None => Ok(()),
    }
}
