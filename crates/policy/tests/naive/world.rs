// SPDX-License-Identifier: Apache-2.0
//! A small world, so that random selectors often meet.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use model::{
    AccessPolicy, Action, AppProtocol, Application, Attribution, Audience, BitRate, Cidr, Confidence,
    DomainPattern, FiveTuple, FlowPolicy, FlowQuery, Inventory, Layer7, Limit, MacAddr, Mode, Name, Nic,
    Origin, Outcome, Party, PolicySet, PortMatch, PortRange, Process, ProcessSelector, Protocol, Service,
    SocketMode, Target, Tenant, UnknownReason, Vm, VmIndex, VmRef, VmSelector, Workload,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const TENANTS: [&str; 2] = ["acme", "globex"];
const VMS_PER_TENANT: usize = 3;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn domain() -> impl Strategy<Value = DomainPattern> {
    select(vec!["api.example.com", "*.example.com", "*.api.example.com"])
        .prop_map(|text| text.parse().unwrap())
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    (option::of(select(vec!["web", "db"])), option::of(select(vec!["x", "y"]))).prop_map(|(tier, app)| {
        let pairs = [("tier", tier), ("app", app)];
        pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect()
    })
}

pub fn inventory() -> impl Strategy<Value = Inventory> {
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

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![
        4 => workload().prop_map(Origin::Workload),
        1 => Just(Origin::Application(name("a"))),
        2 => network().prop_map(Origin::Network),
    ]
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        4 => (workload(), vec(port(), 0..3)).prop_map(|(workload, ports)| Target::Workload(workload, ports)),
        1 => vec(port(), 0..2).prop_map(|ports| Target::Application(name("a"), ports)),
        2 => (network(), vec(port(), 0..3)).prop_map(|(network, ports)| Target::Network(network, ports)),
        2 => (domain(), vec(port(), 0..2)).prop_map(|(domain, ports)| Target::Domain(domain, ports)),
        1 => Just(Target::Service(name("s"))),
    ]
}

fn peers() -> impl Strategy<Value = (Vec<Origin>, Vec<Target>)> {
    (vec(origin(), 0..3), vec(target(), 0..3))
}

/// What an application's or a service's name stands for is not asked for all tenants at once.
fn is_for_all((from, to): &(Vec<Origin>, Vec<Target>)) -> bool {
    !from.iter().any(|origin| matches!(origin, Origin::Application(_)))
        && !to.iter().any(|target| matches!(target, Target::Application(..) | Target::Service(_)))
}

fn flow_policies() -> impl Strategy<Value = Vec<FlowPolicy>> {
    let audience = prop_oneof![
        Just(Audience::Everyone),
        Just(Audience::Tenant),
        Just(Audience::Application(name("a"))),
        workload().prop_map(|subset| Audience::Subset(name("a"), subset)),
    ];
    let mirror = option::of((0..VMS_PER_TENANT).prop_map(|index| name(&format!("vm{index}"))));
    let limit = option::of((1..9_u64).prop_map(|rate| Limit::new(BitRate::new(rate * 1000).unwrap())));
    let trace = option::of(select(vec!["1%", "50%"]).prop_map(|text| text.parse().unwrap()));
    let protocols = option::of(select(vec![AppProtocol::Http, AppProtocol::Tls]));
    let layer7 = protocols.prop_map(|one| Layer7 { protocols: one.map(|one| [one].into_iter().collect()) });
    let demands = (any::<bool>(), any::<bool>(), option::of(layer7));
    let effects = (any::<bool>(), mirror, any::<bool>(), limit, trace, demands);
    let effects = effects.prop_map(|(denies, mirror, log, limit, trace, (authenticate, encrypt, layer7))| {
        let nothing = FlowPolicy::new(name("t"), name("f"));
        FlowPolicy { denies, mirror, log, limit, trace, authenticate, encrypt, layer7, ..nothing }
    });
    let policy = (select(TENANTS.to_vec()), audience, 0..3_u32, peers(), effects);
    let policy = policy.prop_filter("names are looked up in a tenant", |(_, audience, _, peers, _)| {
        *audience != Audience::Everyone || is_for_all(peers)
    });
    vec(policy, 0..6).prop_map(|policies| {
        let policies = policies.into_iter().enumerate();
        let policy = |(index, (tenant, audience, order, (from, to), effects))| {
            let (tenant, name) = (name(tenant), name(&format!("f{index}")));
            FlowPolicy { tenant, name, audience, order, from, to, ..effects }
        };
        policies.map(policy).collect()
    })
}

