// SPDX-License-Identifier: Apache-2.0
//! Ports move to the side core when their memory was waited for, and back.

use std::time::Duration;

use model::Moment;
use vswitch::PortId;

use super::core::Core;

impl Core {
    /// Time since the last call, or the round's beginning.
    pub(super) fn lap(&mut self) -> Duration {
        let now = (self.clock)();
        now.since(std::mem::replace(&mut self.mark, now))
    }

    /// Whether work that took so long had to wait for guests' memory.
    pub(super) fn has_waited(&mut self, took: Duration) -> bool {
        if std::mem::take(&mut self.turn.waited) {
            // For another core.
            self.strain.waits = platform::times_blocked();
            return false;
        }
        self.strain.waited(took, platform::times_blocked)
    }

    /// Has ports whose memory was waited for move to the side core.
    pub(super) fn set_aside(&mut self, now: Moment) {
        for id in std::mem::take(&mut self.suspects) {
            let Some(lane) = self.lane(id) else { continue };
            lane.stay.waited = Some(now);
            self.move_aside(id);
        }
    }

    pub(super) fn move_aside(&mut self, id: PortId) {
        let side = self.links.owners.side();
        if self.id != side && !self.handle.cores.loads.is_pinned(id) && self.moves.want(id, side) {
            tracing::warn!(
                port = id.0,
                "guest's memory may have to be waited for: its port moves to the side core"
            );
        }
    }

    /// Has ports that need the side core no longer move away from it.
    pub(super) fn send_back(&mut self, now: Moment) {
        if self.id != self.links.owners.side() {
            return;
        }
        let loads = &self.handle.cores.loads;
        for lane in self.lanes.iter().flatten() {
            if lane.stay.is_over(now) && !loads.is_pinned(lane.id) {
                self.moves.want(lane.id, self.links.owners.emptiest());
            }
        }
    }

    /// Has nobody be blamed for the time that passed up to now.
    pub(super) fn excuse(&mut self) {
        self.lap();
        self.strain.waits = platform::times_blocked();
    }
}
