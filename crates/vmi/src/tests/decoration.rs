// SPDX-License-Identifier: Apache-2.0
//! What decorates the made-up kernel's processes and sockets: a user address space, namespaces, counters, run
//! queues, a raw socket and a packet socket.

use super::kernel::Kernel;
use crate::layout::detail::Resident;
use crate::memory::Gva;

/// Where `shop` keeps its command line: the end of a page, and the start of the next.
pub(crate) const COMMAND_START: u64 = 0x7ffd_1234_5ff0;
pub(crate) const COMMAND: &[u8] = b"/usr/bin/shop\0serve\x008080\0";
/// Where in its own area each processor has its run queue, and its parts of counters.
const QUEUE_AT: u32 = 256;
const COUNTERS_AT: u32 = 64;
const PAGE_BYTES: u64 = 4096;
const PRESENT: u64 = 1;

impl Kernel {
    /// Adds all of it; the processes and their sockets are there already.
    pub(super) fn decorate(&mut self) {
        self.command_line();
        self.namespaces();
        self.processors();
        let (shop, connection, listener) = (self.at.shop, self.at.connection, self.at.listener);
        let transport = self.layout.transport.clone();
        let (tcp, backlog) = (transport.tcp.unwrap(), transport.backlog.unwrap());
        for (sock, offset, value) in [
            (connection, tcp.srtt, 8 * 250),
            (connection, tcp.retransmits, 3),
            (connection, tcp.sent, 1000),
            (connection, tcp.acked, 900),
            (connection, tcp.received, 5000),
            (listener, backlog.len, 2),
            (listener, backlog.max, 128),
        ] {
            self.put(sock, offset, value);
        }
        let cred = Gva(self.read(shop.at(self.layout.task.cred)));
        let node = self.layout.sock.node;
        let raw = self.sock("10.0.0.1:1", "0.0.0.0:0", 7, self.at.shop_kernfs);
        self.open(raw, cred, 600);
        let table = self.symbol("raw_v4_hashinfo", 8 + 2048);
        self.put(table, transport.raw.unwrap().buckets + 8, raw.at(node).0);
        let packet = self.sock("10.0.0.1:9", "0.0.0.0:0", 7, self.at.shop_kernfs);
        let file = self.open(packet, cred, 601);
        self.put(packet, self.layout.sock.family, 17);
        let layout = transport.packet.unwrap();
        self.put(packet, layout.protocol, u64::from(3_u16.to_be()));
        self.put(packet, layout.device, 2);
        self.put(self.at.net, transport.net_packet.unwrap().sockets, packet.at(node).0);
        let fdt = self.at.shop_fdt;
        let array = Gva(self.read(fdt.at(self.layout.fdtable.fd)));
        self.put(array, 7 * 8, file.0);
    }

    /// Page tables of a user address space, with the two pages of a command line.
    fn command_line(&mut self) {
        let layout = self.layout.detail.clone();
        let arguments = layout.arguments.unwrap();
        let mm = Gva(self.read(self.at.shop.at(self.layout.task.mm)));
        let pgd = self.page();
        let levels = u32::from(self.levels);
        for (start, part) in [(COMMAND_START, &COMMAND[..16]), (COMMAND_START + 16, &COMMAND[16..])] {
            let page = self.page();
            self.write(Gva(page.0 + start % PAGE_BYTES), part);
            let mut table = pgd;
            for level in (1..=levels).rev() {
                let entry = Gva(table.0 + (start >> (12 + 9 * (level - 1)) & 511) * 8);
                let mut next = self.read(entry);
                if level == 1 {
                    next = Self::gpa(page) | PRESENT;
                    self.at.command_entry = entry;
                } else if next == 0 {
                    let page = self.page();
                    next = Self::gpa(page) | PRESENT;
                }
                self.put(entry, 0, next);
                table = Self::heap_at(next - PRESENT);
            }
        }
        self.put(mm, arguments.pgd, pgd.0);
        self.put(mm, arguments.start, COMMAND_START);
        self.put(mm, arguments.end, COMMAND_START + COMMAND.len() as u64);
    }

