// SPDX-License-Identifier: Apache-2.0
//! What policies mean, what is refused, what is warned of, and how it is explained.

mod common;

use std::collections::BTreeMap;

use common::query;
use model::{
    AccessPolicy, Action, Application, Attribution, Audience, Confidence, Inventory, Judge, Mode, Needs,
    Origin, Outcome, PolicySet, PortMatch, PortRange, Process, ProcessSelector, Protocol, Service, Target,
    Tenant, UnknownReason, Vm, VmSelector, Workload,
};
use policy::{CompileError, CompiledPolicy, Warning, compile};

fn inventory(default_action: Action) -> Inventory {
    let vm = |id: &str| Vm { id: id.parse().unwrap(), labels: BTreeMap::new(), nics: vec![] };
    let tenants = vec![Tenant { name: "acme".parse().unwrap(), default_action }];
    Inventory::new(tenants, vec![vm("acme/web"), vm("acme/api")]).unwrap()
}

fn vm(name: &str) -> VmSelector {
    VmSelector { name: Some(name.parse().unwrap()), labels: BTreeMap::new() }
}

fn exe(glob: &str) -> Option<ProcessSelector> {
    Some(ProcessSelector { exe: Some(glob.parse().unwrap()), ..ProcessSelector::default() })
}

fn tcp(port: u16) -> PortMatch {
    PortMatch { ports: Some(port.into()), protocol: Protocol::Tcp }
}

fn from(name: &str, process: Option<ProcessSelector>) -> Origin {
    Origin::Workload(Workload { vm: vm(name), process })
}

fn to(name: &str, process: Option<ProcessSelector>, ports: &[PortMatch]) -> Target {
    Target::Workload(Workload { vm: vm(name), process }, ports.to_vec())
}

fn rule(name: &str, action: Action, from: Vec<Origin>, to: Vec<Target>) -> AccessPolicy {
    let (tenant, name) = ("acme".parse().unwrap(), name.parse().unwrap());
    AccessPolicy { tenant, name, action, mode: Mode::Enforce, from, to }
}

fn compiled(default_action: Action, policies: Vec<AccessPolicy>) -> CompiledPolicy {
    compile(&inventory(default_action), &PolicySet { policies, ..PolicySet::default() }).unwrap()
}

fn process(exe: &str) -> Attribution {
    Attribution {
        process: Some(Process {
            name: "p".into(),
            exe: Some(exe.into()),
            uid: Some(5),
            ..Process::default()
        }),
        socket_uid: None,
        socket_user: None,
        socket_cgroup: None,
        socket_netns: None,
        inner: None,
        confidence: Confidence::Table,
        unknown: None,
    }
}

#[test]
fn deny_wins_whatever_the_order() {
    let allow = rule("allow", Action::Allow, vec![], vec![]);
    let deny = rule("deny", Action::Deny, vec![], vec![to("api", None, &[tcp(80)])]);
    for policies in [vec![allow.clone(), deny.clone()], vec![deny, allow]] {
        let policy = compiled(Action::Deny, policies);
        let denied = policy.judge(&query(80, None, None));
        assert_eq!((denied.action, denied.decided_by.to_string().as_str()), (Action::Deny, "acme/deny"));
        assert_eq!(denied.matched.len(), 2);
        assert_eq!(policy.judge(&query(81, None, None)).action, Action::Allow);
    }
}

#[test]
fn deny_that_names_a_process_does_not_match_an_unknown_one() {
    let deny = rule("no-curl", Action::Deny, vec![from("web", exe("*/curl"))], vec![]);
    let policy = compiled(Action::Allow, vec![deny]);
    let (curl, unknown) = (process("/usr/bin/curl"), Attribution::unknown(UnknownReason::NoSocket));
    assert_eq!(policy.judge(&query(80, Some(&curl), None)).action, Action::Deny);
    assert_eq!(policy.judge(&query(80, Some(&unknown), None)).action, Action::Allow);
    assert_eq!(policy.warnings(), [Warning::UnknownPasses { rule: model::RuleId("acme/no-curl".into()) }]);
}

