// SPDX-License-Identifier: Apache-2.0
//! Threats: what in a guest's kernel contradicts itself, or is not as it was.
//!
//! An inspection is called some times a second ([`crate::Guest::inspect`]). Each one checks the next few pages of text
//! and read-only data against what they were at first sight, and searches the next few page tables for code that
//! is nobody's; all of both in a [`ROUND`]. Every [`VIEWS_PERIOD`] all *views* are compared: lists that must agree
//! with each other, and pointers that must lead to code which is known.
//!
//! The guest runs meanwhile, so a contradiction is only a *suspect* at first, and is looked at again soon. It
//! becomes a [`Finding`] when it is seen [`finding::SIGHTINGS_MIN`] times over [`finding::SUSPECT_FOR`], and is forgotten
//! [`finding::FINDING_KEPT`] after it was seen last. What is there before the first inspection is the baseline for text and
//! data, but not for views.
//!
//! Bounds: [`PAGES_PER_CALL`] pages and [`TABLES_PER_CALL`] page tables a call, [`VIEWS_READS_MAX`] reads for the views, [`finding::SUSPECTS_MAX`] suspects,
//! a few bytes for every 256 of the kernel's image.

mod finding;
mod hooks;
mod inspecting;
mod known;
mod layout;
mod net;
mod pages;
mod search;
mod sites;
mod suspects;
mod tasks;

use std::time::Duration;

use crate::core::Core;
use crate::error::{Fault, ViewError};
use crate::kallsyms::SymbolNames;

pub use self::finding::{Certainty, Coverage, Finding, FindingKind};
use self::known::KnownCode;
pub(crate) use self::layout::IntegrityLayout;
use self::pages::{Look, Pages};
use self::search::Search;
use self::suspects::{Suspect, Suspects};

/// Time in which all pages of text and read-only data are checked, and all page tables searched.
const ROUND: Duration = Duration::from_secs(3);
/// Most pages checked in one call, so that the round of a large kernel takes longer.
pub const PAGES_PER_CALL: usize = 256;
/// Most page tables searched in one call; guests of 4 GiB may have that many for each call of a round.
pub const TABLES_PER_CALL: u32 = 64;
/// Symbols looked up in one call, for each takes some milliseconds.
const NAMED_PER_CALL: usize = 2;
/// Fewest tables searched in one call: at least those that lead to one address.
const TABLES_PER_CALL_MIN: u32 = 8;
/// Time between two comparisons of all views.
const VIEWS_PERIOD: Duration = Duration::from_millis(2500);
/// The same while there is a suspect.
const SUSPECT_PERIOD: Duration = Duration::from_millis(400);
/// Reads that comparing all views may take: some 50 ms, for a guest that wants to be looked at for long.
const VIEWS_READS_MAX: u32 = 2_000_000;
/// Reads that one slice of pages may take.
const SLICE_READS_MAX: u32 = 200_000;

/// A comparison of views.
type View<'a> = &'a dyn Fn(&Core) -> Result<Vec<Suspect>, Fault>;

/// What inspections remember of a guest.
pub(crate) struct Integrity {
    layout: IntegrityLayout,
    names: SymbolNames,
    pages: Option<Pages>,
    search: Search,
    known: KnownCode,
    suspects: Suspects,
    inspected: Option<Duration>,
    views_due: Duration,
    views: u64,
}

impl Integrity {
    pub(crate) fn new(layout: IntegrityLayout, names: SymbolNames) -> Self {
        Self {
            layout,
            names,
            pages: None,
            search: Search::default(),
            known: KnownCode::default(),
            suspects: Suspects::default(),
            inspected: None,
            views_due: Duration::ZERO,
            views: 0,
        }
    }

    /// Reads what code is known, and which modules hide.
    fn learn_code(&mut self, core: &Core) -> Result<Vec<Suspect>, ViewError> {
        let layout = &self.layout;
        let (known, hidden) = core.query(VIEWS_READS_MAX, |core| core.known_code(layout))?;
        if let Some(pages) = &mut self.pages {
            if !known.covers(&self.known) {
                pages.doubt_all();
            }
            pages.follow(core, layout, &known);
        }
        self.known = known;
        Ok(hidden)
    }

    /// Compares all views. What one of them cannot read is left out: the others still tell.
    fn compare_views(&mut self, core: &Core) -> Result<Vec<Suspect>, ViewError> {
        let mut suspects = self.learn_code(core)?;
        let (layout, known) = (&self.layout, &self.known);
        let views: [View<'_>; 6] = [
            &|core| core.task_suspects(layout),
            &|core| core.network_suspects(layout),
            &|core| core.entry_suspects(known),
            &|core| core.tracer_suspects(layout, known),
            &|core| core.probe_suspects(layout, known),
            &|core| core.packet_hook_suspects(layout, known),
        ];
        for view in views {
            match core.query(VIEWS_READS_MAX, view) {
                Ok(found) => suspects.extend(found),
                Err(ViewError::Gone) => return Err(ViewError::Gone),
                Err(ViewError::Inconsistent | ViewError::Exhausted) => {}
            }
        }
        core.reader.start_query(SLICE_READS_MAX);
        suspects.extend(self.search.compare(core, &self.layout, &self.known).unwrap_or_default());
        Ok(suspects)
    }

    /// Checks the next pages, once the guest has got as far as its first process.
    fn check_pages(&mut self, core: &Core, since: Duration) -> Result<Vec<Suspect>, ViewError> {
        if self.pages.is_none() {
            let layout = &self.layout;
            self.pages = core.query(VIEWS_READS_MAX, |core| core.pages(layout))?;
            self.learn_code(core)?;
        }
        let Some(pages) = &mut self.pages else { return Ok(Vec::new()) };
        let count = share(pages.count(), since).min(PAGES_PER_CALL);
        core.reader.start_query(SLICE_READS_MAX);
        let look = Look { core, layout: &self.layout, known: &self.known };
        let suspects = pages.check_some(look, count);
        if !suspects.iter().any(|suspect| suspect.kind == FindingKind::FunctionHook) {
            return Ok(suspects);
        }
        // Code may have been generated since the views were compared: look again with what is known now.
        self.learn_code(core)?;
        core.reader.start_query(SLICE_READS_MAX);
        let look = Look { core, layout: &self.layout, known: &self.known };
        let Some(pages) = &mut self.pages else { return Ok(Vec::new()) };
        Ok(pages.check_again(look, suspects))
    }

    /// Searches the next page tables; what is found is compared at once.
    fn search_tables(&mut self, core: &Core, since: Duration, now: Duration) {
        let tables = u32::try_from(share(self.search.tables() as usize, since)).unwrap_or(u32::MAX);
        let tables = tables.clamp(TABLES_PER_CALL_MIN, TABLES_PER_CALL);
        core.reader.start_query(SLICE_READS_MAX);
        if self.known.is_account_of_pages && self.search.go_on(core, &self.known, tables) == Ok(true) {
            self.views_due = now;
        }
    }
}

/// The part of `count` that is due `since` the last call, for all to be done in a [`ROUND`].
fn share(count: usize, since: Duration) -> usize {
    (count as u128 * since.as_micros()).div_ceil(ROUND.as_micros()) as usize
}
