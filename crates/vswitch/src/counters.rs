// SPDX-License-Identifier: Apache-2.0
//! What has happened so far, as numbers.

use crate::{DropReason, Verdict};

/// Totals since the switch was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that were forwarded.
    pub forwarded_frames: u64,
    /// Their length without virtio-net headers.
    pub forwarded_bytes: u64,
    /// Frames that the switch answered itself.
    pub answered_frames: u64,
    /// Times a caller was asked to copy more.
    pub need_more: u64,
    /// Times a caller was asked who is behind a flow.
    pub asked: u64,
    /// Times a frame had to wait because it exceeded a limit.
    pub held: u64,
    /// Frames that found their flow in the table.
    pub hits: u64,
    /// Frames that did not.
    pub misses: u64,
    /// Flows allowed and entered.
    pub flows_opened: u64,
    /// Flows denied at their first frame.
    pub flows_denied: u64,
    /// Live flows that a change of policy ended, or what was spoken in them.
    pub flows_reset: u64,
    /// Flows that ended by themselves or fell idle.
    pub flows_closed: u64,
    /// Flows evicted to make room, also counted as closed.
    pub flows_evicted: u64,
    /// Flows taken over from a predecessor.
    pub flows_adopted: u64,
    /// Slots that a predecessor left in a state that could not be trusted.
    pub slots_discarded: u64,
    /// Questions about names that the switch answered itself.
    pub names_answered: u64,
    /// Questions that an upstream was to be asked.
    pub names_forwarded: u64,
    /// Questions that policy does not let an upstream be asked.
    pub names_refused: u64,
    /// Frames of the switch's own that did not fit the queue.
    pub emissions_lost: u64,
    /// Events that did not fit the queue or exceeded a port's rate.
    pub events_lost: u64,
    /// Events that a rule wanted logged and that exceeded a port's rate.
    pub log_lost: u64,
    /// Spans of flows that rules wanted traced, and that exceeded a port's bound or rate or did not fit the queue.
    pub traces_lost: u64,
    /// Flows whose application protocol a rule wanted told, and that exceeded a port's bound.
    pub protocols_untold: u64,
    drops: Drops,
}

/// Frames dropped, by position of the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl Counters {
    /// Frames dropped for one reason.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.0[reason as usize]
    }

    /// Frames dropped, by reason; reasons that never occurred included.
    pub fn drops_by_reason(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|reason| (*reason, self.drops(*reason)))
    }

    /// Notes a frame that goes on.
    #[inline]
    pub(crate) fn forward(&mut self, len_bytes: usize) {
        self.forwarded_frames += 1;
        self.forwarded_bytes += len_bytes as u64;
    }

    #[inline]
    pub(crate) fn note(&mut self, verdict: &Verdict, len_bytes: usize) {
        match verdict {
            Verdict::Forward(_) => self.forward(len_bytes),
            Verdict::Answered => self.answered_frames += 1,
            Verdict::Drop(reason) => self.drops.0[*reason as usize] += 1,
            Verdict::NeedMore => self.need_more += 1,
            Verdict::Hold(_) => self.held += 1,
            Verdict::Ask(_) => self.asked += 1,
        }
    }
}
