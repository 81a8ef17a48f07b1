// SPDX-License-Identifier: Apache-2.0
//! A kernel made up in memory: types, symbols in each known order, page tables of both depths, and a few
//! processes and sockets, laid out by its own types. Its structures share nothing with a real kernel's but
//! names.
//!
//! ```text
//! pid 1 init   /sbin/init            cgroup /
//! pid 7 shop   /data/usr/bin/shop    cgroup /system.slice/shop.service, uid 1001
//!   fd 3  TCP 10.0.0.1:80 listening       fd 4  TCP 10.0.0.1:1234 -> 10.0.0.2:80
//!   fd 5  UDP 10.0.0.1:53                 fd 6  TCP [fd00::1]:1235 -> [fd00::2]:80
//! ```

use crate::btf::fixture::BtfBuilder;
use crate::btf::{Btf, Structures};
use crate::hash::{Form, Secrets};
use crate::kallsyms::START_KERNEL_MAP;
use crate::layout::origin::Origin;
use crate::layout::{Layout, Vring};
use crate::memory::Gva;
use crate::memory::fixture::Ram;
use crate::socket::canonical;

use super::symbols::{self, SymbolOrder};
use structures::{RING_STRUCTURES, STRUCTURES};

mod container;
mod inspected;
#[cfg(test)]
mod more;
mod network;
mod origin;
mod passwd;
mod structures;
#[cfg(test)]
pub(crate) use container::Container;
pub(crate) use inspected::{KEY, KEY_TARGET, MODULE_KEY};
#[cfg(test)]
pub(crate) use passwd::Passwd;

const RAM_BYTES: usize = 4 << 20;
const IMAGE_GVA: u64 = START_KERNEL_MAP + 0x100_0000;
const IMAGE_GPA: u64 = 2 << 20;
const DIRECT_GVA: u64 = 0xffff_8881_0000_0000 & !((1 << 30) - 1);
const HEAP_GPA: u64 = 0x1_0000;
pub(crate) const SECRETS: Secrets = Secrets { v4: 0x1234_5678, v6: 0x9abc_def0, v6_address: 0x0fed_cba9 };
const MIX: u32 = 0x5555_0001;
/// As many sockets the tables can take; small, so that chains are long.
const BUCKETS: u32 = 4;

/// How a kernel describes its virtqueues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Virtio {
    /// Itself.
    BuiltIn,
    /// By types of a module.
    Module,
    /// Not at all, as 5.10.
    Untyped,
}

impl Virtio {
    pub(crate) const ALL: [Self; 3] = [Self::BuiltIn, Self::Module, Self::Untyped];
}

/// Types declared so far: name, number, size in bytes.
type Known<'a> = Vec<(&'a str, u32, u32)>;

