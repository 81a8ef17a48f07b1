// SPDX-License-Identifier: Apache-2.0
//! What the user sees while something takes long: a spinner on a terminal, plain lines elsewhere; on standard error, for
//! standard output may be read by programs.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);
/// A step longer than this says how long it took.
const WORTH_TELLING: Duration = Duration::from_secs(2);

/// Says what begins now.
pub fn note(what: &str) {
    eprintln!("  {what} ...");
}

/// Runs `work`, showing `what` until it is done, and how long it took when that is worth telling.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.set_style(ProgressStyle::with_template("  {spinner} {msg} ({elapsed})")?);
    spinner.enable_steady_tick(TICK);
    if spinner.is_hidden() {
        eprintln!("  {what} ...");
    }
    let started = Instant::now();
    let outcome = work();
    spinner.finish_and_clear();
    let took = started.elapsed();
    if took >= WORTH_TELLING || outcome.is_err() {
        let verdict = if outcome.is_ok() { "done" } else { "failed" };
        eprintln!("  {what}: {verdict} in {:.1} s", took.as_secs_f64());
    }
    outcome
}
