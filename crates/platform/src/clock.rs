// SPDX-License-Identifier: Apache-2.0
//! Time that never runs backwards.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the host booted, not counting suspension (`CLOCK_MONOTONIC`).
///
/// The same for all processes of one host, so a value kept in a [`crate::SharedTable`] keeps its meaning when another
/// process takes the table over.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_run_backwards() {
        let first = monotonic_ns();
        assert!(first > 0);
        assert!(monotonic_ns() >= first);
    }
}
