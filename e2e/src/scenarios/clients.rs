// SPDX-License-Identifier: Apache-2.0
//! Programs that people use, as Debian has them: dig, getent, nslookup, curl, redis-cli and psql find their servers by
//! name, from either kernel to the other, over both families.
//!
//! The database is PostgreSQL as it is: a server of many processes that runs as a user of its own. Making its files
//! (`initdb`) takes an emulated guest some 12 s, so both machines do it at the same time.

use std::time::Duration;

use anyhow::{Context, Result};
use api::admin::{Flow, Verdict};
use testkit::guests::clients_initramfs;
use testkit::vm::{Vm, VmSpec};

use super::comings::BATCH;
use super::stacks;
use super::traffic::take_ipv6;
use crate::shop::{NOTICE_LIMIT, START_LIMIT};
use crate::{Report, Shop};

/// Memory for a guest with more programs, in MiB.
const MEMORY_MIB: u32 = 512;
/// Time for making a database, with much to spare on a busy host.
const DATABASE_LIMIT: Duration = Duration::from_secs(120);
/// Whom IPv6 asks: nobody in particular, for the switch answers.
const RESOLVER_V6: &str = "2001:db8::53";
const PSQL: &str = "/usr/lib/postgresql/15/bin/psql";
const POSTGRES: &str = "/usr/lib/postgresql/15/bin/postgres";

/// A machine that serves all it asks the other for.
struct Machine {
    id: &'static str,
    /// What it is called, and what its servers answer.
    name: &'static str,
    v6: &'static str,
}

const MACHINES: [Machine; 2] = [
    Machine { id: "acme/batch", name: "batch", v6: "fd00:6d76::14" },
    Machine { id: "acme/report", name: "report", v6: "fd00:6d76::15" },
];

/// One more machine.
pub(super) const REPORT: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: report, tenant: acme, labels: {app: shop, tier: web}}
spec:
  nics:
  - name: net0
    socket: acme-report.sock
    mac: \"02:6d:76:00:01:0f\"
    addresses: [10.0.0.15/24, \"fd00:6d76::15/64\"]
";

/// What one machine serves; the database is whoever runs PostgreSQL's server.
const SERVICES: &str = "\
---
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: accounts-MACHINE, tenant: acme}
spec:
  selector: {vm: {name: MACHINE}, process: {exe: POSTGRES}}
  ports: [{port: 5432}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: keys-MACHINE, tenant: acme}
spec:
  selector: {vm: {name: MACHINE}}
  ports: [{port: 6379}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: page-MACHINE, tenant: acme}
spec:
  selector: {vm: {name: MACHINE}}
  ports: [{port: 80}]
";

/// Each service for its own client alone.
const POLICY: &str = "\
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: PROGRAM-to-SERVICE, tenant: acme}
spec:
  action: Allow
  from: [{process: {exe: EXE}}]
  to: [{service: SERVICE-batch}, {service: SERVICE-report}]
";

fn manifests() -> String {
    let services = MACHINES.map(|machine| SERVICES.replace("MACHINE", machine.name));
    let clients = [
        ("psql", PSQL, "accounts"),
        ("redis-cli", "/usr/bin/redis-cli", "keys"),
        ("curl", "/usr/bin/curl", "page"),
    ];
    let policies = clients.map(|(program, exe, service)| {
        POLICY.replace("PROGRAM", program).replace("SERVICE", service).replace("EXE", exe)
    });
    let all = services.concat().replace("POSTGRES", POSTGRES) + &policies.concat();
    format!("# SPDX-License-Identifier: Apache-2.0\n{all}")
}

/// What is spoken is told at all ports, and at one only HTTP is.
const SPOKEN: &str = "\
# SPDX-License-Identifier: Apache-2.0
apiVersion: meshvisor.dev/v1alpha1
kind: FlowPolicy
metadata: {name: what-is-spoken, tenant: acme}
spec:
  layer7: {}
---
apiVersion: meshvisor.dev/v1alpha1
kind: FlowPolicy
metadata: {name: pages-speak-http, tenant: acme}
spec:
  to:
  - ports: [{port: 80}]
  layer7: {protocols: [http]}
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: redis-cli-to-page, tenant: acme}
spec:
  action: Allow
  from: [{process: {exe: /usr/bin/redis-cli}}]
  to: [{service: page-report}]
";

/// A family of addresses, as each program is told it.
struct Family {
    number: u8,
    record: &'static str,
}

