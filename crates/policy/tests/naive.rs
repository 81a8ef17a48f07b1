// SPDX-License-Identifier: Apache-2.0
//! The compiled answer equals a plain reading of the policies, for random policies and flows.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use model::{
    AccessPolicy, Action, Application, Attribution, Cidr, Confidence, FiveTuple, FlowQuery, Inventory, Judge,
    Judgement, MacAddr, Mode, Name, Needs, Nic, Origin, Outcome, Party, PolicySet, PortMatch, PortRange,
    Process, ProcessSelector, Protocol, RuleId, Service, SocketMode, Target, Tenant, UnknownReason, UserName,
    Vm, VmIndex, VmRef, VmSelector, Workload,
};
use policy::compile;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use wildmatch::WildMatch;

const TENANTS: [&str; 2] = ["acme", "globex"];
const VMS_PER_TENANT: usize = 3;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

// The plain reading.

fn process_matches(selector: &ProcessSelector, attribution: Option<&Attribution>) -> bool {
    let unknown = Attribution::unknown(UnknownReason::NotAttached);
    let attribution = attribution.unwrap_or(&unknown);
    let process = attribution.process.as_ref();
    if let Some(wanted) = selector.attribution
        && wanted != attribution.outcome()
    {
        return false;
    }
    if let Some(container) = &selector.container {
        match attribution.container() {
            Some(text) if WildMatch::new(container.as_str()).matches(text) => {}
            _ => return false,
        }
    }
    if selector.user.is_some() && selector.user.as_ref().map(UserName::as_str) != attribution.user() {
        return false;
    }
    if let Some(name) = &selector.name
        && process.map(|p| &p.name) != Some(name)
    {
        return false;
    }
    if let Some(exe) = &selector.exe {
        match process.and_then(|p| p.exe.as_ref()) {
            Some(path) if WildMatch::new(exe.as_str()).matches(path) => {}
            _ => return false,
        }
    }
    if let Some(unit) = &selector.unit {
        match attribution.unit() {
            Some(text) if WildMatch::new(unit.as_str()).matches(text) => {}
            _ => return false,
        }
    }
    if selector.uid.is_some() && selector.uid != attribution.uid() {
        return false;
    }
    process.is_some() || *selector != ProcessSelector::default()
}

fn workload_matches(
    workload: &Workload,
    tenant: &Name,
    vm: Option<&Vm>,
    attribution: Option<&Attribution>,
) -> bool {
    vm.is_some_and(|vm| vm.id.tenant == *tenant && workload.vm.selects(vm))
        && workload.process.as_ref().is_none_or(|process| process_matches(process, attribution))
}

fn ports_match(ports: &[PortMatch], tuple: FiveTuple) -> bool {
    ports.is_empty() || ports.iter().any(|port| port.covers(tuple.protocol, tuple.destination_port))
}

fn application<'a>(set: &'a PolicySet, tenant: &Name, name: &Name) -> &'a Workload {
    &set.applications.iter().find(|a| a.tenant == *tenant && a.name == *name).unwrap().selector
}

fn policy_matches(
    policy: &AccessPolicy,
    set: &PolicySet,
    inventory: &Inventory,
    query: &FlowQuery<'_>,
) -> bool {
    let tenant = &policy.tenant;
    let vm = |party: &Party<'_>| party.vm.map(|vm| inventory.vm(vm));
    let (source, destination) = (vm(&query.source), vm(&query.destination));
    let from = |origin: &Origin| {
        let workload = match origin {
            Origin::Workload(workload) => workload,
            Origin::Application(name) => application(set, tenant, name),
            Origin::Network(network) => return network.contains(query.tuple.source),
        };
        workload_matches(workload, tenant, source, query.source.attribution)
    };
    let to = |target: &Target| {
        let (workload, ports) = match target {
            Target::Workload(workload, ports) => (workload, ports),
            Target::Application(name, ports) => (application(set, tenant, name), ports),
            Target::Network(network, ports) => {
                return network.contains(query.tuple.destination) && ports_match(ports, query.tuple);
            }
            Target::Service(name) => {
                let service = set.services.iter().find(|s| s.tenant == *tenant && s.name == *name).unwrap();
                (&service.selector, &service.ports)
            }
        };
        workload_matches(workload, tenant, destination, query.destination.attribution)
            && ports_match(ports, query.tuple)
    };
    let own = |vm: Option<&Vm>| vm.is_none_or(|vm| vm.id.tenant == *tenant);
    let anyone = |vm: Option<&Vm>| vm.is_some_and(|vm| vm.id.tenant == *tenant);
    own(source)
        && own(destination)
        && (policy.from.iter().any(from) || policy.from.is_empty() && anyone(source))
        && (policy.to.iter().any(to) || policy.to.is_empty() && anyone(destination))
}

