// SPDX-License-Identifier: Apache-2.0
//! Random policies and random traffic against what should have happened.

use std::collections::BTreeSet;

use model::Action;
use proptest::prelude::*;
use vswitch::{DropReason, PortId, Verdict};

use crate::world::*;

/// What happens, one after the other.
#[derive(Clone, Debug)]
enum Step {
    /// A datagram between two machines of any tenants.
    Datagram { from: u16, to: u16, ports: (u16, u16) },
    /// These destination ports are denied from now on.
    Policy { denied: BTreeSet<u16> },
    /// Some flows are swept.
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..5_u16, 0..5_u16, 1..4_u16, 1..4_u16)
            .prop_map(|(from, to, source, destination)| Step::Datagram { from, to, ports: (source, destination) }),
        1 => prop::collection::btree_set(1..4_u16, 0..3).prop_map(|denied| Step::Policy { denied }),
        1 => Just(Step::Tick),
    ]
}

fn rules(denied: &BTreeSet<u16>) -> Rules {
    let rule = |port: &u16| (Rule { to_port: Some(*port), ..Rule::default() }, Action::Deny);
    Rules { default: Action::Allow, rules: denied.iter().map(rule).collect() }
}

/// What the switch should do, the simple way: a set of opened flows.
#[derive(Default)]
struct Oracle {
    denied: BTreeSet<u16>,
    /// From, to, source port, destination port, as opened.
    opened: BTreeSet<(u16, u16, u16, u16)>,
}

impl Oracle {
    fn expected(&mut self, from: u16, to: u16, (source, destination): (u16, u16)) -> Verdict {
        // The policy that is in force decides about live flows too.
        self.opened.retain(|flow| !self.denied.contains(&flow.3));
        let tenant = |machine: u16| machine >= OTHER_WEB.0;
        let target = PortId(to);
        // Both tenants use the same addresses: the sender's own tenant is meant.
        let target = match (tenant(from), tenant(to)) {
            (a, b) if a == b => target,
            (true, false) if target == DB => return Verdict::Drop(DropReason::NoEndpoint),
            (true, false) => PortId(to + OTHER_WEB.0),
            _ => PortId(to - OTHER_WEB.0),
        };
        if target.0 == from {
            return Verdict::Drop(DropReason::ToSelf);
        }
        if self.opened.contains(&(target.0, from, destination, source)) {
            return Verdict::Forward(target);
        }
        if self.denied.contains(&destination) {
            return Verdict::Drop(DropReason::Denied);
        }
        self.opened.insert((from, target.0, source, destination));
        Verdict::Forward(target)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_frame_passes_exactly_when_policy_allows_its_flow(steps in prop::collection::vec(step(), 1..80)) {
        let mut memory = memory(4096);
        let mut world = World::new(&mut memory, allow());
        let mut oracle = Oracle::default();
        for step in steps {
            match step {
                Step::Policy { denied } => {
                    world.install(rules(&denied));
                    oracle.denied = denied;
                    // What is denied now stays ended, even if a later policy would have allowed it.
                    world.tick();
                    oracle.opened.retain(|flow| !oracle.denied.contains(&flow.3));
                }
                Step::Tick => world.switch.tick(world.now, 3),
                Step::Datagram { from, to, ports } => {
                    let expected = oracle.expected(from, to, ports);
                    let verdict = world.offer(PortId(from), &udp(PortId(from), PortId(to), ports));
                    prop_assert_eq!(verdict, expected, "{:?}", (from, to, ports));
                }
            }
        }
    }
}
