// SPDX-License-Identifier: Apache-2.0
//! Several cores must come to what one would: guests of a few lines on cores that are stepped by hand.

mod limits;

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use model::{MacAddr, Moment, NicRef, Ranges};
use packet::emit::{self, Link, Segment};
use packet::{Addresses, TcpFlags};
use platform::EventFd;
use proptest::prelude::*;
use testkit::claim::skip;
use testkit::scratch::Scratch;
use vhost_port::testing::TestGuest;
use vhost_port::{Port, VNET_HEADER_BYTES};
use vswitch::{FlowEvent, PortId, SwitchConfig};

use super::*;
use crate::clock::now;
use crate::handover::HandOver;
use crate::introspect::Introspection;
use crate::mesh::{Host, Mesh};
use crate::profiles::Profiles;

/// Guests of the tests: three of one tenant, and one of another with the address of the second.
const GUESTS: [(&str, u8, u8); 4] = [("acme", 0, 11), ("acme", 1, 12), ("acme", 2, 13), ("globex", 3, 12)];
/// More rounds than anything takes to come to rest.
const ROUNDS_MAX: usize = 64;
/// The port that the first guest sends datagrams from; the others' follow.
const SENDERS_PORT: u16 = 5000;
const MILLISECOND: Duration = Duration::from_millis(1);

/// Everything of one tenant may talk but for one port. What the first guest of the tenant sends to port 2 is copied to the
/// third, what it sends to port 3 of the second goes to the third.
fn manifests(refused_port: u16) -> String {
    let mut text = String::new();
    for tenant in ["acme", "globex"] {
        text += &format!(
            "apiVersion: meshvisor.dev/v1alpha1\nkind: Tenant\nmetadata: {{name: {tenant}}}\n\
             spec: {{defaultAction: Allow}}\n---\n"
        );
    }
    for (tenant, number, host) in GUESTS {
        text += &format!(
            "apiVersion: meshvisor.dev/v1alpha1\nkind: VirtualMachine\n\
             metadata: {{name: vm-{number}, tenant: {tenant}}}\n\
             spec:\n  nics:\n  - {{name: net0, socket: {number}.sock, mac: \"02:00:00:00:00:0{number}\", \
             addresses: [10.0.0.{host}/24]}}\n---\n"
        );
    }
    text += &format!(
        "apiVersion: meshvisor.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: refused, tenant: acme}}\n\
         spec:\n  action: Deny\n  from:\n  - cidr: 10.0.0.0/24\n  to:\n  - cidr: 10.0.0.0/24\n    \
         ports: [{{port: {refused_port}, protocol: TCP}}, {{port: {refused_port}, protocol: UDP}}]\n---\n"
    );
    for (name, to, service) in [
        ("watched", "{ports: [{port: 2}]}", "mirror: {vm: vm-2}"),
        ("elsewhere", "{vm: {name: vm-1}, ports: [{port: 3}]}", "redirect: {vm: vm-2, port: 1}"),
    ] {
        text += &format!(
            "apiVersion: meshvisor.dev/v1alpha1\nkind: FlowPolicy\nmetadata: {{name: {name}, tenant: acme}}\n\
             spec:\n  from: [{{vm: {{name: vm-0}}}}]\n  to: [{to}]\n  {service}\n---\n"
        );
    }
    text
}

/// Cores with all guests, and nothing in between that a clock or a thread decides.
struct Fabric {
    cores: Vec<Core>,
    handle: PollHandle,
    guests: Vec<TestGuest>,
    events: Receiver<FlowEvent>,
    mesh: Mesh,
    now: Moment,
    /// How long a round takes.
    tick: Duration,
    dir: Scratch,
}

impl Fabric {
    /// As many cores; guests are spread over them as ports always are.
    fn new(cores: usize) -> Self {
        let dir = Scratch::new("fabric").unwrap();
        std::fs::create_dir(dir.join("resources")).unwrap();
        std::fs::write(dir.join("resources/all.yaml"), manifests(1)).unwrap();
        let mesh = Mesh::load(
            dir.join("resources"),
            Host { ranges: Ranges::default(), capacity: SwitchConfig::new(0).capacity, takes_spans: false },
        )
        .unwrap();
        let (hand_over, memory) = HandOver::take(dir.path(), 1024, 7).unwrap();
        let (ring, events) = bounded(1 << 16);
        let introspection = Introspection::start(false, Profiles(None)).unwrap();
        let wiring = Wiring {
            inquiries: bounded(1).0,
            introspection,
            dns: None,
            attribution_wait: Duration::from_millis(50),
            watched: Arc::new(AtomicBool::new(true)),
            cpus: Vec::new(),
        };
        let poll = Poll::new(cores).unwrap();
        let handle = poll.handle();
        let switch = Switch::new(SwitchConfig::new(hand_over.hash_seed()), memory);
        let mut cores = poll.cores(switch, Funnel::new(ring), wiring).unwrap();
        // No work takes any time, unless a test says so.
        cores.iter_mut().for_each(|core| core.clock = || Moment(0));
        let mut fabric = Self {
            cores,
            handle,
            guests: Vec::new(),
            events,
            mesh,
            now: Moment(1 << 40),
            tick: MILLISECOND,
            dir,
        };
        for number in 0..GUESTS.len() {
            let (guest, port) = TestGuest::new();
            fabric.guests.push(guest);
            fabric.seat(number, 0, port);
        }
        fabric.install();
        fabric.settle();
        fabric
    }

