// SPDX-License-Identifier: Apache-2.0
//! Where the members that this library reads lie in the guest kernel's structures: resolved once, at attach,
//! from the kernel's own type information. Nothing here is hardwired but names.
//!
//! A member that was renamed over the years is written with all its names, newest first or not: the first
//! that exists counts. What only some kernels have is an `Option` in [`Layout`]. Any other member that a kernel does
//! not describe lies [`NOWHERE`], and is a [`Gap`]: what needs it is missing, the rest is told.

use crate::btf::Structures;
use crate::error::TypesError;
use crate::memory::NOWHERE;
use cpu::Cpu;
use detail::Detail;
use network::Network;
use transport::Transport;
use user::UserFile;

/// What cannot be told of a guest because its kernel does not describe it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {view}: {reason}")]
pub struct Gap {
    /// What is missing, in words: `executable paths`, `sockets`.
    pub view: &'static str,
    /// What the kernel lacks; the first of several things.
    pub reason: TypesError,
}

/// All gaps of a kernel, one for each view.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gaps(Vec<Gap>);

impl Gaps {
    fn note(&mut self, view: &'static str, reason: TypesError) {
        if self.0.iter().all(|gap| gap.view != view) {
            self.0.push(Gap { view, reason });
        }
    }

    /// The offset, or that it lies nowhere.
    fn offset(&mut self, view: &'static str, found: Result<u32, TypesError>) -> u32 {
        found.unwrap_or_else(|reason| {
            self.note(view, reason);
            NOWHERE
        })
    }

    /// What is missing as a whole if a part of it is.
    fn whole<T>(&mut self, view: &'static str, found: Result<T, TypesError>) -> Option<T> {
        found.map_err(|reason| self.note(view, reason)).ok()
    }
}

/// Declares a structure of member offsets, each in bytes, and how they are resolved.
macro_rules! offsets {
    ($(#[$doc:meta])* $name:ident of $structure:literal { $($field:ident: $($path:literal)|+),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name { $(pub(crate) $field: u32),* }

        impl $name {
            #[allow(dead_code, reason = "some are resolved as a whole, some member by member")]
            fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
                Ok(Self { $($field: types.offset_of_any($structure, &[$($path),+])?),* })
            }

            #[allow(dead_code, reason = "some are resolved as a whole, some member by member")]
            fn resolve_each(types: &Structures<'_>, gaps: &mut Gaps, view: &'static str) -> Self {
                Self { $($field: gaps.offset(view, types.offset_of_any($structure, &[$($path),+]))),* }
            }
        }
    };
}

pub(crate) mod cpu;
pub(crate) mod detail;
pub(crate) mod network;
pub(crate) mod origin;
pub(crate) mod transport;
pub(crate) mod user;

