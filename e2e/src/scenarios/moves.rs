// SPDX-License-Identifier: Apache-2.0
//! Machines that move to another daemon while they run.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use testkit::daemon::Daemon;
use testkit::guests::shipped;
use testkit::vm::Vm;

use super::traffic::bulk_from;
use crate::conversation::{STOREFRONT, Stream, attempt};
use crate::shop::API;
use crate::{Report, Shop};

/// Both ends of an open conversation move, one after the other, and back again in the other order. Whichever goes first
/// receives as fast as it can while its memory is copied.
pub(super) fn migrate(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let stream = Stream::start(shop, "acme/web", "traveller", STOREFRONT, API)?;
    let (here, there) = (shop.runtime(), shop.runtime().with_file_name("elsewhere"));
    fs::create_dir(&there).context("make another runtime folder")?;
    // The state of the flows goes ahead, as it would to a successor.
    for file in ["flows.table", "ports.json"] {
        fs::copy(here.join(file), there.join(file)).with_context(|| format!("copy {file}"))?;
    }
    let other = Daemon::start(&shipped("meshvisor-hostd"), &shop.manifests(), &there)?;

    step(shop, report, "acme/web", &there, |_, web| bulk_from(web, API))?;
    step(shop, report, "acme/api", &there, |_, _| Ok("nobody could talk to it".into()))?;
    let connected = attempt(shop.vm("acme/web"), STOREFRONT, API)?;
    report.check("the storefront is known where it is now, and opens a connection", connected.connected());
    step(shop, report, "acme/api", &here, |shop, _| bulk_from(shop.vm("acme/web"), API))?;
    step(shop, report, "acme/web", &here, |_, _| Ok("nobody could talk to it".into()))?;
    drop(other);

    report.check("the open connection made all four moves, no line lost", stream.finish(shop));
    for id in ["acme/web", "acme/api"] {
        shop.await_network(id)?;
    }
    let denied = attempt(shop.vm("acme/web"), "in-service shop shop /usr/bin/intruder", API)?;
    report.check("an intruder is refused at home as before", denied.refused_at_once());
    Ok(())
}

/// Moves one machine.
fn step(
    shop: &mut Shop,
    report: &mut Report,
    id: &str,
    to: &Path,
    meanwhile: impl FnOnce(&Shop, &Vm) -> Result<String>,
) -> Result<()> {
    let mut said = String::new();
    let started = Instant::now();
    let differing = shop.migrate(id, to, |shop, vm| {
        said = meanwhile(shop, vm)?;
        Ok(())
    })?;
    report.claim(
        format!("{id} moves, every page of its memory as it was"),
        differing == 0,
        format!("{differing} pages differ, {:.1} s, meanwhile: {said}", started.elapsed().as_secs_f64()),
    );
    Ok(())
}
