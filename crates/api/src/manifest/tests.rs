// SPDX-License-Identifier: Apache-2.0
//! What loads, and where exactly the rest is refused.

use std::time::Duration;

use model::{
    Action, Audience, HealthCheck, Method, Mode, Origin, Outcome, PortRange, Protocol, SocketMode, Target,
};

use super::*;

mod flow_policies;
mod qos;

const HEADER: &str = "apiVersion: meshvisor.dev/v1alpha1\n";

/// A tenant and a machine that other documents can refer to: 12 lines.
const BASE: &str = r#"apiVersion: meshvisor.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: web, tenant: acme, labels: {tier: web}}
spec:
  nics:
  - {name: net0, socket: web.sock, mac: "02:6d:76:00:01:0b", addresses: [10.0.0.11/24, "fd00::11/64"]}
---
apiVersion: meshvisor.dev/v1alpha1
"#;

fn source(file: &str, text: &str) -> Source {
    Source { file: file.into(), text: text.into() }
}

fn load_text(text: &str) -> Result<Manifests, Vec<Diagnostic>> {
    load_sources(&[source("m.yaml", text)])
}

/// Expects exactly these mistakes: line, column, field, and a piece of reason or help.
fn check(text: &str, expected: &[(u32, u32, &str, &str)]) {
    let diagnostics = load_text(text).expect_err(text);
    let found: Vec<_> = diagnostics.iter().map(|d| (d.line, d.column, d.field.as_str())).collect();
    let wanted: Vec<_> = expected.iter().map(|e| (e.0, e.1, e.2)).collect();
    assert_eq!(found, wanted, "{text}\n{diagnostics:#?}");
    for (diagnostic, (.., piece)) in diagnostics.iter().zip(expected) {
        let said = format!("{} ({})", diagnostic.reason, diagnostic.help);
        assert!(said.contains(piece), "{said:?} lacks {piece:?}\n{text}");
    }
}

/// Expects these mistakes in a document that follows [`BASE`], lines counted from its `kind`.
fn check_after_base(document: &str, expected: &[(u32, u32, &str, &str)]) {
    let shifted: Vec<_> = expected.iter().map(|e| (e.0 + 12, e.1, e.2, e.3)).collect();
    check(&format!("{BASE}{document}"), &shifted);
}