fn declare<'a>(builder: &mut BtfBuilder, known: &mut Known<'a>, structures: &[(&'a str, &[&str])]) {
    const INT: u32 = 1;
    for &(name, members) in structures {
        let mut offset = 0;
        let mut placed = Vec::new();
        for &member in members {
            let (member, id, size) = match (member.split_once(':'), member.split_once('/')) {
                (Some((member, of)), _) => {
                    let &(_, id, size) = known.iter().find(|(name, ..)| *name == of).unwrap();
                    (member, id, size)
                }
                (_, Some((member, size))) => (member, INT, size.parse().unwrap()),
                _ => (member, INT, 8),
            };
            placed.push((member, id, offset));
            offset += size;
        }
        known.push((name, builder.structure(name, offset, &placed), offset));
    }
}

/// The kernel's types, and the module's that go on from them.
fn types(virtio: Virtio) -> (BtfBuilder, BtfBuilder) {
    let (mut builder, mut known) = (BtfBuilder::new(), Known::new());
    builder.raw("int", 1 << 24, 4, &[32]);
    declare(&mut builder, &mut known, STRUCTURES);
    if virtio == Virtio::BuiltIn {
        declare(&mut builder, &mut known, RING_STRUCTURES);
    }
    let mut module = builder.module();
    if virtio == Virtio::Module {
        declare(&mut module, &mut known, RING_STRUCTURES);
    }
    (builder, module)
}

/// Places of interest, to be damaged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) init_task: Gva,
    pub(crate) init: Gva,
    pub(crate) shop: Gva,
    pub(crate) shop_dentry: Gva,
    pub(crate) shop_kernfs: Gva,
    pub(crate) shop_fdt: Gva,
    pub(crate) init_files: Gva,
    pub(crate) hashinfo: Gva,
    pub(crate) connection: Gva,
    pub(crate) connection_file: Gva,
    pub(crate) listener: Gva,
    pub(crate) net: Gva,
    pub(crate) device: Gva,
    pub(crate) skb: Gva,
    pub(crate) module_types: Gva,
    pub(crate) cpu_areas: [Gva; 2],
    /// The entry of the page tables that maps the start of the command line of `shop`.
    pub(crate) command_entry: Gva,
    pub(crate) symbols_gpa: u64,
    pub(crate) types_gpa: u64,
    pub(crate) ring_gpa: u64,
    /// What says whether the ring that was added last is packed.
    pub(crate) ring_form: Gva,
    pub(crate) text: Gva,
    pub(crate) rodata: Gva,
    pub(crate) syscalls: Gva,
    pub(crate) gates: Gva,
    pub(crate) ids: Gva,
    pub(crate) exit_state: u32,
    pub(crate) id_links: u32,
    pub(crate) id_tasks: u32,
    pub(crate) id_tree: u32,
    pub(crate) sock_protocol: u32,
    /// The entry of the page tables that maps all of RAM.
    pub(crate) direct_entry: Gva,
    pub(crate) module_text: Gva,
    /// The number of the module's folder in sysfs.
    pub(crate) module_load: Gva,
    pub(crate) queues: [Gva; 2],
    pub(crate) idle: u32,
    pub(crate) rt_link: u32,
    pub(crate) rt_lists: u32,
    pub(crate) first_switches: Gva,
    pub(crate) first_parent: Gva,
    pub(crate) first_space: Gva,
    pub(crate) first_neighbour_back: Gva,
}

/// The kernel, and how to write to it.
#[derive(Clone)]
pub(crate) struct Kernel {
    pub(crate) ram: Ram,
    pub(crate) layout: Layout,
    pub(crate) at: Places,
    pub(super) levels: u8,
    vring: Vring,
    heap: u64,
    image: u64,
    symbols: Vec<(String, u64)>,
}

impl Kernel {
    pub(crate) fn new(levels: u8, order: SymbolOrder) -> Self {
        Self::with_virtio(levels, order, Virtio::BuiltIn)
    }

