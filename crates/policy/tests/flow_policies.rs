// SPDX-License-Identifier: Apache-2.0
//! What flow policies do, and for which flows.

mod common;

use std::collections::BTreeMap;

use common::query;
use model::{
    Action, AppProtocol, Attribution, Confidence, Detour, FlowPolicy, Inventory, Judge, Layer7, Needs,
    Origin, PolicySet, PortMatch, Process, ProcessSelector, Protocol, Redirect, Target, Tenant,
    UnknownReason, Vm, VmIndex, VmSelector, Workload,
};
use policy::{CompileError, CompiledPolicy, compile};

fn compiled(flow_policies: Vec<FlowPolicy>) -> Result<CompiledPolicy, CompileError> {
    let vm = |id: &str| Vm { id: id.parse().unwrap(), labels: BTreeMap::new(), nics: vec![] };
    let tenants = vec![Tenant { name: "acme".parse().unwrap(), default_action: Action::Allow }];
    let inventory =
        Inventory::new(tenants, ["acme/web", "acme/api", "acme/collector"].map(vm).to_vec()).unwrap();
    compile(&inventory, &PolicySet { flow_policies, ..PolicySet::default() })
}

/// A policy about flows to port 80 of the API, from those whose executable is `exe`.
fn policy(name: &str, exe: Option<&str>) -> FlowPolicy {
    let process = exe.map(|exe| ProcessSelector { exe: Some(exe.parse().unwrap()), ..Default::default() });
    let api = VmSelector { name: Some("api".parse().unwrap()), ..VmSelector::default() };
    let port = PortMatch { ports: Some(80.into()), protocol: Protocol::Tcp };
    FlowPolicy {
        from: vec![Origin::Workload(Workload { process, ..Workload::default() })],
        to: vec![Target::Workload(Workload { vm: api, process: None }, vec![port])],
        ..FlowPolicy::new("acme".parse().unwrap(), name.parse().unwrap())
    }
}

fn mirroring(name: &str, exe: Option<&str>) -> FlowPolicy {
    FlowPolicy { mirror: Some("collector".parse().unwrap()), ..policy(name, exe) }
}

fn redirecting(name: &str, exe: Option<&str>, vm: &str, port: Option<u16>) -> FlowPolicy {
    FlowPolicy { redirect: Some(Redirect { vm: vm.parse().unwrap(), port }), ..policy(name, exe) }
}

#[test]
fn the_first_policy_that_says_so_redirects() {
    let policy = compiled(vec![
        mirroring("watch", None),
        redirecting("one", None, "collector", Some(81)),
        redirecting("two", None, "web", None),
    ]);
    let policy = policy.unwrap();
    let detour = Detour { vm: VmIndex(2), l4_port: Some(81) };
    assert_eq!(policy.detour(&query(80, None, None)), Some(detour));
    assert_eq!(policy.detour(&query(81, None, None)), None);
    assert_eq!(policy.needs(&query(80, None, None)), Needs::default());
}

#[test]
fn mirroring_may_depend_on_who_calls_and_then_asks_for_it() {
    let policy = compiled(vec![mirroring("watch", Some("/bin/a"))]).unwrap();
    assert_eq!(policy.needs(&query(80, None, None)), Needs { source: true, destination: false });
    assert_eq!(policy.needs(&query(81, None, None)), Needs::default());
    for (exe, mirror) in [("/bin/a", Some(VmIndex(2))), ("/bin/b", None)] {
        let caller = Attribution {
            process: Some(Process { exe: Some(exe.into()), ..Process::default() }),
            confidence: Confidence::Table,
            unknown: None,
            ..Attribution::unknown(UnknownReason::NoSocket)
        };
        assert_eq!(policy.judge(&query(80, Some(&caller), None)).mirror(), mirror, "{exe}");
    }
    assert_eq!(policy.judge(&query(80, None, None)).mirror(), None);
    // What is done with a flow never decides whether it passes.
    assert_eq!(policy.judge(&query(80, None, None)).audited, []);
}

#[test]
fn the_greatest_part_that_a_matching_policy_says_is_traced_and_shown() {
    let tracing = |name: &str, exe, sample: &str| FlowPolicy {
        trace: Some(sample.parse().unwrap()),
        order: 7,
        ..policy(name, exe)
    };
    let policy = compiled(vec![
        tracing("some", None, "0.5%"),
        tracing("more", None, "10%"),
        tracing("all", Some("/bin/a"), "100%"),
        mirroring("watch", None),
    ]);
    let policy = policy.unwrap();
    let judgement = policy.judge(&query(80, None, None));
    assert_eq!(judgement.sample(), Some("10%".parse().unwrap()));
    assert_eq!(judgement.services().to_string(), "trace,authorize,mirror");
    assert_eq!(policy.judge(&query(81, None, None)).sample(), None);
    let adds = policy.explain(&query(80, None, None)).into_iter().map(|trace| trace.adds.join(","));
    assert_eq!(adds.collect::<Vec<_>>(), ["trace 0.5%", "trace 10%", "trace 100%", "mirror"]);
}

#[test]
fn what_must_be_proven_is_asked_for_where_the_policy_could_match() {
    let proving = FlowPolicy { authenticate: true, ..policy("prove", Some("/bin/a")) };
    let clear = FlowPolicy { encrypt: true, ..policy("no-clear", None) };
    let policy = compiled(vec![proving, clear]).unwrap();
    assert_eq!(policy.needs(&query(80, None, None)), Needs { source: true, destination: true });
    assert_eq!(policy.needs(&query(81, None, None)), Needs::default());
    let unmatched = policy.judge(&query(80, None, None));
    assert_eq!(unmatched.services().to_string(), "authorize,encrypt");
    let adds = policy.explain(&query(80, None, None)).into_iter().map(|trace| trace.adds.join(","));
    assert_eq!(adds.collect::<Vec<_>>(), ["authenticate", "encrypt"]);
}

#[test]
fn what_may_be_spoken_is_shown_with_the_policy_that_says_it() {
    let speaking =
        |name: &str, protocols| FlowPolicy { layer7: Some(Layer7 { protocols }), ..policy(name, None) };
    let web = [AppProtocol::Tls, AppProtocol::Http].into_iter().collect();
    let policy = compiled(vec![speaking("tell", None), speaking("web", Some(web))]).unwrap();
    let judgement = policy.judge(&query(80, None, None));
    assert_eq!(judgement.services().to_string(), "authorize,layer7");
    assert!(judgement.names_protocols() && !policy.judge(&query(81, None, None)).names_protocols());
    let adds = policy.explain(&query(80, None, None)).into_iter().map(|trace| trace.adds.join(","));
    assert_eq!(adds.collect::<Vec<_>>(), ["layer7", "layer7 http,tls"]);
}

#[test]
fn contradictions_are_refused() {
    let wrong = |policies| compiled(policies).unwrap_err();
    assert!(matches!(
        wrong(vec![redirecting("r", Some("/bin/a"), "web", None)]),
        CompileError::RedirectsProcess(_)
    ));
    assert!(matches!(wrong(vec![redirecting("r", None, "nobody", None)]), CompileError::NoMachine { .. }));
    assert!(matches!(
        wrong(vec![mirroring("m", None), mirroring("m", None)]),
        CompileError::Twice { kind: "flow policy", .. }
    ));
}