    fn namespaces(&mut self) {
        let layout = self.layout.detail.namespaces.clone().unwrap();
        let shop = self.at.shop;
        let (nsproxy, mnt, pid, pid_namespace, user) =
            (self.alloc(64), self.alloc(64), self.alloc(128), self.alloc(64), self.alloc(64));
        let cred = Gva(self.read(shop.at(layout.task.cred)));
        let inner = layout.pid.numbers + layout.upid_bytes + layout.upid.namespace;
        for (place, offset, value) in [
            (nsproxy, layout.nsproxy.mnt, mnt.0),
            (nsproxy, layout.nsproxy.net, self.at.net.0),
            (mnt, layout.mnt.inode, 701),
            (pid, layout.pid.level, 1),
            (pid, inner, pid_namespace.0),
            (pid_namespace, layout.pid_namespace.inode, 702),
            (user, layout.user.inode, 703),
            (cred, layout.cred.user, user.0),
            (shop, layout.task.nsproxy, nsproxy.0),
            (shop, layout.task.pid, pid.0),
        ] {
            self.put(place, offset, value);
        }
    }

    /// Two processors: `shop` runs on the first, the second idles.
    fn processors(&mut self) {
        let layout = self.layout.cpu.clone().unwrap();
        let (thread, queue) = (layout.thread, layout.queue.unwrap());
        let shop = self.at.shop;
        let count = self.symbol("nr_cpu_ids", 8);
        self.put(count, 0, 2);
        let offsets = self.symbol("__per_cpu_offset", 16);
        let variable = self.symbol("runqueues", 64);
        for (cpu, (task, running)) in [(shop, 2), (self.at.init_task, 0)].into_iter().enumerate() {
            let area = self.alloc(2048);
            self.at.cpu_areas[cpu] = area;
            // From where the variable lies in the image to where each processor has its own.
            let own = area.at(QUEUE_AT);
            self.put(offsets, cpu as u32 * 8, own.0.wrapping_sub(variable.0));
            for (offset, value) in [
                (queue.current, task.0),
                (self.at.idle, self.at.init_task.0),
                (queue.running, running),
                (queue.switches, 1000 + cpu as u64),
                (queue.cpu, cpu as u64),
                (queue.online, 1),
            ] {
                self.put(own, offset, value);
            }
            for priority in 0..100 {
                self.circle(&[own.at(self.at.rt_lists + priority * 16)]);
            }
            self.at.queues[cpu] = own;
        }
        let signal = Gva(self.read(shop.at(self.layout.task.signal)));
        for (place, offset, value) in [
            (shop, thread.tid, 7),
            (shop, thread.runtime, 5_000_000),
            (shop, thread.voluntary, 11),
            (shop, thread.involuntary, 12),
            (signal, layout.exited.unwrap().runtime, 1_000_000),
            (signal, self.layout.detail.signal.clone().unwrap().threads, 1),
            (shop, self.layout.detail.task.clone().unwrap().state, 1),
        ] {
            self.put(place, offset, value);
        }
        // What the first processor has not added to the pages of files yet: one page less.
        self.put(self.at.cpu_areas[0], COUNTERS_AT, u64::from(u32::MAX));
        let mm = Gva(self.read(shop.at(self.layout.task.mm)));
        let resident = self.layout.detail.resident.clone().unwrap();
        let Resident::PerCpu { at, counter, counter_bytes } = resident else { panic!("per CPU here") };
        for (index, pages) in [(0, 10), (1, 20), (2, 1000), (3, 5)] {
            let place = mm.at(at + index * counter_bytes);
            self.put(place, counter.count, pages);
            self.put(place, counter.counters, variable.container(QUEUE_AT).at(COUNTERS_AT + index * 8).0);
        }
    }
}