    pub(crate) fn with_virtio(levels: u8, order: SymbolOrder, virtio: Virtio) -> Self {
        let (types, module) = types(virtio);
        let btf = Btf::parse(&types.build()).unwrap();
        let whole = btf.with_module(&module.build()).unwrap_or(btf);
        let structures = Structures::of(&whole);
        let vring = Vring::resolve(&structures);
        let mut kernel = Self {
            ram: Ram(vec![0; RAM_BYTES]),
            layout: Layout::resolve(&structures).unwrap(),
            vring: vring.unwrap_or_else(|_| Vring::without_module_types(&structures).unwrap()),
            at: Places {
                exit_state: structures.offset("task_struct", "exit_state").unwrap(),
                id_links: structures.offset("task_struct", "pid_links").unwrap(),
                id_tasks: structures.offset("pid", "tasks").unwrap(),
                id_tree: structures.offset("pid_namespace", "idr.idr_rt.xa_head").unwrap(),
                sock_protocol: structures.offset("sock", "sk_protocol").unwrap(),
                idle: structures.offset("rq", "idle").unwrap(),
                rt_link: structures.offset("task_struct", "rt.run_list").unwrap(),
                rt_lists: structures.offset("rq", "rt.active.queue").unwrap(),
                ..Places::default()
            },
            levels,
            heap: HEAP_GPA,
            image: IMAGE_GPA,
            symbols: Vec::new(),
        };
        kernel.symbol("_text", 0x1000);
        let banner = kernel.symbol("linux_banner", 0x100);
        kernel.write(banner, b"Linux version 0.0-made-up (nobody@nowhere) #1\n\0");
        kernel.page_tables(levels);
        kernel.at.types_gpa = kernel.image;
        let bytes = types.build();
        let start = kernel.symbol("__start_BTF", bytes.len() as u64);
        kernel.write(start, &bytes);
        kernel.symbols.push(("__stop_BTF".into(), start.0 + bytes.len() as u64));
        kernel.image = kernel.image.next_multiple_of(16);
        if virtio == Virtio::Module {
            kernel.module_types(types.next(), &module.build());
        }
        for (name, value) in [
            ("inet_ehash_secret.5", SECRETS.v4),
            ("inet6_ehash_secret.4", SECRETS.v6),
            ("ipv6_hash_secret.3", SECRETS.v6_address),
        ] {
            let place = kernel.symbol(name, 16);
            kernel.write(place, &value.to_le_bytes());
        }
        kernel.symbol("socket_file_ops", 64);
        kernel.network();
        kernel.processes();
        kernel.decorate();
        kernel.what_is_inspected();
        kernel.first_task(&Origin::resolve(&structures).unwrap());
        kernel.symbol_table(order);
        kernel
    }

    /// Reserves `len` bytes of the image for a symbol.
    pub(super) fn symbol(&mut self, name: &str, len: u64) -> Gva {
        let gva = IMAGE_GVA + (self.image - IMAGE_GPA);
        self.symbols.push((name.to_owned(), gva));
        self.image = (self.image + len).next_multiple_of(4);
        Gva(gva)
    }

    pub(crate) fn find(&self, name: &str) -> Gva {
        Gva(self.symbols.iter().find(|(symbol, _)| symbol == name).unwrap().1)
    }

    pub(super) fn alloc(&mut self, len: u64) -> Gva {
        let gva = Gva(DIRECT_GVA + self.heap);
        self.heap = (self.heap + len).next_multiple_of(64);
        assert!(self.heap < IMAGE_GPA);
        gva
    }

    /// A whole page, at the start of one.
    pub(super) fn page(&mut self) -> Gva {
        self.heap = self.heap.next_multiple_of(4096);
        self.alloc(4096)
    }

    pub(super) fn gpa(heap: Gva) -> u64 {
        heap.0 - DIRECT_GVA
    }

    pub(super) fn heap_at(gpa: u64) -> Gva {
        Gva(DIRECT_GVA + gpa)
    }