    /// Has a port served in a guest's name.
    fn seat(&self, number: usize, serial: u64, port: Port) {
        self.handle.send(Command::AddPort(Seat {
            id: PortId(number as u16),
            serial,
            card: card(number),
            port: Box::new(port),
            waker: Arc::new(EventFd::new().unwrap()),
        }));
    }

    /// Has another guest take the place of one.
    fn replace(&mut self, number: usize, (guest, port): (TestGuest, Port)) {
        self.guests[number] = guest;
        self.seat(number, 1, port);
        self.settle();
        self.handle.send(Command::RemovePort(PortId(number as u16), 0));
        self.settle();
    }

    fn send_datagram(&mut self, from: usize, to: usize) {
        self.send_marked(from, to, 1);
    }

    fn send_marked(&mut self, from: usize, to: usize, marker: u32) {
        let packet = Packet::Udp { marker, len_bytes: 64 };
        let ports = (SENDERS_PORT + from as u16, 6000);
        self.guests[from].send(&Sent { from, to, ports, packet }.frame());
    }

    /// Of the datagrams that came to a guest who sent them, and their markers.
    fn marked(&mut self, to: usize) -> Vec<(usize, u32)> {
        let marked = |frame: Vec<u8>| {
            let datagram = &frame[VNET_HEADER_BYTES + 14 + 20..];
            let from = u16::from_be_bytes([datagram[0], datagram[1]]) - SENDERS_PORT;
            (usize::from(from), u32::from_ne_bytes(datagram[8..12].try_into().unwrap()))
        };
        self.guests[to].received().into_iter().map(marked).collect()
    }

    fn core_of(&self, port: u16) -> CoreId {
        self.handle.core_of(PortId(port)).unwrap()
    }

    fn install(&self) {
        let ports = (0..GUESTS.len()).map(|number| (PortId(number as u16), card(number))).collect();
        let snapshot = self.mesh.published().snapshot;
        self.handle.send(Command::Install { snapshot, ports, uplinks: Vec::new() });
    }

    /// Puts another policy in force.
    fn refuse(&mut self, port: u16) {
        std::fs::write(self.dir.join("resources/all.yaml"), manifests(port)).unwrap();
        assert!(self.mesh.reload());
        self.install();
    }

    fn step(&mut self, core: usize) -> bool {
        self.now = self.now.after(self.tick);
        let count = self.cores.len();
        self.cores[core % count].round(self.now)
    }

    /// Lets all cores work until none has anything left to do.
    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut busy = false;
            for core in 0..self.cores.len() {
                busy |= self.step(core);
            }
            // A frame that the switch made is delivered by the core that has its port one round later.
            if !busy && self.cores.iter().all(|core| core.is_at_rest()) {
                return;
            }
        }
        panic!("the cores do not come to rest");
    }

    fn received(&mut self) -> Vec<Vec<Vec<u8>>> {
        self.guests.iter_mut().map(TestGuest::received).collect()
    }
}

fn card(number: usize) -> NicRef {
    let (tenant, vm, _) = GUESTS[number];
    NicRef { vm: format!("{tenant}/vm-{vm}").parse().unwrap(), nic: "net0".parse().unwrap() }
}

/// What a guest sends.
#[derive(Clone, Debug)]
enum Packet {
    Tcp { flags: u8, sequence: u32, acknowledgment: u32 },
    Udp { marker: u32, len_bytes: usize },
}

/// A packet from one guest to another's address, between ports of theirs.
#[derive(Clone, Debug)]
struct Sent {
    from: usize,
    to: usize,
    ports: (u16, u16),
    packet: Packet,
}