#[test]
fn external_networks_load_and_their_mistakes_are_placed() {
    let network = |spec: &str| {
        format!("kind: ExternalNetwork\nmetadata: {{name: internet, tenant: acme}}\nspec:\n{spec}")
    };
    let good = network(
        "  interface: mesh-out
  reaches: [0.0.0.0/0, \"2001:db8::/32\"]
  addresses: [192.0.2.10, \"2001:db8:1::10\"]
  publish:
  - {address: 192.0.2.10, port: 80, vm: web, vmPort: 8080}
  - {address: \"2001:db8:1::10\", port: 53, protocol: UDP, vm: web}
",
    );
    let manifests = load_text(&format!("{BASE}{good}")).unwrap();
    let [network_] = manifests.inventory().networks() else { panic!("one network") };
    let ports: Vec<_> = network_.published.iter().map(|p| (p.protocol, p.port, p.vm_port)).collect();
    assert_eq!(ports, [(Protocol::Tcp, 80, 8080), (Protocol::Udp, 53, 53)]);
    assert_eq!((network_.interface.as_str(), network_.reaches.len()), ("mesh-out", 2));

    let base = "  interface: t\n  reaches: [0.0.0.0/0]\n  addresses: [192.0.2.10]\n";
    for (spec, expected) in [
        (
            "  reaches: [0.0.0.0/0]\n  addresses: [192.0.2.10]\n".to_owned(),
            (4, 3, "spec", "`interface` is missing"),
        ),
        (base.replace("t\n", "much-too-long-name\n"), (4, 14, "spec.interface", "1 to 15")),
        (base.replace("0.0.0.0/0", "10.0.0.1/8"), (5, 13, "spec.reaches[0]", "write 10.0.0.0/8")),
        (base.replace("0.0.0.0/0", "\"::/0\""), (4, 3, "spec", "no address of its family")),
        (base.replace("192.0.2.10", "224.0.0.1"), (6, 15, "spec.addresses[0]", "cannot be anybody's")),
        (
            format!("{base}  publish: [{{address: 192.0.2.11, port: 80, vm: web}}]\n"),
            (7, 23, "spec.publish[0].address", "not among"),
        ),
        (
            format!("{base}  publish: [{{address: 192.0.2.10, port: 80, vm: wob}}]\n"),
            (7, 49, "spec.publish[0].vm", "not defined"),
        ),
    ] {
        check_after_base(&network(&spec), &[expected]);
    }
}

#[test]
fn every_kind_loads_with_its_defaults() {
    let text = format!(
        "{BASE}kind: Application
metadata: {{name: shop, tenant: acme}}
spec: {{selector: {{vm: {{labels: {{app: shop}}}}}}}}
---
{HEADER}kind: Service
metadata: {{name: api, tenant: acme}}
spec:
  selector: {{vm: {{labels: {{tier: api}}}}, process: {{exe: /usr/bin/orders}}}}
  ports: [{{port: 8080}}, {{port: 53, protocol: UDP}}]
---
{HEADER}kind: AccessPolicy
metadata: {{name: p, tenant: acme}}
spec:
  action: Allow
  mode: audit
  from:
  - vm: {{name: web}}
    process: {{name: nginx, exe: '/usr/sbin/*', unit: nginx.service, uid: 33, user: www-data}}
  - process: {{container: 'ab12*', attribution: known}}
  - process: {{attribution: unattributed}}
  - application: shop
  to:
  - service: api
  - {{vm: {{}}, ports: [{{protocol: ICMP}}, {{protocol: UDP}}]}}
  - {{cidr: 10.1.0.0/16, ports: [{{port: 8000, endPort: 8999}}]}}
  - {{fqdn: '*.Example.com', ports: [{{port: 443}}]}}
---
{HEADER}kind: AccessPolicy
metadata: {{name: q, tenant: acme}}
spec: {{action: Deny}}
"
    );
    let manifests = load_text(&text).unwrap();
    let counts: Vec<_> = manifests.resources().into_iter().collect();
    assert_eq!(
        counts,
        [("AccessPolicy", 2), ("Application", 1), ("Service", 1), ("Tenant", 1), ("VirtualMachine", 1)]
    );
    let (inventory, policies) = manifests.into_parts();
    assert_eq!(inventory.tenants()[0].default_action, Action::Deny);
    let (_, vm) = inventory.vms().next().unwrap();
    assert_eq!(vm.labels["tier"], "web");
    assert_eq!((vm.nics[0].socket_mode, vm.nics[0].mtu_bytes), (SocketMode::Listen, 1500));
    assert_eq!(policies.services[0].ports[0].protocol, Protocol::Tcp);
    let [p, q] = policies.policies.as_slice() else { panic!("two policies") };
    assert_eq!((p.action, p.mode, q.mode), (Action::Allow, Mode::Audit, Mode::Enforce));
    let process = |index: usize| match &p.from[index] {
        Origin::Workload(workload) => workload.process.clone().unwrap(),
        other => panic!("not a workload: {other:?}"),
    };
    assert_eq!(process(0).user.unwrap().as_str(), "www-data");
    assert_eq!(
        (process(1).container.unwrap().as_str(), process(1).attribution),
        ("ab12*", Some(Outcome::Known))
    );
    assert_eq!(process(2).attribution, Some(Outcome::Unattributed));
    assert!(matches!(&p.from[3], Origin::Application(name) if name.as_str() == "shop"));
    assert!(matches!(&p.to[0], Target::Service(name) if name.as_str() == "api"));
    assert!(matches!(&p.to[1], Target::Workload(_, ports) if ports.len() == 2 && ports[0].ports.is_none()));
    let Target::Network(network, ports) = &p.to[2] else { panic!("a network") };
    assert_eq!((network.to_string().as_str(), ports[0].ports), ("10.1.0.0/16", PortRange::new(8000, 8999)));
    let Target::Domain(domain, ports) = &p.to[3] else { panic!("a domain") };
    assert_eq!((domain.to_string().as_str(), ports.len()), ("*.example.com", 1));
    assert!(q.from.is_empty() && q.to.is_empty());
}

#[test]
fn process_selectors_that_nothing_can_match_are_refused() {
    check_after_base(
        r#"kind: AccessPolicy
metadata: {name: p, tenant: acme}
spec:
  action: Deny
  from:
  - process: {container: 0123456789ab}
  - process: {container: "docker-*"}
  - process: {user: "1000"}
  - process: {user: 1000}
  - process: {user: "a b"}
  - process: {attribution: nobody}
  - process: {attribution: unknown, exe: /usr/bin/x}
  - process: {attribution: unattributed, uid: 0}
"#,
        &[
            (6, 26, "spec.from[0].process.container", "64 hexadecimal digits"),
            (7, 26, "spec.from[1].process.container", "64 hexadecimal digits"),
            (8, 21, "spec.from[2].process.user", "a user's id"),
            (9, 21, "spec.from[3].process.user", "in quotes"),
            (10, 21, "spec.from[4].process.user", "neither"),
            (11, 28, "spec.from[5].process.attribution", "use known or unknown or unattributed"),
            (12, 14, "spec.from[6].process", "has a known `exe`"),
            (13, 14, "spec.from[7].process", "has a known `uid`"),
        ],
    );
}

#[test]
fn headers_are_checked() {
    check("kind: Tenant\nmetadata: {name: a}\n", &[(1, 1, "", "`apiVersion` is missing")]);
    check("apiVersion: v1\nkind: Tenant\nmetadata: {name: a}\n", &[(1, 13, "apiVersion", API_VERSION)]);
    check(&format!("{HEADER}kind: Tenent\nmetadata: {{name: a}}\n"), &[(2, 7, "kind", "use Tenant or")]);
    check(&format!("{HEADER}kind: Tenant\n"), &[(1, 1, "", "`metadata` is missing")]);
    check(
        &format!("{HEADER}kind: Tenant\nmetadata: {{name: A_b}}\n"),
        &[(3, 18, "metadata.name", "not a name")],
    );
    check(
        &format!("{HEADER}kind: Tenant\nmetadata: {{name: 12}}\n"),
        &[(3, 18, "metadata.name", "in quotes")],
    );
    check(
        &format!("{HEADER}kind: Tenant\nmetadata: {{name: a}}\nstatus: {{}}\n"),
        &[(4, 1, "status", "unknown field")],
    );
    check("- a\n- b\n", &[(1, 1, "", "expected a map, found a list")]);
    check("just text\n", &[(1, 1, "", "expected a map, found text")]);
}

#[test]
fn syntax_errors_carry_their_place_and_hide_nothing_before_them() {
    let text = format!("{HEADER}kind: Tenant\nmetadata: {{name: A}}\n---\nkind: [Tenant\nmetadata: }}\n");
    let diagnostics = load_text(&text).unwrap_err();
    assert_eq!((diagnostics[0].line, diagnostics[0].field.as_str()), (3, "metadata.name"));
    assert!(diagnostics.len() >= 2 && diagnostics[1].line >= 5, "{diagnostics:#?}");
    let cut = format!("{HEADER}kind: VirtualMachine\nmetadata: {{name: web, tenant: acme}}\nspec: [\n");
    let whole = BASE.trim_end_matches(HEADER).split_once("---\n").unwrap().1;
    let diagnostics = load_text(&format!("{whole}{cut}")).unwrap_err();
    assert_eq!(diagnostics.len(), 1, "a tenant may be in the unreadable part: {diagnostics:#?}");
    for text in ["a: &a [*a]\n", "a: 'x", "{", "? [complex]\n: key\n", "a: *missing\n", "a: !secret b\n"] {
        let diagnostics = load_text(text).expect_err(text);
        assert!(diagnostics[0].line >= 1, "{text:?} {diagnostics:?}");
    }
}

#[test]
fn repeated_keys_are_refused_each_at_its_place() {
    check(
        &format!("{HEADER}kind: Tenant\nmetadata:\n  name: a\n  name: b\n"),
        &[(5, 3, "metadata.name", "given twice")],
    );
}

#[test]
fn deep_nesting_and_alias_bombs_are_refused() {
    assert!(load_text(&"[".repeat(100_000)).is_err());
    let deep: String = (0..1000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(load_text(&deep).is_err());
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(load_text(&bomb).is_err());
}

#[test]
fn every_mistake_of_a_machine_is_found_in_one_load() {
    check(
        r#"apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: web, tenant: acme}
spec:
  nics:
  - name: Net0
    socket: ../web.sock
    socketMode: listen
    mac: 02:6d:76:00:01
    addresses: [10.0.0.0/24, 10.0.0.300/24, "::1/128", 10.0.0.255/24]
    mtu: 100
    speed: 10
  - 17
"#,
        &[
            (3, 31, "metadata.tenant", "tenant `acme` is not defined"),
            (6, 11, "spec.nics[0].name", "not a name"),
            (7, 13, "spec.nics[0].socket", "`..`"),
            (8, 17, "spec.nics[0].socketMode", "use Listen or Connect"),
            (9, 10, "spec.nics[0].mac", "Ethernet address"),
            (10, 17, "spec.nics[0].addresses[0]", "host's own address"),
            (10, 30, "spec.nics[0].addresses[1]", "prefix length"),
            (10, 45, "spec.nics[0].addresses[2]", "host's own address"),
            (10, 56, "spec.nics[0].addresses[3]", "host's own address"),
            (11, 10, "spec.nics[0].mtu", "use 1280 to 65535"),
            (12, 5, "spec.nics[0].speed", "known here: name, socket"),
            (13, 5, "spec.nics[1]", "expected a map"),
        ],
    );
}

#[test]
fn machines_of_a_tenant_cannot_share_what_is_their_own() {
    check_after_base(
        r#"kind: VirtualMachine
metadata: {name: api, tenant: acme}
spec:
  nics:
  - {name: net0, socket: web.sock, mac: "02:6d:76:00:01:0b", addresses: [10.0.0.11/8]}
  - {name: net0, socket: b.sock, mac: "02:6d:76:00:01:0c", addresses: []}
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: web, tenant: acme}
spec: {nics: []}
"#,
        &[
            (5, 26, "spec.nics[0].socket", "`acme/web/net0` at m.yaml:10:26"),
            (5, 41, "spec.nics[0].mac", "already held"),
            (5, 74, "spec.nics[0].addresses[0]", "address 10.0.0.11 of tenant `acme`"),
            (6, 12, "spec.nics[1].name", "network card `net0`"),
            (6, 71, "spec.nics[1].addresses", "at least one address"),
            (10, 18, "metadata.name", "already defined at m.yaml:7:18"),
        ],
    );
}

#[test]
fn policies_refer_only_to_what_exists_in_their_tenant() {
    check_after_base(
        r"kind: Service
metadata: {name: api, tenant: acme}
spec: {selector: {vm: {}}, ports: [{port: 80}]}
---
apiVersion: meshvisor.dev/v1alpha1
kind: Tenant
metadata: {name: globex}
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p, tenant: acme}
spec:
  action: Allow
  from: [{application: shop}]
  to: [{service: apo}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p, tenant: globex}
spec: {action: Allow, to: [{service: api}]}
",
        &[
            (14, 24, "spec.from[0].application", "no application is defined there at all"),
            (15, 18, "spec.to[0].service", "defined there: api"),
            (20, 38, "spec.to[0].service", "service `globex/api` is not defined"),
        ],
    );
}

#[test]
fn other_tenants_are_named_for_calls_to_infrastructure_services_alone() {
    let service = |tenant: &str, name: &str, level: &str| {
        format!(
            "{HEADER}kind: Service
metadata: {{name: {name}, tenant: {tenant}}}
spec: {{level: {level}, selector: {{vm: {{}}}}, ports: [{{port: 80}}]}}
---
"
        )
    };
    let others = [
        format!("{HEADER}kind: Tenant\nmetadata: {{name: globex}}\n---\n"),
        service("acme", "dns", "infrastructure"),
        service("globex", "time", "infrastructure"),
        service("acme", "own", "tenant"),
    ];
    let others = others.concat();
    let before = u32::try_from(others.lines().count()).unwrap();
    let policy = |from: &str, to: &str| {
        let text = others.strip_prefix(HEADER).unwrap();
        format!(
            "{BASE}{text}{HEADER}kind: AccessPolicy
metadata: {{name: p, tenant: acme}}
spec:
  action: Allow
  from: [{from}]
  to: [{to}]
"
        )
    };
    let dns = "{service: dns}";
    let read =
        |from: &str, to: &str| load_text(&policy(from, to)).unwrap().into_parts().1.policies[0].clone();
    let owners = read("{tenant: globex}, {tenant: '*'}, {vm: {}}", dns);
    assert!(
        matches!(&owners.from[..2], [Origin::Tenant(Some(globex)), Origin::Tenant(None)] if globex.as_str() == "globex")
    );
    let callers = read("{process: {exe: /usr/sbin/ntpd}}", "{service: time, tenant: globex}");
    assert!(
        matches!(&callers.to[0], Target::ServiceOf { tenant, name } if (tenant.as_str(), name.as_str()) == ("globex", "time"))
    );

    for (from, to, (line, column, field, piece)) in [
        ("{tenant: initech}", dns, (5, 19, "spec.from[0].tenant", "tenant `initech` is not defined")),
        ("{tenant: acme}", dns, (5, 19, "spec.from[0].tenant", "the policy's own tenant")),
        ("{tenant: globex, vm: {}}", dns, (5, 10, "spec.from[0]", "exclude each other")),
        ("{tenant: globex}", "{vm: {}}", (4, 3, "spec", "one's own services")),
        ("{tenant: globex}", "{service: time, tenant: globex}", (4, 3, "spec", "one's own services")),
        ("{tenant: globex}", "{service: own}", (4, 3, "spec", "does not exist for other tenants")),
        ("{tenant: globex}", "", (4, 3, "spec", "takes a `to`")),
        ("{vm: {}}", "{tenant: globex}", (6, 8, "spec.to[0]", "whose the `service` is")),
        ("{vm: {}}", "{service: dns, tenant: '*'}", (6, 8, "spec.to[0]", "name both")),
        ("{vm: {}}", "{service: tame, tenant: globex}", (6, 18, "spec.to[0].service", "defined there: time")),
    ] {
        let expected = (line + 12 + before, column, field, piece);
        check(&policy(from, to), &[expected]);
    }
}

#[test]
fn domains_are_named_where_that_can_hold() {
    check_after_base(
        r#"kind: AccessPolicy
metadata: {name: p, tenant: acme}
spec:
  action: Deny
  to:
  - {fqdn: api.example.com}
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: q, tenant: acme}
spec:
  action: Allow
  to:
  - {fqdn: localhost}
  - {fqdn: a.example.com, cidr: 10.0.0.0/8}
  - {fqdn: a.example.com, vm: {}}
---
apiVersion: meshvisor.dev/v1alpha1
kind: FlowPolicy
metadata: {name: f, tenant: acme}
spec:
  log: true
  to:
  - {fqdn: api.example.com}
"#,
        &[
            (4, 3, "spec", "`fqdn` is for action Allow only"),
            (14, 12, "spec.to[0].fqdn", "`localhost` is not a domain"),
            (15, 5, "spec.to[1]", "cidr"),
            (16, 5, "spec.to[2]", "fqdn"),
            (22, 3, "spec", "`fqdn` is for access policies only"),
        ],
    );
}

#[test]
fn selectors_that_say_nothing_or_the_impossible_are_refused() {
    check_after_base(
        r#"kind: AccessPolicy
metadata: {name: default, tenant: acme}
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p, tenant: acme}
spec:
  action: allow
  mode: Audit
  from:
  - {}
  - vm: {label: {}}
  - process: {}
  - process: {exe: usr/bin/x}
  - process: {exe: "/usr/\x01bin"}
  - process: {unit: shop}
  - process: {name: longer-than-15-bytes}
  - process: {uid: -1}
  - {application: a, vm: {}}
  - vm: {labels: {"a b": c, d: "e f", g: 1}}
  to:
  - {}
  - {service: a, ports: [{port: 1}]}
  - {vm: {}, ports: []}
  - {vm: {}, ports: [{port: 0}, {port: 65536}, {}, {port: 7, protocol: ICMP}, {port: 1, protocol: SCTP}]}
"#,
        &[
            (0, 1, "", "`spec` is missing"),
            (2, 18, "metadata.name", "cannot be named `default`"),
            (8, 11, "spec.action", "use Allow or Deny"),
            (9, 9, "spec.mode", "use enforce or audit"),
            (11, 5, "spec.from[0]", "leave `from` out"),
            (12, 10, "spec.from[1].vm.label", "known here: name, labels"),
            (13, 14, "spec.from[2].process", "selector is empty"),
            (14, 20, "spec.from[3].process.exe", "start it with / or *"),
            (15, 20, "spec.from[4].process.exe", "control characters"),
            (16, 21, "spec.from[5].process.unit", ".service, .scope or *"),
            (17, 21, "spec.from[6].process.name", "select by `exe`"),
            (18, 20, "spec.from[7].process.uid", "use 0 to 4294967295"),
            (19, 5, "spec.from[8]", "`application` and `vm` exclude"),
            (19, 19, "spec.from[8].application", "no application is defined"),
            (20, 26, "spec.from[9].vm.labels.a b", "not a label key"),
            (20, 32, "spec.from[9].vm.labels.d", "not a label value"),
            (20, 42, "spec.from[9].vm.labels.g", "in quotes"),
            (22, 5, "spec.to[0]", "leave `to` out"),
            (23, 5, "spec.to[1]", "`service` and `ports` exclude"),
            (23, 15, "spec.to[1].service", "no service is defined"),
            (24, 21, "spec.to[2].ports", "leave `ports` out"),
            (25, 29, "spec.to[3].ports[0].port", "use 1 to 65535"),
            (25, 40, "spec.to[3].ports[1].port", "use 1 to 65535"),
            (25, 48, "spec.to[3].ports[2]", "`port` is missing"),
            (25, 52, "spec.to[3].ports[3]", "icmp has no ports"),
            (25, 99, "spec.to[3].ports[4].protocol", "use TCP or UDP"),
        ],
    );
}