const FAMILIES: [Family; 2] = [Family { number: 4, record: "A" }, Family { number: 6, record: "AAAA" }];

pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    shop.write("60-batch.yaml", BATCH)?;
    shop.write("61-report.yaml", REPORT)?;
    shop.put_in_force("70-clients.yaml", &manifests())?;
    for Machine { id, .. } in MACHINES {
        shop.start_as(id, with_clients)?;
    }
    for machine in &MACHINES {
        shop.await_machine(machine.id)?;
        serve(shop.vm(machine.id), machine.name)?;
    }
    for Machine { id, v6, .. } in MACHINES {
        shop.vm(id).await_line("accounts", ".*ready to accept connections", DATABASE_LIMIT)?;
        take_ipv6(shop.vm(id), v6)?;
        shop.vm(id).expect("ip -6 route replace default via fe80::1 dev eth0")?;
    }
    let [batch, other] = &MACHINES;
    for (from, to) in [(batch, other), (other, batch)] {
        let kernel = shop.vm(from.id).expect("uname -r")?;
        for family in &FAMILIES {
            report.show(&format!("{} (Linux {kernel}) asks {} over IPv{}", from.id, to.id, family.number));
            names(shop.vm(from.id), to, family, report)?;
            servers(shop.vm(from.id), to, family, report)?;
        }
        identities(shop, from, to, report)?;
    }
    stacks::check(shop, report)?;
    spoken(shop, batch, other, report)?;
    for Machine { id, .. } in MACHINES {
        shop.cut_power(id)?;
    }
    ["60-batch.yaml", "61-report.yaml", "70-clients.yaml"].iter().try_for_each(|file| shop.remove(file))
}

/// A machine that has these programs.
pub(super) fn with_clients(spec: VmSpec) -> VmSpec {
    VmSpec { initramfs: Some(clients_initramfs()), memory_mib: MEMORY_MIB, ..spec }
}

/// What a command in a guest prints, successful or not.
pub(super) fn said(vm: &Vm, command: &str) -> Result<String> {
    Ok(vm.run(command)?.stdout)
}

/// Starts a machine's servers, which all answer its name.
fn serve(vm: &Vm, name: &str) -> Result<()> {
    vm.background("accounts", "in-service accounts postgres new-database /tmp/accounts")?;
    vm.expect(&format!("mkdir -p /tmp/pages && echo {name} >/tmp/pages/index.html"))?;
    vm.background("page", "in-service page nobody httpd -f -p 80 -h /tmp/pages")?;
    vm.background("keys", "in-service keys redis /usr/bin/redis-server --save '' --protected-mode no")?;
    vm.await_line("keys", ".*Ready to accept connections", START_LIMIT)?;
    vm.expect(&format!("redis-cli set who {name}")).map(drop)
}

/// Whoever asks for a name is told the same, and not that of another service.
fn names(vm: &Vm, to: &Machine, family: &Family, report: &mut Report) -> Result<()> {
    let Family { number, record } = family;
    if *number == 6 {
        vm.expect(&format!("printf 'search mesh.internal\\nnameserver {RESOLVER_V6}\\n' >/etc/resolv.conf"))?;
    }
    let name = format!("accounts-{}.mesh.internal", to.name);
    let found = said(vm, &format!("dig +short +time=2 +tries=1 {name} {record}"))?;
    let right = if *number == 6 { found.contains(':') } else { found.starts_with("100.97.") };
    report.claim(format!("dig finds {name}, {record}"), right, &found);
    let told = said(vm, &format!("getent ahostsv{number} accounts-{} | head -n 1", to.name))?;
    report.claim("getent finds the same", told.split(' ').next() == Some(found.as_str()), told);
    let told = said(vm, &format!("nslookup -type={record} {name} 2>&1"))?;
    let same = told.lines().any(|line| line == format!("Address: {found}"));
    report.claim("nslookup, too", same, told.lines().last().unwrap_or_default());
    Ok(())
}

