// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask soak switch`: whatever some guests do, the others do not notice.

use std::time::Duration;

use anyhow::{Result, bail};
use e2e::Shop;
use e2e::soak::{Noise, Peace, Times, disturb};
use serde::Serialize;
use testkit::accel;

use crate::{guests, packages, progress, shell, test};

/// The machines: one that starts over, two that talk.
const MACHINES: [&str; 3] = ["acme/web", "acme/api", "globex/web"];
/// Time without noise.
const QUIET: Duration = Duration::from_secs(30);
/// What frames may take with noise, of what they take without.
const SLOWER_MAX: f64 = 2.0;
/// What the daemon's memory may grow by, from the first third to the last; tables that grow in steps do once or twice.
const GROWTH_KIB_MAX: u64 = 4096;

/// What a run came to.
#[derive(Serialize)]
struct Summary {
    case: &'static str,
    seconds: u64,
    quiet: Times,
    loud: Times,
    p99_ratio: f64,
    conversation: String,
    restarts: u32,
    policies: u64,
    hostile_frames: u64,
    scribbles: u64,
    memory_first_kib: u64,
    memory_last_kib: u64,
}

/// Watches two guests while others make noise.
///
/// # Errors
/// When they lose a frame, or are much slower, or the daemon grows.
pub fn run(minutes: u32, no_install: bool) -> Result<()> {
    packages::require(&packages::GUESTS, !no_install)?;
    guests::build(false)?;
    shell::show(&mut test::shipped())?;
    let mut shop = Shop::open_with(accel::choose()?.accel, &MACHINES)?;
    let noise = Noise { quiet: QUIET, loud: Duration::from_secs(60 * u64::from(minutes)) };
    let peace = disturb(&mut shop, noise, |elapsed| {
        progress::note(&format!("{} of {} s of noise", elapsed.as_secs(), noise.loud.as_secs()));
    })?;
    let summary = Summary::of(peace, noise);
    println!("{}", serde_json::to_string(&summary)?);
    summary.judge()
}

impl Summary {
    fn of(peace: Peace, noise: Noise) -> Self {
        let third = peace.memory_kib.len().div_ceil(3).max(1);
        let most = |values: &mut dyn Iterator<Item = u64>| values.max().unwrap_or(0);
        Self {
            case: "neighbours",
            seconds: noise.loud.as_secs(),
            p99_ratio: peace.loud.p99_us / peace.quiet.p99_us,
            memory_first_kib: most(&mut peace.memory_kib.iter().copied().take(third)),
            memory_last_kib: most(&mut peace.memory_kib.iter().copied().rev().take(third)),
            quiet: peace.quiet,
            loud: peace.loud,
            conversation: peace.conversation,
            restarts: peace.restarts,
            policies: peace.policies,
            hostile_frames: peace.hostile_frames,
            scribbles: peace.scribbles,
        }
    }

    fn judge(&self) -> Result<()> {
        if self.quiet.lost + self.loud.lost > 0 {
            bail!("{} frames were lost with noise and {} without", self.loud.lost, self.quiet.lost);
        }
        if self.p99_ratio > SLOWER_MAX {
            bail!("99 of 100 frames took {:.1} times as long as without noise", self.p99_ratio);
        }
        if self.memory_last_kib > self.memory_first_kib + GROWTH_KIB_MAX {
            bail!("the daemon grew from {} to {} KiB", self.memory_first_kib, self.memory_last_kib);
        }
        Ok(())
    }
}
