// SPDX-License-Identifier: Apache-2.0
//! What limits and shares do to guests' rings: frames wait, others pass, nothing is dropped.

use super::*;

/// Both of the packets' headers beside a payload, in bytes.
const HEADERS_BYTES: usize = 14 + 20 + 8;
/// A frame of that payload has 1,000 bytes: a millisecond at 8 Mbit/s.
const PAYLOAD_BYTES: usize = 1000 - HEADERS_BYTES;
/// The port of the limited service.
const LIMITED: u16 = 53;
const FREE: u16 = 54;

fn limit() -> String {
    format!(
        "---\napiVersion: meshvisor.dev/v1alpha1\nkind: FlowPolicy\nmetadata: {{name: slow, tenant: acme}}\n\
         spec:\n  to: [{{ports: [{{port: {LIMITED}, protocol: UDP}}]}}]\n  \
         limit: {{bitsPerSecond: 8000000, burstBytes: 0}}\n"
    )
}

impl Fabric {
    /// Puts other resources in force.
    fn set(&mut self, text: &str) {
        std::fs::write(self.dir.join("resources/all.yaml"), text).unwrap();
        assert!(self.mesh.reload(), "{:#?}", self.mesh.published().refused);
        self.install();
        self.settle();
    }

    /// Has a guest send a datagram of a flow to another.
    fn datagram(&mut self, (from, to): (usize, usize), ports: (u16, u16), marker: u32) {
        let packet = Packet::Udp { marker, len_bytes: PAYLOAD_BYTES };
        self.guests[from].send(&Sent { from, to, ports, packet }.frame());
    }

    /// One millisecond passes, and all cores work for some rounds. Returns who received which markers at which port.
    fn millisecond(&mut self) -> Vec<(usize, u16, u32)> {
        self.now = self.now.after(MILLISECOND);
        let now = self.now;
        for _ in 0..4 {
            self.cores.iter_mut().for_each(|core| _ = core.round(now));
        }
        let mut markers = Vec::new();
        for (guest, frames) in self.received().into_iter().enumerate() {
            for frame in frames {
                let udp = &frame[VNET_HEADER_BYTES + 34..];
                let port = u16::from_be_bytes([udp[2], udp[3]]);
                markers.push((guest, port, u32::from_ne_bytes(udp[8..12].try_into().unwrap())));
            }
        }
        markers
    }

    fn dropped(&mut self) -> u64 {
        let turn = &mut shared::Turn::default();
        let switch = self.cores[0].shared.with(self.now, turn, |switch, _| switch.counters().clone());
        let switch: u64 = switch.drops_by_reason().map(|(_, count)| count).sum();
        switch + self.cores.iter().map(|core| core.numbers.undelivered + core.numbers.late).sum::<u64>()
    }
}

#[test]
fn frames_beyond_a_limit_leave_at_its_rate_and_hold_back_their_descriptors() {
    for cores in [1, 2] {
        let mut fabric = Fabric::new(cores);
        fabric.set(&(manifests(1) + &limit()));
        (0..40).for_each(|marker| fabric.datagram((0, 1), (1000, LIMITED), marker));
        let (mut arrived, mut given_back) = (Vec::new(), 0);
        for millisecond in 1..=60 {
            arrived.extend(fabric.millisecond().into_iter().map(|(guest, _, marker)| (guest, marker)));
            given_back += fabric.guests[0].completed();
            let due = millisecond.min(40);
            assert!((due - 1..=due).contains(&arrived.len()), "{} after {millisecond} ms", arrived.len());
            assert_eq!(given_back, arrived.len(), "a descriptor is given back before its frame has left");
        }
        assert_eq!(arrived, (0..40).map(|marker| (1, marker)).collect::<Vec<_>>());
        assert_eq!(fabric.dropped(), 0);
    }
}

#[test]
fn frames_of_other_flows_pass_those_that_wait() {
    let mut fabric = Fabric::new(2);
    fabric.set(&(manifests(1) + &limit()));
    for marker in 0..10 {
        fabric.datagram((0, 1), (1000, LIMITED), marker);
        fabric.datagram((0, 2), (1000, FREE), marker);
    }
    let at_once = fabric.millisecond();
    let free = at_once.iter().filter(|(guest, port, _)| (*guest, *port) == (2, FREE)).count();
    assert_eq!((free, at_once.len()), (10, 11), "{at_once:?}");
    // What went ahead is given back with what it has overtaken.
    assert_eq!(fabric.guests[0].completed(), 2);
    for marker in 1..10 {
        assert_eq!(fabric.millisecond(), [(1, LIMITED, marker)]);
        assert_eq!(fabric.guests[0].completed(), 2);
    }
    assert_eq!(fabric.dropped(), 0);
}