offsets! {
    /// A thread; the list `tasks` links the leaders of thread groups.
    Task of "task_struct" {
        tasks: "tasks", tgid: "tgid", comm: "comm", mm: "mm", files: "files",
        real_parent: "real_parent", signal: "signal", cred: "cred", real_cred: "real_cred",
        cgroups: "cgroups", start_time: "start_boottime" | "real_start_time", thread_node: "thread_node",
    }
}
offsets! {
    /// What the threads of a process share.
    Signal of "signal_struct" { thread_head: "thread_head" }
}
offsets! {
    /// A user address space.
    Mm of "mm_struct" { exe_file: "exe_file" }
}
offsets! {
    /// Credentials.
    Cred of "cred" { euid: "euid.val" }
}
offsets! {
    /// A task's membership in control groups.
    CssSet of "css_set" { dfl_cgrp: "dfl_cgrp" }
}
offsets! {
    /// A control group.
    Cgroup of "cgroup" { kn: "kn" }
}
offsets! {
    /// A node of the file system that shows control groups.
    KernfsNode of "kernfs_node" { parent: "__parent" | "parent", name: "name" }
}
offsets! {
    /// An open file.
    File of "file" {
        f_op: "f_op", private_data: "private_data", f_cred: "f_cred",
        dentry: "f_path.dentry", mnt: "f_path.mnt",
    }
}
offsets! {
    /// A name in a directory.
    Dentry of "dentry" { parent: "d_parent", name: "d_name.name", name_len: "d_name.len" }
}
offsets! {
    /// A mounted file system; `mnt` is the part that files point to.
    Mount of "mount" { mnt: "mnt", mnt_root: "mnt.mnt_root", parent: "mnt_parent", mountpoint: "mnt_mountpoint" }
}
offsets! {
    /// A process's descriptor table.
    Files of "files_struct" { fdt: "fdt" }
}
offsets! {
    /// Where a process's next descriptor is looked for.
    NextFd of "files_struct" { next: "next_fd" }
}
offsets! {
    /// The array of a descriptor table.
    Fdtable of "fdtable" { max_fds: "max_fds", fd: "fd" }
}
offsets! {
    /// The part of a socket that files see.
    Socket of "socket" { sk: "sk", file: "file" }
}
offsets! {
    /// A socket together with its inode.
    SocketAlloc of "socket_alloc" { socket: "socket", inode: "vfs_inode" }
}
offsets! {
    /// An inode.
    Inode of "inode" { number: "i_ino" }
}
offsets! {
    /// The network part of a socket. What begins with `skc_` also exists for requests and in TIME_WAIT.
    Sock of "sock" {
        daddr: "__sk_common.skc_daddr", rcv_saddr: "__sk_common.skc_rcv_saddr",
        dport: "__sk_common.skc_dport", num: "__sk_common.skc_num",
        family: "__sk_common.skc_family", state: "__sk_common.skc_state",
        net: "__sk_common.skc_net", hash: "__sk_common.skc_hash", flags: "__sk_common.skc_flags",
        v6_daddr: "__sk_common.skc_v6_daddr", v6_rcv_saddr: "__sk_common.skc_v6_rcv_saddr",
        node: "__sk_common.skc_node", listener: "__sk_common.skc_listener",
        socket: "sk_socket", uid: "sk_uid", cgroup: "sk_cgrp_data.cgroup" | "sk_cgrp_data.val",
    }
}
offsets! {
    /// A network namespace.
    Net of "net" {
        list: "list", hash_mix: "hash_mix", inode: "ns.inum", devices: "dev_base_head",
        hashinfo: "ipv4.tcp_death_row.hashinfo",
    }
}
offsets! {
    /// The tables of TCP sockets.
    Hashinfo of "inet_hashinfo" {
        ehash: "ehash", ehash_mask: "ehash_mask", lhash2: "lhash2", lhash2_mask: "lhash2_mask",
    }
}
offsets! {
    /// A bucket of listening sockets.
    ListenBucket of "inet_listen_hashbucket" { head: "nulls_head" | "head" }
}
offsets! {
    /// The tables of UDP sockets.
    UdpTable of "udp_table" { hash: "hash", mask: "mask" }
}
offsets! {
    /// A network device.
    NetDevice of "net_device" { list: "dev_list", parent: "dev.parent" }
}
offsets! {
    /// A virtio device: the parent of its network device.
    VirtioDevice of "virtio_device" { dev: "dev", queues: "vqs" }
}
offsets! {
    /// The public part of a virtqueue.
    Virtqueue of "virtqueue" { list: "list" }
}
offsets! {
    /// A frame on its way.
    SkBuff of "sk_buff" { sk: "sk", dev: "dev" }
}
offsets! {
    /// Type information of a module.
    BtfModule of "btf_module" { list: "list", btf: "btf" }
}
offsets! {
    /// Type information as the kernel keeps it.
    KernelBtf of "btf" {
        data: "data", data_size: "data_size", start_id: "start_id", start_str_off: "start_str_off",
        name: "name",
    }
}
offsets! {
    /// A virtqueue as its driver sees it; the lowest bit of `form` says whether it is packed.
    VringVirtqueue of "vring_virtqueue" { vq: "vq", form: "packed_ring" | "layout" }
}
offsets! {
    /// A split ring.
    SplitRing of "vring_virtqueue" { desc: "split.vring.desc", count: "split.vring.num", notes: "split.desc_state" }
}
offsets! {
    /// A packed ring.
    PackedRing of "vring_virtqueue" { desc: "packed.vring.desc", count: "packed.vring.num", notes: "packed.desc_state" }
}
offsets! {
    /// The driver's note for one descriptor chain of a split ring.
    SplitNote of "vring_desc_state_split" { data: "data" }
}
offsets! {
    /// The driver's note for one buffer of a packed ring.
    PackedNote of "vring_desc_state_packed" { data: "data" }
}
offsets! {
    /// Where kernels from 6.9 keep the secrets of the socket hashes.
    Hotdata of "net_hotdata" {
        tcp: "tcp_protocol.secret", tcp6: "tcpv6_protocol.secret", tcp6_address: "tcpv6_offload.secret",
    }
}