#[test]
fn networks_and_ranges_mean_what_they_say() {
    check_after_base(
        r"kind: AccessPolicy
metadata: {name: p, tenant: acme}
spec:
  action: Allow
  from: [{cidr: 10.1.0.1/16}, {cidr: 10.0.0.1}, {cidr: '::/0', vm: {}}]
  to:
  - {cidr: 10.0.0.0/8, service: api}
  - {cidr: 10.0.0.0/8, ports: [{port: 9, endPort: 8}, {endPort: 8}, {protocol: ICMP, endPort: 8}]}
",
        &[
            (5, 17, "spec.from[0].cidr", "write 10.1.0.0/16"),
            (5, 38, "spec.from[1].cidr", "not an address with a prefix length"),
            (5, 49, "spec.from[2]", "`cidr` and `vm` exclude"),
            (7, 5, "spec.to[0]", "`service` and `cidr` exclude"),
            (7, 33, "spec.to[0].service", "no service is defined"),
            (8, 32, "spec.to[1].ports[0]", "give the lower port first"),
            (8, 55, "spec.to[1].ports[1]", "`port` is missing"),
            (8, 69, "spec.to[1].ports[2]", "icmp has no ports"),
        ],
    );
}

#[test]
fn services_need_a_port_each() {
    check_after_base(
        r"kind: Service
metadata: {name: api, tenant: acme}
spec: {selector: {}, ports: [{protocol: TCP}, {port: eighty}], port: 80}
",
        &[
            (3, 18, "spec.selector", "selector is empty"),
            (3, 30, "spec.ports[0]", "`port` is missing"),
            (3, 54, "spec.ports[1].port", "expected a whole number, found text"),
            (3, 64, "spec.port", "unknown field"),
        ],
    );
    check_after_base(
        "kind: Service\nmetadata: {name: s, tenant: acme}\n",
        &[(0, 1, "", "`spec` is missing")],
    );
}