#[test]
fn socket_alone_matches_by_user_and_unit_but_not_by_name() {
    let socket = Attribution {
        process: None,
        socket_uid: Some(33),
        socket_user: Some("shop".into()),
        socket_cgroup: Some("/system.slice/shop.service".into()),
        socket_netns: None,
        inner: None,
        confidence: Confidence::Socket,
        unknown: Some(UnknownReason::NoOwner),
    };
    let matches = |selector: ProcessSelector| {
        let allow = rule("p", Action::Allow, vec![from("web", Some(selector))], vec![]);
        compiled(Action::Deny, vec![allow]).judge(&query(80, Some(&socket), None)).action == Action::Allow
    };
    let any = ProcessSelector::default;
    assert!(matches(ProcessSelector { uid: Some(33), ..any() }));
    assert!(matches(ProcessSelector { unit: Some("shop.*".parse().unwrap()), uid: Some(33), ..any() }));
    assert!(!matches(ProcessSelector { uid: Some(0), ..any() }));
    assert!(matches(ProcessSelector { user: Some("shop".parse().unwrap()), ..any() }));
    assert!(!matches(ProcessSelector { user: Some("root".parse().unwrap()), ..any() }));
    assert!(matches(ProcessSelector { attribution: Some(Outcome::Unknown), uid: Some(33), ..any() }));
    assert!(!matches(ProcessSelector { attribution: Some(Outcome::Unknown), uid: Some(0), ..any() }));
    assert!(!matches(ProcessSelector { name: Some("shop".into()), uid: Some(33), ..any() }));
    assert!(!matches(ProcessSelector { exe: Some("*".parse().unwrap()), ..any() }));
    assert!(!matches(any()));
}

#[test]
fn container_and_user_are_those_of_the_process() {
    let id = "0123456789abcdef".repeat(4);
    let mut inside = process("/usr/bin/shop");
    // The socket is another user's and of another group: whose it was does not count.
    inside.socket_user = Some("root".into());
    inside.socket_cgroup = Some("/system.slice/other.service".into());
    let known = inside.process.as_mut().unwrap();
    known.cgroup = Some(format!("/system.slice/docker-{id}.scope"));
    known.user = Some("shop".into());
    let any = ProcessSelector::default;
    let container = |glob: &str| ProcessSelector { container: Some(glob.parse().unwrap()), ..any() };
    let user = |name: &str| ProcessSelector { user: Some(name.parse().unwrap()), ..any() };
    for (selector, matches) in [
        (container(&id), true),
        (container("0123456789ab*"), true),
        (container("0123456789ac*"), false),
        (container(&id[1..]), false),
        (user("shop"), true),
        (user("root"), false),
        (user("sho"), false),
        (ProcessSelector { user: Some("shop".parse().unwrap()), ..container("f*") }, false),
    ] {
        let shown = format!("{selector:?}");
        let allow = rule("p", Action::Allow, vec![from("web", Some(selector))], vec![]);
        let policy = compiled(Action::Deny, vec![allow]);
        let action = policy.judge(&query(80, Some(&inside), None)).action;
        assert_eq!(action == Action::Allow, matches, "{shown}");
    }
    let policy =
        compiled(Action::Deny, vec![rule("p", Action::Allow, vec![from("web", Some(user("a")))], vec![])]);
    let trace = &policy.explain(&query(80, Some(&inside), None))[0];
    let facts =
        format!("name p, exe /usr/bin/shop, unit docker-{id}.scope, container {id}, user shop, uid 5");
    assert_eq!(trace.why, format!("source process is {facts}, not user a"));
}

