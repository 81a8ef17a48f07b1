// SPDX-License-Identifier: Apache-2.0
//! Two tenants with equal addresses in the world outside.

use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use api::admin::{Request, Response};
use testkit::daemon::Daemon;
use testkit::guests::shipped;
use testkit::outside::{INTERFACE, Outside};

use crate::conversation::attempt;
use crate::shop::{API, NOTICE_LIMIT};
use crate::{Report, Shop};

/// A server somewhere; it tells whom it sees.
const SERVER: &str = "198.51.100.7:80";
/// A name server out there, which finds that server for every name.
const UPSTREAM: &str = "127.0.0.1:5300";
const HOST: &str = "192.0.2.1";
/// What the tenants' machines appear as.
const ACME: &str = "192.0.2.10";
const GLOBEX: &str = "192.0.2.20";

fn manifests() -> String {
    format!(
        "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: ExternalNetwork
metadata: {{name: internet, tenant: acme}}
spec:
  interface: {INTERFACE}
  reaches: [0.0.0.0/0]
  addresses: [{ACME}]
  publish:
  - {{address: {ACME}, port: 80, vm: api, vmPort: 8080}}
---
apiVersion: meshvisor.dev/v1alpha1
kind: ExternalNetwork
metadata: {{name: internet, tenant: globex}}
spec:
  interface: {INTERFACE}
  reaches: [0.0.0.0/0]
  addresses: [{GLOBEX}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: orders-go-out, tenant: acme}}
spec:
  action: Allow
  from:
  - process: {{exe: /usr/bin/orders}}
  to:
  - cidr: 198.51.100.0/24
    ports: [{{port: 80}}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: web-goes-out-by-name, tenant: acme}}
spec:
  action: Allow
  from:
  - vm: {{name: web}}
    process: {{exe: /usr/bin/intruder}}
  to:
  - fqdn: '*.example.com'
    ports: [{{port: 80}}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: host-comes-in, tenant: acme}}
spec:
  action: Allow
  from:
  - cidr: {HOST}/32
  to:
  - service: api
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: all-goes-out, tenant: globex}}
spec:
  action: Allow
  to:
  - cidr: 0.0.0.0/0
"
    )
}

/// What one of the tenants says does not leave the host in the clear, in either direction.
const ENCRYPTED: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: FlowPolicy
metadata: {name: nothing-in-the-clear, tenant: acme}
spec:
  from:
  - cidr: 0.0.0.0/0
  to:
  - cidr: 0.0.0.0/0
  encrypt: true
";

pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let outside = match Outside::new(&[&format!("{HOST}/24")], &["198.51.100.7/32"]) {
        Ok(outside) => outside,
        Err(reason) => {
            report.show(&format!("skipped: {reason:#}"));
            return Ok(());
        }
    };
    outside.serve(SERVER.parse()?)?;
    shop.write("70-outside.yaml", &manifests())?;
    let program = outside.wrapped(&shipped("meshvisor-hostd"), &shop.runtime())?;
    shop.daemon.stop()?;
    outside.serve_names(UPSTREAM.parse()?, SERVER.parse::<SocketAddrV4>()?.ip().to_owned())?;
    let settings = shop.scratch.join("outside.toml");
    std::fs::write(&settings, format!("[dns]\nupstreams = [\"{UPSTREAM}\"]\n"))?;
    let there = Daemon::start_with(&program, &shop.manifests(), &shop.runtime(), Some(&settings))?;
    let here = std::mem::replace(&mut shop.daemon, there);
    shop.await_networks()?;
    visit(shop, report, &outside)?;
    visit_by_name(shop, report)?;
    keep_inside(shop, report, &outside)?;
    let kept = shop.runtime().join("names.json");
    shop.until(NOTICE_LIMIT, || Ok(kept.exists().then_some(())))?;
    shop.daemon.kill()?;
    shop.daemon.restart()?;
    shop.await_networks()?;
    let remembered = attempt(shop.vm("acme/web"), "/usr/bin/intruder", SERVER)?.connected();
    report.check("the daemon is killed, and the next one knows the name still", remembered);
    shop.daemon.stop()?;
    shop.daemon = here;
    shop.remove("70-outside.yaml")?;
    shop.daemon.restart()?;
    shop.await_networks()
}

