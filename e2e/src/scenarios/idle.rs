// SPDX-License-Identifier: Apache-2.0
//! What the daemon costs while nobody needs it.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{Report, Shop};

/// Of one core, in percent, with four idle machines.
const CPU_PERCENT_MAX: f64 = 2.0;
/// How long to watch, in seconds.
const WATCH_SECONDS: u32 = 5;

/// Watches the daemon's processor time while a guest sleeps.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let (before, started) = (shop.daemon.cpu_time()?, Instant::now());
    let inspected_before = shop.daemon.thread_time("inspect")?;
    shop.vm("acme/web").expect(&format!("sleep {WATCH_SECONDS}"))?;
    let used = shop.daemon.cpu_time()?.saturating_sub(before);
    let inspected = shop.daemon.thread_time("inspect")?.saturating_sub(inspected_before);
    let percent = |used: Duration| 100.0 * used.as_secs_f64() / started.elapsed().as_secs_f64();
    let (percent, inspecting) = (percent(used), percent(inspected));
    let machines = shop.names().count();
    report.claim(
        format!("it uses less than {CPU_PERCENT_MAX} % of a core"),
        percent < CPU_PERCENT_MAX,
        format!("{percent:.1} % with {machines} idle machines, {inspecting:.1} % to inspect them"),
    );
    Ok(())
}
