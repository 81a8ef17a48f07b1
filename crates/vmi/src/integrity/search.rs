// SPDX-License-Identifier: Apache-2.0
//! Pages that may be executed, as the kernel's page tables say, and that are nobody's code.
//!
//! The tables are searched a few at a time, all of them in a few seconds. What is found is compared with all
//! code that is known the next time that is read: a guest may have been about to enter it there.

use std::ops::Range;

use crate::error::Fault;
use crate::guest::Core;
use crate::memory::Gva;

use super::known::KnownCode;
use super::suspects::Suspect;
use super::{Certainty, FindingKind};

/// Executable ranges that are nobody's, kept until they are compared again.
const DOUBTFUL_MAX: usize = 64;
/// The page of the old system calls (`VSYSCALL_ADDR`), which is for user space.
const VSYSCALL: u64 = 0xffff_ffff_ff60_0000;
const PAGE_BYTES: u64 = 4096;
/// Tables read to look at one address again.
const AGAIN_TABLES: u32 = 8;

/// How far the search has got.
#[derive(Debug, Default)]
pub(super) struct Search {
    next: Gva,
    /// Tables read in this round, and in the last one.
    tables: u32,
    tables_last: Option<u32>,
    doubtful: Vec<u64>,
}

impl Search {
    /// Tables in a round, as far as is known.
    pub(super) fn tables(&self) -> u32 {
        self.tables_last.unwrap_or(self.tables)
    }

    /// Searches the next `tables_max` tables. Whether there is something to compare again.
    pub(super) fn go_on(&mut self, core: &Core, known: &KnownCode, tables_max: u32) -> Result<bool, Fault> {
        let found = core.reader.executable(self.next, tables_max)?;
        self.tables = self.tables.saturating_add(found.tables);
        match found.next {
            Some(next) => self.next = next,
            None => (self.next, self.tables_last, self.tables) = (Gva(0), Some(self.tables), 0),
        }
        let unknown = found.ranges.iter().filter_map(|range| nobodys(known, range));
        let before = self.doubtful.len();
        for start in unknown {
            if self.doubtful.len() < DOUBTFUL_MAX && !self.doubtful.contains(&start) {
                self.doubtful.push(start);
            }
        }
        Ok(self.doubtful.len() > before)
    }

    /// Looks again at what was nobody's code, and keeps what still is.
    pub(super) fn compare(&mut self, core: &Core, known: &KnownCode) -> Result<Vec<Suspect>, Fault> {
        let mut suspects = Vec::new();
        for start in std::mem::take(&mut self.doubtful) {
            let found = core.reader.executable(Gva(start), AGAIN_TABLES)?;
            let range = found.ranges.iter().find(|range| range.contains(&start));
            if let Some(range) = range
                && nobodys(known, &(start..range.end)) == Some(start)
            {
                let evidence = format!("pages at {start:#x} may be executed: {}", known.describe(start));
                let (kind, certainty) = (FindingKind::UnknownCode, Certainty::Certain);
                suspects.push(Suspect { kind, certainty, address: start, evidence });
                self.doubtful.push(start);
            }
        }
        Ok(suspects)
    }
}

/// The first page of an executable range that is nobody's.
fn nobodys(known: &KnownCode, range: &Range<u64>) -> Option<u64> {
    let mut at = range.start;
    while at < range.end {
        match known.executable_until(at) {
            Some(end) => at = end,
            None if at == VSYSCALL => at += PAGE_BYTES,
            None => return known.is_account_of_pages.then_some(at),
        }
    }
    None
}
