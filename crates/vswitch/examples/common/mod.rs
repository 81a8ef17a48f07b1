// SPDX-License-Identifier: Apache-2.0
//! Two machines and a switch between them, for measurements.
#![allow(dead_code, reason = "each measurement uses its own part")]

use std::sync::Arc;

use model::{
    Action, Cidr, FlowQuery, Generation, Inventory, Judge, Judgement, MacAddr, Moment, Needs, Nic, NicRef,
    RuleId, Snapshot, SocketMode, Tenant, Vm,
};
use packet::emit::{self, Link, Segment};
use packet::{Addresses, TcpFlags};
use vswitch::{FlowSlot, Frame, PortId, Switch, SwitchConfig, Verdict};

#[derive(Debug)]
struct Open;

impl Judge for Open {
    fn needs(&self, _: &FlowQuery<'_>) -> Needs {
        Needs::default()
    }

    fn judge(&self, _: &FlowQuery<'_>) -> Judgement {
        Judgement::new(Action::Allow, RuleId("acme/default".into()))
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
pub fn segment(index: u32, outbound: bool, flags: TcpFlags, numbers: (u32, u32)) -> Vec<u8> {
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

pub fn load(frame: &mut Frame, bytes: &[u8]) {
    frame.head[..bytes.len()].copy_from_slice(bytes);
    frame.head_len_bytes = bytes.len();
    frame.total_len_bytes = bytes.len();
}

/// A datagram of the `index`th flow, from one machine to the other.
pub fn datagram(index: u32) -> Vec<u8> {
    let link = Link { source: mac(11), destination: mac(12) };
    let addresses = Addresses::V4 { source: [10, 0, 0, 11].into(), destination: [10, 0, 0, 12].into() };
    emit::udp(link, addresses, (1024 + index as u16, 53), &[0; 18])
}

/// A switch between two machines, and the moment it was made.
pub fn switch() -> (Switch<Vec<FlowSlot>>, Moment) {
    let tenant = Tenant { name: "acme".parse().expect("a literal"), default_action: Action::Allow };
    let machines = vec![machine("web", 11), machine("api", 12)];
    let nics: Vec<_> =
        machines.iter().map(|vm| NicRef { vm: vm.id.clone(), nic: vm.nics[0].name.clone() }).collect();
    let inventory = Inventory::new(vec![tenant], machines).expect("a literal");
    let snapshot = Snapshot {
        generation: Generation(1),
        inventory,
        judge: Arc::new(Open),
        services: Arc::new(model::NoServices),
    };
    let mut switch = Switch::new(SwitchConfig::new(0x5eed), vec![FlowSlot::FREE; 1 << 16]);
    let now = Moment(1_000_000_000);
    let ports = [(PortId(0), nics[0].clone()), (PortId(1), nics[1].clone())];
    switch.install(now, Arc::new(snapshot), &ports, &[]);
    (switch, now)
}

/// Opens that many connections.
pub fn connect(switch: &mut Switch<Vec<FlowSlot>>, now: Moment, connections: u32) {
    let mut frame = Frame::default();
    let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
    for index in 0..connections {
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
}
