// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask soak handover`: connections outlive the daemon however often it ends.

use std::time::Instant;

use anyhow::Result;
use e2e::Shop;
use e2e::soak::{HandOvers, hand_over};
use serde::Serialize;
use testkit::accel;

use crate::{guests, packages, progress, shell, test};

/// What a run came to.
#[derive(Serialize)]
struct Summary {
    case: &'static str,
    kills: u32,
    upgrades: u32,
    conversations: Vec<String>,
    lost: u32,
    slowest_return_ms: u128,
    seconds: u64,
}

/// Ends the daemon again and again under traffic.
///
/// # Errors
/// When a connection is lost.
pub fn run(kills: u32, upgrades: u32, no_install: bool) -> Result<()> {
    packages::require(&packages::GUESTS, !no_install)?;
    guests::build(false)?;
    shell::show(&mut test::shipped())?;
    let accelerator = accel::choose()?.accel;
    let mut shop = progress::step("boot the machines", || Shop::open(accelerator))?;
    let (all, started) = (kills + upgrades, Instant::now());
    let endured = hand_over(&mut shop, HandOvers { kills, upgrades }, |number, took| {
        println!("  {number} of {all}: all served again after {} ms", took.as_millis());
    })?;
    let summary = Summary {
        case: "handover",
        kills,
        upgrades,
        conversations: endured.conversations,
        lost: 0,
        slowest_return_ms: endured.slowest.as_millis(),
        seconds: started.elapsed().as_secs(),
    };
    println!("{}", serde_json::to_string(&summary)?);
    Ok(())
}
