// SPDX-License-Identifier: Apache-2.0
//! Translation of guest-virtual addresses: x86-64 page tables of four or five levels (Intel SDM volume 3,
//! chapter "Paging"), with short cuts for the two linear mappings that never change after boot.

use std::ops::Range;

use crate::memory::{Gva, PhysicalMemory, Unmapped};

const PRESENT: u64 = 1;
/// In an entry of level 2 or 3: maps a page of 2 MiB or 1 GiB instead of naming a table.
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51 of an entry: the physical address. The execute-disable bit lies above.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// In an entry of any level: nothing below may be executed.
const NO_EXECUTE: u64 = 1 << 63;
const PAGE_BITS: u32 = 12;
const INDEX_BITS: u32 = 9;
/// The highest level at which an entry may map a page: 1 GiB.
const LARGE_LEVEL_MAX: u32 = 3;

/// The kernel's page tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageTables {
    /// Guest-physical address of the top table.
    pub(crate) root_gpa: u64,
    /// Four or five.
    pub(crate) levels: u8,
}

/// What a search for executable pages has found.
#[derive(Debug, Default)]
pub(crate) struct Executable {
    /// Ranges that may be executed, ascending.
    pub(crate) ranges: Vec<Range<u64>>,
    /// Where to go on; `None` at the end.
    pub(crate) next: Option<Gva>,
    /// Tables read.
    pub(crate) tables: u32,
}

/// Where an address lies, and how far the page goes on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    pub(crate) gpa: u64,
    pub(crate) left_bytes: u64,
}

impl PageTables {
    /// Walks the tables; at most `levels` reads, so tables that name themselves do no harm.
    pub(crate) fn translate(&self, memory: &dyn PhysicalMemory, gva: Gva) -> Result<Translation, Unmapped> {
        if !gva.is_canonical() {
            return Err(Unmapped);
        }
        let mut table = self.root_gpa & ADDRESS;
        for level in (1..=u32::from(self.levels)).rev() {
            let shift = PAGE_BITS + INDEX_BITS * (level - 1);
            let index = (gva.0 >> shift) & ((1 << INDEX_BITS) - 1);
            let mut entry = [0; 8];
            memory.read(table + index * 8, &mut entry)?;
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT == 0 {
                return Err(Unmapped);
            }
            if level == 1 || (level <= LARGE_LEVEL_MAX && entry & LARGE != 0) {
                let page_bytes = 1_u64 << shift;
                let within = gva.0 & (page_bytes - 1);
                let gpa = (entry & ADDRESS & !(page_bytes - 1)) | within;
                return Ok(Translation { gpa, left_bytes: page_bytes - within });
            }
            table = entry & ADDRESS;
        }
        Err(Unmapped)
    }

    /// Where the entry of the top table for `gva` leads, if it is present.
    pub(crate) fn top_entry(&self, memory: &dyn PhysicalMemory, gva: Gva) -> Option<u64> {
        let shift = PAGE_BITS + INDEX_BITS * (u32::from(self.levels) - 1);
        let index = (gva.0 >> shift) & ((1 << INDEX_BITS) - 1);
        let mut entry = [0; 8];
        memory.read((self.root_gpa & ADDRESS) + index * 8, &mut entry).ok()?;
        let entry = u64::from_le_bytes(entry);
        (entry & PRESENT != 0).then_some(entry & ADDRESS)
    }

    /// Searches the kernel's half for executable pages, from `from` on, in up to `tables_max` tables. Tables that
    /// name each other are read again and again, so that there may be no end.
    pub(crate) fn executable(&self, memory: &dyn PhysicalMemory, from: Gva, tables_max: u32) -> Executable {
        let levels = u32::from(self.levels);
        // Addresses are signed: the upper half of the top table goes on from here.
        let base = u64::MAX << (PAGE_BITS + INDEX_BITS * levels);
        let half = base + (1 << (PAGE_BITS + INDEX_BITS * levels - 1));
        let mut found = Executable::default();
        let limits = Limits { memory, from: from.0.max(half), tables_max };
        found.next = found.table(&limits, self.root_gpa & ADDRESS, levels, base);
        found
    }
}

