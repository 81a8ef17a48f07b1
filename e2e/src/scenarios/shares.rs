// SPDX-License-Identifier: Apache-2.0
//! Services behind one card that is limited.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::vm::Vm;

use crate::shop::START_LIMIT;
use crate::story::services::serve;
use crate::{Report, Shop};

/// What the machine may send, in bits per second.
const RATE: u64 = 8_000_000;
/// The services with their shares, and the MiB that each client fetches from them.
const SERVICES: [(&str, u16, u64, u32); 2] = [("gold", 9301, 300, 5), ("bronze", 9302, 100, 2)];
/// Clients of each service. A connection of a guest has two frames on their way at most (TCP small queues), 4 ms of a
/// service's part; a guest on a busy host does not run for longer than that, and what a service does not use meanwhile
/// the other rightly gets. Four of them have work for 30 ms.
const CLIENTS: [&str; 4] = ["a", "b", "c", "d"];
/// What is reserved for the second later on, in bits per second, when the shares alone would leave it next to nothing.
const RESERVED: u64 = 2_500_000;
/// Most shares and fewest.
const UNEQUAL: [u64; 2] = [10_000, 1];
/// How far the ratio may be from that of the shares, in per cent: an emulated guest on a busy host has not always a frame
/// ready when its turn comes. The switch itself is held to two per cent, in simulated time.
const RATIO_TOLERANCE_PERCENT: f64 = 15.0;
/// How far rates may be from what is given.
const RATE_TOLERANCE_PERCENT: f64 = 10.0;
/// How long the numbers are watched.
const WATCH_SECONDS: u32 = 3;
/// How often at most, until they are as they should be: a host that lets a guest stand still spoils a watch.
const WATCHES: usize = 4;
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

/// What the limit lets through of each service in a span of time, in bits per second.
#[derive(Clone, Copy, Debug)]
struct Rates {
    gold: f64,
    bronze: f64,
}

impl Rates {
    fn watch(shop: &Shop) -> Result<Self> {
        let (before, begun) = (passed(shop)?, Instant::now());
        shop.vm("acme/web").expect(&format!("sleep {WATCH_SECONDS}"))?;
        let (after, took) = (passed(shop)?, begun.elapsed().as_secs_f64());
        let [gold, bronze] = [0, 1].map(|service| 8.0 * (after[service] - before[service]) / took);
        Ok(Self { gold, bronze })
    }

    /// The first that are good, or the last.
    fn until(shop: &Shop, good: impl Fn(Self) -> bool) -> Result<Self> {
        let mut rates = Self::watch(shop)?;
        for _ in 1..WATCHES {
            if good(rates) {
                break;
            }
            rates = Self::watch(shop)?;
        }
        Ok(rates)
    }
}

/// Whether a value is what is wanted, up to so many per cent.
fn is_near(value: f64, wanted: f64, tolerance_percent: f64) -> bool {
    (value / wanted - 1.0).abs() * 100.0 <= tolerance_percent
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
    let mut fetching = Vec::new();
    for ((name, port, _, mib), client) in
        SERVICES.iter().flat_map(|service| CLIENTS.map(|client| (service, client)))
    {
        let log = format!("{name}-{client}");
        let pid =
            web.background(&log, &format!("/usr/bin/storefront bulk {}:{port} {mib}", address(*port)))?;
        fetching.push((log, pid));
    }
    shop.until(START_LIMIT, || {
        Ok(passed(shop).ok().filter(|passed| passed.iter().all(|bytes| *bytes > 1e6)))
    })
    .with_context(|| format!("{:?}", shop.status().map(|status| status.limits)))?;
    let wanted = SERVICES[0].2 as f64 / SERVICES[1].2 as f64;
    let ratio_is_met = |is: Rates| is_near(is.gold / is.bronze, wanted, RATIO_TOLERANCE_PERCENT);
    let whole_is_met = |is: Rates| is_near(is.gold + is.bronze, RATE as f64, RATE_TOLERANCE_PERCENT);
    let rates = Rates::until(shop, |rates| ratio_is_met(rates) && whole_is_met(rates))?;
    report.claim(
        format!("of a card limited to {RATE} bit/s two services get {wanted} : 1"),
        ratio_is_met(rates),
        format!("{:.2} : 1", rates.gold / rates.bronze),
    );
    let whole = format!("{:.2} Mbit/s", (rates.gold + rates.bronze) / 1e6);
    report.claim("together all of it", whole_is_met(rates), whole);
    let [most, fewest] = UNEQUAL;
    let reservation = format!("shares: {fewest}, reservation: {{bitsPerSecond: {RESERVED}}}");
    shop.put_in_force("60-shares.yaml", &manifest([format!("shares: {most}"), reservation]))?;
    let reservation_is_met = |is: Rates| is_near(is.bronze, RESERVED as f64, RATE_TOLERANCE_PERCENT);
    let rates = Rates::until(shop, reservation_is_met)?;
    report.claim(
        format!("of {RESERVED} bit/s reserved for one it gets all beside the other, which has {most} times its shares"),
        reservation_is_met(rates),
        format!("{:.2} Mbit/s", rates.bronze / 1e6),
    );
    for (log, pid) in &fetching {
        report.check(format!("all that {log} fetches is whole"), fetched(web, log, *pid));
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
