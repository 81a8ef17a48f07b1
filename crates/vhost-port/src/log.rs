// SPDX-License-Identifier: Apache-2.0
//! Which pages we wrote, for a VMM that is moving the guest elsewhere (vhost-user specification, "Migration").
//!
//! The VMM shares a bitmap, one bit to a page of 4 KiB of guest addresses, and collects and clears its bits while it copies
//! memory. A bit is set after its page was written: set before, the page could be copied in between. Used rings
//! are marked by their own guest addresses, which is where every VMM asks for them to be marked.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::memory::{GuestMemory, Mapping};
use crate::ring::RingAddresses;
use crate::window::Window;

const PAGE_BYTES: u64 = 4096;

/// The VMM's bitmap.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    map: Mapping,
}

impl DirtyLog {
    /// Maps a bitmap of `size_bytes` at `offset` of its file.
    pub(crate) fn map(file: &File, size_bytes: u64, offset: u64) -> io::Result<Self> {
        let end = offset.checked_add(size_bytes);
        if size_bytes == 0 || end.is_none_or(|end| end > file.metadata().map_or(0, |found| found.len())) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = usize::try_from(size_bytes).map_err(io::Error::other)?;
        Ok(Self { map: Mapping::new(file, len, offset)? })
    }

    /// Marks the pages of a range of guest addresses. Those beyond the bitmap are nobody's.
    fn mark(&self, range: Range<u64>) {
        let bitmap = self.map.window();
        for page in range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES) {
            if let Ok(byte) = usize::try_from(page / 8)
                && byte < bitmap.len()
            {
                bitmap.set_bits(byte, 1 << (page % 8));
            }
        }
    }
}

/// What one queue pair marks in it.
#[derive(Debug)]
pub(crate) struct Marks {
    log: Arc<DirtyLog>,
    memory: Arc<GuestMemory>,
    /// What the device writes of both rings.
    areas: Vec<Range<u64>>,
}

impl Marks {
    pub(crate) fn new(
        log: &Arc<DirtyLog>,
        memory: &Arc<GuestMemory>,
        rings: &[RingAddresses],
        packed: bool,
    ) -> Self {
        let areas = rings.iter().flat_map(|ring| ring.written(packed)).collect();
        Self { log: Arc::clone(log), memory: Arc::clone(memory), areas }
    }

    /// The rings were written.
    pub(crate) fn rings(&self) {
        self.areas.iter().for_each(|area| self.log.mark(area.clone()));
    }

    /// A buffer was written from its start on.
    pub(crate) fn buffer(&self, window: &Window<'_>) {
        if let Some(gpa) = self.memory.gpa_of_window(window) {
            self.log.mark(gpa..gpa + window.len() as u64);
        }
    }
}
