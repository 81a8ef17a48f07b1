// SPDX-License-Identifier: Apache-2.0
//! Services of several versions: calls are spread by weights, follow the processes that listen, and see only what
//! exists for the caller.

use std::time::Instant;

use anyhow::Result;

use crate::conversation::{ORDERS, STOREFRONT, attempt, connections};
use crate::shop::{NOTICE_LIMIT, START_LIMIT};
use crate::{Report, Shop};

/// Where the catalog is called.
pub(crate) const CATALOG: &str = "10.96.0.10:9100";
/// Where the two versions of the offers are.
const OFFERS: [&str; 2] = ["10.96.0.21:9201", "10.96.0.22:9202"];
/// Where the second is in truth.
const HIDDEN: &str = "10.0.0.13:9202";
/// Calls that are counted.
pub(crate) const CALLS: usize = 200;
/// Of these, how many the older version gets.
const OLDER: usize = 160;

/// Of its two versions the newer gets a fifth of the calls.
const CANARY: &str = "  balancing: {shares: [{vm: {name: api}, weight: 80}, {vm: {name: db}, weight: 20}]}\n";

const OFFERS_SERVICES: &str = "\
# SPDX-License-Identifier: Apache-2.0
# One service in two versions, each for a part of the shop. Everybody may call both, as far as policy goes.
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: offers-v1, tenant: acme}
spec:
  level: instance
  application: shop
  visibleTo: {vm: {labels: {tier: web}}}
  hostname: offers
  version: v1
  selector: {vm: {name: db}}
  ports: [{port: 9201}]
  addresses: [10.96.0.21]
---
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: offers-v2, tenant: acme}
spec:
  level: instance
  application: shop
  visibleTo: {vm: {labels: {tier: api}}}
  hostname: offers
  version: v2
  selector: {vm: {name: db}}
  ports: [{port: 9202}]
  addresses: [10.96.0.22]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: shop-to-offers, tenant: acme}
spec:
  action: Allow
  from: [{application: shop}]
  to: [{service: offers-v1}, {service: offers-v2}]
";

/// Whoever runs `/usr/bin/orders` on port 9100 is the catalog; `more` is the end of its service's `spec`.
pub(crate) fn catalog(more: &str) -> String {
    format!(
        "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {{name: catalog, tenant: acme}}
spec:
  selector: {{vm: {{labels: {{app: shop}}}}, process: {{exe: /usr/bin/orders}}}}
  ports: [{{port: 9100}}]
  addresses: [10.96.0.10]
{more}---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: storefront-to-catalog, tenant: acme}}
spec:
  action: Allow
  from: [{{vm: {{labels: {{tier: web}}}}, process: {{exe: /usr/bin/storefront}}}}]
  to: [{{service: catalog}}]
"
    )
}

/// Calls are spread by weights; then one of the two that answer dies while calls go on, and comes back.
pub(super) fn canary(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let older = serve(shop, "acme/api", "catalog", 9100)?;
    let newer = serve(shop, "acme/db", "catalog", 9100)?;
    shop.put_in_force("60-catalog.yaml", &catalog(CANARY))?;

    let begun = Instant::now();
    report.check(format!("{CALLS} of {CALLS} calls to {CATALOG} are answered"), all_connected(shop, CALLS));
    let split = answered(shop, begun)?;
    // A share is exact to one call, and the first may go to either.
    let is_split = split[0].abs_diff(OLDER) <= 1 && split[0] + split[1] == CALLS;
    report.claim(
        "four fifths go to the older version in acme/api, one to the newer in acme/db",
        is_split,
        format!("{} and {}", split[0], split[1]),
    );

    let web = shop.vm("acme/web");
    let calls = 5 * CALLS;
    let calling = web.background("calling", &format!("{STOREFRONT} connect {CATALOG} {calls}"))?;
    web.await_line("calling", "connected", START_LIMIT)?;
    shop.vm("acme/db").expect(&format!("kill -9 {newer}"))?;
    let printed = web.await_end("calling", calling, START_LIMIT)?;
    let connected = connections(&printed);
    let others: Vec<&str> = printed.lines().filter(|line| !line.starts_with("connected ")).collect();
    // The call that is under way may have been taken up by the dying process, whose kernel then resets it.
    let is_under_way = |others: &[&str]| matches!(others, [reset] if reset.starts_with("reset "));
    report.claim(
        format!("the newer one is killed while {calls} calls are made: none fails that it had not taken up"),
        connected == calls || connected + 1 == calls && is_under_way(&others),
        format!("{connected} are answered, the slowest after {} ms; {others:?}", slowest_ms(&printed)),
    );
    let begun = Instant::now();
    let others = all_connected(shop, CALLS).and_then(|_| {
        let [older, newer] = answered(shop, begun)?;
        anyhow::ensure!(newer == 0, "{newer} went to the one that is gone");
        Ok(format!("{older}"))
    });
    report.check("all calls go to the older version then", others);
    let newer = serve(shop, "acme/db", "catalog", 9100)?;
    let back = shop.until(NOTICE_LIMIT, || {
        let begun = Instant::now();
        all_connected(shop, 10)?;
        Ok((answered(shop, begun)?[1] > 0).then_some(()))
    });
    report.check("it is started again, and called again", back.map(|()| "by itself".to_owned()));
    shop.vm("acme/db").expect(&format!("kill {newer}"))?;
    shop.vm("acme/api").expect(&format!("kill {older}"))?;
    shop.remove("60-catalog.yaml")
}