#[test]
fn hostile_text_is_not_repeated_raw() {
    let long = "x".repeat(5000);
    for text in [
        format!("{HEADER}kind: \"\\e[2J{long}\"\n"),
        format!("{HEADER}kind: Tenant\n\"\\e[2J{long}\": 1\nmetadata: {{name: a}}\n"),
        format!("{HEADER}kind: Tenant\nmetadata: {{name: \"\\e[2J{long}\"}}\n"),
    ] {
        for diagnostic in load_text(&text).unwrap_err() {
            let said = diagnostic.to_string() + &diagnostic.help;
            assert!(said.len() < 500 && !said.chars().any(char::is_control), "{said:?}");
        }
    }
}

#[test]
fn numbers_of_resources_and_diagnostics_are_bounded() {
    let tenants = |count: usize, name: &str| -> String {
        (0..count)
            .map(|index| format!("---\n{HEADER}kind: Tenant\nmetadata: {{name: {name}{index}}}\n"))
            .collect()
    };
    let diagnostics = load_text(&tenants(RESOURCES_MAX + 1, "t")).unwrap_err();
    assert!(diagnostics[0].reason.contains("more resources"), "{diagnostics:?}");
    assert_eq!(load_text(&tenants(2000, "T")).unwrap_err().len(), 1000);
}