#[test]
fn flows_that_share_a_limit_take_turns() {
    let mut fabric = Fabric::new(2);
    fabric.set(&(manifests(1) + &limit()));
    // One is far ahead of the other two, one of which is in the same guest.
    (0..20).for_each(|marker| fabric.datagram((0, 1), (1000, LIMITED), marker));
    fabric.millisecond();
    (0..5).for_each(|marker| fabric.datagram((0, 1), (1001, LIMITED), 100 + marker));
    (0..5).for_each(|marker| fabric.datagram((2, 1), (1002, LIMITED), 200 + marker));
    let mut arrived: Vec<u32> = Vec::new();
    for _ in 0..16 {
        arrived.extend(fabric.millisecond().into_iter().map(|(_, _, marker)| marker));
    }
    for late in [100_u32, 200] {
        let own = arrived.iter().filter(|marker| (late..late + 5).contains(*marker)).count();
        assert!(own >= 4, "of {late} only {own} in {arrived:?}");
    }
    assert_eq!(fabric.dropped(), 0);
}

#[test]
fn a_ring_with_too_much_to_wait_for_is_left_alone() {
    let mut fabric = Fabric::new(1);
    fabric.set(&(manifests(1) + &limit()));
    (0..60).for_each(|marker| fabric.datagram((0, 1), (1000, LIMITED), marker));
    fabric.datagram((0, 2), (1000, FREE), 7);
    let mut passed = None;
    let mut arrived = 0;
    for millisecond in 1..=70 {
        for (_, port, _) in fabric.millisecond() {
            if port == FREE {
                passed = Some(millisecond);
            } else {
                arrived += 1;
            }
        }
    }
    // It came when as many were left as there is room for.
    assert!(passed.is_some_and(|at| (20..60).contains(&at)), "{passed:?}");
    assert_eq!((arrived, fabric.guests[0].completed(), fabric.dropped()), (60, 61, 0));
}

#[test]
fn a_limit_that_is_lifted_lets_everything_go_in_order() {
    let mut fabric = Fabric::new(1);
    fabric.set(&(manifests(1) + &limit()));
    (0..20).for_each(|marker| fabric.datagram((0, 1), (1000, LIMITED), marker));
    assert_eq!(fabric.millisecond().len(), 1);
    fabric.set(&manifests(1));
    (20..25).for_each(|marker| fabric.datagram((0, 1), (1000, LIMITED), marker));
    let mut arrived = Vec::new();
    (0..3).for_each(|_| arrived.extend(fabric.millisecond().into_iter().map(|(_, _, marker)| marker)));
    assert!(arrived.is_sorted() && arrived.last() == Some(&24), "{arrived:?}");
    assert_eq!((fabric.guests[0].completed(), fabric.dropped()), (25, 0));
}

#[test]
fn a_policy_that_denies_meanwhile_frees_the_ring() {
    let mut fabric = Fabric::new(1);
    fabric.set(&(manifests(1) + &limit()));
    (0..20).for_each(|marker| fabric.datagram((0, 1), (1000, LIMITED), marker));
    assert_eq!(fabric.millisecond().len(), 1);
    fabric.set(&manifests(LIMITED));
    (0..30).for_each(|_| _ = fabric.millisecond());
    assert_eq!(fabric.guests[0].completed(), 20);
}

#[test]
fn in_a_round_a_port_has_taken_up_what_its_shares_are_worth() {
    let mut fabric = Fabric::new(1);
    fabric.set(&manifests(1).replacen("spec:\n  nics", "spec:\n  qos: {shares: 50}\n  nics", 1));
    // What a port may do is told with its first batch.
    fabric.datagram((0, 2), (1000, FREE), 0);
    fabric.datagram((1, 2), (1000, FREE), 0);
    fabric.settle();
    fabric.received();
    (0..30).for_each(|marker| fabric.datagram((0, 2), (1000, FREE), marker));
    (0..30).for_each(|marker| fabric.datagram((1, 2), (1000, FREE), marker));
    fabric.guests.iter_mut().take(2).for_each(|guest| _ = guest.completed());
    fabric.step(0);
    assert_eq!(fabric.guests[0].completed(), 16);
    assert_eq!(fabric.guests[1].completed(), 30);
    fabric.step(0);
    assert_eq!(fabric.guests[0].completed(), 14);
}
