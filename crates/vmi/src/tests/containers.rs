// SPDX-License-Identifier: Apache-2.0
//! Containers: sockets in network namespaces of their own, behind translated addresses.

use model::{Attribution, Confidence, Protocol, UnknownReason};

use super::kernel::{Container, Kernel};
use super::{attach, end, kernel};
use crate::Guest;
use crate::memory::Gva;

/// A kernel with a container, and what to do to it.
fn contained(change: impl FnOnce(&mut Kernel, Container)) -> Kernel {
    let mut kernel = kernel();
    let container = kernel.contain();
    change(&mut kernel, container);
    kernel
}

/// Makes the kernel's one frame a routed one of the container's connection over IPv4.
fn route(kernel: &mut Kernel, container: Container, state: u64) {
    let frame = kernel.layout.network.conntrack.as_ref().unwrap().frame.connection;
    let sk = kernel.layout.devices.as_ref().unwrap().skb.sk;
    kernel.put(kernel.at.skb, sk, 0);
    kernel.put(kernel.at.skb, frame, container.tracked.0 | state);
}

fn told(attribution: &Attribution) -> (Option<u32>, Confidence, Option<String>) {
    let pid = attribution.process.as_ref().map(|process| process.pid);
    (pid, attribution.confidence, attribution.inner.map(|inner| inner.to_string()))
}

fn close(kernel: &mut Kernel, sock: Gva) {
    let layout = kernel.layout.sock.clone();
    kernel.put(sock, layout.socket, 0);
    kernel.put(sock, layout.flags, 1);
}

#[test]
fn routed_frame_leads_to_the_process_in_the_container() {
    // New (2) and established (0).
    for state in [2, 0] {
        let kernel = contained(|kernel, container| route(kernel, container, state));
        let owner = attach(&kernel.ram).frame_owner(kernel.at.ring_gpa, 0);
        assert_eq!(told(&owner), (Some(7), Confidence::Descriptor, Some("172.17.0.2:4000".into())));
    }
    // In the other direction, the frame would be the remote end's, which is no socket here.
    let kernel = contained(|kernel, container| route(kernel, container, 3));
    let owner = attach(&kernel.ram).frame_owner(kernel.at.ring_gpa, 0);
    assert_eq!(told(&owner), (None, Confidence::Unknown, Some("10.0.0.2:80".into())));
}

#[test]
fn closed_socket_in_a_container_still_tells_what_is_left() {
    let kernel = contained(|kernel, container| {
        route(kernel, container, 0);
        close(kernel, container.sockets[0]);
    });
    let owner = attach(&kernel.ram).frame_owner(kernel.at.ring_gpa, 0);
    assert_eq!(told(&owner), (None, Confidence::Socket, Some("172.17.0.2:4000".into())));
    assert_eq!((owner.uid(), owner.unit()), (Some(1001), Some("shop.service")));
    // And without the socket, at least the address.
    let kernel = contained(|kernel, container| {
        route(kernel, container, 0);
        kernel.empty_connections();
    });
    let owner = attach(&kernel.ram).frame_owner(kernel.at.ring_gpa, 0);
    assert_eq!(told(&owner), (None, Confidence::Unknown, Some("172.17.0.2:4000".into())));
    assert_eq!(owner.unknown, Some(UnknownReason::NoSocket));
}

/// Each translated connection as the wire shows it, and its end inside.
const TRANSLATED: [(Protocol, &str, &str, &str); 3] = [
    (Protocol::Tcp, "10.0.0.1:61000", "10.0.0.2:80", "172.17.0.2:4000"),
    (Protocol::Tcp, "[fd00::1]:61000", "[fd00::2]:80", "[fd17::2]:4001"),
    (Protocol::Udp, "10.0.0.1:61000", "10.0.0.2:53", "172.17.0.2:4002"),
];

fn check_translated(guest: &mut Guest, found: bool) {
    for (protocol, local, remote, inner) in TRANSLATED {
        let owner = guest.connection_owner(end(local), end(remote), protocol);
        if found {
            assert_eq!(told(&owner), (Some(7), Confidence::Table, Some(inner.into())), "{local} {protocol}");
        } else {
            assert_eq!(told(&owner), (None, Confidence::Unknown, None), "{local} {protocol}");
        }
    }
}