    pub(crate) fn write(&mut self, gva: Gva, bytes: &[u8]) {
        let base = if gva.0 >= IMAGE_GVA { IMAGE_GVA - IMAGE_GPA } else { DIRECT_GVA };
        let at = usize::try_from(gva.0 - base).unwrap();
        self.ram.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put(&mut self, gva: Gva, offset: u32, value: u64) {
        self.write(gva.at(offset), &value.to_le_bytes());
    }

    fn text(&mut self, text: &str) -> Gva {
        let gva = self.alloc(64);
        self.write(gva, text.as_bytes());
        gva
    }

    /// Links a circular list.
    pub(super) fn circle(&mut self, nodes: &[Gva]) {
        for (index, &node) in nodes.iter().enumerate() {
            let next = nodes[(index + 1) % nodes.len()];
            self.put(node, 0, next.0);
            self.put(next, 8, node.0);
        }
    }

    fn page_tables(&mut self, levels: u8) {
        const PRESENT: u64 = 1;
        const LARGE: u64 = 1 << 7;
        /// What is no text, so that there is none to be found.
        const NO_EXECUTE: u64 = 1 << 63;
        self.image = self.image.next_multiple_of(4096);
        let root_gpa = self.image;
        self.symbol("init_top_pgt", 0x8000);
        let mut next = root_gpa + 0x1000;
        let mut table = || {
            next += 0x1000;
            next - 0x1000
        };
        let index = |gva: u64, level: u32| (gva >> (12 + 9 * (level - 1)) & 511) * 8;
        let mut entries = Vec::new();
        let mut top = root_gpa;
        if levels == 5 {
            // Both halves share the last entry of the top table.
            let lower = table();
            for gva in [IMAGE_GVA, DIRECT_GVA] {
                assert!(gva >> 48 == 0xffff);
                entries.push((top + index(gva, 5), lower | PRESENT));
            }
            top = lower;
        }
        let (image_upper, image_middle, direct_upper) = (table(), table(), table());
        entries.push((top + index(IMAGE_GVA, 4), image_upper | PRESENT));
        entries.push((image_upper + index(IMAGE_GVA, 3), image_middle | PRESENT));
        entries.push((image_middle + index(IMAGE_GVA, 2), IMAGE_GPA | PRESENT | LARGE | NO_EXECUTE));
        entries.push((top + index(DIRECT_GVA, 4), direct_upper | PRESENT));
        let direct_entry = direct_upper + index(DIRECT_GVA, 3);
        entries.push((direct_entry, PRESENT | LARGE | NO_EXECUTE));
        self.at.direct_entry = Gva(IMAGE_GVA + (direct_entry - IMAGE_GPA));
        for (gpa, entry) in entries {
            self.write(Gva(IMAGE_GVA + (gpa - IMAGE_GPA)), &entry.to_le_bytes());
        }
    }

    /// A module without types of interest, and the one that describes virtqueues.
    fn module_types(&mut self, (start_id, start_str_off): (u64, u64), bytes: &[u8]) {
        let layout = self.layout.modules.clone().unwrap();
        let mut nodes = vec![self.symbol("btf_modules", 16)];
        for name in ["other", "virtio_ring"] {
            let (module, btf, data) = (self.alloc(64), self.alloc(128), self.alloc(bytes.len() as u64));
            self.write(data, bytes);
            self.write(btf.at(layout.btf.name), name.as_bytes());
            for (offset, value) in [
                (layout.btf.data, data.0),
                (layout.btf.data_size, bytes.len() as u64),
                (layout.btf.start_id, start_id),
                (layout.btf.start_str_off, start_str_off),
            ] {
                self.put(btf, offset, value);
            }
            self.put(module, layout.module.btf, btf.0);
            self.at.module_types = btf;
            nodes.push(module.at(layout.module.list));
        }
        self.circle(&nodes);
    }

    fn processes(&mut self) {
        let layout = self.layout.clone();
        let init_task = self.symbol("init_task", 512);
        self.at.init_task = init_task;
        self.write(init_task.at(layout.task.comm), b"swapper/0\0");
        let mounts = self.mounts();
        let root = self.kernfs(None, "");
        let slice = self.kernfs(Some(root), "system.slice");
        let unit = self.kernfs(Some(slice), "shop.service");
        self.at.shop_kernfs = unit;
        let init_exe = self.file_at(mounts.0, mounts.1, &["sbin", "init"]);
        let shop_exe = self.file_at(mounts.2, mounts.3, &["usr", "bin", "shop"]);
        let init = self.task(init_task, 1, b"init\0", 0, root, init_exe);
        let shop = self.task(init, 7, b"shop\0", 1001, unit, shop_exe);
        (self.at.init, self.at.shop) = (init, shop);
        let links = [init_task, init, shop].map(|task| task.at(layout.task.tasks));
        self.circle(&links);
        let cred = Gva(self.read(shop.at(layout.task.cred)));
        let listener = self.sock("10.0.0.1:80", "0.0.0.0:0", 10, unit);
        let connection = self.sock("10.0.0.1:1234", "10.0.0.2:80", 1, unit);
        let udp = self.sock("10.0.0.1:53", "0.0.0.0:0", 7, unit);
        let v6 = self.sock("[fd00::1]:1235", "[fd00::2]:80", 2, unit);
        (self.at.listener, self.at.connection) = (listener, connection);
        let files: Vec<Gva> = [listener, connection, udp, v6]
            .into_iter()
            .zip(500..)
            .map(|(s, i)| self.open(s, cred, i))
            .collect();
        self.at.connection_file = files[1];
        self.at.shop_fdt = self.fd_table(shop, &files);
        self.fd_table(init, &[]);
        self.at.init_files = Gva(self.read(init.at(layout.task.files)));
        let skb_sk = self.layout.devices.clone().unwrap().skb.sk;
        self.put(self.at.skb, skb_sk, connection.0);
        self.listen(listener);
        for sock in [connection, v6] {
            self.connect(sock);
        }
        self.bind(udp, 53, MIX);
    }

    pub(crate) fn read(&self, gva: Gva) -> u64 {
        let base = if gva.0 >= IMAGE_GVA { IMAGE_GVA - IMAGE_GPA } else { DIRECT_GVA };
        let at = usize::try_from(gva.0 - base).unwrap();
        u64::from_le_bytes(*self.ram.0[at..].first_chunk().unwrap())
    }

    /// Root mount and its root, and a mount at `/data` and its root.
    fn mounts(&mut self) -> (Gva, Gva, Gva, Gva) {
        let layout = self.layout.mount.clone();
        let (root_mount, root) = (self.alloc(128), self.dentry(None, "/"));
        let point = self.dentry(Some(root), "data");
        let (mount, mounted) = (self.alloc(128), self.dentry(None, "/"));
        for (mount, parent, point, root) in
            [(root_mount, root_mount, root, root), (mount, root_mount, point, mounted)]
        {
            self.put(mount, layout.parent, parent.0);
            self.put(mount, layout.mountpoint, point.0);
            self.put(mount, layout.mnt_root, root.0);
            let mounts = self.layout.user.as_ref().unwrap().mount.children;
            self.circle(&[mount.at(mounts)]);
        }
        (root_mount, root, mount, mounted)
    }

    fn dentry(&mut self, parent: Option<Gva>, name: &str) -> Gva {
        let (dentry, text) = (self.alloc(128), self.text(name));
        let layout = self.layout.dentry.clone();
        self.put(dentry, layout.parent, parent.unwrap_or(dentry).0);
        self.put(dentry, layout.name, text.0);
        self.put(dentry, layout.name_len, name.len() as u64);
        dentry
    }

    fn file_at(&mut self, mount: Gva, root: Gva, names: &[&str]) -> Gva {
        let dentry = names.iter().fold(root, |parent, name| self.dentry(Some(parent), name));
        self.at.shop_dentry = dentry;
        let file = self.alloc(64);
        self.put(file, self.layout.file.dentry, dentry.0);
        self.put(file, self.layout.file.mnt, mount.at(self.layout.mount.mnt).0);
        file
    }

    fn kernfs(&mut self, parent: Option<Gva>, name: &str) -> Gva {
        let (node, text) = (self.alloc(64), self.text(name));
        self.put(node, self.layout.kernfs_node.parent, parent.unwrap_or_default().0);
        self.put(node, self.layout.kernfs_node.name, text.0);
        node
    }

    pub(super) fn cgroup(&mut self, node: Gva) -> Gva {
        let cgroup = self.alloc(64);
        self.put(cgroup, self.layout.cgroup.kn, node.0);
        cgroup
    }

    fn task(&mut self, parent: Gva, pid: u64, comm: &[u8], uid: u64, group: Gva, exe: Gva) -> Gva {
        let layout = self.layout.clone();
        let (task, signal, mm) = (self.alloc(256), self.alloc(64), self.alloc(128));
        let (cred, css_set, cgroup) = (self.alloc(64), self.alloc(64), self.cgroup(group));
        self.put(cred, layout.cred.euid, uid);
        self.put(css_set, layout.css_set.dfl_cgrp, cgroup.0);
        self.put(mm, layout.mm.exe_file, exe.0);
        self.circle(&[signal.at(layout.signal.thread_head), task.at(layout.task.thread_node)]);
        for (offset, value) in [
            (layout.task.tgid, pid),
            (layout.task.mm, mm.0),
            (layout.task.real_parent, parent.0),
            (layout.task.signal, signal.0),
            (layout.task.cred, cred.0),
            (layout.task.real_cred, cred.0),
            (layout.task.cgroups, css_set.0),
            (layout.task.start_time, pid * 1_000_000),
        ] {
            self.put(task, offset, value);
        }
        self.write(task.at(layout.task.comm), comm);
        task
    }

    /// Gives a process a second thread with credentials of its own, and lets its leader exit.
    pub(crate) fn exit_leader(&mut self, task: Gva) {
        let layout = self.layout.task.clone();
        let (thread, cred) = (self.alloc(256), self.alloc(64));
        for shared in [layout.tgid, layout.mm, layout.files, layout.signal, layout.start_time] {
            let value = self.read(task.at(shared));
            self.put(thread, shared, value);
        }
        self.put(thread, layout.cred, cred.0);
        self.put(task, layout.mm, 0);
        self.put(task, layout.files, 0);
        self.put(self.at.connection_file, self.layout.file.f_cred, cred.0);
        let head = Gva(self.read(task.at(layout.signal))).at(self.layout.signal.thread_head);
        self.circle(&[head, task.at(layout.thread_node), thread.at(layout.thread_node)]);
    }

    /// Lets a process end and another one take its place in the list, its descriptors, and all its memory but the
    /// task itself, which stays as it was left.
    pub(crate) fn succeed(&mut self, task: Gva, pid: u64) {
        let layout = self.layout.task.clone();
        let successor = self.alloc(256);
        let at = usize::try_from(Self::gpa(task)).unwrap();
        let copy = self.ram.0[at..at + 256].to_vec();
        self.write(successor, &copy);
        self.put(successor, layout.tgid, pid);
        self.put(successor, layout.start_time, pid * 1_000_000);
        let head = Gva(self.read(task.at(layout.signal))).at(self.layout.signal.thread_head);
        self.circle(&[head, successor.at(layout.thread_node)]);
        let node = task.at(layout.tasks);
        let (next, previous) = (Gva(self.read(node)), Gva(self.read(node.at(8))));
        self.circle(&[previous, successor.at(layout.tasks)]);
        self.put(successor, layout.tasks, next.0);
        self.put(next, 8, successor.at(layout.tasks).0);
        self.put(task, layout.files, 0);
    }

    /// Gives a process a table of eight descriptors, `files` from number 3 on; returns its `fdtable`.
    fn fd_table(&mut self, task: Gva, files: &[Gva]) -> Gva {
        let (table, fdt, array) = (self.alloc(64), self.alloc(64), self.alloc(64));
        self.put(task, self.layout.task.files, table.0);
        self.put(table, self.layout.files.fdt, fdt.0);
        if let Some(next_fd) = &self.layout.next_fd {
            let next = next_fd.next;
            self.put(table, next, 3 + files.len() as u64);
        }
        self.put(fdt, self.layout.fdtable.max_fds, 8);
        self.put(fdt, self.layout.fdtable.fd, array.0);
        for (file, fd) in files.iter().zip(3..) {
            self.put(array, fd * 8, file.0);
        }
        fdt
    }

    pub(super) fn sock(&mut self, local: &str, remote: &str, state: u64, group: Gva) -> Gva {
        let (local, remote): (std::net::SocketAddr, std::net::SocketAddr) =
            (local.parse().unwrap(), remote.parse().unwrap());
        let layout = self.layout.sock.clone();
        let (sock, cgroup) = (self.alloc(256), self.cgroup(group));
        let octets = |end: std::net::SocketAddr| match end.ip() {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let (own, other) = match local {
            std::net::SocketAddr::V4(_) => (layout.rcv_saddr, layout.daddr),
            std::net::SocketAddr::V6(_) => (layout.v6_rcv_saddr, layout.v6_daddr),
        };
        let hash = Form::PortsInside.hash(canonical(local), canonical(remote), SECRETS, MIX).unwrap();
        for (offset, value) in [
            (layout.num, u64::from(local.port())),
            (layout.dport, u64::from(remote.port().swap_bytes())),
            (layout.family, if local.is_ipv4() { 2 } else { 10 }),
            (layout.state, state),
            (layout.net, self.at.net.0),
            (layout.hash, hash.into()),
            (layout.uid, 1001),
            (layout.cgroup, cgroup.0),
        ] {
            self.put(sock, offset, value);
        }
        self.write(sock.at(own), &octets(local));
        self.write(sock.at(other), &octets(remote));
        sock
    }

    /// Makes a socket an open file with `cred` and inode `inode`.
    pub(super) fn open(&mut self, sock: Gva, cred: Gva, inode: u64) -> Gva {
        let layout = self.layout.clone();
        let (alloc, file) = (self.alloc(128), self.alloc(64));
        let socket = alloc.at(layout.socket_alloc.socket);
        self.put(alloc, layout.socket_alloc.inode + layout.inode.number, inode);
        self.put(socket, layout.socket.sk, sock.0);
        self.put(socket, layout.socket.file, file.0);
        self.put(sock, layout.sock.socket, socket.0);
        self.put(file, layout.file.f_op, self.find("socket_file_ops").0);
        self.put(file, layout.file.private_data, socket.0);
        self.put(file, layout.file.f_cred, cred.0);
        file
    }

    /// Adds fillers and writes the table of all symbols.
    fn symbol_table(&mut self, order: SymbolOrder) {
        self.symbol("jiffies_64", 128);
        self.symbol("vmemmap_base", 8);
        let phys_base = self.symbol("phys_base", 8);
        self.write(phys_base, &(START_KERNEL_MAP.wrapping_sub(IMAGE_GVA - IMAGE_GPA)).to_le_bytes());
        self.symbols.push(("_end".into(), IMAGE_GVA + (RAM_BYTES as u64 - IMAGE_GPA)));
        for filler in 0..2100 {
            self.symbols.push((format!("filler_{filler:04}"), IMAGE_GVA + filler));
        }
        self.at.symbols_gpa = self.write_symbols(order);
    }

    /// Writes a table of the symbols; returns where its count lies.
    fn write_symbols(&mut self, order: SymbolOrder) -> u64 {
        self.image = self.image.next_multiple_of(8);
        let gva = IMAGE_GVA + (self.image - IMAGE_GPA);
        let (bytes, count_at) = symbols::encode(order, &self.symbols, gva);
        self.write(Gva(gva), &bytes);
        let count_gpa = self.image + count_at;
        self.image += bytes.len() as u64;
        count_gpa
    }

    /// Adds a second table that has `name` elsewhere.
    pub(crate) fn imitate_symbols(&mut self, name: &str, order: SymbolOrder) {
        let symbol = self.symbols.iter_mut().find(|(symbol, _)| symbol == name).unwrap();
        symbol.1 += 64;
        self.write_symbols(order);
    }

    /// Clears what a symbol of the image names, from its start on.
    pub(crate) fn clear(&mut self, name: &str, len: usize) {
        let place = self.find(name);
        self.write(place, &vec![0; len]);
    }
}
