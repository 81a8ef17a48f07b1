// SPDX-License-Identifier: Apache-2.0
//! The loop of a poll core.

use std::time::Duration;

use model::Moment;
use vhost_port::Port;
use vswitch::Switch;

use super::core::{Core, WAKE_TOKEN};
use super::owners::CoreId;
use super::upkeep;
use super::uplink::Uplink;
use crate::clock::now;
use crate::handover::FlowMemory;

/// How long the loop spins without a frame before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Longest sleep of the first core: the switch's upkeep is due even when nothing moves.
const SLEEP_MAX: Duration = upkeep::PERIOD;
/// Turns of upkeep before each sleep: other cores may have the switch in between.
const UPKEEP_IDLE_TURNS: usize = 64;

impl Core {
    /// Runs until the process ends. A panic here is a bug that would leave guests without a network and
    /// without a word: the process ends instead, and its successor takes over.
    pub(super) fn run_or_abort(self) {
        let name = self.name();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run())).is_err();
        tracing::error!(panicked, name, "a poll thread has ended");
        std::process::abort();
    }

    fn run(mut self) -> ! {
        let mut last_busy = now();
        let (mut began, mut busy) = (last_busy, false);
        loop {
            let now = now();
            if busy {
                self.handle.cores.loads.core_worked(self.id, now.since(began));
            }
            began = now;
            self.numbers.rounds += 1;
            busy = self.round(now);
            if busy {
                self.numbers.busy_rounds += 1;
                last_busy = now;
            } else if now.since(last_busy) >= SPIN {
                self.rest(now);
            }
        }
    }

    /// Sleeps, unless there is something to do after all.
    fn rest(&mut self, now: Moment) {
        self.look_after(now, true);
        self.deliver_made();
        self.links.ring();
        let work = self.arm() || self.upkeep.is_urgent();
        let arrived = self.bell().doze(|| !self.links.are_empty());
        if !work && !arrived {
            self.sleep(now);
        }
        self.bell().rise();
        self.suppress();
    }

    /// One round over everything; tells whether any frame moved.
    pub(super) fn round(&mut self, now: Moment) -> bool {
        self.mark = now;
        self.take_commands(now);
        self.send_back(now);
        let mut busy = self.take_parcels();
        busy |= self.go_on_moving(now);
        self.begin_turns();
        for index in 0..self.lanes.len() {
            if self.serve_lane(index, now) | self.serve_interactive(now) {
                busy = true;
                // What is for other cores need not wait for the lanes that are left.
                self.links.ring();
            }
        }
        for index in 0..self.uplinks.len() {
            let mut uplink = self.uplinks.swap_remove(index);
            busy |= self.serve_uplink(&mut uplink, now);
            self.uplinks.push(uplink);
            let last = self.uplinks.len() - 1;
            self.uplinks.swap(index, last);
        }
        self.look_after(now, false);
        self.deliver_made();
        Port::flush_all(&mut self.lanes, |lane| lane.as_mut().map(|lane| &mut lane.port));
        self.links.ring();
        self.set_aside(now);
        busy
    }

    /// Lets the switch look after flows. The first core does that for all, a few flows at a time, and lets other cores
    /// have the switch before it unless policy has just changed.
    fn look_after(&mut self, now: Moment, idle: bool) {
        let Self { shared, turn, upkeep, .. } = self;
        for _ in 0..if idle { UPKEEP_IDLE_TURNS } else { 1 } {
            if self.id != CoreId::FIRST || !upkeep.is_due(now) {
                return;
            }
            let urgent = upkeep.is_urgent();
            let look = |switch: &mut Switch<FlowMemory>, now| {
                let flows = upkeep.share(now, switch.flow_count(), idle);
                switch.tick(now, flows);
            };
            if urgent {
                shared.with(now, turn, look);
            } else if shared.is_wanted() || shared.try_with(now, turn, look).is_none() {
                return;
            }
        }
    }

    /// Asks all guests to kick; tells whether one has work already.
    fn arm(&mut self) -> bool {
        let mut work = false;
        for lane in self.lanes.iter_mut().flatten() {
            work |= lane.arm();
        }
        work
    }

    fn suppress(&mut self) {
        for lane in self.lanes.iter_mut().flatten() {
            lane.port.suppress_kicks();
        }
    }

    fn sleep(&mut self, now: Moment) {
        let deadlines = self.lanes.iter().flatten().filter_map(|lane| lane.deadline());
        let deadlines = deadlines.chain(self.uplinks.iter().filter_map(Uplink::deadline));
        let deadline = deadlines.map(|deadline| deadline.since(now)).min();
        // The first core looks after flows, the side core after ports that may leave it.
        let side = self.id == self.links.owners.side() && self.lanes.iter().any(Option::is_some);
        let upkeep = (side || self.id == CoreId::FIRST).then_some(SLEEP_MAX);
        let timeout: Option<Duration> = deadline.into_iter().chain(upkeep).min();
        self.numbers.sleeps += 1;
        self.lanes.iter_mut().flatten().for_each(|lane| lane.look_away());
        let rang = match self.poller.wait(timeout) {
            Ok(mut woken) => woken.any(|token| token == WAKE_TOKEN),
            Err(error) => {
                tracing::error!(%error, "cannot wait for kicks");
                false
            }
        };
        if rang {
            self.bell().hush();
        }
        // So far it was the loop itself that waited.
        self.strain.waits = platform::times_blocked();
    }

    /// Whether nothing waits for this core.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.links.are_empty()
            && self.commands.is_empty()
            && self.turn.made.is_empty()
            && self.moves.is_empty()
    }
}