#[test]
fn translated_connections_are_found_without_their_frame() {
    let kernel = contained(|_, _| ());
    let mut guest = attach(&kernel.ram);
    for _ in 0..2 {
        check_translated(&mut guest, true);
    }
    let other = guest.connection_owner(end("10.0.0.1:61001"), end("10.0.0.2:80"), Protocol::Tcp);
    assert_eq!((other.unknown, other.inner), (Some(UnknownReason::NoSocket), None));
    let icmp = guest.connection_owner(end("10.0.0.1:61000"), end("10.0.0.2:80"), Protocol::Icmp);
    assert_eq!(icmp.unknown, Some(UnknownReason::NoSocket));
}

#[test]
fn translations_with_a_hash_that_is_not_understood_are_found_all_the_same() {
    let kernel = contained(|kernel, container| kernel.put(container.key, 0, 0x5a5a));
    let mut guest = attach(&kernel.ram);
    for _ in 0..2 {
        check_translated(&mut guest, true);
    }
}

#[test]
fn without_the_module_nothing_is_translated() {
    let kernel = contained(|kernel, container| {
        let list = kernel.layout.network.modules.as_ref().unwrap().module.list;
        kernel.unlink(container.module.at(list));
    });
    check_translated(&mut attach(&kernel.ram), false);
}

#[test]
fn translation_of_another_namespace_does_not_count() {
    let kernel = contained(|kernel, container| {
        let net = kernel.layout.network.conntrack.as_ref().unwrap().conn.net;
        kernel.put(container.tracked, net, container.net.0);
    });
    let (protocol, local, remote, _) = TRANSLATED[0];
    let owner = attach(&kernel.ram).connection_owner(end(local), end(remote), protocol);
    assert_eq!(told(&owner), (None, Confidence::Unknown, None));
}

#[test]
fn listener_behind_a_translation_is_the_one_inside() {
    let kernel = contained(|_, _| ());
    let mut guest = attach(&kernel.ram);
    let owner = guest.listener_owner(end("10.0.0.1:80"), Some(end("10.0.0.9:5000")), Protocol::Tcp);
    assert_eq!(told(&owner), (Some(7), Confidence::Table, Some("172.17.0.2:8080".into())));
    // What is not translated yet is for whoever listens outside; that one let go of its descriptors.
    let outside = guest.listener_owner(end("10.0.0.1:80"), Some(end("10.0.0.9:5001")), Protocol::Tcp);
    assert_eq!(told(&outside), (None, Confidence::Socket, None));
}

#[test]
fn wildcard_listener_of_a_container_is_not_the_machines() {
    let kernel = contained(|_, _| ());
    let mut guest = attach(&kernel.ram);
    let machine = guest.listener_owner(end("10.0.0.1:8080"), Some(end("10.0.0.9:1")), Protocol::Tcp);
    assert_eq!(machine.unknown, Some(UnknownReason::NoSocket));
    for address in ["172.17.0.2:8080", "192.0.2.1:8080"] {
        // An address that no device holds may be anybody's.
        let owner = guest.listener_owner(end(address), Some(end("10.0.0.9:1")), Protocol::Tcp);
        assert_eq!(told(&owner), (Some(7), Confidence::Table, None), "{address}");
    }
}

#[test]
fn namespace_that_assumes_anothers_address_takes_nothing_over() {
    // The container has a connection with the very ends of the machine's own, and its address too.
    let kernel = contained(|kernel, container| {
        let layout = kernel.layout.sock.clone();
        for offset in [layout.rcv_saddr, layout.daddr, layout.num, layout.dport] {
            let value = kernel.read(kernel.at.connection.at(offset));
            kernel.put(container.sockets[0], offset, value);
        }
        let devices = kernel.layout.devices.clone().unwrap();
        let list = Gva(kernel.read(container.net.at(kernel.layout.net.devices)));
        kernel.address(list.container(devices.net_device.list), "10.0.0.1");
    });
    let mut guest = attach(&kernel.ram);
    for _ in 0..2 {
        // A process holds the container's; the machine's own, which is meant, is held by nobody.
        assert_eq!(told(&super::connection(&mut guest)), (None, Confidence::Socket, None));
    }
}