/// Clients reach the servers that their names lead to.
fn servers(vm: &Vm, to: &Machine, family: &Family, report: &mut Report) -> Result<()> {
    let (Machine { name, .. }, Family { number, .. }) = (to, family);
    // redis-cli and psql have no choice of families themselves, so the resolver makes it for them.
    let of = |service: &str| format!("$(getent ahostsv{number} {service}-{name} | sed -n '1s/ .*//p')");
    let select = "select current_database() || ' sees ' || family(inet_client_addr())";
    let (keys, accounts) = (of("keys"), format!("PGHOSTADDR={}", of("accounts")));
    for (command, expected) in [
        (
            format!("curl --silent --show-error --max-time 5 -{number} http://page-{name}/"),
            (*name).to_owned(),
        ),
        (format!("redis-cli --raw -h {keys} get who"), (*name).to_owned()),
        (
            format!("{accounts} {PSQL} -h accounts-{name} -U postgres -Atqc \"{select}\" | cat"),
            format!("postgres sees {number}"),
        ),
    ] {
        let answer = said(vm, &format!("{{ {command}; }} 2>&1"))?;
        let program = ["curl", "redis-cli", "psql"].into_iter().find(|name| command.contains(name));
        report.claim(format!("{} is answered", program.unwrap_or_default()), answer == expected, answer);
    }
    Ok(())
}

/// The database is for psql alone, and each end is known by its process.
fn identities(shop: &Shop, from: &Machine, to: &Machine, report: &mut Report) -> Result<()> {
    let vm = shop.vm(from.id);
    let flow = shop.until(NOTICE_LIMIT, || {
        let mut flows = shop.flows(from.id)?.into_iter();
        Ok(flows.find(|flow| program(&flow.source) == Some(PSQL) && flow.verdict == Verdict::Allow))
    });
    let known = flow.context("no flow of psql is listed").and_then(|flow: Flow| {
        let server = program(&flow.destination);
        anyhow::ensure!(
            server == Some(POSTGRES) && flow.destination.vm.as_deref() == Some(to.id),
            "{flow:?}"
        );
        Ok(format!("{PSQL} to {POSTGRES}, by {}", flow.decided_by))
    });
    report.check("both ends of psql's connection are known by their programs", known);
    for command in [
        format!("curl --silent --show-error --max-time 5 telnet://accounts-{}:5432 2>&1", to.name),
        format!("redis-cli -h accounts-{} -p 5432 ping 2>&1", to.name),
    ] {
        let told = said(vm, &command)?;
        let is_refused = told.to_lowercase().contains("refused") || told.contains("Failed to connect");
        let program = command.split(' ').next().unwrap_or_default();
        report.claim(format!("{program} is refused where psql is not"), is_refused, told);
    }
    Ok(())
}

/// Programs are told apart by what they say, and held to it.
fn spoken(shop: &Shop, from: &Machine, to: &Machine, report: &mut Report) -> Result<()> {
    shop.put_in_force("71-spoken.yaml", SPOKEN)?;
    let vm = shop.vm(from.id);
    for (command, protocol) in [
        (format!("curl --silent --show-error --max-time 5 http://page-{}/", to.name), "http"),
        (format!("redis-cli --raw -h keys-{} get who", to.name), "redis"),
        (format!("{PSQL} -h accounts-{} -U postgres -Atqc 'select 1' | cat", to.name), "postgres"),
    ] {
        let answer = said(vm, &format!("{{ {command}; }} 2>&1"))?;
        let flow = shop.until(NOTICE_LIMIT, || {
            let mut flows = shop.flows(from.id)?.into_iter();
            Ok(flows.find(|flow| flow.speaks.as_deref() == Some(protocol)))
        });
        let told = flow.with_context(|| format!("no flow is told to speak {protocol}: {answer}"));
        let told = told.map(|flow| format!("{} says {answer}", flow.destination.port));
        report.check(format!("{protocol} is told by its first bytes, and passes"), told);
    }
    let told = said(vm, &format!("redis-cli -h page-{} -p 80 ping 2>&1", to.name))?;
    let is_reset = told.contains("reset by peer") || told.contains("closed the connection");
    report.claim("redis-cli is cut off where only HTTP may be spoken, whatever allows it", is_reset, told);
    let flow = shop.until(NOTICE_LIMIT, || {
        let mut flows = shop.flows(from.id)?.into_iter();
        Ok(flows.find(|flow| flow.decided_by == "acme/pages-speak-http"))
    });
    let flow = flow.context("no flow was ended for what it speaks")?;
    let because = flow.because.unwrap_or_default();
    let holds = flow.speaks.as_deref() == Some("redis") && because == "it speaks redis, not http";
    report.claim("and the flow says why", holds && flow.verdict == Verdict::Deny, because);
    shop.remove("71-spoken.yaml")
}

fn program(party: &api::admin::Party) -> Option<&str> {
    party.process.as_ref()?.exe.as_deref()
}