impl Sent {
    fn frame(&self) -> Vec<u8> {
        let ((_, number, from), (_, _, to)) = (GUESTS[self.from], GUESTS[self.to]);
        let mac = |number| MacAddr([2, 0, 0, 0, 0, number]);
        let link = Link { source: mac(number), destination: mac(GUESTS[self.to].1) };
        let address = |host| Ipv4Addr::new(10, 0, 0, host);
        let addresses = Addresses::V4 { source: address(from), destination: address(to) };
        let frame = match self.packet {
            Packet::Tcp { flags, sequence, acknowledgment } => {
                let segment = Segment {
                    source_port: self.ports.0,
                    destination_port: self.ports.1,
                    sequence,
                    acknowledgment,
                    flags: TcpFlags(flags),
                };
                emit::tcp(link, addresses, segment)
            }
            Packet::Udp { marker, len_bytes } => {
                let mut payload = vec![7; len_bytes];
                payload[..4].copy_from_slice(&marker.to_ne_bytes());
                emit::udp(link, addresses, self.ports, &payload)
            }
        };
        [vec![0; VNET_HEADER_BYTES], frame].concat()
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let flags = prop_oneof![
        3 => Just(TcpFlags::SYN),
        3 => Just(TcpFlags::SYN | TcpFlags::ACK),
        3 => Just(TcpFlags::ACK),
        1 => Just(TcpFlags::FIN | TcpFlags::ACK),
        1 => Just(TcpFlags::RST),
    ];
    let tcp = (flags, 0..3_u32, 0..3_u32).prop_map(|(flags, sequence, acknowledgment)| Packet::Tcp {
        flags: flags.0,
        sequence,
        acknowledgment,
    });
    let udp = (any::<u32>(), 4..1400_usize).prop_map(|(marker, len_bytes)| Packet::Udp { marker, len_bytes });
    let ports = prop_oneof![4 => Just((1, 2)), 4 => Just((2, 1)), 1 => (1..4_u16, 1..4_u16)];
    (0..GUESTS.len(), 0..GUESTS.len(), ports, prop_oneof![2 => tcp, 1 => udp])
        .prop_map(|(from, to, ports, packet)| Sent { from, to, ports, packet })
}

#[derive(Clone, Debug)]
enum Act {
    /// These frames, one after the other.
    Send(Vec<Sent>),
    Move(u16, u8),
    Refuse(u16),
}

/// A connection opens.
fn handshake(client: usize, server: usize, port: u16) -> Vec<Sent> {
    let segment = |from, to, ports, flags: TcpFlags, sequence, acknowledgment| Sent {
        from,
        to,
        ports,
        packet: Packet::Tcp { flags: flags.0, sequence, acknowledgment },
    };
    vec![
        segment(client, server, (9, port), TcpFlags::SYN, 0, 0),
        segment(server, client, (port, 9), TcpFlags::SYN | TcpFlags::ACK, 0, 1),
        segment(client, server, (9, port), TcpFlags::ACK, 1, 1),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => sent().prop_map(|sent| Act::Send(vec![sent])),
        4 => (0..3_usize, 0..3_usize, 1..4_u16).prop_map(|(a, b, port)| Act::Send(handshake(a, b, port))),
        2 => (0..4_u16, 0..4_u8).prop_map(|(port, core)| Act::Move(port, core)),
        1 => (1..4_u16).prop_map(Act::Refuse),
    ]
}

/// What of an event does not depend on the time.
fn told(event: FlowEvent) -> impl PartialEq + std::fmt::Debug {
    let ends = |end: vswitch::FlowEnd| (end.port, end.sent_frames, end.sent_bytes, end.sent_flags);
    let record = event.record;
    (event.change, record.tuple, record.state, ends(record.initiator), ends(record.responder))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Deliveries, resets, records and counts, whatever was sent, whichever cores the ends were at, and however often
    /// they moved.
    #[test]
    fn several_cores_come_to_what_one_does(acts in prop::collection::vec(act(), 1..60)) {
        let (mut one, mut three) = (Fabric::new(1), Fabric::new(3));
        for act in &acts {
            match act {
                Act::Send(all) => {
                    for sent in all {
                        for fabric in [&mut one, &mut three] {
                            fabric.guests[sent.from].send(&sent.frame());
                            fabric.settle();
                        }
                    }
                }
                // The fourth core is the side core.
                Act::Move(port, core) => three.handle.send(Command::MovePort(PortId(*port), CoreId(*core))),
                Act::Refuse(port) => {
                    one.refuse(*port);
                    three.refuse(*port);
                }
            }
            one.settle();
            three.settle();
            prop_assert_eq!(one.received(), three.received(), "after {:?}", act);
        }
        let events = |fabric: &Fabric| fabric.events.try_iter().map(told).collect::<Vec<_>>();
        prop_assert_eq!(events(&one), events(&three));
        let counters = |fabric: &Fabric| {
            let turn = &mut shared::Turn::default();
            fabric.cores[0].shared.with(fabric.now, turn, |switch, _| switch.counters().clone())
        };
        prop_assert_eq!(counters(&one), counters(&three));
    }

    /// Frames in bursts, while cores work and ports move in any order: each arrives once, and those of a flow in the order in
    /// which they were sent.
    #[test]
    fn nothing_is_lost_or_doubled_while_ports_move(
        acts in prop::collection::vec((0..3_usize, 0..3_usize, 1..8_usize, 0..8_usize, 0..5_u8), 1..100),
    ) {
        let mut fabric = Fabric::new(3);
        // No core stands still for long.
        fabric.tick = Duration::from_micros(1);
        let (mut marker, mut settled) = (0, 0);
        let mut expected: Vec<Vec<u32>> = vec![Vec::new(); 9];
        let mut arrived: Vec<Vec<u32>> = vec![Vec::new(); 9];
        let take = |fabric: &mut Fabric, arrived: &mut Vec<Vec<u32>>| {
            for to in 0..3 {
                fabric.marked(to).into_iter().for_each(|(from, marker)| arrived[from * 3 + to].push(marker));
            }
        };
        for (from, to, burst, core, to_core) in acts {
            if from != to {
                for _ in 0..burst {
                    fabric.send_marked(from, to, marker);
                    expected[from * 3 + to].push(marker);
                    marker += 1;
                }
            } else if to_core < 4 {
                fabric.handle.send(Command::MovePort(PortId(to as u16), CoreId(to_core)));
            }
            fabric.step(core);
            fabric.step(core / 2);
            // Rings hold 64 frames, and a burst at most seven; nothing may be refused for that.
            if marker - settled > 50 {
                fabric.settle();
                take(&mut fabric, &mut arrived);
                settled = marker;
            }
        }
        fabric.settle();
        take(&mut fabric, &mut arrived);
        for (pair, (expected, arrived)) in expected.into_iter().zip(arrived).enumerate() {
            prop_assert_eq!(expected, arrived, "from {} to {}", pair / 3, pair % 3);
        }
    }
}

#[test]
fn a_port_that_was_opened_again_is_not_removed_with_the_old_one() {
    let mut fabric = Fabric::new(2);
    let first = fabric.core_of(0);
    fabric.replace(0, TestGuest::new());
    fabric.send_datagram(0, 1);
    fabric.settle();
    assert_eq!(fabric.received()[1].len(), 1, "the port was first at core {first:?}");
}

#[test]
fn a_guest_whose_memory_is_slow_is_waited_for_by_the_side_core_alone() {
    let slow = match TestGuest::with_slow_memory(Duration::from_millis(20)) {
        // Containers often forbid it.
        Err(error) if [ErrorKind::PermissionDenied, ErrorKind::Unsupported].contains(&error.kind()) => {
            return skip(
                "a_guest_whose_memory_is_slow_is_waited_for_by_the_side_core_alone",
                format_args!("it takes userfaultfd: {error}"),
            );
        }
        slow => slow.unwrap(),
    };
    let mut fabric = Fabric::new(1);
    let side = fabric.handle.named("side").unwrap();
    fabric.replace(2, slow);
    fabric.cores[0].clock = now;
    // What a round waits for memory, if it does.
    let waits = |fabric: &mut Fabric, core: usize| {
        fabric.now = now();
        let before = platform::times_blocked();
        fabric.step(core);
        platform::times_blocked() - before
    };
    fabric.send_datagram(0, 2);
    assert!(waits(&mut fabric, 0) > 0, "the first wait is everybody's");
    fabric.settle();
    assert_eq!(fabric.core_of(2), side);

    // The next buffer was waited for then, too: it was claimed ahead.
    fabric.send_datagram(0, 2);
    fabric.step(0);
    fabric.step(side.index());
    let mut arrived = fabric.received()[2].len();
    for _ in 0..3 {
        fabric.send_datagram(0, 2);
        fabric.send_datagram(0, 1);
        assert_eq!(waits(&mut fabric, 0), 0, "the others do not notice");
        assert_eq!(fabric.received()[1].len(), 1);
        assert!(waits(&mut fabric, side.index()) > 0);
        arrived += fabric.received()[2].len();
    }
    assert_eq!(arrived, 5, "and nothing is lost");

    fabric.now = fabric.now.after(Duration::from_secs(6));
    fabric.settle();
    assert_eq!(fabric.core_of(2), CoreId::FIRST, "it goes back after a calm while");
}

/// On threads of their own, as in the daemon. Only the first core ever wakes by itself.
#[test]
fn a_core_that_sleeps_is_woken_by_frames_from_another() {
    let mut fabric = Fabric::new(2);
    let (from, to) = (fabric.core_of(0), fabric.core_of(1));
    assert_eq!((from, to), (CoreId(0), CoreId(1)));
    for core in fabric.cores.drain(..) {
        std::thread::spawn(move || core.run_or_abort());
    }
    for number in 0..200 {
        fabric.send_datagram(0, 1);
        // In place of the guest's kick.
        fabric.handle.send_to(from, Command::Numbers(bounded(1).0));
        let deadline = Instant::now() + Duration::from_secs(20);
        while fabric.guests[1].received().is_empty() {
            assert!(Instant::now() < deadline, "frame {number} did not wake the core");
            std::thread::yield_now();
        }
    }
    let numbers = fabric.handle.numbers().unwrap();
    let slept = numbers.cores[to.index()].as_ref().map_or(0, |core| core.sleeps);
    assert!(slept > 0, "it never slept");
}

#[test]
fn a_port_moves_without_a_core_that_stands_still() {
    let mut fabric = Fabric::new(3);
    let (from, to) = (fabric.core_of(0), CoreId(1));
    assert_eq!((from, fabric.core_of(1), fabric.core_of(2)), (CoreId(0), CoreId(1), CoreId(2)));
    fabric.handle.send(Command::MovePort(PortId(0), to));
    // The third core sends to the port's old core, and then not even takes a round.
    fabric.send_datagram(2, 0);
    fabric.step(2);
    let begun = fabric.now;
    fabric.step(0);
    fabric.send_datagram(0, 1);
    fabric.send_datagram(1, 0);
    while fabric.core_of(0) == from {
        assert!(fabric.now.since(begun) <= moving::WAIT_MAX + 3 * MILLISECOND, "it still rests");
        fabric.step(1);
        fabric.step(0);
    }
    assert!(fabric.now.since(begun) >= moving::WAIT_MAX, "it has not waited for the third core");
    fabric.step(1);
    fabric.step(0);
    let received = fabric.received();
    assert_eq!((received[0].len(), received[1].len()), (2, 1), "and all frames arrive");
    fabric.settle();
}

#[test]
fn what_was_sent_to_the_old_core_at_the_last_moment_comes_first() {
    let mut fabric = Fabric::new(3);
    fabric.handle.send(Command::MovePort(PortId(1), CoreId(2)));
    // The old core has looked into its links, but has not let go of the port yet.
    let now = fabric.now;
    fabric.cores[1].take_commands(now);
    fabric.cores[1].take_parcels();
    fabric.send_marked(0, 1, 1);
    fabric.step(0);
    assert!(fabric.cores[1].go_on_moving(now));
    fabric.send_marked(0, 1, 2);
    fabric.step(0);
    fabric.settle();
    assert_eq!(fabric.core_of(1), CoreId(2));
    assert_eq!(fabric.marked(1), [(0, 1), (0, 2)]);
}

#[test]
fn a_port_is_removed_while_it_moves() {
    let mut fabric = Fabric::new(2);
    fabric.handle.send(Command::MovePort(PortId(0), CoreId(1)));
    fabric.step(0);
    fabric.handle.send(Command::RemovePort(PortId(0), 0));
    fabric.settle();
    assert_eq!(fabric.handle.core_of(PortId(0)), None);
    assert!(fabric.cores.iter_mut().all(|core| core.lane(PortId(0)).is_none()));
    // And the next one can.
    fabric.handle.send(Command::MovePort(PortId(1), CoreId(0)));
    fabric.settle();
    assert_eq!(fabric.core_of(1), CoreId(0));
}

#[test]
fn full_links_drop_and_count() {
    let mut fabric = Fabric::new(2);
    fabric.handle.send(Command::MovePort(PortId(0), CoreId(0)));
    fabric.handle.send(Command::MovePort(PortId(1), CoreId(1)));
    fabric.settle();
    let sent = 2 * link::FRAMES_MAX;
    for _ in 0..sent {
        fabric.send_datagram(0, 1);
        // The other core is held up.
        fabric.step(0);
        assert_eq!(fabric.guests[0].completed(), 1, "the sender never waits for another core");
    }
    let numbers = &fabric.cores[0].numbers;
    assert_eq!(numbers.handed_over + numbers.link_full, sent as u64);
    assert!(numbers.link_full > 0);
}
