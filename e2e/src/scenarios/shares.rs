// SPDX-License-Identifier: Apache-2.0
//! Services behind one card that is limited.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::vm::Vm;

use crate::shop::START_LIMIT;
use crate::story::services::serve;
use crate::{Report, Shop};

/// What the machine may send, in bits per second.
const RATE: u64 = 16_000_000;
/// The services with their shares, and the MiB that are fetched from each: all would be done at once.
const SERVICES: [(&str, u16, u64, u32); 2] = [("gold", 9301, 300, 32), ("bronze", 9302, 100, 12)];
/// What is reserved for the second later on, in bits per second, when the shares alone would leave it next to nothing.
const RESERVED: u64 = 5_000_000;
/// Most shares and fewest.
const UNEQUAL: [u64; 2] = [10_000, 1];
/// How far the ratio may be from that of the shares, in per cent: an emulated guest on a busy host has not always a frame
/// ready when its turn comes. The switch itself is held to two per cent, in simulated time.
const RATIO_TOLERANCE_PERCENT: f64 = 15.0;
/// How far rates may be from what is given.
const RATE_TOLERANCE_PERCENT: f64 = 10.0;
/// How long the numbers are watched.
const WATCH_SECONDS: u32 = 5;
/// Time for all data, with much to spare on a busy host.
const TRANSFER_LIMIT: Duration = Duration::from_secs(120);

fn manifest(parts: [String; 2]) -> String {
    let service = |((name, port, ..), part): ((&str, u16, u64, u32), String)| {
        format!(
            "apiVersion: meshvisor.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, tenant: acme}}\n\
             spec: {{selector: {{vm: {{name: api}}}}, ports: [{{port: {port}}}], {part}, \
             addresses: [{}]}}\n---\n",
            address(port)
        )
    };
    let services: String = SERVICES.into_iter().zip(parts).map(service).collect();
    format!(
        "# SPDX-License-Identifier: Apache-2.0\n{services}apiVersion: meshvisor.dev/v1alpha1\nkind: AccessPolicy\n\
         metadata: {{name: fetching, tenant: acme}}\nspec: {{action: Allow, from: [{{vm: {{name: web}}}}], \
         to: [{{service: gold}}, {{service: bronze}}]}}\n"
    )
}

fn address(port: u16) -> String {
    format!("10.96.1.{}", port % 100)
}

/// Bytes of each service that the machine's limit has let through.
fn passed(shop: &Shop) -> Result<[f64; 2]> {
    let limits = shop.status()?.limits;
    let limit = limits.iter().find(|limit| limit.name == "acme/api/(vm)");
    let classes = &limit.with_context(|| format!("no such limit: {limits:?}"))?.classes;
    let bytes = SERVICES.map(|(name, ..)| {
        let class = classes.iter().find(|class| class.name == format!("acme/{name}/(service)"));
        class.map(|class| class.bytes as f64)
    });
    let [Some(gold), Some(bronze)] = bytes else { bail!("a class is missing: {classes:?}") };
    Ok([gold, bronze])
}

/// Bytes of each service that the limit lets through in the next seconds, and how long these took.
fn watch(shop: &Shop) -> Result<([f64; 2], Duration)> {
    let (before, begun) = (passed(shop)?, Instant::now());
    shop.vm("acme/web").expect(&format!("sleep {WATCH_SECONDS}"))?;
    let (after, took) = (passed(shop)?, begun.elapsed());
    Ok(([after[0] - before[0], after[1] - before[1]], took))
}

/// Two services of one machine, whose card is limited, get what their shares say, and what is reserved for them.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let card = "metadata: {name: api, tenant: acme, labels: {app: shop, tier: api}}\nspec:\n";
    let qos = format!("{card}  qos: {{limit: {{bitsPerSecond: {RATE}}}}}\n");
    let servers = SERVICES.map(|(name, port, ..)| serve(shop, "acme/api", name, port));
    shop.edit("20-machines.yaml", card, &qos)?;
    shop.put_in_force(
        "60-shares.yaml",
        &manifest(SERVICES.map(|(_, _, shares, _)| format!("shares: {shares}"))),
    )?;
    let web = shop.vm("acme/web");
    let fetch = |(name, port, _, mib): (&str, u16, u64, u32)| {
        web.background(name, &format!("/usr/bin/storefront bulk {}:{port} {mib}", address(port)))
    };
    let fetching = SERVICES.map(fetch);
    shop.until(START_LIMIT, || {
        Ok(passed(shop).ok().filter(|passed| passed.iter().all(|bytes| *bytes > 1e6)))
    })
    .with_context(|| format!("{:?}", shop.status().map(|status| status.limits)))?;
    let ([gold, bronze], took) = watch(shop)?;
    let (ratio, wanted) = (gold / bronze, SERVICES[0].2 as f64 / SERVICES[1].2 as f64);
    report.claim(
        format!("of a card limited to {RATE} bit/s two services get {wanted} : 1"),
        (ratio / wanted - 1.0).abs() * 100.0 <= RATIO_TOLERANCE_PERCENT,
        format!("{ratio:.2} : 1, {gold} and {bronze} bytes"),
    );
    let whole = 8.0 * (gold + bronze) / took.as_secs_f64();
    report.claim(
        "together all of it",
        (whole / RATE as f64 - 1.0).abs() * 100.0 <= RATE_TOLERANCE_PERCENT,
        format!("{:.2} Mbit/s", whole / 1e6),
    );
    let [most, fewest] = UNEQUAL;
    let reservation = format!("shares: {fewest}, reservation: {{bitsPerSecond: {RESERVED}}}");
    shop.put_in_force("60-shares.yaml", &manifest([format!("shares: {most}"), reservation]))?;
    let ([_, bronze], took) = watch(shop)?;
    let rate = 8.0 * bronze / took.as_secs_f64();
    report.claim(
        format!("of {RESERVED} bit/s reserved for one it gets all beside the other, which has {most} times its shares"),
        (rate / RESERVED as f64 - 1.0).abs() * 100.0 <= RATE_TOLERANCE_PERCENT,
        format!("{:.2} Mbit/s", rate / 1e6),
    );
    for ((name, ..), pid) in SERVICES.into_iter().zip(fetching) {
        report.check(format!("all that is fetched from {name} is whole"), fetched(web, name, pid?));
    }
    for server in servers {
        shop.vm("acme/api").expect(&format!("kill {}", server?))?;
    }
    shop.edit("20-machines.yaml", &qos, card)?;
    shop.remove("60-shares.yaml")
}

fn fetched(web: &Vm, name: &str, pid: u32) -> Result<String> {
    let printed = web.await_end(name, pid, TRANSFER_LIMIT)?;
    anyhow::ensure!(printed.starts_with("whole "), "{printed}");
    Ok(printed.trim_end().to_owned())
}
