// SPDX-License-Identifier: Apache-2.0
//! A limit, in numbers: those of the daemon, and the guest's own.

use std::time::Duration;

use anyhow::{Result, bail};
use testkit::vm::Vm;

use crate::conversation::attempt;
use crate::shop::API;
use crate::{Report, Shop};

/// What the storefront may send to the API, and the API to it, in bits per second.
const RATE: u64 = 40_000_000;
/// Data sent, and as much again received: some seven seconds' worth.
const LIMITED_MIB: u64 = 34;
/// How long the guest counts what passes.
const WATCH_SECONDS: u32 = 3;
/// How far from the limit the guest may find itself, in per cent.
const TOLERANCE_PERCENT: f64 = 5.0;
/// Time for that, with much to spare on a busy host.
const TRANSFER_LIMIT: Duration = Duration::from_secs(60);

const SLOW: &str = "\
# SPDX-License-Identifier: Apache-2.0
# The storefront's calls of the API, all together, are held to a rate, each way for itself, and each is logged.
apiVersion: meshvisor.dev/v1alpha1
kind: FlowPolicy
metadata: {name: slow, tenant: acme}
spec:
  from: [{process: {exe: /usr/bin/storefront}}]
  to: [{service: api}]
  limit: {bitsPerSecond: RATE}
  log: true
";

/// A process is held to a rate, as it finds itself; others in its machine are not, and nothing is dropped.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    shop.put_in_force("60-slow.yaml", &SLOW.replace("RATE", &RATE.to_string()))?;
    let before = shop.status()?.drops;
    let web = shop.vm("acme/web");
    let pid = web.background("limited", &format!("/usr/bin/storefront bulk {API} {LIMITED_MIB}"))?;
    let shown = shop.until(TRANSFER_LIMIT, || {
        let limits = shop.status()?.limits.into_iter();
        let near = |rate: u64| rate.abs_diff(RATE) * 10 <= RATE;
        Ok(limits.filter(|limit| limit.name == "acme/slow").find(|limit| near(limit.bits_per_second)))
    });
    report.check(
        format!("`status` shows {RATE} bit/s, and what is held"),
        shown.map(|shown| {
            let (rate, held, mean) = (shown.bits_per_second, shown.held_frames, shown.held_mean_us);
            format!("{rate} bit/s, {held} frames held for {mean} us on average")
        }),
    );
    report.check(
        "meanwhile another program of the machine hears at once that it is refused",
        attempt(web, "/usr/bin/intruder", API)?.refused_at_once(),
    );
    for (way, rate) in ["sends", "receives"].into_iter().zip(card_rates(web)?) {
        let off = 100.0 * (rate / RATE as f64 - 1.0);
        report.claim(
            format!("the guest itself counts within {TOLERANCE_PERCENT} % of the limit that it {way}"),
            off.abs() <= TOLERANCE_PERCENT,
            format!("{:.2} Mbit/s, {off:+.1} %", rate / 1e6),
        );
    }
    let why = shop.why("acme/web", API, "/usr/bin/storefront")?;
    let limited = why.services.iter().find(|service| service.service == "limit");
    let said = format!("{limited:?}");
    report.claim("`why` says where the limit is from", said.contains("acme/slow"), said);
    let printed = web.await_end("limited", pid, TRANSFER_LIMIT)?;
    report.claim("all data is whole", printed.starts_with("whole "), printed.trim_end());
    let after = shop.status()?.drops;
    let lost = |drops: &std::collections::BTreeMap<String, u64>| {
        ["undelivered", "link-full", "out-of-window", "attribution-late"]
            .map(|reason| drops.get(reason).copied().unwrap_or_default())
    };
    report.claim("nothing was dropped", lost(&before) == lost(&after), format!("{after:?}"));
    let log = shop.daemon.log();
    let logged = log.lines().filter(|line| line.contains("flow of a rule that logs")).count();
    report.claim("the flow is in the daemon's log", logged > 0, format!("{logged} lines"));
    shop.remove("60-slow.yaml")
}

/// What a machine's card sends and receives, in bits per second, by the machine's own clock and counters.
fn card_rates(vm: &Vm) -> Result<[f64; 2]> {
    let files = "/sys/class/net/eth0/statistics/tx_bytes /sys/class/net/eth0/statistics/rx_bytes";
    let look = format!("cut -d' ' -f1 /proc/uptime; cat {files}");
    let printed = vm.expect(&format!("{look}; sleep {WATCH_SECONDS}; {look}"))?;
    let numbers: Vec<f64> = printed.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let [start, sent, received, end, sent_then, received_then] = numbers[..] else {
        bail!("the guest says `{printed}`")
    };
    Ok([sent_then - sent, received_then - received].map(|bytes| 8.0 * bytes / (end - start)))
}