#[test]
fn what_is_not_known_can_be_selected_by_its_kind() {
    let known = process("/a");
    let late = Attribution::unknown(UnknownReason::TimedOut);
    let hidden = Attribution::unknown(UnknownReason::NoSocket);
    let answers = [Some(&known), Some(&late), Some(&hidden), None];
    for (wanted, denied) in [
        (Outcome::Known, [true, false, false, false]),
        (Outcome::Unknown, [false, true, false, true]),
        (Outcome::Unattributed, [false, false, true, false]),
    ] {
        let selector = ProcessSelector { attribution: Some(wanted), ..ProcessSelector::default() };
        let deny = rule("no", Action::Deny, vec![from("web", Some(selector))], vec![]);
        let policy = compiled(Action::Allow, vec![deny]);
        assert!(policy.needs(&query(80, None, None)).source, "{wanted}");
        let found = answers.map(|answer| policy.judge(&query(80, answer, None)).action == Action::Deny);
        assert_eq!(found, denied, "{wanted}");
        let passes = !policy.warnings().is_empty();
        assert_eq!(passes, wanted == Outcome::Known, "{wanted}: what is not known passes");
    }
    let selector = ProcessSelector { attribution: Some(Outcome::Unknown), ..ProcessSelector::default() };
    let policy =
        compiled(Action::Deny, vec![rule("p", Action::Allow, vec![from("web", Some(selector))], vec![])]);
    let trace = &policy.explain(&query(80, Some(&hidden), None))[0];
    assert_eq!(trace.why, "source process is unattributed (no-socket), not attribution unknown");
}

#[test]
fn needs_only_what_could_change_the_answer() {
    let caller = || from("web", exe("/a"));
    let needs = |from: Vec<Origin>, to: Vec<Target>, port: u16| {
        compiled(Action::Deny, vec![rule("p", Action::Allow, from, to)]).needs(&query(port, None, None))
    };
    let both = Needs { source: true, destination: true };
    let source = Needs { source: true, destination: false };
    assert_eq!(needs(vec![caller()], vec![to("api", None, &[tcp(80)])], 80), source);
    assert_eq!(needs(vec![caller()], vec![to("api", None, &[tcp(80)])], 81), Needs::default());
    assert_eq!(needs(vec![caller()], vec![to("web", None, &[])], 80), Needs::default());
    assert_eq!(needs(vec![from("api", exe("/a"))], vec![], 80), Needs::default());
    assert_eq!(needs(vec![caller()], vec![to("api", exe("/b"), &[])], 80), both);
    // Whoever acts in `web` is meant anyway.
    assert_eq!(needs(vec![caller(), from("web", None)], vec![], 80), Needs::default());
}

#[test]
fn service_with_a_process_needs_to_know_who_listens() {
    let selector = Workload { vm: vm("api"), process: exe("/usr/bin/orders") };
    let (tenant, name) = ("acme".parse().unwrap(), "orders".parse().unwrap());
    let service = Service::new(tenant, name, selector, vec![tcp(80)]);
    let policies = vec![rule("p", Action::Allow, vec![], vec![Target::Service(service.name.clone())])];
    let set = PolicySet { services: vec![service], policies, ..PolicySet::default() };
    let policy = compile(&inventory(Action::Deny), &set).unwrap();
    assert_eq!(policy.needs(&query(80, None, None)), Needs { source: false, destination: true });
    let (right, wrong) = (process("/usr/bin/orders"), process("/usr/bin/nc"));
    assert_eq!(policy.judge(&query(80, None, Some(&right))).action, Action::Allow);
    assert_eq!(policy.judge(&query(80, None, Some(&wrong))).action, Action::Deny);
    assert_eq!(policy.judge(&query(80, None, None)).action, Action::Deny);
}

