// SPDX-License-Identifier: Apache-2.0
//! What decorates processes and sockets, told and withheld.

use model::AcceptQueue;

use super::decoration::{COMMAND, COMMAND_START};
use super::kernel::Kernel;
use super::symbols::SymbolOrder;
use super::{attach, kernel};
use crate::memory::Gva;
use crate::{Namespaces, PacketSocket, ProcessDetail, ProcessState, TcpCounters};

/// What is told of `shop`.
fn shop(kernel: &Kernel) -> ProcessDetail {
    attach(&kernel.ram).process_details().unwrap().swap_remove(1)
}

fn mm(kernel: &Kernel) -> Gva {
    Gva(kernel.read(kernel.at.shop.at(kernel.layout.task.mm)))
}

#[test]
fn processes_have_command_namespaces_memory_threads_and_state() {
    for levels in [4, 5] {
        for order in SymbolOrder::ALL {
            let kernel = Kernel::new(levels, order);
            let shop = shop(&kernel);
            assert_eq!(shop.process.pid, 7);
            assert_eq!(shop.command.unwrap(), ["/usr/bin/shop", "serve", "8080"]);
            let namespaces =
                Namespaces { pid: Some(702), net: Some(4_026_531_840), mnt: Some(701), user: Some(703) };
            assert_eq!(shop.namespaces, namespaces, "{order:?}");
            assert_eq!(shop.resident_bytes, Some((10 - 1 + 20 + 5) * 4096), "{order:?}");
            assert_eq!((shop.threads, shop.state), (Some(1), Some(ProcessState::Sleeping)));
        }
    }
}

#[test]
fn process_without_decoration_is_told_without_it() {
    let init = attach(&kernel().ram).process_details().unwrap().swap_remove(0);
    assert_eq!((init.process.name.as_str(), init.command), ("init", None));
    assert_eq!(init.namespaces, Namespaces::default());
}

#[test]
fn command_line_on_a_page_that_is_not_there_is_absent() {
    let mut kernel = kernel();
    // A swapped page: an entry without its lowest bit.
    kernel.put(kernel.at.command_entry, 0, 0x1234_5000);
    assert_eq!(shop(&kernel).command, None);
}

#[test]
fn command_lines_that_lie_are_absent_or_cut() {
    let arguments = kernel().layout.detail.arguments.unwrap();
    for (start, end) in [
        (COMMAND_START, COMMAND_START),
        (COMMAND_START, COMMAND_START - 1),
        (0, 100),
        (u64::MAX - 10, u64::MAX),
        (0xffff_8880_0000_0000, 0xffff_8880_0000_0010),
    ] {
        let mut kernel = kernel();
        let mm = mm(&kernel);
        kernel.put(mm, arguments.start, start);
        kernel.put(mm, arguments.end, end);
        assert_eq!(shop(&kernel).command, None, "{start:#x} to {end:#x}");
    }
    let mut kernel = kernel();
    let mm = mm(&kernel);
    kernel.put(mm, arguments.end, COMMAND_START + (1 << 40));
    let cut = shop(&kernel).command.unwrap();
    assert_eq!(cut[1], "serve");
    assert!(cut.iter().map(|word| word.len() + 1).sum::<usize>() <= 4096 + 1);
    let title_end = COMMAND_START + COMMAND.len() as u64 - 1;
    kernel.put(mm, arguments.end, title_end);
    assert_eq!(shop(&kernel).command.unwrap(), ["/usr/bin/shop"], "a title ends with its first NUL");
}

#[test]
fn broken_decoration_leaves_the_rest() {
    let detail = kernel().layout.detail;
    let namespaces = detail.namespaces.unwrap();
    let mut kernel = kernel();
    let (shop_task, mm) = (kernel.at.shop, mm(&kernel));
    kernel.put(shop_task, namespaces.task.nsproxy, 0x1234);
    let pid = Gva(kernel.read(shop_task.at(namespaces.task.pid)));
    kernel.put(pid, namespaces.pid.level, u64::from(u32::MAX));
    kernel.put(mm, detail.arguments.unwrap().pgd, 0x1234);
    let shop = shop(&kernel);
    let user_only = Namespaces { user: Some(703), ..Namespaces::default() };
    assert_eq!((shop.namespaces, shop.command), (user_only, None));
    assert!(shop.resident_bytes.is_some() && shop.process.exe.is_some());
}