/// Each part of an application sees its own version of a service, and nothing of the other.
pub(super) fn versions(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let servers = [9201, 9202].map(|port| serve(shop, "acme/db", &format!("offers-{port}"), port));
    shop.put_in_force("60-offers.yaml", OFFERS_SERVICES)?;
    let (web, api) = (shop.vm("acme/web"), shop.vm("acme/api"));
    for (id, vm, program, own, other) in
        [("acme/web", web, STOREFRONT, 0, 1), ("acme/api", api, ORDERS, 1, 0)]
    {
        report.check(
            format!("{id} reaches its version at {}", OFFERS[own]),
            attempt(vm, program, OFFERS[own])?.connected(),
        );
        report.check(
            format!("the other at {} does not exist for it", OFFERS[other]),
            attempt(vm, program, OFFERS[other])?.refused_at_once(),
        );
    }
    report.check(
        format!("not even by its machine's own address, {HIDDEN}"),
        attempt(web, STOREFRONT, HIDDEN)?.refused_at_once(),
    );
    for server in servers {
        shop.vm("acme/db").expect(&format!("kill {}", server?))?;
    }
    shop.remove("60-offers.yaml")
}

/// Starts a server in a machine; returns its process.
pub(crate) fn serve(shop: &Shop, id: &str, name: &str, port: u16) -> Result<u32> {
    let vm = shop.vm(id);
    let pid = vm.background(name, &format!("{ORDERS} serve {port}"))?;
    vm.await_line(name, "serving", START_LIMIT)?;
    Ok(pid)
}

/// Has the storefront call the catalog that often.
fn all_connected(shop: &Shop, calls: usize) -> Result<String> {
    Ok(format!("the slowest after {} ms", slowest_call_ms(shop, calls)?))
}

/// As [`all_connected`]; how long the slowest call took, in milliseconds.
pub(crate) fn slowest_call_ms(shop: &Shop, calls: usize) -> Result<u64> {
    let printed = shop.vm("acme/web").run(&format!("{STOREFRONT} connect {CATALOG} {calls}"))?.stdout;
    let connected = connections(&printed);
    anyhow::ensure!(connected == calls, "{connected} of {calls}: {printed}");
    Ok(slowest_ms(&printed))
}

fn slowest_ms(printed: &str) -> u64 {
    let times =
        printed.lines().filter_map(|line| line.split(' ').find_map(|word| word.strip_prefix("after_us=")));
    times.filter_map(|us| us.parse::<u64>().ok()).max().unwrap_or(0) / 1000
}

/// Calls of the catalog that each of its machines has got since; the switch remembers ended ones for half a minute.
pub(crate) fn answered(shop: &Shop, since: Instant) -> Result<[usize; 2]> {
    let flows = shop.flows("acme/web")?;
    let elapsed_ms = since.elapsed().as_millis();
    let calls = flows.iter().filter(|flow| {
        let is_call = flow.source.vm.as_deref() == Some("acme/web") && flow.destination.port == 9100;
        is_call && u128::from(flow.first_seen_ms) <= elapsed_ms
    });
    let of = |id: &str| calls.clone().filter(|flow| flow.destination.vm.as_deref() == Some(id)).count();
    Ok([of("acme/api"), of("acme/db")])
}
