// SPDX-License-Identifier: Apache-2.0
//! Ports whose memory has their poll core wait, and the core that may.
//!
//! A page of a guest's memory may be elsewhere: swapped out, in a file of a disk, or with another host while the guest
//! moves. Whoever touches it waits for it, and with it every port of its core. So a port moves to the side core when its memory
//! lies in such a file, or once work on its frames took longer than [`SLOW`] and the kernel says that the thread was waiting
//! and did not merely lose the processor. There is nothing else there to wait for, but for the switch, and a turn in which that
//! was waited for does not count. The port moves back when none of that has happened for [`CALM`]. The first long wait is
//! felt by the ports beside it, the later ones only by those on the side core. It is for at most twice as many buffers as
//! frames were delivered, because as many are claimed ahead.

use std::time::Duration;

use model::Moment;

/// Longer than any work on a batch takes.
const SLOW: Duration = Duration::from_millis(2);
/// How long a port that had its core wait stays on the side core.
const CALM: Duration = Duration::from_secs(5);

/// What one core knows of its waits.
#[derive(Debug, Default)]
pub(super) struct Strain {
    /// Waits so far, when last asked.
    pub waits: u64,
}

impl Strain {
    /// Whether work that took so long had to wait. `waits` tells how often this thread has so far; it is only asked
    /// when that matters.
    #[inline]
    pub(super) fn waited(&mut self, took: Duration, waits: impl FnOnce() -> u64) -> bool {
        if took < SLOW {
            return false;
        }
        let (before, now) = (self.waits, waits());
        self.waits = now;
        now > before
    }
}

/// Why a port is on the side core.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stay {
    /// Its memory may always have to be waited for.
    pub pageable: bool,
    /// When it last had its core wait.
    pub waited: Option<Moment>,
}

impl Stay {
    /// Whether it need not stay any longer, if it was not put there by hand.
    pub(super) fn is_over(&self, now: Moment) -> bool {
        !self.pageable && self.waited.is_none_or(|waited| now.since(waited) >= CALM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_work_that_waited_counts() {
        let mut strain = Strain::default();
        let never = || panic!("short work is not looked into");
        assert!(!strain.waited(Duration::from_millis(1), never));
        assert!(!strain.waited(Duration::from_millis(3), || 0), "it lost the processor");
        assert!(strain.waited(Duration::from_millis(3), || 2));
        assert!(!strain.waited(Duration::from_millis(3), || 2), "that was the wait before");
    }

    #[test]
    fn a_stay_ends_after_a_calm_while_unless_its_cause_stays() {
        let waited = Moment(1);
        let stay = Stay { pageable: false, waited: Some(waited) };
        assert!(!stay.is_over(waited.after(CALM / 2)));
        assert!(stay.is_over(waited.after(CALM)));
        assert!(!Stay { pageable: true, ..stay }.is_over(waited.after(CALM)));
    }
}
