// SPDX-License-Identifier: Apache-2.0
//! What a frame of a known flow costs: 10,000 TCP connections, 64-byte frames, in random order.
//!
//! ```text
//! cargo run --release -p vswitch --example hit
//! ```
//! Prints the best and the median of a number of rounds, in nanoseconds per frame, of the switch's work and
//! of the copy of the frame into the scratch head alone. Rings are not part of it.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock; the switch does not")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use model::{
    Action, Cidr, FlowQuery, Generation, Inventory, Judge, Judgement, MacAddr, Moment, Needs, Nic, NicRef,
    RuleId, Snapshot, SocketMode, Tenant, Vm,
};
use packet::emit::{self, Link, Segment};
use packet::{Addresses, TcpFlags};
use vswitch::{FlowSlot, Frame, PortId, Switch, SwitchConfig, Verdict};

const FLOWS: u32 = 10_000;
const ROUNDS: usize = 200;
const FRAMES_PER_ROUND: usize = 20_000;

#[derive(Debug)]
struct Open;

impl Judge for Open {
    fn needs(&self, _: &FlowQuery<'_>) -> Needs {
        Needs::default()
    }

    fn judge(&self, _: &FlowQuery<'_>) -> Judgement {
        let decided_by = RuleId("acme/default".into());
        Judgement { action: Action::Allow, decided_by, matched: Vec::new(), audited: Vec::new() }
    }
}

fn mac(index: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, index])
}

fn machine(name: &str, index: u8) -> Vm {
    let address: Cidr = format!("10.0.0.{index}/24").parse().expect("a literal");
    Vm {
        id: format!("acme/{name}").parse().expect("a literal"),
        labels: Default::default(),
        nics: vec![Nic {
            name: "net0".parse().expect("a literal"),
            socket: name.into(),
            socket_mode: SocketMode::Listen,
            mac: mac(index),
            addresses: vec![address],
            mtu_bytes: 1500,
        }],
    }
}

/// The `index`th connection's segment from one machine to the other.
fn segment(index: u32, outbound: bool, flags: TcpFlags, numbers: (u32, u32)) -> Vec<u8> {
    let (from, to) = if outbound { (11, 12) } else { (12, 11) };
    let ports = (1024 + (index % 60_000) as u16, 80 + (index / 60_000) as u16);
    let (source_port, destination_port) = if outbound { ports } else { (ports.1, ports.0) };
    let segment =
        Segment { source_port, destination_port, sequence: numbers.0, acknowledgment: numbers.1, flags };
    let link = Link { source: mac(from), destination: mac(to) };
    let addresses = Addresses::V4 { source: [10, 0, 0, from].into(), destination: [10, 0, 0, to].into() };
    let mut frame = emit::tcp(link, addresses, segment);
    frame.resize(60, 0);
    frame
}

fn load(frame: &mut Frame, bytes: &[u8]) {
    frame.head[..bytes.len()].copy_from_slice(bytes);
    frame.head_len_bytes = bytes.len();
    frame.total_len_bytes = bytes.len();
}

fn main() {
    let tenant = Tenant { name: "acme".parse().expect("a literal"), default_action: Action::Allow };
    let machines = vec![machine("web", 11), machine("api", 12)];
    let nics: Vec<_> =
        machines.iter().map(|vm| NicRef { vm: vm.id.clone(), nic: vm.nics[0].name.clone() }).collect();
    let inventory = Inventory::new(vec![tenant], machines).expect("a literal");
    let snapshot = Snapshot { generation: Generation(1), inventory, judge: Arc::new(Open) };
    let mut switch = Switch::new(SwitchConfig::new(0x5eed), vec![FlowSlot::FREE; 1 << 16]);
    let now = Moment(1_000_000_000);
    let ports = [(PortId(0), nics[0].clone()), (PortId(1), nics[1].clone())];
    switch.install(now, Arc::new(snapshot), &ports, &[]);

    let mut frame = Frame::default();
    let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
    let opened = Instant::now();
    for index in 0..FLOWS {
        for (port, bytes) in [
            (0, segment(index, true, syn, (1000, 0))),
            (1, segment(index, false, syn | ack, (5000, 1001))),
            (0, segment(index, true, ack, (1001, 5001))),
        ] {
            load(&mut frame, &bytes);
            let verdict = switch.process(now, PortId(port), &mut frame, None);
            assert_eq!(verdict, Verdict::Forward(PortId(1 - port)));
        }
    }
    println!(
        "opening a connection (3 frames, made here): {} ns",
        opened.elapsed().as_nanos() / u128::from(FLOWS)
    );

    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let frames: Vec<(u16, Vec<u8>)> = (0..FRAMES_PER_ROUND)
        .map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let outbound = random & 1 == 0;
            let numbers = if outbound { (1001, 5001) } else { (5001, 1001) };
            let bytes = segment((random >> 8) as u32 % FLOWS, outbound, ack, numbers);
            (u16::from(!outbound), bytes)
        })
        .collect();
    let copied_ns = measure(&frames, |_, frame| _ = black_box(frame));
    let switched_ns = measure(&frames, |port, frame| {
        let forwarded = matches!(switch.process(now, port, frame, None), Verdict::Forward(_));
        assert!(black_box(forwarded));
    });
    for (what, (best, median)) in [("copy alone", copied_ns), ("copy and switch", switched_ns)] {
        println!("{what}: best {best:.1} ns, median {median:.1} ns");
    }
}

/// Nanoseconds per frame in the best and the median round of offering all frames.
fn measure(frames: &[(u16, Vec<u8>)], mut work: impl FnMut(PortId, &mut Frame)) -> (f64, f64) {
    let mut frame = Frame::default();
    let mut rounds_ns = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for (port, bytes) in frames {
            load(&mut frame, bytes);
            work(PortId(*port), &mut frame);
        }
        rounds_ns.push(start.elapsed().as_nanos() as f64 / frames.len() as f64);
    }
    rounds_ns.sort_by(f64::total_cmp);
    (rounds_ns[0], rounds_ns[ROUNDS / 2])
}
