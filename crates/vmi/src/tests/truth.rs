// SPDX-License-Identifier: Apache-2.0
//! What is told of a guest that is as it should be.

use std::sync::Arc;

use model::{Confidence, Process, Protocol, UnknownReason};

use super::hostile::Changing;
use super::kernel::{Kernel, Virtio};
use super::symbols::SymbolOrder;
use super::{attach, connection, end, kernel};
use crate::{Guest, Owner, SocketState};

fn is_send<T: Send>() {}

#[test]
fn guest_can_move_to_another_thread() {
    is_send::<Guest>();
}

#[test]
fn every_order_of_symbols_and_depth_of_page_tables_is_understood() {
    for order in SymbolOrder::ALL {
        for levels in [4, 5] {
            let guest = Guest::attach(Arc::new(Kernel::new(levels, order).ram));
            let guest = guest.unwrap_or_else(|error| panic!("{order:?}, {levels} levels: {error}"));
            assert_eq!(guest.kernel().release, "0.0-made-up");
            assert_eq!(guest.kernel().paging_levels, levels);
            assert_eq!(guest.processes().unwrap().len(), 2);
        }
    }
}

#[test]
fn processes_have_parent_path_user_and_control_group() {
    let processes = attach(&kernel().ram).processes().unwrap();
    let init = Process {
        pid: 1,
        parent_pid: 0,
        start_time_ns: 1_000_000,
        name: "init".into(),
        exe: Some("/sbin/init".into()),
        uid: Some(0),
        user: None,
        cgroup: Some("/".into()),
    };
    assert_eq!(processes, [init, shop()]);
    assert_eq!(processes[1].unit(), Some("shop.service"));
}

#[test]
fn glance_tells_the_owner_as_a_search_does() {
    let mut guest = attach(&kernel().ram);
    for _ in 0..2 {
        let owner = guest.glance(connection).expect("a process is found at a glance");
        assert_eq!((owner.process, owner.confidence), (Some(shop()), Confidence::Table));
    }
}

fn shop() -> Process {
    Process {
        pid: 7,
        parent_pid: 1,
        start_time_ns: 7_000_000,
        name: "shop".into(),
        exe: Some("/data/usr/bin/shop".into()),
        uid: Some(1001),
        user: None,
        cgroup: Some("/system.slice/shop.service".into()),
    }
}

#[test]
fn sockets_have_ends_state_inode_and_owners() {
    let sockets = attach(&kernel().ram).sockets().unwrap();
    let mut told: Vec<_> =
        sockets.iter().map(|s| (s.inode.unwrap(), s.local, s.remote, s.state, s.owners.clone())).collect();
    told.sort_by_key(|socket| socket.0);
    let own = |fd| vec![Owner { pid: 7, fd }];
    let expected = [
        (500, end("10.0.0.1:80"), end("0.0.0.0:0"), SocketState::Listen, own(3)),
        (501, end("10.0.0.1:1234"), end("10.0.0.2:80"), SocketState::Established, own(4)),
        (502, end("10.0.0.1:53"), end("0.0.0.0:0"), SocketState::Close, own(5)),
        (503, end("[fd00::1]:1235"), end("[fd00::2]:80"), SocketState::SynSent, own(6)),
    ];
    assert_eq!(told, expected);
    assert!(sockets.iter().all(|socket| socket.uid == Some(1001) && socket.netns_inode == 4_026_531_840));
}

#[test]
fn connections_are_found_before_and_after_the_hash_is_learnt() {
    let mut guest = attach(&kernel().ram);
    for _ in 0..3 {
        let v4 = connection(&mut guest);
        assert_eq!((v4.process, v4.confidence), (Some(shop()), Confidence::Table));
        let v6 = guest.connection_owner(end("[fd00::1]:1235"), end("[fd00::2]:80"), Protocol::Tcp);
        assert_eq!(v6.process, Some(shop()));
        let mapped = guest.connection_owner(end("[::ffff:10.0.0.1]:1234"), end("10.0.0.2:80"), Protocol::Tcp);
        assert_eq!(mapped.process, Some(shop()));
        let absent = guest.connection_owner(end("10.0.0.1:1234"), end("10.0.0.2:81"), Protocol::Tcp);
        assert_eq!(absent.unknown, Some(UnknownReason::NoSocket));
        let mixed = guest.connection_owner(end("10.0.0.1:1234"), end("[fd00::2]:80"), Protocol::Tcp);
        assert_eq!(mixed.unknown, Some(UnknownReason::NoSocket));
    }
}

