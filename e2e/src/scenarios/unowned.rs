// SPDX-License-Identifier: Apache-2.0
//! What a guest's kernel sends without a socket: no process can be behind it, and rules can say so.

use anyhow::{Context, Result};
use api::admin::{Flow, Request, Response, UnknownReason, Verdict};

use crate::conversation::attempt;
use crate::shop::{API, NOTICE_LIMIT};
use crate::{Report, Shop};

/// Where the module speaks, and its address.
const SPEAKER: (&str, &str) = ("acme/web", "10.0.0.11");
/// Its own port.
const PORT: u16 = 4444;

/// Lets traffic of nobody through, as nobody should.
const ALLOWED: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: unowned-to-api, tenant: acme}
spec:
  action: Allow
  from:
  - process: {attribution: unattributed}
  to:
  - service: api
";

/// Whoever calls the API must be proven, and so must whoever answers.
const PROVEN: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: FlowPolicy
metadata: {name: prove-who-calls, tenant: acme}
spec:
  to:
  - service: api
  authenticate: true
";

/// A module speaks TCP by itself: refused like everything that no rule allows, then let through as unattributed,
/// told as a threat, and cut off.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let (api, api_port) = API.split_once(':').context("an address and a port")?;
    let (id, from) = SPEAKER;
    let web = shop.vm(id);
    let ping = format!("ping -c1 -w5 {api} >/dev/null; ip neigh show {api}");
    let neighbour = web.run(&ping)?.stdout;
    let mac = neighbour.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
    let mac = mac.with_context(|| format!("{id} knows no way to {api}: {neighbour}"))?.to_owned();
    let arguments = format!("from={from} to={api} to_port={api_port} mac={mac} port={PORT}");
    let load = format!("insmod /lib/threats/$(uname -r)/send_unowned.ko {arguments}");
    web.expect(&load)?;
    let refused = shop.until(NOTICE_LIMIT, || {
        let (from, to, protocol) = (id.into(), API.into(), "tcp".into());
        let Response::Explanation(why) = shop.ask(&Request::Why { from, to, protocol, exe: None })? else {
            anyhow::bail!("no explanation");
        };
        Ok(why.flow.filter(|flow| flow.source.port == PORT && flow.verdict == Verdict::Deny))
    });
    let refused = refused.map(|flow| format!("{}, {:?}", flow.decided_by, flow.source.unknown));
    report.check("what no socket sends is refused where no rule names it", refused);

    shop.write("60-unowned.yaml", ALLOWED)?;
    let told = |verdict: Verdict| {
        shop.until(NOTICE_LIMIT, || Ok(flow(shop, id)?.filter(|flow| flow.verdict == verdict)))
    };
    let allowed =
        told(Verdict::Allow).context("no flow that a rule about unattributed traffic lets through")?;
    report.claim(
        "a rule that names unattributed traffic lets it through",
        allowed.decided_by == "acme/unowned-to-api"
            && allowed.source.unknown == Some(UnknownReason::NoSocket),
        format!("{} ({:?})", allowed.decided_by, allowed.source.unknown),
    );
    let evidence = format!("{from}:{PORT}");
    let found = shop.until(4 * NOTICE_LIMIT, || {
        let Response::Threats(threats) = shop.ask(&Request::VmThreats { vm: id.into() })? else {
            anyhow::bail!("not a list of threats");
        };
        let mut findings = threats.findings.into_iter();
        Ok(findings.find(|found| found.kind == "unattributed" && found.evidence.contains(&evidence)))
    });
    report.check("the conversation is told as a threat", found.map(|found| found.evidence));

    shop.put_in_force("61-proven.yaml", PROVEN)?;
    let unproven = told(Verdict::Deny);
    let unproven = unproven.context("no flow is refused for want of proof")?;
    let because = unproven.because.unwrap_or_default();
    report.claim(
        "where both ends must be proven it is cut off, whatever allows it",
        unproven.decided_by == "acme/prove-who-calls" && because.contains("behind the source is not proven"),
        because,
    );
    let (from, to, protocol) = (id.into(), API.into(), "tcp".into());
    let Response::Explanation(why) = shop.ask(&Request::Why { from, to, protocol, exe: None })? else {
        anyhow::bail!("no explanation");
    };
    report.claim(
        "why says which end, and what is known of it",
        why.because.as_ref().is_some_and(|because| because.contains("(no-socket)")),
        why.because.unwrap_or_default(),
    );
    let proven = attempt(web, "/usr/bin/storefront", API)?.connected();
    report.check("the storefront's process proves itself, and so does the API's", proven);
    shop.remove("61-proven.yaml")?;
    // What was cut off does not begin anew by itself.
    web.expect(&format!("rmmod send_unowned && {load}"))?;
    told(Verdict::Allow).context("the rule about unattributed traffic holds again")?;

    shop.remove("60-unowned.yaml")?;
    let ended = shop.until(NOTICE_LIMIT, || Ok(flow(shop, id)?.filter(|flow| flow.verdict == Verdict::Deny)));
    report.check("without the rule it is cut off", ended.map(|flow| flow.decided_by));
    shop.vm(id).expect("rmmod send_unowned").map(drop)
}

/// The latest flow from the module's port.
fn flow(shop: &Shop, id: &str) -> Result<Option<Flow>> {
    let flows = shop.flows(id)?.into_iter();
    Ok(flows.filter(|flow| flow.source.port == PORT).min_by_key(|flow| flow.last_seen_ms))
}
