// SPDX-License-Identifier: Apache-2.0
//! Mistakes of operators and misbehaviour of guests.

use anyhow::{Context, Result};
use api::admin::Verdict;

use crate::conversation::{STOREFRONT, Stream, attempt};
use crate::shop::{API, NOTICE_LIMIT};
use crate::{Report, Shop};

/// A file that comes last, with a mistake in its sixth line.
const DAMAGED: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: everyone, tenant: acme}
spec:
  action: Perhaps
";

/// The mistake is named with its place; connections old and new go on under the old policy.
pub(super) fn damaged_manifest(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let generation = shop.policy()?.generation;
    let stream = Stream::start(shop, "acme/web", "undisturbed", STOREFRONT, API)?;
    shop.write("90-damaged.yaml", DAMAGED)?;
    let noticed = shop.until(NOTICE_LIMIT, || Ok(shop.policy()?.errors.into_iter().next()));
    let named = noticed.context("the daemon reports no error").and_then(|error| {
        let right = error.file.ends_with("90-damaged.yaml") && (error.line, error.column) == (6, 11);
        anyhow::ensure!(right, "it says {error}");
        Ok(error.reason)
    });
    report.check("file, line and column of the mistake are named", named);
    let now = shop.policy()?.generation;
    report.claim("the last good policy stays in force", now == generation, format!("generation {now}"));
    report.check(
        "new connections are judged by it",
        attempt(shop.vm("acme/web"), STOREFRONT, API)?.connected(),
    );

    shop.remove("90-damaged.yaml")?;
    let mended = shop.until(NOTICE_LIMIT, || Ok(shop.policy()?.errors.is_empty().then_some("")));
    report.check("the mistake is gone once the file is", mended);
    report.check("an open connection never noticed", stream.finish(shop));
    Ok(())
}

/// The example's audited rule is about callers with user id 0.
pub(super) fn audit(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let allowed = attempt(shop.vm("acme/web"), "/usr/bin/storefront", API)?;
    report.check("the storefront as root is connected all the same", allowed.connected());
    let marked = shop.until(NOTICE_LIMIT, || {
        let flow = shop.why("acme/web", API, "/usr/bin/storefront")?.flow;
        Ok(flow.filter(|flow| flow.source.uid == Some(0)))
    })?;
    report.claim(
        "its flow is marked with the rule that would have denied it",
        marked.verdict == Verdict::Allow && marked.audited == ["acme/no-root-callers"],
        format!("allowed by {}, audited: {}", marked.decided_by, marked.audited.join(", ")),
    );
    Ok(())
}

/// `web` takes an address that nobody holds, then the database's.
pub(super) fn spoofed_address(shop: &mut Shop, report: &mut Report) -> Result<()> {
    for address in ["10.0.0.99", "10.0.0.13"] {
        let before = spoofed(shop)?;
        let web = shop.vm("acme/web");
        web.expect(&format!(
            "ip address add {address}/32 dev eth0; ip route add 10.0.0.12/32 dev eth0 src {address}"
        ))?;
        let attempt = attempt(web, "/usr/bin/storefront", API)?;
        web.expect(&format!("ip route del 10.0.0.12/32 dev eth0; ip address del {address}/32 dev eth0"))?;
        report.check(format!("as {address}, web is not connected"), attempt.not_connected());
        let dropped = spoofed(shop)? - before;
        report.claim("its frames are counted as spoofed", dropped > 0, format!("{dropped} frames"));
    }
    let honest = attempt(shop.vm("acme/web"), "/usr/bin/storefront", API)?;
    report.check("with its own address it is connected again", honest.connected());
    Ok(())
}

/// Frames dropped so far for a forged source.
fn spoofed(shop: &Shop) -> Result<u64> {
    Ok(shop.status()?.drops.get("spoofed-address").copied().unwrap_or_default())
}
