// SPDX-License-Identifier: Apache-2.0
//! Traced calls, as a real collector is told of them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use testkit::claim::skip;
use testkit::collector::{Collector, ReadSpan};

use crate::conversation::{ORDERS, STOREFRONT, attempt};
use crate::shop::START_LIMIT;
use crate::{Report, Shop};

/// Where the ledger is called.
const LEDGER: &str = "10.96.0.30:9300";
/// Whom no rule lets call it.
const INTRUDER: &str = "/usr/bin/intruder";
/// Time for a flow that is closed to be forgotten, and for its span to arrive.
const SPAN_LIMIT: Duration = Duration::from_secs(30);
const MANIFESTS: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: ledger, tenant: acme}
spec:
  selector: {vm: {labels: {app: shop}}, process: {exe: /usr/bin/orders}}
  ports: [{port: 9300}]
  addresses: [10.96.0.30]
  balancing: {method: LeastOutstanding}
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: storefront-to-ledger, tenant: acme}
spec:
  action: Allow
  from: [{process: {exe: /usr/bin/storefront}}]
  to: [{service: ledger}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: FlowPolicy
metadata: {name: trace-ledger, tenant: acme}
spec:
  to: [{service: ledger}]
  trace: {sample: 100%}
";

/// A call through a balanced service that is answered, and one that is denied.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let Some(program) = Collector::program() else {
        skip("a_collector_is_told_of_traced_calls", "there is no collector of traces");
        return Ok(());
    };
    let collector = Collector::start(&program, shop.scratch.path())?;
    let endpoint = format!("endpoint = \"http://{}\"\nhost_name = \"host-7\"\n", collector.address());
    shop.restart_with(&format!("[traces]\n{endpoint}[flows.timeouts]\nclosed_s = 1\n"))?;
    shop.await_networks()?;
    let servers = ["acme/api", "acme/db"].map(|id| serve(shop, id).map(|pid| (id, pid)));
    shop.put_in_force("60-traced.yaml", MANIFESTS)?;

    let web = shop.vm("acme/web");
    let begun = Instant::now();
    let answer = web.run(&format!("{STOREFRONT} ask {LEDGER} hello"))?.stdout;
    let took = begun.elapsed();
    report.claim("the storefront's call is answered", answer == "answer hello", answer);
    report.check("an intruder's is refused", attempt(web, INTRUDER, LEDGER)?.refused_at_once());
    let found = |process: &str| {
        shop.until(SPAN_LIMIT, || {
            let spans = collector.spans()?.into_iter();
            Ok(spans.rev().find(|span| span.attribute("meshvisor.source.process") == Some(process)))
        })
    };
    let call = found("/usr/bin/storefront").context("the collector has no span of the storefront's call")?;
    answered(&call, took, report);
    let denied = found(INTRUDER).context("the collector has no span of the intruder's call")?;
    let is_error = denied.status == "STATUS_CODE_ERROR" && denied.attribute("error.type") == Some("denied");
    report.claim("the intruder's call is a span with an error", is_error, denied.message.clone());

    let why = shop.why("acme/web", LEDGER, "/usr/bin/storefront")?;
    let said = why.services.iter().find(|service| service.service == "trace");
    let by_rule = said.is_some_and(|service| service.rule == "acme/trace-ledger");
    report.claim("`why` says what traces it", by_rule, format!("{said:?}"));
    let spans = shop.status()?.spans;
    report.claim("no span was lost", spans.lost == 0 && spans.exported >= 2, format!("{spans:?}"));

    for server in servers {
        let (id, pid) = server?;
        shop.vm(id).expect(&format!("kill {pid}"))?;
    }
    shop.remove("60-traced.yaml")?;
    shop.restart_with("")?;
    shop.await_networks()
}

/// What the span of the answered call must say.
fn answered(call: &ReadSpan, took: Duration, report: &mut Report) {
    let said = |key: &str| call.attribute(key).unwrap_or("nothing").to_owned();
    let endpoint = said("meshvisor.endpoint");
    for (what, key, wanted) in [
        ("which host tells it", "host.name", "host-7"),
        ("who called", "meshvisor.source.vm", "acme/web"),
        ("who was called", "meshvisor.destination.vm", endpoint.as_str()),
        ("which process that is", "meshvisor.destination.process", "/usr/bin/orders"),
        ("what it was called by", "destination.address", "10.96.0.30"),
        ("which service that is", "meshvisor.service", "acme/ledger"),
        ("what let it pass", "meshvisor.rule", "acme/storefront-to-ledger"),
        ("how it ended", "meshvisor.end", "closed"),
    ] {
        report.claim(format!("its span says {what}"), said(key) == wanted, said(key));
    }
    let peer = said("network.peer.address");
    let chosen = [("acme/api", "10.0.0.12"), ("acme/db", "10.0.0.13")];
    let is_chosen = chosen.iter().any(|(id, address)| (*id, *address) == (&endpoint, &peer));
    report.claim("which endpoint was chosen", is_chosen, format!("{endpoint} at {peer}"));
    let why = said("meshvisor.endpoint.why");
    report.claim("and why", why.starts_with("least outstanding"), why);
    let flags = said("meshvisor.flags");
    let has_all = ["discovery", "balance", "trace", "authorize"].iter().all(|flag| flags.contains(flag));
    report.claim("which services it had", has_all, flags);
    let moments =
        [call.start_ns].into_iter().chain(call.events.iter().map(|(_, ns)| *ns)).chain([call.end_ns]);
    let moments: Vec<u64> = moments.collect();
    let names: Vec<&str> = call.events.iter().map(|(name, _)| name.as_str()).collect();
    let after_us: Vec<u64> = moments.iter().map(|ns| ns.saturating_sub(call.start_ns) / 1000).collect();
    let whole = Duration::from_nanos(call.end_ns.saturating_sub(call.start_ns));
    report.claim(
        "it was connected, then answered, then closed, all within the time that the program took",
        names == ["connect", "first_byte"]
            && moments.is_sorted()
            && call.start_ns < moments[1]
            && whole <= took,
        format!("{after_us:?} us after its start; {} us", took.as_micros()),
    );
}

/// Starts a server in a machine; returns its process.
fn serve(shop: &Shop, id: &str) -> Result<u32> {
    let vm = shop.vm(id);
    let pid = vm.background("ledger", &format!("{ORDERS} serve 9300"))?;
    vm.await_line("ledger", "serving", START_LIMIT)?;
    Ok(pid)
}
