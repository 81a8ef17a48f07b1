// SPDX-License-Identifier: Apache-2.0
//! A container behind translated addresses: a network namespace of its own, and the table of connections that the
//! guest translates, which is a module's.
//!
//! ```text
//! namespace of init   10.0.0.1, fd00::1
//! its own namespace   172.17.0.2, fd17::2
//!   held by shop, fds 3 to 6, each seen on the wire as from port 61000 of 10.0.0.1 or fd00::1:
//!     TCP 172.17.0.2:4000 -> 10.0.0.2:80      TCP [fd17::2]:4001 -> [fd00::2]:80
//!     UDP 172.17.0.2:4002 -> 10.0.0.2:53      TCP 0.0.0.0:8080 listening, for port 80 of 10.0.0.1
//! ```

use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use super::*;

const INNER_MIX: u32 = 0x7777_0002;
/// Buckets of the table of connections: no power of two.
const TRACKED_BUCKETS: u64 = 5;
const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Places of interest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Container {
    /// Its namespace.
    pub(crate) net: Gva,
    /// The sockets over IPv4, over IPv6, of UDP, and the listener.
    pub(crate) sockets: [Gva; 4],
    /// What the guest keeps of the connection over IPv4.
    pub(crate) tracked: Gva,
    /// The module that keeps it.
    pub(crate) module: Gva,
    /// The key of its hash.
    pub(crate) key: Gva,
}

impl Kernel {
    /// Adds the container.
    pub(crate) fn contain(&mut self) -> Container {
        let (outer, inner) = (self.at.net, self.alloc(512));
        let layout = self.layout.net.clone();
        for offset in [layout.hashinfo, self.layout.net_udp_table.unwrap()] {
            let shared = self.read(outer.at(offset));
            self.put(inner, offset, shared);
        }
        self.put(inner, layout.hash_mix, INNER_MIX.into());
        self.put(inner, layout.inode, 4_026_532_000);
        let namespaces = self.find("net_namespace_list");
        self.append(namespaces, inner.at(layout.list));
        self.circle(&[inner.at(layout.devices)]);
        let (veth, _) = self.add_device(inner, &[]);
        self.address(self.at.device, "10.0.0.1");
        self.address(self.at.device, "fd00::1");
        self.address(veth, "172.17.0.2");
        self.address(veth, "fd17::2");
        let sockets = self.inner_sockets(inner);
        let (module, key, table) = self.tracking_module();
        let tracked = self.track(table, TCP, "172.17.0.2:4000", "10.0.0.2:80", "10.0.0.1:61000");
        self.track(table, TCP, "[fd17::2]:4001", "[fd00::2]:80", "[fd00::1]:61000");
        self.track(table, UDP, "172.17.0.2:4002", "10.0.0.2:53", "10.0.0.1:61000");
        self.track_inbound(table, "10.0.0.9:5000", "10.0.0.1:80", "172.17.0.2:8080");
        Container { net: inner, sockets, tracked, module, key }
    }

    /// Gives a device an address.
    pub(crate) fn address(&mut self, device: Gva, address: &str) {
        let layout = self.layout.network.addresses.clone().unwrap();
        let (part, entry) = (self.alloc(64), self.alloc(64));
        match address.parse().unwrap() {
            IpAddr::V4(address) => {
                self.put(device, layout.device.v4, part.0);
                self.put(part, layout.in_device.addresses, entry.0);
                self.write(entry.at(layout.in_ifaddr.local), &address.octets());
            }
            IpAddr::V6(address) => {
                self.put(device, layout.device.v6, part.0);
                let list = entry.at(layout.inet6_ifaddr.list);
                self.circle(&[part.at(layout.inet6_dev.addresses), list]);
                self.write(entry.at(layout.inet6_ifaddr.address), &address.octets());
            }
        }
    }

    fn inner_sockets(&mut self, inner: Gva) -> [Gva; 4] {
        let group = self.at.shop_kernfs;
        let cred = Gva(self.read(self.at.shop.at(self.layout.task.cred)));
        let ends = [
            ("172.17.0.2:4000", "10.0.0.2:80", 1),
            ("[fd17::2]:4001", "[fd00::2]:80", 1),
            ("172.17.0.2:4002", "10.0.0.2:53", 1),
            ("0.0.0.0:8080", "0.0.0.0:0", 10),
        ];
        let sockets = ends.map(|(local, remote, state)| {
            let sock = self.sock(local, remote, state, group);
            self.put(sock, self.layout.sock.net, inner.0);
            let hash =
                Form::PortsInside.hash(local.parse().unwrap(), remote.parse().unwrap(), SECRETS, INNER_MIX);
            self.put(sock, self.layout.sock.hash, hash.unwrap().into());
            sock
        });
        let [v4, v6, udp, listener] = sockets;
        for sock in [v4, v6] {
            self.connect(sock);
        }
        self.bind(udp, 4002, INNER_MIX);
        self.listen(listener);
        let files: Vec<Gva> =
            sockets.into_iter().zip(600..).map(|(sock, inode)| self.open(sock, cred, inode)).collect();
        self.at.shop_fdt = self.fd_table(self.at.shop, &files);
        sockets
    }