#[test]
fn diagnostics_name_the_file_of_each_source() {
    let sources = [source("a.yaml", BASE.trim_end_matches(HEADER)), source("b.yaml", BASE)];
    let diagnostics = load_sources(&sources).unwrap_err();
    assert!(diagnostics.iter().all(|d| d.file.to_str() == Some("b.yaml")), "{diagnostics:#?}");
    assert!(diagnostics[0].reason.contains("a.yaml:3:18"), "{diagnostics:#?}");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 500, failure_persistence: None, ..Default::default() })]

    /// Damaged manifests load or are refused with reasons; they never crash or go unexplained.
    #[test]
    fn damaged_manifests_are_loaded_or_explained(
        cuts in proptest::collection::vec((0.0..1.0_f64, 0..12_usize, "[ -~\\n\\t\u{0}\u{e4}]{0,6}"), 1..6),
    ) {
        let mut text = format!("{BASE}kind: AccessPolicy\nmetadata: {{name: p, tenant: acme}}\nspec:\n  action: Allow\n  from:\n  - vm: {{name: web}}\n    process: {{exe: /usr/bin/x, uid: 0}}\n");
        for (place, length, insert) in cuts {
            let mut characters: Vec<char> = text.chars().collect();
            let start = (place * characters.len() as f64) as usize;
            let end = (start + length).min(characters.len());
            characters.splice(start..end, insert.chars());
            text = characters.into_iter().collect();
        }
        if let Err(diagnostics) = load_text(&text) {
            proptest::prop_assert!(!diagnostics.is_empty());
            proptest::prop_assert!(diagnostics.iter().all(|d| !d.reason.is_empty() && !d.reason.contains('\n')));
        }
    }
}