#[test]
fn listeners_and_datagram_sockets_are_found_by_their_own_end() {
    let mut guest = attach(&kernel().ram);
    for (local, protocol, found) in [
        ("10.0.0.1:80", Protocol::Tcp, true),
        ("10.0.0.2:80", Protocol::Tcp, false),
        ("10.0.0.1:81", Protocol::Tcp, false),
        ("10.0.0.1:53", Protocol::Udp, true),
        ("10.0.0.1:80", Protocol::Udp, false),
        ("10.0.0.1:80", Protocol::Icmp, false),
    ] {
        let owner = guest.listener_owner(end(local), Some(end("10.0.0.9:999")), protocol);
        assert_eq!(owner.process.is_some(), found, "{local} {protocol}");
    }
    let datagram = guest.connection_owner(end("10.0.0.1:53"), end("10.0.0.9:999"), Protocol::Udp);
    assert_eq!(datagram.process, Some(shop()));
}

#[test]
fn frame_leads_through_its_descriptor_to_the_process() {
    for virtio in Virtio::ALL {
        let kernel = Kernel::with_virtio(4, SymbolOrder::OffsetsLast, virtio);
        let mut guest = attach(&kernel.ram);
        for _ in 0..2 {
            let owner = guest.frame_owner(kernel.at.ring_gpa, 0);
            assert_eq!(
                (owner.process, owner.confidence),
                (Some(shop()), Confidence::Descriptor),
                "{virtio:?}"
            );
            assert_eq!(owner.socket_cgroup.as_deref(), Some("/system.slice/shop.service"));
        }
        let ring = kernel.at.ring_gpa;
        for (ring, head) in [(ring, 1), (ring, 4), (ring, u16::MAX), (ring + 16, 0)] {
            assert_eq!(guest.frame_owner(ring, head).unknown, Some(UnknownReason::NoSocket), "{head}");
        }
    }
}

#[test]
fn frame_without_socket_or_of_another_device_has_no_socket() {
    let devices = kernel().layout.devices.unwrap();
    for (offset, value) in [(devices.skb.sk, 0), (devices.skb.dev, 0x1234)] {
        let mut kernel = kernel();
        kernel.put(kernel.at.skb, offset, value);
        let owner = attach(&kernel.ram).frame_owner(kernel.at.ring_gpa, 0);
        assert_eq!(owner.unknown, Some(UnknownReason::NoSocket));
    }
}

#[test]
fn closed_socket_still_tells_user_control_group_and_namespace() {
    let mut kernel = kernel();
    let layout = kernel.layout.sock.clone();
    kernel.put(kernel.at.connection, layout.state, 7);
    kernel.put(kernel.at.connection, layout.socket, 0);
    let owner = attach(&kernel.ram).frame_owner(kernel.at.ring_gpa, 0);
    assert_eq!((owner.confidence, owner.unknown), (Confidence::Socket, Some(UnknownReason::NoOwner)));
    assert_eq!((owner.process.clone(), owner.uid(), owner.unit()), (None, Some(1001), Some("shop.service")));
    assert_eq!(owner.socket_netns, Some(4_026_531_840));
}

#[test]
fn mapped_addresses_are_those_that_they_map() {
    let mut kernel = kernel();
    kernel.add_connection("[::ffff:10.0.0.1]:1236", "[::ffff:10.0.0.2]:80");
    let mut guest = attach(&kernel.ram);
    for _ in 0..2 {
        let owner = guest.connection_owner(end("10.0.0.1:1236"), end("10.0.0.2:80"), Protocol::Tcp);
        assert_eq!(owner.process, Some(shop()));
    }
}

#[test]
fn connected_datagram_socket_is_for_its_peer_alone() {
    let mut kernel = kernel();
    kernel.add_datagram_socket("10.0.0.1:5353", "10.0.0.2:53");
    let mut guest = attach(&kernel.ram);
    let mut owner = |remote| guest.connection_owner(end("10.0.0.1:5353"), end(remote), Protocol::Udp);
    assert_eq!(owner("10.0.0.2:53").process, Some(shop()));
    for other in ["10.0.0.3:53", "10.0.0.2:54"] {
        assert_eq!(owner(other).unknown, Some(UnknownReason::NoSocket), "{other}");
    }
    let listener = guest.listener_owner(end("10.0.0.1:5353"), Some(end("10.0.0.3:53")), Protocol::Udp);
    assert_eq!(listener.unknown, Some(UnknownReason::NoSocket));
}

