// SPDX-License-Identifier: Apache-2.0
//! Monotonic time for the engines, and the time of day for what leaves the daemon.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Moment;

/// Monotonic time. Its epoch is the host's boot, so it goes on across restarts of the daemon.
pub fn now() -> Moment {
    Moment(platform::monotonic_ns())
}

/// Time since 1970; none on a clock that stands before.
pub fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
