// SPDX-License-Identifier: Apache-2.0
//! Calls between tenants, to an infrastructure service: both decide.

use anyhow::Result;

use crate::conversation::attempt;
use crate::shop::{NOTICE_LIMIT, START_LIMIT};
use crate::story::services::serve;
use crate::{Report, Shop};

const CLOCK: &str = "10.96.2.1:9400";
const STOREFRONT: &str = "/usr/bin/storefront";
const INTRUDER: &str = "/usr/bin/intruder";

/// A service of acme's for all tenants.
const SERVICE: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: clock, tenant: acme}
spec:
  level: infrastructure
  selector: {vm: {name: db}}
  ports: [{port: 9400}]
  addresses: [10.96.2.1]
";

/// What its owner says, and what the callers' tenant says.
fn manifest(owner: &str, caller: &str) -> String {
    format!(
        "{SERVICE}---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: who-asks, tenant: acme}}
spec: {{action: {owner}, from: [{{tenant: globex}}], to: [{{service: clock}}]}}
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: who-may-ask, tenant: globex}}
spec: {{action: {caller}, from: [{{process: {{exe: {STOREFRONT}}}}}], to: [{{service: clock, tenant: acme}}]}}
"
    )
}

/// One tenant's service is called from another, until either of them forbids it.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let server = serve(shop, "acme/db", "clock", 9400)?;
    let globex = shop.vm("globex/web");
    let call = |exe: &str| attempt(globex, exe, CLOCK);
    shop.put_in_force("60-clock.yaml", SERVICE)?;
    report.check("whoever says nothing lets globex/web call acme's clock", call(INTRUDER)?.connected());

    shop.put_in_force("60-clock.yaml", &manifest("Allow", "Allow"))?;
    report.check("both allow the storefront: it calls", call(STOREFRONT)?.connected());
    report.check("others of globex's are refused by globex", call(INTRUDER)?.refused_at_once());
    let why = shop.why("globex/web", "acme/clock", INTRUDER)?;
    let named = why.decided_by == "globex/(calls to acme/clock)"
        && why.rules.iter().any(|rule| rule.rule == "acme/who-asks" && rule.matched)
        && why.rules.iter().any(|rule| rule.rule == "globex/who-may-ask" && !rule.matched);
    let told = if named { why.decided_by } else { format!("{why:?}") };
    report.claim("why names both sides' policies", named, told);

    let held = globex.background("held", &format!("{STOREFRONT} hold {CLOCK}"))?;
    globex.await_line("held", "holding", START_LIMIT)?;
    shop.put_in_force("60-clock.yaml", &manifest("Deny", "Allow"))?;
    report.check("the owner denies globex: it is refused", call(STOREFRONT)?.refused_at_once());
    let ended = globex.await_end("held", held, NOTICE_LIMIT)?;
    report.claim("and the open connection is reset", ended.contains("reset"), ended.trim_end().to_owned());

    shop.put_in_force("60-clock.yaml", &manifest("Allow", "Deny"))?;
    report.check("globex denies it to the storefront: it is refused", call(STOREFRONT)?.refused_at_once());
    report.check("others of globex's call", call(INTRUDER)?.connected());
    shop.vm("acme/db").expect(&format!("kill {server}"))?;
    shop.remove("60-clock.yaml")
}
