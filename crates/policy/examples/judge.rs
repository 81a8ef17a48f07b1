// SPDX-License-Identifier: Apache-2.0
//! What the first packet of a flow costs at 10, 1,000 and 100,000 rules, and what the rules cost to keep:
//!
//!     cargo run --release -p policy --example judge
//!
//! The rules are of every kind there is: machines by name and by label, processes, networks of random
//! lengths, single ports, ranges and whole protocols, in all combinations, one in ten without a source.
//! The flows go among the machines and to addresses outside; most of them match several rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use model::{
    AccessPolicy, Action, Cidr, FiveTuple, FlowQuery, Inventory, Judge, MacAddr, Mode, Nic, Origin, Party,
    PolicySet, PortMatch, PortRange, ProcessSelector, Protocol, SocketMode, Target, Tenant, Vm, VmIndex,
    VmSelector, Workload,
};

/// Machines of the one tenant.
const VMS: u32 = 1000;
/// Different flows that are judged.
const FLOWS: usize = 20_000;
/// Times that all of them are.
const PASSES: usize = 15;

/// Numbers that look random and are the same in each run (`splitmix64`).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }

    fn port(&mut self) -> u16 {
        self.below(20_000) as u16 + 1
    }

    /// Somewhere in `10.0.0.0/10`, of which the machines have a few.
    fn address(&mut self) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a00_0000 | self.below(1 << 22) as u32)
    }
}

fn address_of(vm: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 | vm << 10 | 1)
}

fn inventory() -> Inventory {
    let vm = |number: u32| Vm {
        id: format!("t/vm-{number}").parse().unwrap(),
        labels: BTreeMap::from([
            ("app".to_owned(), (number % 50).to_string()),
            ("tier".to_owned(), (number % 3).to_string()),
        ]),
        nics: vec![Nic {
            name: "net0".parse().unwrap(),
            socket: number.to_string().into(),
            socket_mode: SocketMode::Listen,
            mac: MacAddr([2, 0, 0, 0, (number >> 8) as u8, number as u8]),
            addresses: vec![Cidr::new(address_of(number).into(), 10).unwrap()],
            mtu_bytes: 1500,
        }],
    };
    let tenants = vec![Tenant { name: "t".parse().unwrap(), default_action: Action::Deny }];
    Inventory::new(tenants, (0..VMS).map(vm).collect()).unwrap()
}

fn workload(random: &mut Random) -> Workload {
    let labels = |pairs: &[(&str, u64)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.to_string())).collect()
    };
    let vm = match random.below(4) {
        0 => VmSelector { name: None, labels: labels(&[("app", random.below(50))]) },
        1 => {
            VmSelector { name: None, labels: labels(&[("app", random.below(50)), ("tier", random.below(3))]) }
        }
        _ => {
            let name = format!("vm-{}", random.below(VMS.into()));
            VmSelector { name: Some(name.parse().unwrap()), labels: BTreeMap::new() }
        }
    };
    let exe = format!("/usr/bin/app-{}", random.below(100));
    let process = ProcessSelector { exe: Some(exe.parse().unwrap()), ..ProcessSelector::default() };
    Workload { vm, process: (random.below(3) == 0).then_some(process) }
}

fn network(random: &mut Random) -> Cidr {
    Cidr::new(random.address().into(), 14 + random.below(19) as u8).unwrap().network()
}

fn ports(random: &mut Random) -> Vec<PortMatch> {
    let protocol = if random.below(4) == 0 { Protocol::Udp } else { Protocol::Tcp };
    let first = random.port();
    let ports = match random.below(10) {
        0 => None,
        1..=2 => PortRange::new(first, first + random.below(1000) as u16),
        _ => Some(first.into()),
    };
    vec![PortMatch { ports, protocol }]
}

fn policies(count: usize, random: &mut Random) -> PolicySet {
    let policy = |number| {
        let from = match random.below(10) {
            0 => vec![],
            1..=4 => vec![Origin::Network(network(random))],
            _ => vec![Origin::Workload(workload(random))],
        };
        let to = match random.below(2) {
            0 => vec![Target::Network(network(random), ports(random))],
            _ => vec![Target::Workload(workload(random), ports(random))],
        };
        AccessPolicy {
            tenant: "t".parse().unwrap(),
            name: format!("p{number}").parse().unwrap(),
            action: if random.below(2) == 0 { Action::Allow } else { Action::Deny },
            mode: Mode::Enforce,
            from,
            to,
        }
    };
    PolicySet { policies: (0..count).map(policy).collect(), ..PolicySet::default() }
}

fn flow(random: &mut Random) -> FlowQuery<'static> {
    let (source, destination) = (random.below(VMS.into()) as u32, random.below(VMS.into()) as u32);
    let outside = random.below(4) == 0;
    let tuple = FiveTuple {
        source: address_of(source).into(),
        destination: if outside { random.address().into() } else { IpAddr::V4(address_of(destination)) },
        source_port: 40_000,
        destination_port: random.port(),
        protocol: Protocol::Tcp,
    };
    let party = |vm: Option<u32>| Party { vm: vm.map(VmIndex), attribution: None };
    FlowQuery {
        tuple,
        source: party(Some(source)),
        destination: party((!outside).then_some(destination)),
        names: &[],
    }
}

/// The best of several passes over the flows, per flow: what other work on the machine disturbs least.
fn per_flow<T>(flows: &[FlowQuery<'_>], mut ask: impl FnMut(&FlowQuery<'_>) -> T) -> Duration {
    let pass = |_| {
        let start = Instant::now();
        for flow in flows {
            std::hint::black_box(ask(flow));
        }
        start.elapsed()
    };
    (0..PASSES).map(pass).min().expect("some passes") / flows.len() as u32
}

fn main() {
    let inventory = inventory();
    println!("  rules  compile ms  index MiB  judge ns  needs ns  matches per flow");
    for count in [10, 1000, 100_000] {
        let mut random = Random(7);
        let set = policies(count, &mut random);
        let start = Instant::now();
        let policy = policy::compile(&inventory, &set).unwrap();
        let compile = start.elapsed();
        let flows: Vec<_> = (0..FLOWS).map(|_| flow(&mut random)).collect();
        let judge = per_flow(&flows, |query| policy.judge(query));
        let needs = per_flow(&flows, |query| policy.needs(query));
        let matches: usize = flows.iter().map(|query| policy.judge(query).matched.len()).sum();
        println!(
            "{count:>7}  {:>10.1}  {:>9.2}  {:>8}  {:>8}  {:>16.2}",
            compile.as_secs_f64() * 1e3,
            policy.index_bytes() as f64 / f64::from(1 << 20),
            judge.as_nanos(),
            needs.as_nanos(),
            matches as f64 / FLOWS as f64,
        );
    }
}
