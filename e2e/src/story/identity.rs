// SPDX-License-Identifier: Apache-2.0
//! Who may talk to whom, by process and by tenant.

use anyhow::{Context, Result, bail};
use api::admin::{Flow, Verdict};

use crate::conversation::{STOREFRONT, attempt};
use crate::shop::{API, DB, NOTICE_LIMIT};
use crate::{Report, Shop};

/// Two programs of one machine, one destination, two verdicts.
pub(super) fn storefront_and_intruder(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let allowed = attempt(shop.vm("acme/web"), STOREFRONT, API)?;
    report.check("the storefront is connected", allowed.connected());
    let judged = last_flow(shop, "acme/web", "/usr/bin/storefront", API);
    report
        .check("the verdict names rule and process", judged.and_then(|flow| verdict(&flow, Verdict::Allow)));

    let denied = attempt(shop.vm("acme/web"), "in-service shop shop /usr/bin/intruder", API)?;
    report.check("an intruder in the same machine is refused on its first SYN", denied.refused_at_once());
    let judged = last_flow(shop, "acme/web", "/usr/bin/intruder", API);
    report.check("the verdict names rule and process", judged.and_then(|flow| verdict(&flow, Verdict::Deny)));
    Ok(())
}

/// The same behind the API, with a server that knows nothing of us.
pub(super) fn orders_and_database(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let api = shop.vm("acme/api");
    let answer = api.run(&format!("in-service orders orders /usr/bin/orders ask {DB} PING"))?;
    report.claim("orders ask Redis for a sign of life", answer.stdout == "answer +PONG", answer.stdout);
    for (id, program) in [("acme/api", "/usr/bin/intruder"), ("acme/web", "/usr/bin/storefront")] {
        let denied = attempt(shop.vm(id), program, DB)?;
        report.check(format!("{program} in {id} is refused"), denied.refused_at_once());
    }
    Ok(())
}

/// Overlapping addresses, and no way across.
pub(super) fn tenants(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let globex = shop.vm("globex/web");
    for to in ["10.0.0.11:8080", DB] {
        let attempt = attempt(globex, "/usr/bin/storefront", to)?;
        report.check(format!("globex/web does not reach acme's {to}"), attempt.not_connected());
    }
    // globex/web itself holds the API's address in its own tenant; nothing listens there.
    let own = attempt(globex, "/usr/bin/storefront", API)?;
    report.check(format!("{API} is, for globex, its own machine"), own.not_connected());
    let flows = shop.flows("globex/web")?;
    let met = flows.iter().find(|flow| {
        let ends = [&flow.source.vm, &flow.destination.vm];
        ends.iter().any(|vm| vm.as_deref().is_some_and(|vm| vm.starts_with("acme/")))
    });
    let seen = met.map_or_else(|| format!("{} flows of globex", flows.len()), |flow| format!("{flow:?}"));
    report.claim(
        "no flow has a globex machine at one end and an acme machine at the other",
        met.is_none(),
        seen,
    );
    Ok(())
}

/// The newest flow that `exe` opened from machine `id`, as the daemon remembers it.
fn last_flow(shop: &Shop, id: &str, exe: &str, to: &str) -> Result<Flow> {
    // Verdicts reach the daemon's memory behind the frame's back, so the first question may come too early.
    let found = shop.until(NOTICE_LIMIT, || Ok(shop.why(id, to, exe)?.flow));
    found.with_context(|| format!("the daemon has seen no flow of {exe} to {to}"))
}

/// The flow's verdict in one line, if it is the expected one and names who and why.
fn verdict(flow: &Flow, expected: Verdict) -> Result<String> {
    let process = flow.source.process.as_ref().context("the flow names no process")?;
    if flow.verdict != expected || flow.decided_by.is_empty() {
        bail!("{flow:?}");
    }
    let exe = process.exe.as_deref().unwrap_or(&process.name);
    let confidence = flow.source.confidence.context("the identity has a confidence")?;
    Ok(format!(
        "{expected:?} by {}, generation {}: {exe}, pid {}, confidence {confidence:?}",
        flow.decided_by, flow.generation, process.pid
    ))
}