#[test]
fn process_that_became_another_is_told_as_it_is_now() {
    let mut kernel = kernel();
    let ram = Changing::new(&kernel.ram);
    let mut guest = Guest::attach(Arc::clone(&ram) as _).unwrap();
    let before = connection(&mut guest);
    assert_eq!(before.process, Some(shop()));
    // Its credentials are no longer those of its files, whether it was asked about before or not.
    kernel.become_another(0, b"other\0");
    ram.become_like(&kernel.ram);
    for mut guest in [guest, attach(&kernel.ram)] {
        let after = connection(&mut guest);
        let process = after.process.unwrap();
        assert_eq!((process.pid, process.uid, process.exe.as_deref()), (7, Some(0), Some("/bin/other")));
        assert_eq!(after.socket_uid, Some(1001));
        assert_eq!(after.confidence, Confidence::Table);
    }
}

#[test]
fn connection_that_is_not_accepted_yet_is_the_listeners() {
    let mut kernel = kernel();
    let layout = kernel.layout.sock.clone();
    kernel.put(kernel.at.connection, layout.num, 80);
    kernel.put(kernel.at.connection, layout.socket, 0);
    let mut guest = attach(&kernel.ram);
    let local = end("10.0.0.1:80");
    let owner = guest.connection_owner(local, end("10.0.0.2:80"), Protocol::Tcp);
    assert_eq!(owner.process, Some(shop()));
    // The same socket without any descriptor left is nobody's.
    kernel.put(kernel.at.connection, layout.flags, 1);
    let owner = attach(&kernel.ram).connection_owner(local, end("10.0.0.2:80"), Protocol::Tcp);
    assert_eq!(owner.confidence, Confidence::Socket);
}

#[test]
fn request_is_the_listeners_and_time_wait_is_nobodys() {
    let mut kernel = kernel();
    let layout = kernel.layout.sock.clone();
    kernel.put(kernel.at.connection, layout.state, 12);
    kernel.put(kernel.at.connection, layout.listener, kernel.at.listener.0);
    assert_eq!(connection(&mut attach(&kernel.ram)).process, Some(shop()));
    kernel.put(kernel.at.connection, layout.state, 6);
    let waiting = connection(&mut attach(&kernel.ram));
    assert_eq!((waiting.confidence, waiting.unknown), (Confidence::Unknown, Some(UnknownReason::NoOwner)));
    // A request whose listener is itself a request leads nowhere, and must not lead round and round.
    kernel.put(kernel.at.connection, layout.state, 12);
    kernel.put(kernel.at.connection, layout.listener, kernel.at.connection.0);
    assert_eq!(connection(&mut attach(&kernel.ram)).unknown, Some(UnknownReason::NoOwner));
}

#[test]
fn process_whose_leader_exited_is_told_by_its_other_threads() {
    let mut kernel = kernel();
    kernel.exit_leader(kernel.at.shop);
    let mut guest = attach(&kernel.ram);
    assert_eq!(guest.processes().unwrap()[1], shop());
    assert_eq!(connection(&mut guest).process, Some(shop()));
    assert_eq!(guest.sockets().unwrap().iter().map(|socket| socket.owners.len()).sum::<usize>(), 4);
}

#[test]
fn who_holds_the_file_counts_and_not_who_created_it() {
    // The file moves from `shop`, whose credentials it keeps, to `init`.
    let mut kernel = kernel();
    let fdtable = kernel.layout.fdtable.clone();
    let shop_array = crate::memory::Gva(kernel.read(kernel.at.shop_fdt.at(fdtable.fd)));
    let init_fdt = crate::memory::Gva(kernel.read(kernel.at.init_files.at(kernel.layout.files.fdt)));
    let init_array = crate::memory::Gva(kernel.read(init_fdt.at(fdtable.fd)));
    kernel.put(shop_array, 4 * 8, 0);
    kernel.put(init_array, 0, kernel.at.connection_file.0);
    let owner = connection(&mut attach(&kernel.ram));
    assert_eq!(owner.process.map(|process| process.pid), Some(1));
    assert_eq!(owner.socket_uid, Some(1001));
    // Held by both: the creator is named.
    kernel.put(shop_array, 4 * 8, kernel.at.connection_file.0);
    assert_eq!(connection(&mut attach(&kernel.ram)).process, Some(shop()));
    // Held by nobody.
    kernel.put(shop_array, 4 * 8, 0);
    kernel.put(init_array, 0, 0);
    let nobody = connection(&mut attach(&kernel.ram));
    assert_eq!((nobody.confidence, nobody.unknown), (Confidence::Socket, Some(UnknownReason::NoOwner)));
}