/// What bounds a search.
struct Limits<'a> {
    memory: &'a dyn PhysicalMemory,
    from: u64,
    tables_max: u32,
}

impl Executable {
    /// Searches one table and those below it; where to go on if that is too much.
    fn table(&mut self, limits: &Limits<'_>, gpa: u64, level: u32, base: u64) -> Option<Gva> {
        if self.tables == limits.tables_max {
            return Some(Gva(base.max(limits.from)));
        }
        self.tables += 1;
        let mut table = [0; 8 << INDEX_BITS];
        // A table outside memory maps nothing.
        limits.memory.read(gpa, &mut table).ok()?;
        let shift = PAGE_BITS + INDEX_BITS * (level - 1);
        let first = limits.from.saturating_sub(base) >> shift;
        for (index, entry) in (0..).zip(table.as_chunks().0).skip(first as usize) {
            let entry = u64::from_le_bytes(*entry);
            if entry & PRESENT == 0 || entry & NO_EXECUTE != 0 {
                continue;
            }
            let start = base + (index << shift);
            if level == 1 || (level <= LARGE_LEVEL_MAX && entry & LARGE != 0) {
                let end = start.saturating_add(1 << shift);
                match self.ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => self.ranges.push(start..end),
                }
            } else if let Some(next) = self.table(limits, entry & ADDRESS, level - 1, start) {
                return Some(next);
            }
        }
        None
    }
}

/// A range of guest-virtual addresses that maps linearly to guest-physical ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Linear {
    /// The virtual range.
    pub(crate) range: Range<u64>,
    /// Physical address of `range.start`.
    pub(crate) gpa: u64,
}

