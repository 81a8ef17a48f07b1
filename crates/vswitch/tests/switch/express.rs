// SPDX-License-Identifier: Apache-2.0
//! The short way of plain packets decides as the long one does, which every frame goes that brings answers with it.

use std::time::Duration;

use model::{Action, BitRate, Limit, MacAddr, VmIndex};
use packet::{VnetHeader, emit};
use proptest::prelude::*;
use vswitch::{Answers, Frame, PortId, Verdict};

use crate::world::*;

/// What happens, one after the other.
#[derive(Clone, Debug)]
enum Step {
    Frame {
        ends: (u16, u16),
        kind: Kind,
        ports: (u16, u16),
        back: bool,
        oddity: Oddity,
    },
    /// The three segments that open a connection.
    Connect {
        ends: (u16, u16),
        ports: (u16, u16),
    },
    PassTime {
        ms: u64,
    },
    Policy {
        denied: Option<u16>,
        logged: bool,
        mirrored: bool,
        limited: bool,
    },
    Tick,
}

#[derive(Clone, Debug)]
enum Kind {
    Datagram { is_v6: bool, len: usize },
    Segment { flags: u8, sequence: i32, acknowledgment: i32, len: usize },
}

/// What is special about a frame.
#[derive(Clone, Debug)]
enum Oddity {
    Nothing,
    /// Another sender's Ethernet address.
    Source,
    /// To the virtual gateway.
    Gateway,
    /// Only so many bytes of it were copied.
    Cut(usize),
    /// It is longer than what was copied.
    Longer(usize),
    Offload(VnetHeader),
    /// A byte of its headers is another.
    Byte(usize, u8),
}

fn oddity() -> impl Strategy<Value = Oddity> {
    let offload = (0..3_u8, 0..6_u8, 0..1500_u16, 0..1600_u16, 0..20_u16).prop_map(
        |(flags, gso_type, gso_size, csum_start, csum_offset)| {
            let hdr_len = 54;
            Oddity::Offload(VnetHeader {
                flags,
                gso_type,
                gso_size,
                csum_start,
                csum_offset,
                hdr_len,
                num_buffers: 0,
            })
        },
    );
    prop_oneof![
        8 => Just(Oddity::Nothing),
        1 => Just(Oddity::Source),
        1 => Just(Oddity::Gateway),
        1 => (0..80_usize).prop_map(Oddity::Cut),
        1 => (0..2000_usize).prop_map(Oddity::Longer),
        2 => offload,
        1 => (0..60_usize, any::<u8>()).prop_map(|(at, byte)| Oddity::Byte(at, byte)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // Few flows, so that most frames belong to one that is open.
    let ends = || prop_oneof![(0..2_u16, 0..2_u16), (0..3_u16, 0..3_u16)];
    let ports = || (11..13_u16, 1..4_u16);
    let near = || prop_oneof![6 => 0..3_i32, 2 => -200..200_i32, 1 => any::<i32>()];
    let flags = prop_oneof![8 => Just(0x10_u8), 2 => Just(0x18), 2 => 0..64_u8];
    let len = || prop_oneof![Just(0_usize), 1..60_usize];
    let kind = prop_oneof![
        (any::<bool>(), len()).prop_map(|(is_v6, len)| Kind::Datagram { is_v6, len }),
        (flags, near(), near(), len()).prop_map(|(flags, sequence, acknowledgment, len)| {
            Kind::Segment { flags, sequence, acknowledgment, len }
        }),
    ];
    let frame = (ends(), kind, ports(), any::<bool>(), oddity())
        .prop_map(|(ends, kind, ports, back, oddity)| Step::Frame { ends, kind, ports, back, oddity });
    let policy = (prop::option::of(1..4_u16), any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(denied, logged, mirrored, limited)| Step::Policy { denied, logged, mirrored, limited });
    prop_oneof![
        24 => frame,
        4 => (ends(), ports()).prop_map(|(ends, ports)| Step::Connect { ends, ports }),
        2 => prop_oneof![3 => 0..50_u64, 1 => 0..200_000_u64].prop_map(|ms| Step::PassTime { ms }),
        1 => policy,
        1 => Just(Step::Tick),
    ]
}

/// Two switches that are told the same, one of which lets no frame go the short way.
struct Both<'a> {
    worlds: [World<'a>; 2],
}

impl Both<'_> {
    fn offer(&mut self, port: PortId, frame: &Frame) -> Result<(), TestCaseError> {
        let mut outcome = Vec::new();
        for (world, answers) in self.worlds.iter_mut().zip([None, Some(Answers::default())]) {
            let mut frame = frame.clone();
            let verdict = world.switch.process(world.now, port, &mut frame, answers.as_ref());
            let emissions: Vec<_> = world.switch.emissions().map(|own| (own.port, own.frame)).collect();
            let left = (frame.bytes().to_vec(), frame.vnet, frame.services, frame.mirror, frame.departs);
            // What a frame looks like that goes nowhere is nobody's business.
            let left = matches!(verdict, Verdict::Forward(_)).then_some(left);
            outcome.push((verdict, left, emissions, world.events()));
        }
        prop_assert_eq!(&outcome[0], &outcome[1]);
        Ok(())
    }

    fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Frame { ends, kind, ports, back, oddity } => {
                let (port, frame) = made(*ends, kind, *ports, *back, oddity);
                self.offer(port, &frame)
            }
            Step::Connect { ends: (from, to), ports } => {
                let dialogue = Dialogue::new(PortId(*from), PortId(*to), ports.0, ports.1);
                for (port, bytes) in [
                    (*from, dialogue.out(SYN, 1000, 0, 0)),
                    (*to, dialogue.back(SYN | ACK, 5000, 1001, 0)),
                    (*from, dialogue.out(ACK, 1001, 5001, 0)),
                ] {
                    self.offer(PortId(port), &Frame::copy_of(&bytes))?;
                }
                Ok(())
            }
            Step::PassTime { ms } => {
                self.worlds.iter_mut().for_each(|world| world.pass_time(Duration::from_millis(*ms)));
                Ok(())
            }
            Step::Tick => {
                self.worlds.iter_mut().for_each(World::tick);
                Ok(())
            }
            Step::Policy { denied, logged, mirrored, limited } => {
                let mut rules = Rules::always(Action::Allow);
                if let Some(port) = denied {
                    rules = rules.but(Rule { to_port: Some(*port), ..Rule::default() }, Action::Deny);
                }
                rules.log = logged.then_some(1);
                rules.mirror = mirrored.then_some((2, VmIndex(DB.0.into())));
                rules.limit =
                    limited.then_some((3, Limit { rate: BitRate::new(8000).unwrap(), burst_bytes: 0 }));
                self.worlds.iter_mut().for_each(|world| world.install(rules.clone()));
                Ok(())
            }
        }
    }
}