fn plain_reading(inventory: &Inventory, set: &PolicySet, query: &FlowQuery<'_>) -> Judgement {
    let tenant_of = |vm: VmIndex| &inventory.vm(vm).id.tenant;
    let tenant = tenant_of(query.source.vm.or(query.destination.vm).unwrap());
    if query.destination.vm.is_some_and(|vm| tenant_of(vm) != tenant) {
        let decided_by = RuleId(format!("{tenant}/(isolation)").into());
        return Judgement { action: Action::Deny, decided_by, matched: vec![], audited: vec![] };
    }
    let id = |policy: &AccessPolicy| RuleId(format!("{}/{}", policy.tenant, policy.name).into());
    let matching: Vec<_> = set.policies.iter().filter(|p| policy_matches(p, set, inventory, query)).collect();
    let enforced: Vec<_> = matching.iter().filter(|p| p.mode == Mode::Enforce).collect();
    let first = |action| enforced.iter().find(|p| p.action == action);
    let (action, decided_by) = match (first(Action::Deny), first(Action::Allow)) {
        (Some(deny), _) => (Action::Deny, id(deny)),
        (None, Some(allow)) => (Action::Allow, id(allow)),
        (None, None) => {
            (inventory.tenant(tenant).unwrap().default_action, RuleId(format!("{tenant}/default").into()))
        }
    };
    Judgement {
        action,
        decided_by,
        matched: enforced.iter().map(|p| id(p)).collect(),
        audited: matching.iter().filter(|p| p.mode == Mode::Audit).map(|p| (id(p), p.action)).collect(),
    }
}

// A small world, so that random selectors often meet.

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    (option::of(select(vec!["web", "db"])), option::of(select(vec!["x", "y"]))).prop_map(|(tier, app)| {
        let pairs = [("tier", tier), ("app", app)];
        pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect()
    })
}

fn inventory() -> impl Strategy<Value = Inventory> {
    let defaults = vec(select(vec![Action::Allow, Action::Deny]), TENANTS.len());
    let labels = vec(labels(), TENANTS.len() * VMS_PER_TENANT);
    (defaults, labels).prop_map(|(defaults, labels)| {
        let tenants = TENANTS.iter().zip(defaults);
        let tenants = tenants.map(|(tenant, default_action)| Tenant { name: name(tenant), default_action });
        let vms = labels.into_iter().enumerate().map(|(index, labels)| {
            let number = u8::try_from(index % VMS_PER_TENANT).unwrap();
            Vm {
                // Tenants take turns, so that positions and tenants do not go together.
                id: VmRef { tenant: name(TENANTS[index % 2]), name: name(&format!("vm{}", index / 2)) },
                labels,
                nics: vec![Nic {
                    name: name("net0"),
                    socket: format!("{index}.sock").into(),
                    socket_mode: SocketMode::Listen,
                    mac: MacAddr([2, 0, 0, 0, number, u8::try_from(index).unwrap()]),
                    addresses: vec![format!("10.0.0.{}/24", index / 2 + 1).parse().unwrap()],
                    mtu_bytes: 1500,
                }],
            }
        });
        Inventory::new(tenants.collect(), vms.collect()).unwrap()
    })
}

fn process_selector() -> impl Strategy<Value = ProcessSelector> {
    (
        option::of(select(vec!["front", "orders"])),
        option::of(select(vec!["/usr/bin/front", "/usr/bin/*", "*orders"])),
        option::of(select(vec!["front.service", "*.service"])),
        option::weighted(0.2, select(vec!["c*", "d*"])),
        option::weighted(0.2, select(vec!["front", "root"])),
        option::of(0..3_u32),
        option::weighted(0.3, select(vec![Outcome::Known, Outcome::Unknown, Outcome::Unattributed])),
    )
        .prop_map(|(name, exe, unit, container, user, uid, attribution)| ProcessSelector {
            name: name.map(str::to_owned),
            exe: exe.map(|exe| exe.parse().unwrap()),
            unit: unit.map(|unit| unit.parse().unwrap()),
            container: container.map(|container| container.parse().unwrap()),
            user: user.map(|user| user.parse().unwrap()),
            uid,
            attribution,
        })
}

fn workload() -> impl Strategy<Value = Workload> {
    let vm_name = option::weighted(0.3, (0..VMS_PER_TENANT).prop_map(|index| name(&format!("vm{index}"))));
    let vm = (vm_name, labels()).prop_map(|(name, labels)| VmSelector { name, labels });
    (vm, option::of(process_selector())).prop_map(|(vm, process)| Workload { vm, process })
}

