// SPDX-License-Identifier: Apache-2.0
//! Random policies and random traffic against a plain reading of the rules: what is compiled into flows must
//! make no difference, whatever was open when policy changed.

use std::collections::{BTreeMap, BTreeSet};

use model::{Action, ExternalNetwork};
use packet::emit;
use proptest::prelude::*;
use vswitch::{DropReason, FlowState, PortId, Verdict};

use crate::world::*;

const SERVER: &str = "198.51.100.7";
const EXTERNAL: &str = "192.0.2.10";

/// What happens, one after the other.
#[derive(Clone, Debug)]
enum Step {
    /// A datagram between two machines of any tenants.
    Datagram { from: u16, to: u16, ports: (u16, u16) },
    /// The first segments of a connection between two machines of one tenant: 1 to 3 of its handshake.
    Connect { from: u16, to: u16, ports: (u16, u16), segments: u8 },
    /// Data on a connection, from one of its ends.
    Segment { from: u16, to: u16, ports: (u16, u16), back: bool },
    /// A datagram to a server outside.
    Outward { from: u16, ports: (u16, u16) },
    /// What the server answers to the datagrams that were once sent so.
    Inward { from: u16, ports: (u16, u16) },
    /// These rules are in force from now on.
    Policy(Plain),
    /// Some flows are swept.
    Tick,
}

/// Rules as one reads them: the first that names the destination port decides, or else the default.
#[derive(Clone, Debug)]
struct Plain {
    default: Action,
    rules: Vec<(Option<u16>, Action)>,
}

impl Plain {
    fn allows(&self, port: u16) -> bool {
        let decides = self.rules.iter().find(|(own, _)| own.is_none_or(|own| own == port));
        decides.map_or(self.default, |(_, action)| *action) == Action::Allow
    }

    fn compiled(&self) -> Rules {
        let rule = |(to_port, action): &(Option<u16>, Action)| {
            (Rule { to_port: *to_port, ..Rule::default() }, *action)
        };
        Rules { rules: self.rules.iter().map(rule).collect(), ..Rules::always(self.default) }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let ports = || (11..14_u16, 1..4_u16);
    let action = || prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let rules = prop::collection::vec((prop::option::weighted(0.8, 1..4_u16), action()), 0..4);
    let policy = (action(), rules).prop_map(|(default, rules)| Step::Policy(Plain { default, rules }));
    // Three machines of one tenant and two of another; datagrams may well answer each other.
    let pair = || prop_oneof![(0..3_u16, 0..3_u16), (3..5_u16, 3..5_u16)];
    prop_oneof![
        6 => (0..5_u16, 0..5_u16, (1..4_u16, 1..4_u16))
            .prop_map(|(from, to, ports)| Step::Datagram { from, to, ports }),
        4 => (pair(), ports(), 1..4_u8)
            .prop_map(|((from, to), ports, segments)| Step::Connect { from, to, ports, segments }),
        4 => (pair(), ports(), any::<bool>())
            .prop_map(|((from, to), ports, back)| Step::Segment { from, to, ports, back }),
        3 => (0..5_u16, ports()).prop_map(|(from, ports)| Step::Outward { from, ports }),
        3 => (0..5_u16, ports()).prop_map(|(from, ports)| Step::Inward { from, ports }),
        2 => policy,
        1 => Just(Step::Tick),
    ]
}

/// From, to, source port, destination port, as opened.
type Ends = (u16, u16, u16, u16);

/// What the switch should do, the simple way.
struct Oracle {
    plain: Plain,
    datagrams: BTreeSet<Ends>,
    /// With how many segments of the handshake were forwarded.
    connections: BTreeMap<Ends, u8>,
    /// Sender, source port, destination port; the external port, and whether the flow is open.
    outward: BTreeMap<(u16, u16, u16), (u16, bool)>,
}

impl Oracle {
    /// What is denied now stays ended, even if a later policy would have allowed it. The connections that ended.
    fn change(&mut self, plain: &Plain) -> Vec<Ends> {
        self.plain = plain.clone();
        self.datagrams.retain(|flow| plain.allows(flow.3));
        self.outward.iter_mut().for_each(|((.., port), (_, open))| *open &= plain.allows(*port));
        let ended: Vec<Ends> =
            self.connections.keys().filter(|flow| !plain.allows(flow.3)).copied().collect();
        self.connections.retain(|flow, _| plain.allows(flow.3));
        ended
    }

