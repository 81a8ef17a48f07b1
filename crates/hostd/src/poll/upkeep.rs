// SPDX-License-Identifier: Apache-2.0
//! When the switch looks after flows that get no frames.
//!
//! Each look brings a flow into the cache that a frame may need for its own, so flows are looked at as seldom as they
//! may be: all of them once in [`PERIOD`], in small pieces while frames come, and once more at once after a change of
//! policy.

use std::time::Duration;

use model::Moment;

/// How often all flows are looked after. Time-outs are this late, at most twice.
pub const PERIOD: Duration = Duration::from_millis(100);
/// Flows looked after per round while frames come: a flow is as far from the cache as a frame's, and a round may
/// have but a few frames. At 100,000 rounds a second, a full table takes some seconds.
const BUSY_FLOWS: usize = 2;
/// The same after a change of policy, until all flows were looked at once.
const HASTY_FLOWS: usize = 64;
/// The same before a sleep, several times in a row.
const IDLE_FLOWS: usize = 256;

/// How far the switch's upkeep is.
#[derive(Debug, Default)]
pub struct Upkeep {
    /// Flows that this pass has not looked at yet.
    left: usize,
    /// Whether this pass follows a change of policy.
    hasty: bool,
    /// When the next pass begins.
    next: Moment,
}

impl Upkeep {
    /// Policy has changed: all `flows` are to be looked at soon.
    pub fn hurry(&mut self, flows: usize) {
        *self = Self { left: flows, hasty: true, next: self.next };
    }

    /// Whether any flow is to be looked at now.
    pub fn is_due(&self, now: Moment) -> bool {
        self.left > 0 || now >= self.next
    }

    /// How many of all `flows` to look at in this round.
    pub fn share(&mut self, now: Moment, flows: usize, idle: bool) -> usize {
        if self.left == 0 {
            if now < self.next {
                return 0;
            }
            *self = Self { left: flows, hasty: false, next: now.after(PERIOD) };
        }
        let share = match (idle, self.hasty) {
            (true, _) => IDLE_FLOWS,
            (false, true) => HASTY_FLOWS,
            (false, false) => BUSY_FLOWS,
        };
        let share = share.min(self.left);
        self.left -= share;
        share
    }

    /// Whether flows wait to be looked at after a change of policy: no time for sleep.
    pub fn is_urgent(&self) -> bool {
        self.hasty && self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOWS: usize = 40_000;

    /// Looks at flows until the pass is over; tells the rounds.
    fn rounds(upkeep: &mut Upkeep, now: Moment, idle: bool) -> usize {
        let (mut rounds, mut looked) = (0, 0);
        while looked < FLOWS {
            looked += upkeep.share(now, FLOWS, idle);
            rounds += 1;
        }
        assert_eq!(looked, FLOWS);
        rounds
    }

    #[test]
    fn all_flows_are_looked_at_once_in_a_period() {
        let (mut upkeep, start) = (Upkeep::default(), Moment(1));
        assert_eq!(rounds(&mut upkeep, start, true), FLOWS.div_ceil(IDLE_FLOWS));
        assert!(!upkeep.is_due(start.after(PERIOD / 2)));
        assert_eq!(upkeep.share(start.after(PERIOD / 2), FLOWS, true), 0);
        assert!(upkeep.is_due(start.after(PERIOD)));
        assert_eq!(rounds(&mut upkeep, start.after(PERIOD), false), FLOWS / BUSY_FLOWS);
    }

    #[test]
    fn a_change_of_policy_does_not_wait_for_the_period() {
        let (mut upkeep, start) = (Upkeep::default(), Moment(1));
        rounds(&mut upkeep, start, true);
        upkeep.hurry(FLOWS);
        assert!(upkeep.is_urgent());
        assert_eq!(rounds(&mut upkeep, start, false), FLOWS / HASTY_FLOWS);
        assert!(!upkeep.is_urgent());
        assert_eq!(upkeep.share(start, FLOWS, false), 0);
    }
}