pub fn policies() -> impl Strategy<Value = PolicySet> {
    let tenant = || select(TENANTS.to_vec()).prop_map(name);
    let action = select(vec![Action::Allow, Action::Deny]);
    let mode = select(vec![Mode::Enforce, Mode::Enforce, Mode::Audit]);
    let peers = prop_oneof![
        3 => peers().prop_map(|(from, to)| (Vec::new(), from, to, false)),
        // Callers of other tenants, beside some of its own.
        1 => (vec(any::<bool>(), 1..3), vec(origin(), 0..2))
            .prop_map(|(others, from)| (others, from, vec![Target::Service(name("i"))], false)),
        // Calls to another's service, beside something of its own.
        1 => (vec(origin(), 0..3), vec(target(), 0..2)).prop_map(|(from, to)| (Vec::new(), from, to, true)),
    ];
    let policy = (tenant(), action, mode, peers);
    let applications = vec(workload(), TENANTS.len());
    let services = vec((workload(), vec(port(), 1..3)), 2 * TENANTS.len());
    let all = (applications, services, vec(policy, 0..12), flow_policies());
    all.prop_map(|(applications, services, policies, flow_policies)| PolicySet {
        flow_policies,
        applications: TENANTS
            .iter()
            .zip(applications)
            .map(|(tenant, selector)| Application { tenant: name(tenant), name: name("a"), selector })
            .collect(),
        services: TENANTS
            .iter()
            .flat_map(|tenant| [(tenant, "s", Audience::Tenant), (tenant, "i", Audience::Everyone)])
            .zip(services)
            .map(|((tenant, called, audience), (selector, ports))| Service {
                audience,
                ..Service::new(name(tenant), name(called), selector, ports)
            })
            .collect(),
        policies: policies
            .into_iter()
            .enumerate()
            .map(|(index, (tenant, action, mode, (others, mut from, mut to, abroad)))| {
                let other = || TENANTS.iter().map(|one| name(one)).find(|one| *one != tenant).unwrap();
                from.extend(others.into_iter().map(|named| Origin::Tenant(named.then(other))));
                to.extend(abroad.then(|| Target::ServiceOf { tenant: other(), name: name("i") }));
                AccessPolicy { name: name(&format!("p{index}")), tenant, action, mode, from, to }
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
pub struct Flow {
    /// Not both are outside the mesh.
    pub ends: [Option<VmIndex>; 2],
    tuple: FiveTuple,
    callers: [Option<Attribution>; 2],
    listeners: [Option<Attribution>; 2],
    /// What the destination was found under, if that is outside.
    names: Vec<Arc<str>>,
}

impl Flow {
    pub fn query(&self, caller: usize, listener: usize) -> FlowQuery<'_> {
        FlowQuery {
            tuple: self.tuple,
            source: Party { vm: self.ends[0], attribution: self.callers[caller].as_ref() },
            destination: Party { vm: self.ends[1], attribution: self.listeners[listener].as_ref() },
            names: &self.names,
        }
    }
}

pub fn flow() -> impl Strategy<Value = Flow> {
    let vm = || (0..u32::try_from(TENANTS.len() * VMS_PER_TENANT).unwrap()).prop_map(VmIndex);
    let ends = prop_oneof![
        4 => [vm(), vm()].prop_map(|ends| ends.map(Some)),
        1 => vm().prop_map(|vm| [Some(vm), None]),
        1 => vm().prop_map(|vm| [None, Some(vm)]),
    ];
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Other(132)]);
    let two = || [attribution(), attribution()];
    let outside = select(vec!["192.0.2.1", "198.51.100.1", "2001:db8::1"]);
    let names =
        vec(select(vec!["example.com", "api.example.com", "x.api.example.com", "badexample.com"]), 0..3);
    (ends, outside, protocol, 77..87_u16, two(), two(), names).prop_map(
        |(ends, outside, protocol, port, callers, listeners, names)| {
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
            let names = names.into_iter().map(Arc::from).collect();
            Flow { ends, tuple, callers, listeners, names }
        },
    )
}