#[test]
fn processors_tell_who_runs_and_processes_their_time() {
    for order in SymbolOrder::ALL {
        let sample = attach(&Kernel::new(4, order).ram).cpu_sample().unwrap();
        let told: Vec<_> =
            sample.cpus.iter().map(|c| (c.cpu, c.pid, c.name.as_str(), c.runnable, c.switches)).collect();
        assert_eq!(told, [(0, 7, "shop", 2, 1000), (1, 0, "swapper/0", 0, 1001)], "{order:?}");
        let shop = &sample.processes[1];
        assert_eq!((shop.pid, shop.start_time_ns, shop.runtime_ns), (7, 7_000_000, 6_000_000));
        let thread = &shop.threads[0];
        assert_eq!((thread.tid, thread.runtime_ns), (7, 5_000_000));
        assert_eq!((thread.voluntary_switches, thread.involuntary_switches), (11, 12));
    }
}

#[test]
fn run_queues_that_contradict_themselves_are_not_told() {
    let layout = kernel().layout.cpu.unwrap().queue.unwrap();
    for (offset, value) in [(layout.cpu, 5), (layout.current, 0x1234)] {
        let mut kernel = kernel();
        kernel.put(kernel.at.cpu_areas[1].at(256), offset, value);
        let sample = attach(&kernel.ram).cpu_sample().unwrap();
        assert!(sample.cpus.is_empty());
        assert_eq!(sample.processes.len(), 2);
    }
    let mut kernel = kernel();
    kernel.put(kernel.at.cpu_areas[1].at(256), layout.online, 0);
    assert_eq!(attach(&kernel.ram).cpu_sample().unwrap().cpus.len(), 1);
}

#[test]
fn sockets_have_queues_and_counters_and_raw_and_packet_ones_are_told() {
    let details = attach(&kernel().ram).socket_details().unwrap();
    assert_eq!(details.internet.len(), 5);
    let of = |inode| details.internet.iter().find(|detail| detail.socket.inode == Some(inode)).unwrap();
    assert_eq!((of(500).accept_queue, of(500).tcp), (Some(AcceptQueue { len: 2, max: 128 }), None));
    let tcp =
        TcpCounters { rtt_us: 250, retransmits: 3, sent_bytes: 1000, acked_bytes: 900, received_bytes: 5000 };
    assert_eq!((of(501).accept_queue, of(501).tcp), (None, Some(tcp)));
    assert_eq!((of(502).accept_queue, of(502).tcp), (None, None));
    let local = of(500).socket.local;
    let (owner, queue) = attach(&kernel().ram).listener(local, model::Protocol::Tcp);
    assert_eq!((owner.process.map(|process| process.pid), queue), (Some(7), of(500).accept_queue));
    let (_, queue) = attach(&kernel().ram).listener(local, model::Protocol::Udp);
    assert_eq!(queue, None);
    let raw = of(600);
    assert!(raw.is_raw && raw.tcp.is_none());
    assert_eq!((raw.socket.protocol, raw.socket.local.port()), (model::Protocol::Icmp, 1));
    let [PacketSocket { ether_type, device, inode, owners, .. }] = &details.packet[..] else {
        panic!("{:?}", details.packet)
    };
    assert_eq!((*ether_type, *device, *inode), (3, 2, Some(601)));
    assert_eq!(owners.iter().map(|owner| (owner.pid, owner.fd)).collect::<Vec<_>>(), [(7, 7)]);
}

#[test]
fn packet_sockets_without_end_are_not_told() {
    let mut kernel = kernel();
    let list = kernel.layout.transport.net_packet.clone().unwrap();
    let head = kernel.at.net.at(list.sockets);
    let first = Gva(kernel.read(head));
    kernel.put(first, 0, first.0);
    let details = attach(&kernel.ram).socket_details().unwrap();
    assert_eq!((details.internet.len(), details.packet.len()), (5, 0));
}
