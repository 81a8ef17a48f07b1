// SPDX-License-Identifier: Apache-2.0
//! The time of day, for what leaves the daemon.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since 1970; none on a clock that stands before.
pub fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