/// All of it, in the order of the modules that use it.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) task: Task,
    pub(crate) signal: Signal,
    pub(crate) mm: Mm,
    pub(crate) cred: Cred,
    pub(crate) css_set: CssSet,
    pub(crate) cgroup: Cgroup,
    pub(crate) kernfs_node: KernfsNode,
    pub(crate) file: File,
    pub(crate) dentry: Dentry,
    pub(crate) mount: Mount,
    pub(crate) files: Files,
    pub(crate) next_fd: Option<NextFd>,
    pub(crate) fdtable: Fdtable,
    pub(crate) socket: Socket,
    pub(crate) socket_alloc: SocketAlloc,
    pub(crate) inode: Inode,
    pub(crate) sock: Sock,
    /// Place of the bit that says that an IPv6 socket takes no IPv4.
    pub(crate) sock_ipv6only_bits: u32,
    pub(crate) net: Net,
    pub(crate) hashinfo: Hashinfo,
    /// Size of a bucket of established sockets; its list head is its first member.
    pub(crate) ehash_bucket_bytes: u32,
    pub(crate) listen_bucket: ListenBucket,
    pub(crate) listen_bucket_bytes: u32,
    /// The link of listening sockets; before 5.19 not the common one.
    pub(crate) listen_node: u32,
    pub(crate) udp_table: UdpTable,
    /// Size of a UDP slot; its list head is its first member.
    pub(crate) udp_slot_bytes: u32,
    /// Namespaces have a UDP table of their own (from 6.2).
    pub(crate) net_udp_table: Option<u32>,
    pub(crate) hotdata: Option<Hotdata>,
    pub(crate) devices: Option<Devices>,
    pub(crate) modules: Option<Modules>,
    pub(crate) detail: Detail,
    pub(crate) cpu: Option<Cpu>,
    pub(crate) network: Network,
    pub(crate) transport: Transport,
    /// Without it, users have numbers only.
    pub(crate) user: Option<UserFile>,
    pub(crate) gaps: Vec<Gap>,
}

/// From a network namespace to the virtqueues of its devices.
#[derive(Clone, Debug)]
pub(crate) struct Devices {
    pub(crate) net_device: NetDevice,
    pub(crate) skb: SkBuff,
}

/// Types of modules.
#[derive(Clone, Debug)]
pub(crate) struct Modules {
    pub(crate) module: BtfModule,
    pub(crate) btf: KernelBtf,
}

/// A virtqueue; described by the kernel or, where virtio is a module, by that module.
#[derive(Clone, Debug)]
pub(crate) struct Vring {
    pub(crate) device: VirtioDevice,
    pub(crate) virtqueue: Virtqueue,
    pub(crate) vring: VringVirtqueue,
    pub(crate) split: Ring,
    pub(crate) packed: Ring,
}

/// A ring of either form, and the driver's notes beside it: one for each chain of descriptors, by the number under
/// which the device returns it.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) desc: u32,
    pub(crate) count: u32,
    pub(crate) notes: u32,
    pub(crate) note_data: u32,
    pub(crate) note_bytes: u32,
}

impl Layout {
    /// Notes that the one table of UDP sockets that older kernels have has no symbol.
    pub(crate) fn note_no_udp_table(&mut self) {
        if self.net_udp_table.is_none() {
            let (structure, member) = ("net", "ipv4.udp_table");
            self.gaps.push(Gap { view: DATAGRAMS, reason: TypesError::NoMember { structure, member } });
        }
    }