fn port() -> impl Strategy<Value = PortMatch> {
    let range = prop_oneof![
        (80..83_u16).prop_map(|port| Some(PortRange::from(port))),
        (78..82_u16, 0..4_u16).prop_map(|(first, more)| PortRange::new(first, first + more)),
        Just(None),
    ];
    prop_oneof![
        4 => (range, select(vec![Protocol::Tcp, Protocol::Udp]))
            .prop_map(|(ports, protocol)| PortMatch { ports, protocol }),
        1 => Just(PortMatch { ports: None, protocol: Protocol::Icmp }),
    ]
}

/// Of machines, of a range around them, and of others.
fn network() -> impl Strategy<Value = Cidr> {
    let networks = ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.0/24", "0.0.0.0/0", "192.0.2.0/24", "::/0"];
    select(networks.to_vec()).prop_map(|text| text.parse().unwrap())
}

fn policies() -> impl Strategy<Value = PolicySet> {
    let tenant = || select(TENANTS.to_vec()).prop_map(name);
    let origin = prop_oneof![
        4 => workload().prop_map(Origin::Workload),
        1 => Just(Origin::Application(name("a"))),
        2 => network().prop_map(Origin::Network),
    ];
    let target = prop_oneof![
        4 => (workload(), vec(port(), 0..3)).prop_map(|(workload, ports)| Target::Workload(workload, ports)),
        1 => vec(port(), 0..2).prop_map(|ports| Target::Application(name("a"), ports)),
        2 => (network(), vec(port(), 0..3)).prop_map(|(network, ports)| Target::Network(network, ports)),
        1 => Just(Target::Service(name("s"))),
    ];
    let action = select(vec![Action::Allow, Action::Deny]);
    let mode = select(vec![Mode::Enforce, Mode::Enforce, Mode::Audit]);
    let policy = (tenant(), action, mode, vec(origin, 0..3), vec(target, 0..3));
    let applications = vec(workload(), TENANTS.len());
    let services = vec((workload(), vec(port(), 1..3)), TENANTS.len());
    (applications, services, vec(policy, 0..12)).prop_map(|(applications, services, policies)| PolicySet {
        flow_policies: Vec::new(),
        applications: TENANTS
            .iter()
            .zip(applications)
            .map(|(tenant, selector)| Application { tenant: name(tenant), name: name("a"), selector })
            .collect(),
        services: TENANTS
            .iter()
            .zip(services)
            .map(|(tenant, (selector, ports))| Service::new(name(tenant), name("s"), selector, ports))
            .collect(),
        policies: policies
            .into_iter()
            .enumerate()
            .map(|(index, (tenant, action, mode, from, to))| AccessPolicy {
                tenant,
                name: name(&format!("p{index}")),
                action,
                mode,
                from,
                to,
            })
            .collect(),
    })
}

fn attribution() -> impl Strategy<Value = Option<Attribution>> {
    let exe = option::of(select(vec!["/usr/bin/front", "/usr/bin/orders", "/opt/orders"]));
    let cgroup = || {
        let containers = ["c", "d"].map(|digit| format!("/system.slice/docker-{}.scope", digit.repeat(64)));
        let others = ["/system.slice/front.service", "/user.slice/a.scope"].map(str::to_owned);
        option::of(select([containers, others].concat()))
    };
    let user = || option::of(select(vec!["front", "root"]).prop_map(str::to_owned));
    let process = (select(vec!["front", "orders", "sh"]), exe, option::of(0..3_u32), user(), cgroup());
    let process = process.prop_map(|(name, exe, uid, user, cgroup)| Process {
        pid: 7,
        name: name.to_owned(),
        exe: exe.map(str::to_owned),
        uid,
        user,
        cgroup,
        ..Process::default()
    });
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(Attribution::unknown(UnknownReason::NoSocket))),
        1 => (option::of(0..3_u32), user(), cgroup()).prop_map(|(socket_uid, socket_user, cgroup)| Some(Attribution {
            process: None,
            socket_uid,
            socket_user,
            socket_cgroup: cgroup,
            socket_netns: None,
            inner: None,
            confidence: Confidence::Socket,
            unknown: Some(UnknownReason::NoOwner),
        })),
        4 => (process, option::of(0..3_u32)).prop_map(|(process, socket_uid)| Some(Attribution {
            process: Some(process),
            socket_uid,
            socket_user: None,
            socket_cgroup: None,
            socket_netns: None,
            inner: None,
            confidence: Confidence::Descriptor,
            unknown: None,
        })),
    ]
}

