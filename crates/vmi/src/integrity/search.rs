// SPDX-License-Identifier: Apache-2.0
//! Pages that may be executed, as the kernel's page tables say, and that are nobody's code.
//!
//! The tables are searched a few at a time, all of them in a few seconds. What is found is compared with all
//! code that is known the next time that is read: a guest may have been about to enter it there.
//!
//! A module that goes, and what another needed only to start, leave the lists first and stay executable until
//! nobody can be running them any more: a grace period of read-copy-update (`do_free_init`, `delete_module` in
//! kernel/module/main.c), which a busy guest makes last for seconds. So nothing is told that a grace period may
//! still be awaited for.

use std::ops::Range;

use crate::core::Core;
use crate::error::Fault;
use crate::memory::Gva;

use super::finding::{Certainty, FindingKind};
use super::known::KnownCode;
use super::layout::IntegrityLayout;
use super::suspects::Suspect;

/// Executable ranges that are nobody's, kept until they are compared again.
const DOUBTFUL_MAX: usize = 64;
/// The page of the old system calls (`VSYSCALL_ADDR`), which is for user space.
const VSYSCALL: u64 = 0xffff_ffff_ff60_0000;
const PAGE_BYTES: u64 = 4096;
/// Tables read to look at one address again.
const AGAIN_TABLES: u32 = 8;

/// Grace periods that must have passed: one, and another in which its waiter has got to run.
const GRACE_PERIODS: u64 = 2;
/// Bits of a sequence number that are not zero while a grace period goes on (`RCU_SEQ_STATE_MASK`).
const GRACE_PERIOD_GOES_ON: u64 = 3;

/// How far the kernel is with grace periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grace {
    sequence: u64,
    /// Code waits to be handed to a grace period.
    is_queued: bool,
}

impl Grace {
    /// Whether whoever awaited a grace period at `first` is through, or nobody has awaited one since `last`.
    fn is_over(self, first: Self, last: Option<Self>) -> bool {
        let awaited = (first.sequence | GRACE_PERIOD_GOES_ON)
            .wrapping_add(1)
            .wrapping_add(GRACE_PERIODS * (GRACE_PERIOD_GOES_ON + 1));
        let is_past = self.sequence.wrapping_sub(awaited) < 1 << 63;
        let is_at_rest = self.sequence & GRACE_PERIOD_GOES_ON == 0 && !self.is_queued;
        is_past || is_at_rest && last == Some(self)
    }
}

/// An executable range that was nobody's.
#[derive(Clone, Debug)]
struct Doubt {
    start: u64,
    /// When it was compared first, and last; `None` where the kernel does not tell.
    grace: Option<(Grace, Grace)>,
}

/// How far the search has got.
#[derive(Debug, Default)]
pub(super) struct Search {
    next: Gva,
    /// Tables read in this round, and in the last one.
    tables: u32,
    tables_last: Option<u32>,
    doubtful: Vec<Doubt>,
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
            let is_new = self.doubtful.iter().all(|doubt| doubt.start != start);
            if is_new && self.doubtful.len() < DOUBTFUL_MAX {
                self.doubtful.push(Doubt { start, grace: None });
            }
        }
        Ok(self.doubtful.len() > before)
    }

    /// Looks again at what was nobody's code, and keeps what still is.
    pub(super) fn compare(
        &mut self,
        core: &Core,
        layout: &IntegrityLayout,
        known: &KnownCode,
    ) -> Result<Vec<Suspect>, Fault> {
        let mut suspects = Vec::new();
        let now = core.grace(layout)?;
        for Doubt { start, grace } in std::mem::take(&mut self.doubtful) {
            let found = core.reader.executable(Gva(start), AGAIN_TABLES)?;
            let range = found.ranges.iter().find(|range| range.contains(&start));
            if let Some(range) = range
                && nobodys(known, &(start..range.end)) == Some(start)
            {
                let first = grace.map(|(first, _)| first).or(now);
                let last = grace.map(|(_, last)| last);
                let is_over = first.zip(now).is_none_or(|(first, now)| now.is_over(first, last));
                self.doubtful.push(Doubt { start, grace: first.zip(now) });
                if is_over {
                    let evidence = format!("pages at {start:#x} may be executed: {}", known.describe(start));
                    let (kind, certainty) = (FindingKind::UnknownCode, Certainty::Certain);
                    suspects.push(Suspect { kind, certainty, address: start, evidence });
                }
            }
        }
        Ok(suspects)
    }

    /// Whether there is something to compare again.
    pub(super) fn is_in_doubt(&self) -> bool {
        !self.doubtful.is_empty()
    }
}

impl Core {
    /// How far the kernel is with grace periods; `None` where it does not describe them.
    fn grace(&self, layout: &IntegrityLayout) -> Result<Option<Grace>, Fault> {
        let symbols = &self.anchors.symbols;
        let (Some(layout), Some(state)) = (&layout.grace_periods, symbols.find("rcu_state")) else {
            return Ok(None);
        };
        let sequence = self.reader.u64(state.at(layout.sequence))?;
        let queue = symbols.find("init_free_list").map(|list| self.reader.pointer(list)).transpose()?;
        Ok(Some(Grace { sequence, is_queued: queue.is_some_and(|first| !first.is_null()) }))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_that_a_grace_period_may_still_be_awaited_for() {
        let at = |sequence| Grace { sequence, is_queued: false };
        let queued = |sequence| Grace { sequence, is_queued: true };
        for (first, last, now, is_over) in [
            // Nobody awaits anything, for as long as was looked.
            (at(400), None, at(400), false),
            (at(400), Some(at(400)), at(400), true),
            (queued(400), Some(queued(400)), queued(400), false),
            (queued(400), Some(queued(400)), at(400), false),
            // One goes on; it ends, but whoever awaits it may have come too late for it.
            (at(401), Some(at(401)), at(401), false),
            (at(401), Some(at(401)), at(404), false),
            (at(401), Some(at(409)), at(409), false),
            (at(401), Some(at(409)), at(412), true),
            (at(401), Some(at(413)), at(413), true),
            (queued(401), Some(queued(413)), queued(413), true),
            // The number wraps around.
            (at(u64::MAX), Some(at(1)), at(1), false),
            (at(u64::MAX), Some(at(5)), at(9), true),
        ] {
            assert_eq!(now.is_over(first, last), is_over, "{first:?} {last:?} {now:?}");
        }
    }
}