    /// Resolves everything.
    ///
    /// # Errors
    /// When the kernel does not describe what names a process: then nothing can be told.
    pub(crate) fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        let mut found = Gaps::default();
        let gaps = &mut found;
        for member in ["tasks", "tgid", "comm"] {
            types.offset("task_struct", member)?;
        }
        let cpu = Cpu::resolve(types, gaps);
        let sock = Sock::resolve_each(types, gaps, SOCKETS);
        let own_listen_node = types.offset("inet_connection_sock", "icsk_listen_portaddr_node");
        let listeners = "listeners";
        let groups = "control groups";
        let paths = "executable paths";
        let owners = "owners of sockets";
        Ok(Self {
            task: Task::resolve_each(types, gaps, "process relations"),
            signal: Signal::resolve_each(types, gaps, "threads"),
            mm: Mm::resolve_each(types, gaps, paths),
            cred: Cred::resolve_each(types, gaps, "users"),
            css_set: CssSet::resolve_each(types, gaps, groups),
            cgroup: Cgroup::resolve_each(types, gaps, groups),
            kernfs_node: KernfsNode::resolve_each(types, gaps, groups),
            file: File::resolve_each(types, gaps, "open files"),
            dentry: Dentry::resolve_each(types, gaps, paths),
            mount: Mount::resolve_each(types, gaps, paths),
            files: Files::resolve_each(types, gaps, owners),
            next_fd: NextFd::resolve(types).ok(),
            fdtable: Fdtable::resolve_each(types, gaps, owners),
            socket: Socket::resolve_each(types, gaps, owners),
            socket_alloc: SocketAlloc::resolve_each(types, gaps, INODES),
            inode: Inode::resolve_each(types, gaps, INODES),
            sock_ipv6only_bits: gaps.offset(SOCKETS, types.offset_bits("sock", "__sk_common.skc_ipv6only")),
            net: Net::resolve_each(types, gaps, SOCKETS),
            hashinfo: Hashinfo::resolve_each(types, gaps, "connections"),
            ehash_bucket_bytes: gaps.offset("connections", types.size("inet_ehash_bucket")),
            listen_bucket: ListenBucket::resolve_each(types, gaps, listeners),
            listen_bucket_bytes: gaps.offset(listeners, types.size("inet_listen_hashbucket")),
            listen_node: own_listen_node.unwrap_or(sock.node),
            udp_table: UdpTable::resolve_each(types, gaps, DATAGRAMS),
            udp_slot_bytes: gaps.offset(DATAGRAMS, types.size("udp_hslot")),
            net_udp_table: types.offset("net", "ipv4.udp_table").ok(),
            hotdata: Hotdata::resolve(types).ok(),
            devices: gaps.whole("sockets of frames", Devices::resolve(types)),
            modules: Modules::resolve(types).ok(),
            detail: Detail::resolve(types, gaps),
            cpu: gaps.whole("processor times", cpu),
            network: Network::resolve(types, gaps),
            transport: Transport::resolve(types, gaps),
            user: gaps.whole("names of users", UserFile::resolve(types)),
            sock,
            gaps: found.0,
        })
    }
}

/// The views that most of a socket's members are needed for.
const SOCKETS: &str = "sockets";
const INODES: &str = "inodes of sockets";
const DATAGRAMS: &str = "UDP sockets";

impl Devices {
    fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        Ok(Self { net_device: NetDevice::resolve(types)?, skb: SkBuff::resolve(types)? })
    }
}

impl Modules {
    fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        Ok(Self { module: BtfModule::resolve(types)?, btf: KernelBtf::resolve(types)? })
    }
}

impl Vring {
    /// Resolves a virtqueue from the kernel's types, or from those with its virtio module's.
    ///
    /// # Errors
    /// When they do not describe it.
    pub(crate) fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        let (split, split_note) = (SplitRing::resolve(types)?, SplitNote::resolve(types)?);
        let (packed, packed_note) = (PackedRing::resolve(types)?, PackedNote::resolve(types)?);
        Ok(Self {
            device: VirtioDevice::resolve(types)?,
            virtqueue: Virtqueue::resolve(types)?,
            vring: VringVirtqueue::resolve(types)?,
            split: Ring {
                desc: split.desc,
                count: split.count,
                notes: split.notes,
                note_data: split_note.data,
                note_bytes: types.size("vring_desc_state_split")?,
            },
            packed: Ring {
                desc: packed.desc,
                count: packed.count,
                notes: packed.notes,
                note_data: packed_note.data,
                note_bytes: types.size("vring_desc_state_packed")?,
            },
        })
    }

    /// The virtqueue of kernels that have no types for modules (before 5.11) and virtio as modules: all that
    /// cannot be resolved is as 5.10 has it. A ring is used only if its address is found in its place.
    ///
    /// # Errors
    /// When they do not even describe a virtio device.
    pub(crate) fn without_module_types(types: &Structures<'_>) -> Result<Self, TypesError> {
        let ring = |note_bytes| Ring { count: 80, desc: 88, notes: 120, note_data: 0, note_bytes };
        Ok(Self {
            device: VirtioDevice::resolve(types)?,
            virtqueue: Virtqueue::resolve(types)?,
            vring: VringVirtqueue { vq: 0, form: 56 },
            split: ring(16),
            packed: ring(24),
        })
    }
}
