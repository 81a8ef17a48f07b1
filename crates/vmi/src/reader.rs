// SPDX-License-Identifier: Apache-2.0
//! Reads of guest-virtual memory under a budget.
//!
//! Every query of the library starts with a fresh budget of reads, and every read spends from it, so that
//! no structure that a guest may build can hold the reader for longer than the budget lasts.

use std::cell::Cell;
use std::sync::Arc;

use crate::error::Fault;
use crate::memory::{Gva, PhysicalMemory};
use crate::paging::{Executable, Linear, PageTables, Translation};

/// Reads that a view of the whole guest may take: some 100 ms. Listing 30,000 processes takes a million.
pub(crate) const VIEW_READS_MAX: u32 = 4_000_000;
/// Reads that finding one owner may take: some 10 ms. Walking all descriptor tables of 1,000 processes takes
/// ten thousand.
pub(crate) const OWNER_READS_MAX: u32 = 500_000;
/// Reads that a question may take at a glance: some 10 us. A process that nobody asked about before takes three hundred.
const GLANCE_READS_MAX: u32 = 1024;
/// A bulk read spends one read for every so many bytes.
const BYTES_PER_READ: usize = 256;

/// The kernel's address space, as read from outside.
pub(crate) struct Reader {
    memory: Arc<dyn PhysicalMemory>,
    tables: PageTables,
    /// The kernel image.
    image: Linear,
    /// The kernel's mapping of all RAM.
    direct: Linear,
    reads_left: Cell<u32>,
    /// No query gets more reads than this.
    reads_max: Cell<u32>,
    /// A read was refused since the last glance began.
    exhausted: Cell<bool>,
}

impl Reader {
    pub(crate) fn new(memory: Arc<dyn PhysicalMemory>, tables: PageTables, image: Linear) -> Self {
        Self {
            memory,
            tables,
            image,
            direct: Linear::default(),
            reads_left: Cell::new(VIEW_READS_MAX),
            reads_max: Cell::new(u32::MAX),
            exhausted: Cell::default(),
        }
    }

    /// Declares where all of RAM is mapped; reads there no longer walk the page tables.
    pub(crate) fn map_directly(&mut self, direct: Linear) {
        self.direct = direct;
    }

    /// Starts a query that may take `reads_max` reads.
    pub(crate) fn start_query(&self, reads_max: u32) {
        self.reads_left.set(reads_max.min(self.reads_max.get()));
    }

    /// From now on queries get few reads.
    pub(crate) fn start_glance(&self) {
        self.reads_max.set(GLANCE_READS_MAX);
        self.exhausted.set(false);
    }

    /// Queries get their own number of reads again. Tells whether the few were enough.
    pub(crate) fn end_glance(&self) -> bool {
        self.reads_max.set(u32::MAX);
        !self.exhausted.get()
    }

    /// Where `gva` lies, by short cut or page walk.
    pub(crate) fn translate(&self, gva: Gva) -> Result<Translation, Fault> {
        for linear in [&self.direct, &self.image] {
            if let Some(gpa) = linear.translate(gva, 1) {
                return Ok(Translation { gpa, left_bytes: linear.range.end - gva.0 });
            }
        }
        self.walk(gva)
    }

    /// Where the page tables say that `gva` lies, short cuts aside.
    pub(crate) fn walk(&self, gva: Gva) -> Result<Translation, Fault> {
        self.spend(u32::from(self.tables.levels))?;
        Ok(self.tables.translate(&*self.memory, gva)?)
    }

    /// Searches up to `tables_max` of the page tables for what may be executed, from `from` on.
    pub(crate) fn executable(&self, from: Gva, tables_max: u32) -> Result<Executable, Fault> {
        let found = self.tables.executable(&*self.memory, from, tables_max);
        self.spend(found.tables * (1 + PAGE_BYTES as u32 / BYTES_PER_READ as u32))?;
        Ok(found)
    }