impl Linear {
    /// Physical address of `len` bytes at `gva`, if all of them lie inside.
    pub(crate) fn translate(&self, gva: Gva, len_bytes: u64) -> Option<u64> {
        let end = gva.0.checked_add(len_bytes)?;
        let inside = self.range.start <= gva.0 && end <= self.range.end;
        inside.then(|| self.gpa.wrapping_add(gva.0 - self.range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::fixture::Ram;

    fn ram_with(entries: &[(u64, u64)]) -> Ram {
        let mut ram = Ram(vec![0; 0x10000]);
        for &(gpa, value) in entries {
            let at = usize::try_from(gpa).unwrap();
            ram.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        ram
    }

    #[test]
    fn pages_of_every_size_translate_at_both_depths() {
        let gva = Gva(0xffff_8880_4030_2010);
        let index = |level: u64| ((gva.0 >> (12 + 9 * (level - 1))) & 511) * 8;
        let nx = 1 << 63;
        let chain = [
            (0x1000 + index(5), 0x2000 | PRESENT),
            (0x2000 + index(4), 0x3000 | PRESENT | nx),
            (0x3000 + index(3), 0x4000 | PRESENT),
            (0x4000 + index(2), 0x5000 | PRESENT),
            (0x5000 + index(1), 0xabc_d000 | PRESENT | nx),
        ];
        let five = PageTables { root_gpa: 0x1000, levels: 5 };
        let four = PageTables { root_gpa: 0x2000, levels: 4 };
        let small = Translation { gpa: 0xabc_d010, left_bytes: 0xff0 };
        let ram = ram_with(&chain);
        assert_eq!(five.translate(&ram, gva), Ok(small));
        assert_eq!(four.translate(&ram, gva), Ok(small));

        let mut large = chain;
        large[3].1 = 0x4000_0000 | PRESENT | LARGE;
        let within = gva.0 & 0x1f_ffff;
        let expected = Translation { gpa: 0x4000_0000 + within, left_bytes: (2 << 20) - within };
        assert_eq!(four.translate(&ram_with(&large), gva), Ok(expected));

        large[2].1 = 0x8000_0000 | PRESENT | LARGE | nx;
        let within = gva.0 & 0x3fff_ffff;
        let expected = Translation { gpa: 0x8000_0000 + within, left_bytes: (1 << 30) - within };
        assert_eq!(five.translate(&ram_with(&large), gva), Ok(expected));
    }

    #[test]
    fn addresses_between_the_halves_are_unmapped() {
        let entries: Vec<_> = (0..512).map(|i| (0x1000 + i * 8, 0x1000 | PRESENT)).collect();
        let tables = PageTables { root_gpa: 0x1000, levels: 5 };
        for gva in [1 << 56, 1 << 62, 0x7fff_ffff_ffff_ffff, 0xfeff_ffff_ffff_ffff] {
            assert_eq!(tables.translate(&ram_with(&entries), Gva(gva)), Err(Unmapped), "{gva:#x}");
        }
        for gva in [0, 0x00ff_ffff_ffff_fff0, 0xff00_0000_0000_0000, 0xffff_ffff_ffff_fff0] {
            assert!(tables.translate(&ram_with(&entries), Gva(gva)).is_ok(), "{gva:#x}");
        }
    }

    #[test]
    fn absent_entries_and_tables_outside_memory_are_unmapped() {
        let gva = Gva(0xffff_ffff_8000_0000);
        let tables = PageTables { root_gpa: 0x1000, levels: 4 };
        assert_eq!(tables.translate(&ram_with(&[]), gva), Err(Unmapped));
        let far = ram_with(&[(0x1000 + 511 * 8, ADDRESS | PRESENT)]);
        assert_eq!(tables.translate(&far, gva), Err(Unmapped));
    }

    #[test]
    fn tables_that_name_themselves_end() {
        let entries: Vec<_> = (0..512).map(|i| (0x1000 + i * 8, 0x1000 | PRESENT)).collect();
        let tables = PageTables { root_gpa: 0x1000, levels: 5 };
        let found = tables.translate(&ram_with(&entries), Gva(0xffff_ffff_8000_0123));
        assert_eq!(found, Ok(Translation { gpa: 0x1123, left_bytes: 0xedd }));
    }

    #[test]
    fn executable_pages_are_found_a_few_tables_at_a_time() {
        let (first, second) = (0xffff_8000_0000_0000_u64, 0xffff_ffff_ff60_0000_u64);
        let index = |gva: u64, level: u64| ((gva >> (12 + 9 * (level - 1))) & 511) * 8;
        let entries = [
            (0x1000 + index(first, 4), 0x2000 | PRESENT),
            (0x1000 + index(second, 4), 0x5000 | PRESENT),
            (0x2000 + index(first, 3), 0x3000 | PRESENT),
            (0x2000 + index(first, 3) + 8, 0x3000 | PRESENT | NO_EXECUTE),
            (0x3000 + index(first, 2), 0x4000 | PRESENT),
            (0x3000 + index(first, 2) + 8, PRESENT | LARGE),
            (0x4000 + 511 * 8, PRESENT),
            (0x4000 + 3 * 8, PRESENT | NO_EXECUTE),
            (0x5000 + index(second, 3), PRESENT | LARGE),
            // The lower half is user space.
            (0x1000, 0x2000 | PRESENT),
        ];
        let (ram, tables) = (ram_with(&entries), PageTables { root_gpa: 0x1000, levels: 4 });
        let expected =
            [first + (511 << 12)..first + (4 << 20), second & !((1 << 30) - 1)..u64::MAX].map(Some);
        for tables_max in 4..=8 {
            let (mut from, mut ranges) = (Gva(0), Vec::new());
            loop {
                let found = tables.executable(&ram, from, tables_max);
                assert!(found.tables <= tables_max);
                ranges.extend(found.ranges.into_iter().map(Some));
                let Some(next) = found.next else { break };
                assert!(next > from, "the search goes on");
                from = next;
            }
            assert_eq!(ranges, expected, "{tables_max} tables at a time");
        }
    }

    #[test]
    fn linear_ranges_take_whole_reads_only() {
        let linear = Linear { range: 0x1000..0x2000, gpa: 0x70_0000 };
        assert_eq!(linear.translate(Gva(0x1ff8), 8), Some(0x70_0ff8));
        assert_eq!(linear.translate(Gva(0x1ff9), 8), None);
        assert_eq!(linear.translate(Gva(0xfff), 8), None);
        assert_eq!(linear.translate(Gva(u64::MAX), 8), None);
    }
}