mod files {
    use std::fs;

    use super::*;

    /// A directory of the test's own, removed at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("meshvisor-api-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn refusal(path: PathBuf) -> String {
        let diagnostics = load(&[path]).unwrap_err();
        assert_eq!(diagnostics.len(), 1, "{diagnostics:?}");
        diagnostics[0].reason.clone()
    }

    #[test]
    fn directory_is_read_in_name_order_without_hidden_and_other_files() {
        let directory = Directory::new("order");
        fs::write(directory.0.join("b.yml"), format!("{HEADER}kind: Tenant\nmetadata: {{name: b}}\n"))
            .unwrap();
        fs::write(directory.0.join("a.yaml"), format!("{HEADER}kind: Tenant\nmetadata: {{name: a}}\n"))
            .unwrap();
        fs::write(directory.0.join(".hidden.yaml"), "nonsense").unwrap();
        fs::write(directory.0.join("notes.txt"), "nonsense").unwrap();
        let (inventory, _) = load(std::slice::from_ref(&directory.0)).unwrap().into_parts();
        let names: Vec<_> = inventory.tenants().iter().map(|tenant| tenant.name.to_string()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_reason() {
        let directory = Directory::new("unreadable");
        assert!(refusal(directory.0.clone()).contains("no *.yaml"));
        assert!(refusal(directory.0.join("absent.yaml")).contains("cannot be read"));

        let file = directory.0.join("large.yaml");
        fs::write(&file, "#".repeat(FILE_BYTES_MAX + 1)).unwrap();
        assert!(refusal(file.clone()).contains("larger than 1 MiB"));
        fs::write(&file, "#".repeat(FILE_BYTES_MAX)).unwrap();
        assert!(load(&[file]).is_ok());

        let file = directory.0.join("latin1.yaml");
        fs::write(&file, b"a: \xe4").unwrap();
        assert!(refusal(file).contains("not UTF-8"));

        fs::create_dir(directory.0.join("folder.yaml")).unwrap();
        let diagnostics = load(std::slice::from_ref(&directory.0)).unwrap_err();
        assert!(diagnostics.iter().any(|d| d.reason.contains("not a regular file")), "{diagnostics:?}");
    }
}

#[test]
fn services_load_with_their_level_and_balancing() {
    let text = format!(
        "{BASE}kind: Application
metadata: {{name: shop, tenant: acme}}
spec: {{selector: {{vm: {{}}}}}}
---
{HEADER}kind: Service
metadata: {{name: db-v2, tenant: acme}}
spec:
  level: instance
  application: shop
  visibleTo: {{vm: {{labels: {{tier: web}}}}, process: {{exe: /usr/bin/canary}}}}
  hostname: db
  version: v2.1
  selector: {{vm: {{}}}}
  ports: [{{port: 6379}}]
  addresses: [100.97.0.5, 'fd00::5']
  health: {{tcp: {{}}, intervalMs: 500, unhealthy: 2}}
  balancing:
    method: LeastOutstanding
    affinity: Client
    locality: Local
    slowStartMs: 5000
    ejection: {{failures: 5, timeMs: 1000}}
    shares: [{{vm: {{labels: {{track: canary}}}}, weight: 5}}, {{vm: {{}}, weight: 95}}]
"
    );
    let (_, policies) = load_text(&text).unwrap().into_parts();
    let [service] = policies.services.as_slice() else { panic!("one service") };
    assert!(matches!(&service.audience, Audience::Subset(app, _) if app.as_str() == "shop"));
    assert_eq!((service.hostname.as_str(), service.version.as_deref()), ("db", Some("v2.1")));
    assert_eq!(service.addresses.len(), 2);
    let half = Duration::from_millis(500);
    let health = HealthCheck { interval: half, timeout: half, unhealthy: 2, healthy: 2 };
    assert_eq!(service.health, Some(health), "an attempt is over before the next");
    let balancing = &service.balancing;
    assert_eq!(balancing.method, Method::LeastOutstanding);
    assert!(balancing.affinity && balancing.local_first);
    assert_eq!((balancing.slow_start.as_secs(), balancing.ejection_failures), (5, 5));
    assert_eq!(balancing.shares.iter().map(|share| share.weight).collect::<Vec<_>>(), [5, 95]);
}

#[test]
fn services_name_what_their_level_needs_and_nothing_else() {
    let service = |spec: &str| {
        format!(
            "kind: Service\nmetadata: {{name: s, tenant: acme}}\nspec: {{selector: {{vm: {{}}}}, ports: [{{port: 80}}], {spec}}}\n"
        )
    };
    let at_spec = |spec: &str| check_after_base(&service(spec), &[(3, 7, "spec", "do not fit level")]);
    at_spec("level: application");
    at_spec("level: instance");
    at_spec("level: infrastructure, visibleTo: {vm: {}}");
    at_spec("visibleTo: {vm: {}}");
    for (spec, field, piece) in [
        ("level: host", "spec.level", "use infrastructure or"),
        ("level: application, application: x", "spec.application", "no application is defined"),
        ("addresses: [127.0.0.1]", "spec.addresses[0]", "cannot be a virtual address"),
        ("addresses: [10.0.0.1, 10.0.0.2]", "spec.addresses", "two addresses of one family"),
        ("version: 'a b'", "spec.version", "not a version"),
        ("balancing: {method: Random}", "spec.balancing.method", "use Maglev or"),
        ("balancing: {shares: [{vm: {}, weight: 0}]}", "spec.balancing.shares", "all shares are zero"),
        ("health: {http: {path: /}}", "spec.health.http", "layer 7, which this daemon has no stage for"),
        ("health: {intervalMs: 200}", "spec.health", "`tcp` is missing"),
        ("health: {tcp: {}, intervalMs: 99}", "spec.health.intervalMs", "100 to 3600000"),
        ("health: {tcp: {}, unhealthy: 0}", "spec.health.unhealthy", "1 to 100"),
        ("health: {tcp: {}, intervalMs: 200, timeoutMs: 300}", "spec.health", "longer than `intervalMs`"),
        ("health: {tcp: {port: 1}}", "spec.health.tcp.port", "unknown field"),
        ("balancing: {slowStart: 3}", "spec.balancing.slowStart", "unknown field"),
    ] {
        let text = format!("{BASE}{}", service(spec));
        let found = load_text(&text).expect_err(spec);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].line, found[0].field.as_str()), (15, field), "{spec}");
        let said = format!("{} ({})", found[0].reason, found[0].help);
        assert!(said.contains(piece), "{said}");
    }
}
