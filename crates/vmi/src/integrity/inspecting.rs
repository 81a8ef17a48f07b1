// SPDX-License-Identifier: Apache-2.0
//! Inspections, a slice at a time.

use std::time::Duration;

use super::finding::{Coverage, Finding};
use super::pages::Pages;
use super::{NAMED_PER_CALL, SUSPECT_PERIOD, VIEWS_PERIOD};
use crate::error::ViewError;
use crate::guest::Guest;

impl Guest {
    /// Looks for threats for a fraction of a millisecond, and for some more every [`VIEWS_PERIOD`] or when there
    /// is a suspect. `now` is any clock that goes on; call ten to forty times a second.
    ///
    /// # Errors
    /// [`ViewError::Gone`] when the guest was reset; others when its modules cannot be listed.
    pub fn inspect(&mut self, now: Duration) -> Result<(), ViewError> {
        let Self { core, integrity, .. } = self;
        let since = now.saturating_sub(integrity.inspected.replace(now).unwrap_or(now));
        if now >= integrity.views_due {
            integrity.views_due = now.saturating_add(VIEWS_PERIOD);
            let suspects = integrity.compare_views(core)?;
            integrity.views += 1;
            integrity.suspects.saw(now, suspects);
        }
        let suspects = integrity.check_pages(core, since)?;
        integrity.suspects.saw(now, suspects);
        integrity.search_tables(core, since, now);
        if integrity.suspects.is_any_open() || integrity.search.is_in_doubt() {
            integrity.views_due = integrity.views_due.min(now.saturating_add(SUSPECT_PERIOD));
        }
        integrity.suspects.forget(now);
        integrity.suspects.name(&integrity.names, NAMED_PER_CALL);
        Ok(())
    }

    /// What inspections have found, the surest first.
    #[must_use]
    pub fn threats(&self) -> Vec<Finding> {
        self.integrity.suspects.findings()
    }

    /// How much inspections have seen.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        let pages = self.integrity.pages.as_ref().map(Pages::coverage);
        Coverage { views: self.integrity.views, ..pages.unwrap_or_default() }
    }
}