    /// Copies `out.len()` bytes from `gva` on.
    pub(crate) fn bytes(&self, gva: Gva, out: &mut [u8]) -> Result<(), Fault> {
        let reads = 1 + out.len() / BYTES_PER_READ;
        self.spend(u32::try_from(reads).map_err(|_| Fault::Exhausted)?)?;
        let mut done = 0;
        while done < out.len() {
            let at = Gva(gva.0.checked_add(done as u64).ok_or(Fault::Unmapped)?);
            let page = self.translate(at)?;
            let left = usize::try_from(page.left_bytes).unwrap_or(usize::MAX);
            let end = out.len().min(done.saturating_add(left));
            self.memory.read(page.gpa, &mut out[done..end])?;
            done = end;
        }
        Ok(())
    }

    /// Copies `out.len()` bytes from a guest-physical address on.
    pub(crate) fn physical(&self, gpa: u64, out: &mut [u8]) -> Result<(), Fault> {
        self.spend(u32::try_from(1 + out.len() / BYTES_PER_READ).map_err(|_| Fault::Exhausted)?)?;
        Ok(self.memory.read(gpa, out)?)
    }

    /// Levels of the guest's page tables.
    pub(crate) fn levels(&self) -> u8 {
        self.tables.levels
    }

    /// Copies `out.len()` bytes of another address space of the guest, whole or nothing.
    pub(crate) fn bytes_through(&self, tables: &PageTables, start: u64, out: &mut [u8]) -> Result<(), Fault> {
        let mut done = 0;
        while done < out.len() {
            self.spend(u32::from(tables.levels) + 1)?;
            let at = Gva(start.checked_add(done as u64).ok_or(Fault::Unmapped)?);
            let page = tables.translate(&*self.memory, at)?;
            // Not further than a small page at once, so that a large one spends as much.
            let left = usize::try_from(page.left_bytes.min(PAGE_BYTES)).unwrap_or(1);
            let end = out.len().min(done.saturating_add(left));
            self.memory.read(page.gpa, &mut out[done..end])?;
            done = end;
        }
        Ok(())
    }

    pub(crate) fn array<const N: usize>(&self, gva: Gva) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        self.bytes(gva, &mut out)?;
        Ok(out)
    }

    pub(crate) fn u32(&self, gva: Gva) -> Result<u32, Fault> {
        self.array(gva).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&self, gva: Gva) -> Result<u64, Fault> {
        self.array(gva).map(u64::from_le_bytes)
    }

    pub(crate) fn pointer(&self, gva: Gva) -> Result<Gva, Fault> {
        self.u64(gva).map(Gva)
    }

    /// The text at `gva`: up to its NUL, and at most `len_max` bytes (which may all be read, or fewer at the
    /// end of a page). What is not UTF-8 is replaced.
    pub(crate) fn text(&self, gva: Gva, len_max: usize) -> Result<String, Fault> {
        let mut out = Vec::new();
        while out.len() < len_max {
            let at = Gva(gva.0.checked_add(out.len() as u64).ok_or(Fault::Unmapped)?);
            let to_page_end = usize::try_from(PAGE_BYTES - at.0 % PAGE_BYTES).unwrap_or(1);
            let mut piece = [0; TEXT_PIECE_BYTES];
            let piece = &mut piece[..TEXT_PIECE_BYTES.min(to_page_end).min(len_max - out.len())];
            self.bytes(at, piece)?;
            if let Some(end) = memchr::memchr(0, piece) {
                out.extend_from_slice(&piece[..end]);
                break;
            }
            out.extend_from_slice(piece);
        }
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    fn spend(&self, reads: u32) -> Result<(), Fault> {
        let Some(left) = self.reads_left.get().checked_sub(reads) else {
            self.exhausted.set(true);
            return Err(Fault::Exhausted);
        };
        self.reads_left.set(left);
        Ok(())
    }
}

const PAGE_BYTES: u64 = 4096;
const TEXT_PIECE_BYTES: usize = 64;