#[test]
fn explanation_names_the_part_that_did_not_match() {
    let target = vec![to("api", exe("/usr/bin/orders"), &[tcp(80), tcp(443)])];
    let policy = compiled(Action::Deny, vec![rule("p", Action::Allow, vec![from("web", exe("/a"))], target)]);
    let (caller, listener, other) = (process("/a"), process("/usr/bin/orders"), process("/b"));
    let unknown = Attribution::unknown(UnknownReason::TimedOut);
    for (query, matched, why) in [
        (
            query(80, Some(&caller), Some(&listener)),
            true,
            "source VM acme/web is selected and its process has exe /a; \
             destination VM acme/api is selected and its process has exe /usr/bin/orders on tcp/80",
        ),
        (query(22, Some(&caller), Some(&listener)), false, "port tcp/22 is not among tcp/80, tcp/443"),
        (
            query(80, Some(&other), Some(&listener)),
            false,
            "source process is name p, exe /b, uid 5, not exe /a",
        ),
        (
            query(80, Some(&unknown), None),
            false,
            "source process is unknown (timed-out), not exe /a; \
             destination process is unknown, not exe /usr/bin/orders",
        ),
    ] {
        let trace = &policy.explain(&query)[0];
        assert_eq!((trace.matched, trace.why.as_str()), (matched, why));
    }
}

#[test]
fn what_is_outside_the_mesh_is_selected_by_its_network_alone() {
    let network: model::Cidr = "198.51.100.0/24".parse().unwrap();
    let https = vec![tcp(443)];
    let policies = vec![
        rule("any", Action::Allow, vec![], vec![]),
        rule("any-vm", Action::Allow, vec![from("web", None)], vec![to("api", None, &[])]),
        rule("out", Action::Allow, vec![from("web", exe("/a"))], vec![Target::Network(network, https)]),
        rule("in", Action::Allow, vec![Origin::Network(network)], vec![to("api", None, &[])]),
    ];
    let policy = compiled(Action::Deny, policies);
    let caller = process("/a");
    let mut out = query(443, Some(&caller), None);
    out.destination.vm = None;
    out.tuple.destination = "198.51.100.7".parse().unwrap();
    assert_eq!(policy.judge(&out).decided_by.to_string(), "acme/out");
    assert_eq!(policy.needs(&out), Needs { source: true, destination: false });
    let why: Vec<String> = policy.explain(&out).into_iter().map(|trace| trace.why).collect();
    assert_eq!(
        why,
        [
            "destination 198.51.100.7 is not selected",
            "destination 198.51.100.7 is not selected",
            "source VM acme/web is selected and its process has exe /a; \
             destination 198.51.100.7 is in 198.51.100.0/24 on tcp/443",
            "source VM acme/web is not selected; destination 198.51.100.7 is not selected",
        ]
    );
    out.tuple.destination = "203.0.113.7".parse().unwrap();
    assert_eq!(policy.judge(&out).decided_by.to_string(), "acme/default");

    let mut inward = query(80, None, None);
    inward.source.vm = None;
    inward.tuple.source = "198.51.100.7".parse().unwrap();
    assert_eq!(policy.judge(&inward).decided_by.to_string(), "acme/in");
}

#[test]
fn rules_without_effect_are_warned_of() {
    let deny_all = rule("deny", Action::Deny, vec![from("web", None)], vec![]);
    let shadowed =
        rule("shadowed", Action::Allow, vec![from("web", exe("/a"))], vec![to("api", None, &[tcp(80)])]);
    let wider = rule("wider", Action::Allow, vec![], vec![to("api", None, &[tcp(80)])]);
    let nobody = rule("nobody", Action::Allow, vec![from("gone", None)], vec![to("gone", None, &[])]);
    let network =
        |text: &str, ports: &[PortMatch]| vec![Target::Network(text.parse().unwrap(), ports.to_vec())];
    let ports = |first, last| PortMatch { ports: PortRange::new(first, last), protocol: Protocol::Tcp };
    let no_net = rule("no-net", Action::Deny, vec![], network("10.0.0.0/8", &[ports(1, 1023)]));
    let net = rule("net", Action::Allow, vec![from("api", None)], network("10.1.0.0/16", &[ports(80, 88)]));
    let said: Vec<String> = compiled(Action::Deny, vec![deny_all, shadowed, wider, nobody, no_net, net])
        .warnings()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        said,
        [
            "policy `acme/nobody`: `from[0]` selects no virtual machine",
            "policy `acme/nobody`: `to[0]` selects no virtual machine",
            "policy `acme/shadowed` has no effect: `acme/deny` denies all that it allows",
            "policy `acme/net` has no effect: `acme/no-net` denies all that it allows",
        ]
    );
}

