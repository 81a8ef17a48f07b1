// SPDX-License-Identifier: Apache-2.0
//! Policy changes under open connections.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::conversation::Stream;
use crate::shop::API;
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

/// Two streams of one program, told apart by their unit: the rule is narrowed to one of them.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let kept = Stream::start(shop, "acme/web", "kept", "in-service shop shop /usr/bin/storefront", API)?;
    let legacy = "in-service legacy nobody /usr/bin/storefront";
    let doomed = Stream::start(shop, "acme/web", "doomed", legacy, API)?;
    report.claim("two connections of the storefront are open, from two units", true, "");

    let generation = shop.policy()?.generation;
    let changed = shop.edit(RULES, BEFORE, AFTER)?;
    let ended = doomed.await_end(shop, PATIENCE);
    let took = Instant::now().duration_since(changed);
    let newer = shop.policy()?.generation;
    let restored = shop.edit(RULES, AFTER, BEFORE);
    let ended = ended?;
    report.claim(
        "the rule now asks for shop.service; the other unit's connection is reset within 100 ms",
        ended.starts_with("reset ") && took <= RESET_LIMIT,
        format!("{} ms after the edit, generation {generation} -> {newer}: {ended}", took.as_millis()),
    );
    restored?;
    report.check("shop.service's connection never notices", kept.finish(shop));
    Ok(())
}