    fn datagram(&mut self, from: u16, to: u16, (source, destination): (u16, u16)) -> Verdict {
        let tenant = |machine: u16| machine >= OTHER_WEB.0;
        // Both tenants use the same addresses: the sender's own tenant is meant.
        let target = match (tenant(from), tenant(to)) {
            (a, b) if a == b => to,
            (true, false) if PortId(to) == DB => return Verdict::Drop(DropReason::NoEndpoint),
            (true, false) => to + OTHER_WEB.0,
            _ => to - OTHER_WEB.0,
        };
        let opened = self.datagrams.contains(&(target, from, destination, source))
            || self.datagrams.contains(&(from, target, source, destination));
        if target == from {
            return Verdict::Drop(DropReason::ToSelf);
        }
        if !opened && !self.plain.allows(destination) {
            return Verdict::Drop(DropReason::Denied);
        }
        if !opened {
            self.datagrams.insert((from, target, source, destination));
        }
        Verdict::Forward(PortId(target))
    }

    fn open(&self) -> usize {
        let outward = self.outward.values().filter(|(_, open)| *open).count();
        self.datagrams.len() + self.connections.len() + outward
    }
}

fn acme() -> ExternalNetwork {
    ExternalNetwork {
        tenant: "acme".parse().unwrap(),
        name: "internet".parse().unwrap(),
        interface: "tap0".to_owned(),
        reaches: vec!["198.51.100.0/24".parse().unwrap()],
        addresses: vec![ip(EXTERNAL)],
        published: Vec::new(),
    }
}

fn connect(
    world: &mut World<'_>,
    oracle: &mut Oracle,
    ends: Ends,
    segments: u8,
) -> Result<(), TestCaseError> {
    let (from, to) = (PortId(ends.0), PortId(ends.1));
    let dialogue = Dialogue::new(from, to, ends.2, ends.3);
    let handshake = [
        (from, to, dialogue.out(SYN, 1000, 0, 0)),
        (to, from, dialogue.back(SYN | ACK, 5000, 1001, 0)),
        (from, to, dialogue.out(ACK, 1001, 5001, 0)),
    ];
    for (number, (port, target, frame)) in (1..=segments).zip(&handshake) {
        let verdict = world.offer(*port, frame);
        if number == 1 && !oracle.plain.allows(ends.3) {
            prop_assert_eq!(verdict, Verdict::Drop(DropReason::Denied));
            prop_assert!(world.switch.emissions().any(|emission| emission.port == from));
            return Ok(());
        }
        prop_assert_eq!(verdict, Verdict::Forward(*target), "{:?} segment {}", ends, number);
        let known = oracle.connections.entry(ends).or_default();
        // A SYN starts anew what was open; sent again before that, it changes nothing.
        *known = if number == 1 && *known == 3 { 1 } else { (*known).max(number) };
    }
    Ok(())
}

/// A policy change: what ended is reset at both ends, and nothing else is.
fn change(world: &mut World<'_>, oracle: &mut Oracle, plain: &Plain) -> Result<(), TestCaseError> {
    world.switch.emissions().for_each(drop);
    world.install(plain.compiled());
    let ended = oracle.change(plain);
    world.tick();
    let told: BTreeSet<(PortId, u16, u16)> = world
        .switch
        .emissions()
        .map(|emission| (emission.port, segment(&emission.frame)))
        .filter(|(_, segment)| segment.flags.has(RST))
        .map(|(port, segment)| (port, segment.source_port, segment.destination_port))
        .collect();
    let due: BTreeSet<_> = ended
        .into_iter()
        .flat_map(|(from, to, source, destination)| {
            [(PortId(to), source, destination), (PortId(from), destination, source)]
        })
        .collect();
    prop_assert_eq!(told, due);
    let live = |state: FlowState| !state.is_over();
    prop_assert_eq!(world.switch.flows().filter(|flow| live(flow.state)).count(), oracle.open());
    Ok(())
}

fn outward(
    world: &mut World<'_>,
    oracle: &mut Oracle,
    from: u16,
    ports: (u16, u16),
) -> Result<(), TestCaseError> {
    let port = PortId(from);
    let frame = emit::udp(link(port, UPLINK), between(v4(port), ip(SERVER)), ports, b"out");
    let mut sent = vswitch::Frame::copy_of(&frame);
    let verdict = world.switch.process(world.now, port, &mut sent, None);
    let key = (from, ports.0, ports.1);
    let open = oracle.outward.get(&key).is_some_and(|(_, open)| *open);
    if port >= OTHER_WEB {
        prop_assert_eq!(verdict, Verdict::Drop(DropReason::NoEndpoint));
    } else if open || oracle.plain.allows(ports.1) {
        prop_assert_eq!(verdict, Verdict::Forward(UPLINK));
        let (_, ip_) = parsed(sent.bytes());
        prop_assert_eq!(ip_.addresses.source(), ip(EXTERNAL));
        let packet::Transport::Udp(udp) = ip_.transport else { panic!("a datagram") };
        oracle.outward.insert(key, (udp.source_port, true));
    } else {
        prop_assert_eq!(verdict, Verdict::Drop(DropReason::Denied));
    }
    Ok(())
}

fn inward(world: &mut World<'_>, oracle: &Oracle, key: (u16, u16, u16)) -> Result<(), TestCaseError> {
    let Some((external, _)) = oracle.outward.get(&key).copied() else { return Ok(()) };
    let frame = emit::udp(link(UPLINK, WEB), between(ip(SERVER), ip(EXTERNAL)), (key.2, external), b"in");
    // Another machine may have got the port since.
    let owner = oracle
        .outward
        .iter()
        .find(|((_, _, destination), (port, open))| *open && *destination == key.2 && *port == external);
    let expected = owner
        .map_or(Verdict::Drop(DropReason::NoEndpoint), |((from, ..), _)| Verdict::Forward(PortId(*from)));
    prop_assert_eq!(world.offer(UPLINK, &frame), expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_frame_passes_exactly_when_policy_allows_its_flow(steps in prop::collection::vec(step(), 1..80)) {
        let mut memory = memory(4096);
        let mut world = World::new(&mut memory, allow());
        let plain = Plain { default: Action::Allow, rules: Vec::new() };
        world.install_networks(plain.compiled(), vec![acme()]);
        let mut oracle = Oracle {
            plain,
            datagrams: BTreeSet::new(),
            connections: BTreeMap::new(),
            outward: BTreeMap::new(),
        };
        for step in steps {
            match step {
                Step::Policy(plain) => change(&mut world, &mut oracle, &plain)?,
                Step::Tick => world.switch.tick(world.now, 3),
                Step::Datagram { from, to, ports } => {
                    let expected = oracle.datagram(from, to, ports);
                    let verdict = world.offer(PortId(from), &udp(PortId(from), PortId(to), ports));
                    prop_assert_eq!(verdict, expected, "{:?}", (from, to, ports));
                }
                Step::Connect { from, to, .. } | Step::Segment { from, to, .. } if from == to => {}
                Step::Connect { from, to, ports, segments } => {
                    connect(&mut world, &mut oracle, (from, to, ports.0, ports.1), segments)?;
                }
                Step::Segment { from, to, ports, back } => {
                    let (from, to) = (PortId(from), PortId(to));
                    let dialogue = Dialogue::new(from, to, ports.0, ports.1);
                    let (frame, port, target) = match back {
                        true => (dialogue.back(ACK, 5001, 1001, 10), to, from),
                        false => (dialogue.out(ACK, 1001, 5001, 10), from, to),
                    };
                    let verdict = world.offer(port, &frame);
                    let known = oracle.connections.get(&(from.0, to.0, ports.0, ports.1)).copied();
                    match known {
                        Some(3) => prop_assert_eq!(verdict, Verdict::Forward(target)),
                        // Before that it depends on whose turn it is; see the tracker's own tests.
                        Some(_) => {
                            oracle.connections.remove(&(from.0, to.0, ports.0, ports.1));
                            let syn = dialogue.out(SYN, 777_000, 0, 0);
                            prop_assert_eq!(world.offer(from, &syn), Verdict::Forward(to));
                            oracle.connections.insert((from.0, to.0, ports.0, ports.1), 1);
                            // That was the start of another connection; forget it with a reset.
                            let reset = dialogue.back(RST | ACK, 0, 777_001, 0);
                            prop_assert_eq!(world.offer(to, &reset), Verdict::Forward(from));
                            oracle.connections.remove(&(from.0, to.0, ports.0, ports.1));
                        }
                        None => prop_assert!(matches!(verdict, Verdict::Drop(_)), "{:?}", verdict),
                    }
                }
                Step::Outward { from, ports } => outward(&mut world, &mut oracle, from, ports)?,
                Step::Inward { from, ports } => inward(&mut world, &oracle, (from, ports.0, ports.1))?,
            }
        }
    }
}
