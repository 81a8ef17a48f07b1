// SPDX-License-Identifier: Apache-2.0
//! What the daemon costs while nobody needs it.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{Report, Shop};

/// Of one core, in percent: with four idle machines, and beside that for looking for threats in each.
const CPU_PERCENT_MAX: f64 = 2.0;
const INSPECTING_PERCENT_MAX: f64 = 1.0;
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
    let machines = shop.names().count();
    let (inspecting, rest) = (percent(inspected), percent(used.saturating_sub(inspected)));
    report.claim(
        format!("it uses less than {CPU_PERCENT_MAX} % of a core"),
        rest < CPU_PERCENT_MAX,
        format!("{rest:.1} % with {machines} idle machines"),
    );
    report.claim(
        format!("it inspects a machine with less than {INSPECTING_PERCENT_MAX} %"),
        inspecting < INSPECTING_PERCENT_MAX * machines as f64,
        format!("{inspecting:.1} % for all of them"),
    );
    Ok(())
}
