// SPDX-License-Identifier: Apache-2.0
//! The shop example loads, compiles without a warning, and decides as its comments say.

use std::path::Path;

use api::manifest::{self, Manifests};
use model::{
    Action, Attribution, Confidence, FiveTuple, FlowQuery, Inventory, Judge, Judgement, Needs, Party,
    Process, Protocol, UnknownReason,
};
use policy::CompiledPolicy;

struct Shop {
    inventory: Inventory,
    policy: CompiledPolicy,
}

impl Shop {
    fn load() -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop");
        let manifests: Manifests =
            manifest::load(&[directory]).unwrap_or_else(|errors| panic!("{errors:#?}"));
        let policy = policy::compile(manifests.inventory(), manifests.policies()).unwrap();
        Self { inventory: manifests.into_parts().0, policy }
    }

    /// A flow from one machine to another over IPv4 or IPv6, whichever `family` is in the list.
    fn with_query<T>(
        &self,
        (from, to, port): (&str, &str, u16),
        family: usize,
        caller: Option<&Attribution>,
        ask: impl FnOnce(&FlowQuery<'_>) -> T,
    ) -> T {
        let vm = |name: &str| self.inventory.find(&name.parse().unwrap()).unwrap();
        let address = |name: &str| self.inventory.vm(vm(name)).nics[0].addresses[family].address();
        let tuple = FiveTuple {
            source: address(from),
            destination: address(to),
            source_port: 40_000,
            destination_port: port,
            protocol: Protocol::Tcp,
        };
        ask(&FlowQuery {
            tuple,
            source: Party { vm: Some(vm(from)), attribution: caller },
            destination: Party { vm: Some(vm(to)), attribution: None },
            names: &[],
        })
    }

    fn judge(&self, flow: (&str, &str, u16), caller: Option<&Attribution>) -> Judgement {
        let [v4, v6] =
            [0, 1].map(|family| self.with_query(flow, family, caller, |query| self.policy.judge(query)));
        assert_eq!(v4, v6, "both families are judged alike");
        v4
    }
}

fn process(exe: &str, uid: u32) -> Attribution {
    let name = exe.rsplit('/').next().unwrap().to_owned();
    let process = Process { pid: 100, name, exe: Some(exe.into()), uid: Some(uid), ..Process::default() };
    Attribution {
        process: Some(process),
        socket_uid: Some(uid),
        socket_user: None,
        socket_cgroup: None,
        socket_netns: None,
        inner: None,
        confidence: Confidence::Descriptor,
        unknown: None,
    }
}

#[test]
fn only_the_named_programs_reach_their_services() {
    let shop = Shop::load();
    let decide = |flow, exe| {
        let judgement = shop.judge(flow, Some(&process(exe, 33)));
        (judgement.action, judgement.decided_by.to_string())
    };
    let allow = |rule: &str| (Action::Allow, rule.to_owned());
    let denied = (Action::Deny, "acme/default".to_owned());
    let (api, db) = (("acme/web", "acme/api", 8080), ("acme/api", "acme/db", 6379));

    assert_eq!(decide(api, "/usr/bin/storefront"), allow("acme/storefront-to-api"));
    assert_eq!(decide(api, "/usr/bin/curl"), denied);
    assert_eq!(decide(("acme/web", "acme/api", 22), "/usr/bin/storefront"), denied);
    assert_eq!(decide(("acme/db", "acme/api", 8080), "/usr/bin/storefront"), denied);
    assert_eq!(decide(db, "/usr/bin/orders"), allow("acme/orders-to-db"));
    assert_eq!(decide(db, "/usr/bin/redis-cli"), denied);
    assert_eq!(decide(("acme/web", "acme/db", 6379), "/usr/bin/orders"), denied);
}

#[test]
fn unknown_processes_are_let_through_nowhere() {
    let shop = Shop::load();
    let unknown = Attribution::unknown(UnknownReason::TimedOut);
    for caller in [None, Some(&unknown)] {
        let judgement = shop.judge(("acme/web", "acme/api", 8080), caller);
        assert_eq!((judgement.action, judgement.matched.len()), (Action::Deny, 0));
    }
}

#[test]
fn root_is_reported_but_not_refused() {
    let shop = Shop::load();
    let judgement = shop.judge(("acme/web", "acme/api", 8080), Some(&process("/usr/bin/storefront", 0)));
    assert_eq!(judgement.action, Action::Allow);
    let audited: Vec<_> =
        judgement.audited.iter().map(|(rule, action)| (rule.to_string(), *action)).collect();
    assert_eq!(audited, [("acme/no-root-callers".to_owned(), Action::Deny)]);
}

#[test]
fn globex_reaches_nothing_of_acme() {
    let shop = Shop::load();
    for target in ["acme/web", "acme/api", "acme/db"] {
        let judgement = shop.judge(("globex/web", target, 8080), Some(&process("/usr/bin/storefront", 0)));
        assert_eq!(judgement.action, Action::Deny);
        assert_eq!(judgement.decided_by.to_string(), "globex/(isolation)");
        assert!(judgement.matched.is_empty() && judgement.audited.is_empty());
    }
}

#[test]
fn only_the_caller_needs_to_be_known() {
    let shop = Shop::load();
    let needs = |flow| shop.with_query(flow, 0, None, |query| shop.policy.needs(query));
    assert_eq!(needs(("acme/web", "acme/api", 8080)), Needs { source: true, destination: false });
    assert_eq!(needs(("globex/web", "acme/api", 8080)), Needs::default());
}

#[test]
fn services_are_found_by_name() {
    let shop = Shop::load();
    let name = |text: &str| text.parse().unwrap();
    let api = shop.policy.service(&name("acme"), &name("api")).unwrap();
    assert_eq!(api.vms, [shop.inventory.find(&"acme/api".parse().unwrap()).unwrap()]);
    assert_eq!(api.ports[0].ports, Some(8080.into()));
    assert!(shop.policy.service(&name("globex"), &name("api")).is_none());
}

#[test]
fn every_rule_says_why_it_does_not_match() {
    let shop = Shop::load();
    let curl = process("/usr/bin/curl", 0);
    let traces =
        shop.with_query(("acme/web", "acme/api", 8080), 0, Some(&curl), |query| shop.policy.explain(query));
    let said: Vec<_> = traces.iter().map(|trace| (trace.matched, trace.why.as_str())).collect();
    assert_eq!(
        said,
        [
            (false, "source process is name curl, exe /usr/bin/curl, uid 0, not exe /usr/bin/storefront"),
            (false, "source VM acme/web is not selected; destination VM acme/api is not selected"),
            (
                true,
                "source VM acme/web is selected and its process has uid 0; destination VM acme/api is selected on tcp/8080"
            ),
        ]
    );
}
