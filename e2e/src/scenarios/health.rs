// SPDX-License-Identifier: Apache-2.0
//! Endpoints that are there and do not do their work.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use api::admin::{EndpointStatus, Request, Response};

use crate::conversation::ORDERS;
use crate::shop::{NOTICE_LIMIT, START_LIMIT};
use crate::story::services::{CALLS, CATALOG, answered, catalog, serve, slowest_call_ms};
use crate::{Report, Shop};

/// What the API's machine lets wait to be accepted.
const BACKLOG: u32 = 4;
/// Makes it accept.
const GO: &str = "/tmp/go";
/// A call takes less unless it had to be sent again, which takes a second.
const AT_ONCE_MS: u64 = 900;

/// The catalog's checks.
const HEALTH: &str = "  health: {tcp: {}, intervalMs: 300, timeoutMs: 300, unhealthy: 2, healthy: 2}\n";
/// What the machine sends to its gateway goes nowhere; its neighbours it reaches.
const LOSE_GATEWAY: &str = "ip route replace blackhole 10.0.0.1/32";
/// Ends that.
const FIND_GATEWAY: &str = "ip route replace 10.0.0.1/32 dev eth0";

/// How an endpoint of the catalog fares.
fn endpoint(shop: &Shop, vm: &str) -> Result<EndpointStatus> {
    let Response::Services(services) = shop.ask(&Request::ServiceList)? else {
        bail!("not a list of services")
    };
    let endpoints = services.into_iter().filter(|service| service.name == "acme/catalog");
    let mut endpoints = endpoints.flat_map(|service| service.endpoints);
    endpoints
        .find(|endpoint| endpoint.vm == vm)
        .with_context(|| format!("{vm} is no endpoint of the catalog"))
}

/// Waits until an endpoint is in a state.
fn await_state(shop: &Shop, vm: &str, state: &str) -> Result<String> {
    let found = shop.until(NOTICE_LIMIT, || {
        let endpoint = endpoint(shop, vm)?;
        Ok((endpoint.state == state).then(|| format!("{endpoint:?}")))
    });
    found.with_context(|| format!("{:?}", endpoint(shop, vm)))
}

/// One of two instances stops accepting: its queue fills, the other gets all calls, and none fails.
pub(super) fn stalled(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let api = shop.vm("acme/api");
    let stalled = api.background("stalled", &format!("{ORDERS} stall 9100 {BACKLOG} {GO}"))?;
    api.await_line("stalled", "stalling", START_LIMIT)?;
    let healthy = serve(shop, "acme/db", "catalog", 9100)?;
    shop.put_in_force("60-catalog.yaml", &catalog(""))?;
    await_state(shop, "acme/api", "in")?;

    let filled = slowest_call_ms(shop, CALLS).map(|ms| format!("the slowest after {ms} ms"));
    report.check(format!("none of {CALLS} calls fails while its queue fills"), filled);
    report.check("`service list` says that it is full", await_state(shop, "acme/api", "queue-full"));
    let why = shop.why("acme/web", CATALOG, "/usr/bin/storefront")?;
    let said = format!("{:?}", why.endpoints);
    let is_said = why.endpoints.iter().any(|endpoint| endpoint.state == "queue-full");
    report.claim("`why` says so, too", is_said, said);
    let begun = Instant::now();
    let slowest_ms = slowest_call_ms(shop, CALLS)?;
    let split = answered(shop, begun)?;
    // The last of those before may be among them.
    let is_avoided = split[0] == 0 && split[1] >= CALLS;
    report.claim("all further calls go to the other", is_avoided, format!("{split:?}"));
    report.claim(
        "none fails, and none has to be sent again",
        slowest_ms < AT_ONCE_MS,
        format!("the slowest after {slowest_ms} ms"),
    );

    api.expect(&format!("touch {GO}"))?;
    report.check("it accepts again, and is in again", await_state(shop, "acme/api", "in"));
    let begun = Instant::now();
    slowest_call_ms(shop, CALLS)?;
    let split = answered(shop, begun)?;
    report.claim("and is called again", split[0] > 0, format!("{split:?}"));
    api.expect(&format!("kill {stalled}; rm {GO}"))?;
    shop.vm("acme/db").expect(&format!("kill {healthy}"))?;
    shop.remove("60-catalog.yaml")
}

/// One of two instances listens, and its machine has lost a route: checks find that out before any call does.
pub(super) fn checked(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let refused = serve(shop, "acme/api", "catalog", 9100)?;
    let healthy = serve(shop, "acme/db", "catalog", 9100)?;
    shop.put_in_force("60-catalog.yaml", &catalog(HEALTH))?;
    await_state(shop, "acme/api", "in")?;

    let api = shop.vm("acme/api");
    api.expect(LOSE_GATEWAY)?;
    let begun = Instant::now();
    let failing = await_state(shop, "acme/api", "check-failing");
    let after_ms = begun.elapsed().as_millis();
    report.check(
        "its machine does not answer the gateway any more: checks find that out, without a call",
        failing.map(|_| format!("after {after_ms} ms")),
    );
    let is_read = endpoint(shop, "acme/api")?.accept_queue.is_some();
    report.claim("although it listens", is_read, "found in its memory");
    let begun = Instant::now();
    let slowest_ms = slowest_call_ms(shop, CALLS)?;
    let split = answered(shop, begun)?;
    report.claim(
        format!("all of {CALLS} calls go to the other, none fails, and none has to be sent again"),
        split[0] == 0 && slowest_ms < AT_ONCE_MS,
        format!("{split:?}, the slowest after {slowest_ms} ms"),
    );

    api.expect(FIND_GATEWAY)?;
    report.check("it answers again, and is in again", await_state(shop, "acme/api", "in"));
    slowest_call_ms(shop, CALLS)?;
    let split = answered(shop, begun)?;
    report.claim("and is called again", split[0] > 0, format!("{split:?}"));
    api.expect(&format!("kill {refused}"))?;
    shop.vm("acme/db").expect(&format!("kill {healthy}"))?;
    shop.remove("60-catalog.yaml")
}