    /// The module with the table; returns it, the key of the hash, and the table.
    fn tracking_module(&mut self) -> (Gva, Gva, Gva) {
        let layout = self.layout.network.modules.clone().unwrap();
        let (module, symbols, variables) = (self.alloc(256), self.alloc(64), self.alloc(64));
        let (table, names) = (self.alloc(TRACKED_BUCKETS * 8), self.alloc(128));
        for bucket in 0..TRACKED_BUCKETS {
            self.put(table, bucket as u32 * 8, bucket << 1 | 1);
        }
        self.write(module.at(layout.module.name), b"nf_conntrack\0");
        self.put(module, layout.module.symbols, symbols.0);
        let symtab = self.alloc(4 * 24);
        let mut text = b"\0".to_vec();
        for (index, (name, place)) in [
            ("nf_conntrack_lock", 0),
            ("nf_conntrack_hash", variables.0),
            ("nf_conntrack_htable_size", variables.at(8).0),
            ("nf_conntrack_hash_rnd", variables.at(16).0),
        ]
        .into_iter()
        .enumerate()
        {
            let symbol = symtab.element(index as u64, 24);
            self.put(symbol, 0, text.len() as u64);
            self.put(symbol, 8, place);
            text.extend([name.as_bytes(), b"\0"].concat());
        }
        self.write(names, &text);
        for (offset, value) in
            [(layout.symbols.table, symtab.0), (layout.symbols.count, 4), (layout.symbols.names, names.0)]
        {
            self.put(symbols, offset, value);
        }
        for (offset, value) in [(0, table.0), (8, TRACKED_BUCKETS), (16, KEY[0]), (24, KEY[1])] {
            self.put(variables, offset, value);
        }
        let modules = self.find("modules");
        self.append(modules, module.at(layout.module.list));
        (module, variables.at(16), table)
    }

    /// A connection from inside whose source is translated.
    fn track(&mut self, table: Gva, protocol: u8, from: &str, to: &str, seen: &str) -> Gva {
        self.track_as(table, protocol, [(from, to), (to, seen)])
    }

    /// A connection from outside whose destination is translated.
    fn track_inbound(&mut self, table: Gva, from: &str, to: &str, inside: &str) -> Gva {
        self.track_as(table, TCP, [(from, to), (inside, from)])
    }

    fn track_as(&mut self, table: Gva, protocol: u8, tuples: [(&str, &str); 2]) -> Gva {
        let layout = self.layout.network.conntrack.clone().unwrap();
        let connection = self.alloc(256);
        self.put(connection, layout.conn.net, self.at.net.0);
        for (direction, (from, to)) in (0..).zip(tuples) {
            let hash = connection.at(layout.conn.tuples + direction * layout.hash_bytes);
            let tuple = hash.at(layout.hash.tuple);
            let bytes = tuple_bytes(protocol, from.parse().unwrap(), to.parse().unwrap());
            self.write(tuple, &bytes);
            self.write(tuple.at(39), &[direction as u8]);
            let bucket = (((siphash(&bytes) & 0xffff_ffff) * TRACKED_BUCKETS) >> 32) as u32;
            let first = self.read(table.at(bucket * 8));
            self.put(hash, layout.hash.node, first);
            self.put(table, bucket * 8, hash.at(layout.hash.node).0);
        }
        connection
    }
}

#[expect(deprecated, reason = "the hash is the kernel's")]
fn siphash(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::SipHasher::new_with_keys(KEY[0], KEY[1] ^ u64::from(MIX));
    hasher.write(bytes);
    hasher.finish()
}

/// A tuple as kernels have it, without its direction.
fn tuple_bytes(protocol: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let address = |end: SocketAddr| match end.ip() {
        IpAddr::V4(address) => [&address.octets()[..], &[0; 12]].concat(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let family: u16 = if from.is_ipv4() { 2 } else { 10 };
    [
        address(from),
        from.port().to_be_bytes().to_vec(),
        family.to_le_bytes().to_vec(),
        address(to),
        to.port().to_be_bytes().to_vec(),
        vec![protocol],
    ]
    .concat()
}