fn made(
    (from, to): (u16, u16),
    kind: &Kind,
    ports: (u16, u16),
    back: bool,
    oddity: &Oddity,
) -> (PortId, Frame) {
    let (from, to) = if back { (PortId(to), PortId(from)) } else { (PortId(from), PortId(to)) };
    let ports = if back { (ports.1, ports.0) } else { ports };
    let mut bytes = match kind {
        Kind::Datagram { is_v6, len } => {
            let addresses = if *is_v6 && from != DB && to != DB {
                between(v6(from), v6(to))
            } else {
                between(v4(from), v4(to))
            };
            emit::udp(link(from, to), addresses, ports, &vec![7; *len])
        }
        Kind::Segment { flags, sequence, acknowledgment, len } => {
            let (own, peer) = if back { (5001, 1001) } else { (1001, 5001_u32) };
            let numbers =
                (u32::wrapping_add_signed(own, *sequence), u32::wrapping_add_signed(peer, *acknowledgment));
            tcp(link(from, to), between(v4(from), v4(to)), ports, packet::TcpFlags(*flags), numbers, *len)
        }
    };
    let mut vnet = VnetHeader::default();
    let (mut copied, mut longer) = (usize::MAX, 0);
    match oddity {
        Oddity::Nothing => {}
        Oddity::Source => bytes[6..12].copy_from_slice(&MacAddr([2, 9, 9, 9, 9, 9]).0),
        Oddity::Gateway => bytes[..6].copy_from_slice(&config().gateway_mac.0),
        Oddity::Cut(at) => copied = *at,
        Oddity::Longer(by) => longer = *by,
        Oddity::Offload(header) => vnet = *header,
        Oddity::Byte(at, byte) => bytes.iter_mut().skip(*at).take(1).for_each(|field| *field = *byte),
    }
    let mut frame = Frame::copy_of(&bytes);
    frame.vnet = vnet;
    frame.head_len_bytes = frame.head_len_bytes.min(copied);
    frame.total_len_bytes += longer;
    (from, frame)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_short_way_decides_as_the_long_one(steps in prop::collection::vec(step(), 1..120)) {
        let (mut one, mut other) = (memory(64), memory(64));
        let world = |memory| World::new(memory, Rules::always(Action::Allow));
        let mut both = Both { worlds: [world(&mut one[..]), world(&mut other[..])] };
        for step in &steps {
            both.take(step)?;
        }
        let [short, long] = &both.worlds;
        prop_assert_eq!(short.switch.counters(), long.switch.counters());
        let records = |world: &World<'_>| world.switch.flows().map(|flow| format!("{flow:?}")).collect::<Vec<_>>();
        prop_assert_eq!(records(short), records(long));
    }
}
