// SPDX-License-Identifier: Apache-2.0
//! Bounds on how often something is done.

use model::Moment;

const SECOND_NS: u64 = 1_000_000_000;

/// A generic cell rate (ITU-T I.371): up to a second's worth at once, then evenly.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    /// When the burst that is already spent would have been due.
    due_ns: u64,
}

impl Rate {
    /// Whether one more may happen now, of at most `per_second_max`.
    pub(crate) fn allows(&mut self, now: Moment, per_second_max: u32) -> bool {
        let Some(interval_ns) = SECOND_NS.checked_div(per_second_max.into()) else { return false };
        let due_ns = self.due_ns.max(now.0).saturating_add(interval_ns);
        let allowed = due_ns - now.0 <= SECOND_NS;
        if allowed {
            self.due_ns = due_ns;
        }
        allowed
    }
}
