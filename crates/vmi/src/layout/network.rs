// SPDX-License-Identifier: Apache-2.0
//! Layouts of what lies between a frame and the socket it belongs to: addresses of network namespaces, and the
//! table of connections whose addresses the guest translates.

use crate::btf::Structures;
use crate::error::TypesError;
use crate::layout::Gaps;

offsets! {
    /// Where a network device keeps its addresses.
    AddressedDevice of "net_device" { v4: "ip_ptr", v6: "ip6_ptr" }
}
offsets! {
    /// The IPv4 part of a network device.
    InDevice of "in_device" { addresses: "ifa_list" }
}
offsets! {
    /// One IPv4 address.
    InIfaddr of "in_ifaddr" { next: "ifa_next", local: "ifa_local" }
}
offsets! {
    /// The IPv6 part of a network device.
    Inet6Dev of "inet6_dev" { addresses: "addr_list" }
}
offsets! {
    /// One IPv6 address.
    Inet6Ifaddr of "inet6_ifaddr" { list: "if_list", address: "addr" }
}
offsets! {
    /// A connection that the guest follows.
    NfConn of "nf_conn" { tuples: "tuplehash", net: "ct_net.net" }
}
offsets! {
    /// One direction of it, as it hangs in the table.
    TupleHash of "nf_conntrack_tuple_hash" { node: "hnnode", tuple: "tuple" }
}
offsets! {
    /// The ends of one direction.
    Tuple of "nf_conntrack_tuple" {
        source: "src.u3", source_port: "src.u", family: "src.l3num",
        destination: "dst.u3", destination_port: "dst.u", protocol: "dst.protonum", direction: "dst.dir",
    }
}
offsets! {
    /// The connection that a frame belongs to, and its direction in the lowest bits.
    TrackedFrame of "sk_buff" { connection: "_nfct" }
}
offsets! {
    /// A module, by its name and its symbols.
    Module of "module" { list: "list", name: "name", symbols: "kallsyms" }
}
offsets! {
    /// The symbols of a module, as its object file has them.
    ModuleSymbols of "mod_kallsyms" { table: "symtab", count: "num_symtab", names: "strtab" }
}

/// Addresses of network namespaces.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    pub(crate) device: AddressedDevice,
    pub(crate) in_device: InDevice,
    pub(crate) in_ifaddr: InIfaddr,
    pub(crate) inet6_dev: Inet6Dev,
    pub(crate) inet6_ifaddr: Inet6Ifaddr,
}

/// Connections that the guest follows.
#[derive(Clone, Debug)]
pub(crate) struct Conntrack {
    pub(crate) conn: NfConn,
    pub(crate) hash: TupleHash,
    pub(crate) hash_bytes: u32,
    pub(crate) tuple: Tuple,
    pub(crate) frame: TrackedFrame,
}

/// Symbols of modules.
#[derive(Clone, Debug)]
pub(crate) struct Modules {
    pub(crate) module: Module,
    pub(crate) symbols: ModuleSymbols,
}

/// All of it; without one of them, what it serves is left out.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) addresses: Option<Addresses>,
    pub(crate) conntrack: Option<Conntrack>,
    pub(crate) modules: Option<Modules>,
}

impl Network {
    pub(crate) fn resolve(types: &Structures<'_>, gaps: &mut Gaps) -> Self {
        Self {
            addresses: gaps.whole("addresses of network namespaces", Addresses::resolve(types)),
            conntrack: gaps.whole("containers behind translated addresses", Conntrack::resolve(types)),
            modules: gaps.whole("symbols of modules", Modules::resolve(types)),
        }
    }
}

impl Addresses {
    fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        Ok(Self {
            device: AddressedDevice::resolve(types)?,
            in_device: InDevice::resolve(types)?,
            in_ifaddr: InIfaddr::resolve(types)?,
            inet6_dev: Inet6Dev::resolve(types)?,
            inet6_ifaddr: Inet6Ifaddr::resolve(types)?,
        })
    }
}

impl Conntrack {
    fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        Ok(Self {
            conn: NfConn::resolve(types)?,
            hash: TupleHash::resolve(types)?,
            hash_bytes: types.size("nf_conntrack_tuple_hash")?,
            tuple: Tuple::resolve(types)?,
            frame: TrackedFrame::resolve(types)?,
        })
    }
}

impl Modules {
    fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        Ok(Self { module: Module::resolve(types)?, symbols: ModuleSymbols::resolve(types)? })
    }
}
