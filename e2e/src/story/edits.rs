// SPDX-License-Identifier: Apache-2.0
//! Policy changes under open connections.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::conversation::{STOREFRONT, Stream};
use crate::shop::{API, NOTICE_LIMIT};
use crate::{Report, Shop};

/// The manifest with the rules.
const RULES: &str = "40-policies.yaml";
/// What the rule says about the process, before and after: a unit is asked for as well.
const BEFORE: &str = "process: {exe: /usr/bin/storefront}";
const AFTER: &str = "process: {exe: /usr/bin/storefront, unit: shop.service}";
/// From the changed file to the reset in the guest.
const RESET_LIMIT: Duration = Duration::from_millis(100);
/// Time given to a reset before the scenario gives up on it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is tried. The median counts: one stall of a busy machine says nothing about the daemon.
const ROUNDS: usize = 3;

/// Two streams of one program, told apart by their unit: the rule is narrowed to one of them.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let kept = Stream::start(shop, "acme/web", "kept", STOREFRONT, API)?;
    report.claim(
        "shop.service has a connection open, and so has another unit with the same program",
        true,
        "",
    );
    let mut resets = Vec::new();
    for _ in 0..ROUNDS {
        resets.push(narrow(shop)?);
    }
    resets.sort_unstable();
    let median = resets[ROUNDS / 2];
    let all: Vec<String> = resets.iter().map(|took| took.as_millis().to_string()).collect();
    report.claim(
        "the rule is edited to ask for shop.service: the other connection is reset within 100 ms",
        median <= RESET_LIMIT,
        format!("{} ms after the edit, {ROUNDS} times over", all.join(", ")),
    );
    report.check("shop.service's connection never notices", kept.finish(shop));
    Ok(())
}

/// Opens a connection, denies it by an edit, and takes the edit back; returns how long the reset took, as the guest's
/// program saw it.
fn narrow(shop: &Shop) -> Result<Duration> {
    let legacy = "in-service legacy nobody /usr/bin/storefront";
    let doomed = Stream::start(shop, "acme/web", "doomed", legacy, API)?;
    let generation = shop.policy()?.generation;
    let changed = shop.edit(RULES, BEFORE, AFTER)?;
    let ended = doomed.await_end(shop, PATIENCE);
    let took = Instant::now().duration_since(changed);
    shop.edit(RULES, AFTER, BEFORE)?;
    let ended = ended?;
    ensure!(ended.starts_with("reset "), "the guest says `{ended}`");
    // The next round must not start before the old rule holds again.
    shop.until(NOTICE_LIMIT, || Ok((shop.policy()?.generation >= generation + 2).then_some(())))?;
    Ok(took)
}
