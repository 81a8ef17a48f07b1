// SPDX-License-Identifier: Apache-2.0
//! What tests of threads and of other programs share.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// Looks until it is so.
///
/// # Panics
/// When it is not within 20 seconds.
pub fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Says that a test is left out, and why, in a line that `cargo xtask test` counts.
pub fn skip(test: &str, reason: impl Display) {
    // Past the capture of what tests print. Nobody may be reading.
    let _ = writeln!(io::stdout(), "skipped: {test}: {reason}");
}