fn visit(shop: &Shop, report: &mut Report, outside: &Outside) -> Result<()> {
    let (api, web, other) = (shop.vm("acme/api"), shop.vm("acme/web"), shop.vm("globex/web"));
    // Both machines hold 10.0.0.12.
    for (vm, exe, appears) in [(api, "/usr/bin/orders", ACME), (other, "/usr/bin/storefront", GLOBEX)] {
        let seen = vm.run(&format!("{exe} ask {SERVER} hello"))?.stdout;
        report.claim(
            format!("a server sees {appears}"),
            seen.starts_with(&format!("answer {appears}:")),
            seen,
        );
    }
    let denied = api.run(&format!("/usr/bin/storefront connect {SERVER}"))?.stdout;
    report.claim(
        "another program of the same machine is refused at once",
        denied.starts_with("refused"),
        denied,
    );
    let pong = other.run(&format!("ping -c 1 -W 2 {HOST}"))?;
    report.claim("echo comes back", pong.success(), "the host answers");
    let front = format!("{ACME}:80");
    let answer = outside.ask(front.parse()?, "hello")?;
    report.claim("the published API answers from outside", answer == "hello", answer);
    let answer = web.run(&format!("/usr/bin/storefront ask {front} hello"))?.stdout;
    report.claim("and from inside by its external address", answer == "answer hello", answer);
    let flows = shop.until(NOTICE_LIMIT, || {
        let flows = shop.flows("acme/api")?;
        Ok(flows
            .iter()
            .any(|flow| flow.destination.address.to_string() == "198.51.100.7")
            .then_some(flows.len()))
    });
    report.check("the flow is listed", flows.context("no flow to the server is listed"));
    Ok(())
}

/// What may not leave the host in the clear does not leave it, and what stays inside is let be.
fn keep_inside(shop: &Shop, report: &mut Report, outside: &Outside) -> Result<()> {
    let (api, web, other) = (shop.vm("acme/api"), shop.vm("acme/web"), shop.vm("globex/web"));
    shop.put_in_force("71-encrypted.yaml", ENCRYPTED)?;
    let refused = attempt(api, "/usr/bin/orders", SERVER)?.refused_at_once();
    report.check("what would leave the host in the clear is refused", refused);
    let Response::Explanation(why) = shop.ask(&Request::Why {
        from: "acme/api".into(),
        to: SERVER.into(),
        protocol: "tcp".into(),
        exe: Some("/usr/bin/orders".into()),
    })?
    else {
        anyhow::bail!("no explanation");
    };
    let because = why.because.unwrap_or_default();
    let holds = why.decided_by == "acme/nothing-in-the-clear" && because.contains("destination is outside");
    report.claim("why names the policy, and the end that is outside", holds, because);
    let front = format!("{ACME}:80");
    let answer = outside.ask(front.parse()?, "hello");
    let (refused, told) = (answer.is_err(), answer.unwrap_or_else(|error| error.to_string()));
    report.claim("nor does anything come in so", refused, told);
    let inside = attempt(web, "/usr/bin/storefront", API)?.connected();
    report.check("between machines of the host nothing is on a wire, and all is as before", inside);
    let untouched = attempt(other, "/usr/bin/storefront", SERVER)?.connected();
    report.check("another tenant goes out as before", untouched);
    let generation = shop.policy()?.generation;
    shop.remove("71-encrypted.yaml")?;
    shop.until(NOTICE_LIMIT, || Ok((shop.policy()?.generation > generation).then_some(())))?;
    let out = attempt(api, "/usr/bin/orders", SERVER)?.connected();
    report.check("without the policy it goes out again", out);
    Ok(())
}

/// What a rule names by its name may be reached once somebody has asked for it, by whom the rule selects.
fn visit_by_name(shop: &Shop, report: &mut Report) -> Result<()> {
    let web = shop.vm("acme/web");
    let before = attempt(web, "/usr/bin/intruder", SERVER)?;
    report.check("before its name is asked for, a server is out of reach", before.refused_at_once());
    let other = web.run("nslookup www.example.net 2>&1")?.stdout;
    report.claim(
        "a name that no rule names is not asked for",
        other.contains("REFUSED"),
        other.replace('\n', " "),
    );
    let found = web.run("nslookup www.example.com 2>&1")?.stdout;
    report.claim("the rule's name is found", found.contains("198.51.100.7"), found.replace('\n', " "));
    report.check("and may be reached then", attempt(web, "/usr/bin/intruder", SERVER)?.connected());
    let storefront = attempt(web, "/usr/bin/storefront", SERVER)?;
    report.check("but by nobody else", storefront.refused_at_once());
    for (to, exe, rule) in [
        ("www.example.com:80", "/usr/bin/intruder", "acme/web-goes-out-by-name"),
        (SERVER, "/usr/bin/intruder", "acme/web-goes-out-by-name"),
        ("www.example.com:80", "/usr/bin/storefront", "acme/default"),
    ] {
        let why = shop.why("acme/web", to, exe)?;
        let said = why.rules.iter().find(|rule| rule.rule == "acme/web-goes-out-by-name");
        let holds = why.decided_by == rule && !why.hypothetical && said.is_some();
        let claim = format!("`why` says that {rule} decides about {exe} and {to}");
        report.claim(claim, holds, said.map_or_else(|| format!("{why:?}"), |rule| rule.why.clone()));
    }
    let unknown = shop.why("acme/web", "www.example.org:80", "/usr/bin/intruder");
    let said = unknown.map_or_else(|error| format!("{error:#}"), |why| format!("{why:?}"));
    report.claim("and that a name which nobody has asked for is not known", said.contains("has found"), said);
    Ok(())
}
