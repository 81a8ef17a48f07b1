// SPDX-License-Identifier: Apache-2.0
//! Programs in containers: in a network namespace of their own, behind the machine's translated address.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use api::admin::{Confidence, Flow, Verdict};

use crate::conversation::attempt;
use crate::shop::{API, DB, NOTICE_LIMIT};
use crate::{Report, Shop};

/// Connections that each program opens in a row.
const CONNECTIONS: usize = 200;
/// The container's own address.
const INSIDE: &str = "172.17.0.2";

/// Lets one user of one container call the API, whatever it runs.
const BY_CONTAINER: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: container-to-api, tenant: acme}
spec:
  action: Allow
  from:
  - process: {container: 'aaaaaaaaaaaa*', user: shop}
  to:
  - service: api
";

/// A container's id.
fn id(digit: char) -> String {
    std::iter::repeat_n(digit, 64).collect()
}

/// The same programs, the same verdicts as outside, on both kernels.
pub(super) fn masquerade(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let (one, other) = (id('a'), id('b'));
    let places = [("acme/web", one, "shop", "storefront", API), ("acme/api", other, "orders", "orders", DB)];
    for (machine, container, user, program, to) in places {
        let vm = shop.vm(machine);
        let within = format!("in-container {container} {user} /usr/bin");
        let allowed = attempt(vm, &format!("{within}/{program}"), to)?;
        report.check(format!("{program} in a container of {machine} is connected"), allowed.connected());
        let flow = newest(shop, machine, program);
        report.check(
            "the verdict names process, container and its address",
            flow.and_then(|flow| inside(&flow)),
        );

        let opened = vm.run(&format!("{within}/{program} connect {to} {CONNECTIONS}"))?.stdout;
        let refused = vm.run(&format!("{within}/intruder connect {to} {CONNECTIONS}"))?.stdout;
        for (claim, printed, word) in [
            ("are allowed", opened, "connected "),
            ("of an intruder beside it are refused", refused, "refused "),
        ] {
            let count = printed.lines().filter(|line| line.starts_with(word)).count();
            report.claim(format!("{CONNECTIONS} of {CONNECTIONS} {claim}"), count == CONNECTIONS, count);
        }
        // Those that were opened to this machine, from another's container, are not its own.
        let flows = shop.flows(machine)?;
        let named = |flow: &&Flow| {
            let is_inside = flow.source.inner.is_some_and(|inner| inner.ip().to_string() == INSIDE);
            is_inside && flow.source.vm.as_deref() == Some(machine)
        };
        let wrong = flows.iter().filter(named).filter(|flow| {
            let exe = flow.source.process.as_ref().and_then(|process| process.exe.as_deref());
            let expected = match exe {
                Some("/usr/bin/intruder") => Verdict::Deny,
                Some(exe) if exe.ends_with(program) => Verdict::Allow,
                _ => return true,
            };
            flow.verdict != expected
        });
        let (wrong, all) = (wrong.count(), flows.iter().filter(named).count());
        report.claim(
            "no flow from inside names another process",
            wrong == 0 && all > 0,
            format!("{wrong} of {all}"),
        );
    }
    Ok(())
}

/// Policies that name a container and a user.
pub(super) fn selectors(shop: &mut Shop, report: &mut Report) -> Result<()> {
    shop.put_in_force("60-container.yaml", BY_CONTAINER)?;
    let web = shop.vm("acme/web");
    let intruder = |within: &str| attempt(web, &format!("{within} /usr/bin/intruder"), API);
    let (one, other) = (id('a'), id('c'));
    report.check(
        "the container's user is connected",
        intruder(&format!("in-container {one} shop"))?.connected(),
    );
    for (who, within) in [
        ("another user of it", format!("in-container {one} orders")),
        ("the same user in another container", format!("in-container {other} shop")),
        ("the same user outside", "in-service shop shop".to_owned()),
    ] {
        report.check(format!("{who} is refused"), intruder(&within)?.refused_at_once());
    }
    for (machine, program, user) in [("acme/web", "init", "root"), ("acme/api", "orders", "orders")] {
        let processes = shop.processes(machine)?;
        let found = processes.into_iter().find(|process| process.name == program);
        let named = found.and_then(|process| process.user).unwrap_or_default();
        report.claim(format!("{program} of {machine} runs as {user}"), named == user, named);
    }
    shop.remove("60-container.yaml").map(drop)
}

/// The newest flow that `program` opened from inside a machine's container.
fn newest(shop: &Shop, machine: &str, program: &str) -> Result<Flow> {
    let found = shop.until(NOTICE_LIMIT, || {
        let is_its =
            |flow: &Flow| flow.source.process.as_ref().is_some_and(|process| process.name == program);
        Ok(shop.flows(machine)?.into_iter().find(|flow| is_its(flow) && flow.source.inner.is_some()))
    });
    found.with_context(|| format!("no flow of {program} from inside {machine}"))
}

/// Who opened a flow from inside a container, in one line, if all of it is known.
fn inside(flow: &Flow) -> Result<String> {
    let inner = flow.source.inner.context("the flow has no inner address")?;
    let process = flow.source.process.as_ref().context("the flow names no process")?;
    let unit = process.unit.as_deref().unwrap_or_default();
    let is_inside = inner.ip() == INSIDE.parse::<IpAddr>()? && unit.starts_with("docker-");
    if !is_inside || flow.source.confidence != Some(Confidence::Descriptor) {
        bail!("{flow:?}");
    }
    Ok(format!("{} at {inner} in {}", process.name, &unit[..20]))
}