#[derive(Clone, Debug)]
struct Flow {
    /// Not both are outside the mesh.
    ends: [Option<VmIndex>; 2],
    tuple: FiveTuple,
    callers: [Option<Attribution>; 2],
    listeners: [Option<Attribution>; 2],
}

impl Flow {
    fn query(&self, caller: usize, listener: usize) -> FlowQuery<'_> {
        FlowQuery {
            tuple: self.tuple,
            source: Party { vm: self.ends[0], attribution: self.callers[caller].as_ref() },
            destination: Party { vm: self.ends[1], attribution: self.listeners[listener].as_ref() },
        }
    }
}

fn flow() -> impl Strategy<Value = Flow> {
    let vm = || (0..u32::try_from(TENANTS.len() * VMS_PER_TENANT).unwrap()).prop_map(VmIndex);
    let ends = prop_oneof![
        4 => [vm(), vm()].prop_map(|ends| ends.map(Some)),
        1 => vm().prop_map(|vm| [Some(vm), None]),
        1 => vm().prop_map(|vm| [None, Some(vm)]),
    ];
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Other(132)]);
    let two = || [attribution(), attribution()];
    let outside = select(vec!["192.0.2.1", "198.51.100.1", "2001:db8::1"]);
    (ends, outside, protocol, 77..87_u16, two(), two()).prop_map(
        |(ends, outside, protocol, port, callers, listeners)| {
            // As `inventory` gives them out.
            let address = |end: Option<VmIndex>| match end {
                Some(vm) => IpAddr::V4(Ipv4Addr::new(10, 0, 0, u8::try_from(vm.0).unwrap() / 2 + 1)),
                None => outside.parse().unwrap(),
            };
            let tuple = FiveTuple {
                source: address(ends[0]),
                destination: address(ends[1]),
                source_port: port,
                destination_port: port,
                protocol,
            };
            Flow { ends, tuple, callers, listeners }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_answer_equals_a_plain_reading(
        (inventory, set, flows) in (inventory(), policies(), vec(flow(), 1..20)),
    ) {
        let compiled = compile(&inventory, &set).unwrap();
        for flow in &flows {
            let query = flow.query(0, 0);
            let judgement = compiled.judge(&query);
            prop_assert_eq!(&judgement, &plain_reading(&inventory, &set, &query));

            let traces = compiled.explain(&query);
            let matched: Vec<_> = traces.iter().filter(|t| t.matched && t.mode == Mode::Enforce).collect();
            prop_assert_eq!(matched.iter().map(|t| &t.rule).collect::<Vec<_>>(), judgement.matched.iter().collect::<Vec<_>>());
            prop_assert_eq!(traces.iter().filter(|t| t.matched).count(), judgement.matched.len() + judgement.audited.len());
            prop_assert!(traces.iter().all(|trace| !trace.why.is_empty()));
        }
    }

    #[test]
    fn what_is_not_needed_changes_no_answer(
        (inventory, set, flows) in (inventory(), policies(), vec(flow(), 1..20)),
    ) {
        let compiled = compile(&inventory, &set).unwrap();
        for flow in &flows {
            let needs = compiled.needs(&flow.query(0, 0));
            let other = flow.query(usize::from(!needs.source), usize::from(!needs.destination));
            prop_assert_eq!(compiled.needs(&other), needs);
            prop_assert_eq!(compiled.judge(&flow.query(0, 0)), compiled.judge(&other));
        }
    }

    #[test]
    fn tenants_never_meet(
        (inventory, set, flows) in (inventory(), policies(), vec(flow(), 1..20)),
    ) {
        let compiled = compile(&inventory, &set).unwrap();
        let tenant = |vm: VmIndex| &inventory.vm(vm).id.tenant;
        for flow in flows {
            let query = flow.query(0, 0);
            let judgement = compiled.judge(&query);
            let one = flow.ends[0].or(flow.ends[1]).unwrap();
            let own = format!("{}/", tenant(one));
            let ids = judgement.matched.iter().chain(judgement.audited.iter().map(|(id, _)| id));
            prop_assert!(ids.chain([&judgement.decided_by]).all(|id| id.0.starts_with(&own)));
            if flow.ends[1].is_some_and(|other| tenant(one) != tenant(other)) {
                prop_assert_eq!(judgement.action, Action::Deny);
                prop_assert_eq!(compiled.needs(&query), Needs::default());
                prop_assert!(judgement.matched.is_empty() && judgement.audited.is_empty());
            }
        }
    }
}