#[test]
fn audit_rules_shadow_nothing_and_decide_nothing() {
    let mut deny = rule("deny", Action::Deny, vec![], vec![]);
    deny.mode = Mode::Audit;
    let policy = compiled(Action::Deny, vec![deny, rule("allow", Action::Allow, vec![], vec![])]);
    assert!(policy.warnings().is_empty());
    let judgement = policy.judge(&query(80, None, None));
    assert_eq!((judgement.action, judgement.matched.len(), judgement.audited.len()), (Action::Allow, 1, 1));
}

#[test]
fn names_that_lead_nowhere_are_refused() {
    let tenant = || "acme".parse().unwrap();
    let gone: model::Name = "gone".parse().unwrap();
    let refuse = |set: PolicySet| compile(&inventory(Action::Deny), &set).unwrap_err();
    let only = |policy: AccessPolicy| PolicySet { policies: vec![policy], ..PolicySet::default() };
    let p = |from, to| rule("p", Action::Allow, from, to);

    let error = refuse(only(p(vec![Origin::Application(gone.clone())], vec![])));
    assert!(matches!(error, CompileError::NoApplication { .. }));
    let error = refuse(only(p(vec![], vec![Target::Application(gone.clone(), vec![])])));
    assert!(matches!(error, CompileError::NoApplication { .. }));
    let error = refuse(only(p(vec![], vec![Target::Service(gone.clone())])));
    assert_eq!(error.to_string(), "policy `acme/p` names service `gone`, which is not defined");
    let error = refuse(only(AccessPolicy { tenant: gone.clone(), ..p(vec![], vec![]) }));
    assert!(matches!(error, CompileError::NoTenant { .. }));

    let service = |audience| {
        let ports = vec![PortMatch { ports: Some(80.into()), protocol: Protocol::Tcp }];
        let own = Service::new(tenant(), "own".parse().unwrap(), Workload::default(), ports);
        Service { audience, ..own }
    };
    let to_own = vec![Target::Service("own".parse().unwrap())];
    let crossing = |policy, audience| PolicySet { services: vec![service(audience)], ..only(policy) };
    let others = || vec![Origin::Tenant(None)];
    assert!(
        compile(&inventory(Action::Deny), &crossing(p(others(), to_own.clone()), Audience::Everyone)).is_ok()
    );
    for wrong in [
        crossing(p(others(), to_own.clone()), Audience::Tenant),
        crossing(p(others(), vec![]), Audience::Everyone),
        crossing(p(others(), vec![Target::Workload(Workload::default(), vec![])]), Audience::Everyone),
        crossing(
            p(vec![], vec![Target::ServiceOf { tenant: tenant(), name: "own".parse().unwrap() }]),
            Audience::Everyone,
        ),
    ] {
        assert!(matches!(refuse(wrong), CompileError::BetweenTenants(_)));
    }

    let application = Application { tenant: tenant(), name: gone.clone(), selector: Workload::default() };
    let twice = PolicySet { applications: vec![application.clone(), application], ..PolicySet::default() };
    assert_eq!(refuse(twice).to_string(), "application `acme/gone` is defined twice");
    let twice = PolicySet { policies: vec![p(vec![], vec![]), p(vec![], vec![])], ..PolicySet::default() };
    assert!(matches!(refuse(twice), CompileError::Twice { .. }));
}
