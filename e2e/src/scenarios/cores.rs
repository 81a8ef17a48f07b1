// SPDX-License-Identifier: Apache-2.0
//! Several poll cores, and ports that move between them.

use anyhow::{Context, Result, bail};
use api::admin::{Request, Response};

use super::traffic::bulk_from;
use crate::conversation::{STOREFRONT, Stream};
use crate::shop::{API, NOTICE_LIMIT};
use crate::{Report, Shop};

/// A connection is open while the daemon's successor spreads ports over two cores, while they move between these and the
/// side core, and while the next successor has one core again.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let survivor = Stream::start(shop, "acme/web", "wanderer", STOREFRONT, API)?;
    shop.restart_with("[poll]\ncores = 2\n")?;
    shop.await_networks()?;
    let status = shop.status()?;
    let ports: Vec<u64> = status.cores.iter().map(|core| core.ports).collect();
    report.claim(
        "a successor with two cores spreads ports over both, none is on the side core",
        matches!(ports[..], [2, 2, 0]),
        format!("{ports:?}"),
    );

    place(shop, "acme/web/net0", "0")?;
    for core in ["1", "0", "side", "1"] {
        place(shop, "acme/api/net0", core)?;
        let sent = bulk_from(shop.vm("acme/web"), API)?;
        let claim = format!("with the API at core {core}, much data comes back as it was sent");
        report.claim(claim, sent.starts_with("whole "), sent);
    }
    let status = shop.status()?;
    let handed_over: u64 = status.cores.iter().map(|core| core.handed_over).sum();
    let full: u64 = status.cores.iter().map(|core| core.link_full).sum();
    report.claim(
        "frames went from core to core",
        handed_over > 1000,
        format!("{handed_over}, and {full} were too many at once"),
    );
    let refused = shop.ask(&Request::PortMove { nic: "acme/api/net0".into(), core: "7".into() });
    let refused = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    report.claim("a core that is not there is refused", refused.contains("no poll core `7`"), refused);

    shop.restart_with("")?;
    shop.await_networks()?;
    let cores = shop.status()?.cores.len();
    report.claim("the next successor has one core and the side core", cores == 2, cores);
    report.check("the open connection lived through all that, no line lost", survivor.finish(shop));
    Ok(())
}

/// Moves a card to a core, and waits until it is there.
fn place(shop: &Shop, nic: &str, core: &str) -> Result<()> {
    let request = Request::PortMove { nic: nic.into(), core: core.into() };
    match shop.ask(&request)? {
        Response::PortMoved(moved) if moved.core == core => {}
        other => bail!("not what was asked for: {other:?}"),
    }
    let there = shop.until(NOTICE_LIMIT, || {
        let ports = shop.status()?.ports;
        Ok(ports.iter().any(|port| port.nic == nic && port.core == core).then_some(()))
    });
    there.with_context(|| format!("{nic} does not get to core {core}"))
}
