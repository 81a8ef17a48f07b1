// SPDX-License-Identifier: Apache-2.0
//! The guest's own hash of connections, recomputed: where in its table a connection must be.
//!
//! Bob Jenkins' lookup3 as the kernel has it (Linux, include/linux/jhash.h), over both ends, a secret drawn at
//! the first connection, and a number of the network namespace. Kernels differ in what goes where; which form
//! a guest has is learnt from the hashes that its live sockets store.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// `JHASH_INITVAL`.
const INITIAL: u32 = 0xdead_beef;

/// `jhash_3words`: three words and a seed.
pub(crate) fn jhash_3words(a: u32, b: u32, c: u32, seed: u32) -> u32 {
    let start = INITIAL.wrapping_add(3 << 2).wrapping_add(seed);
    finish([start.wrapping_add(a), start.wrapping_add(b), start.wrapping_add(c)])
}

/// `jhash2` of four words and a seed.
pub(crate) fn jhash_4words(words: [u32; 4], seed: u32) -> u32 {
    let start = INITIAL.wrapping_add(4 << 2).wrapping_add(seed);
    let [a, b, c] =
        mix([start.wrapping_add(words[0]), start.wrapping_add(words[1]), start.wrapping_add(words[2])]);
    finish([a.wrapping_add(words[3]), b, c])
}

fn mix([mut a, mut b, mut c]: [u32; 3]) -> [u32; 3] {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    [a, b, c]
}

fn finish([mut a, mut b, mut c]: [u32; 3]) -> u32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

/// What the guest drew at random. Zero until the first connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Secrets {
    pub(crate) v4: u32,
    pub(crate) v6: u32,
    pub(crate) v6_address: u32,
}

/// How a kernel hashes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Until 6.14: both ports are hashed.
    PortsInside,
    /// Since: the local port is added to the hash of the rest.
    LocalPortAdded,
}

impl Form {
    pub(crate) const ALL: [Self; 2] = [Self::PortsInside, Self::LocalPortAdded];

    /// Hash of a connection with canonical ends; `mix` is the namespace's `hash_mix`. `None` if the ends
    /// are not of one address family.
    pub(crate) fn hash(
        self,
        local: SocketAddr,
        remote: SocketAddr,
        secrets: Secrets,
        net: u32,
    ) -> Option<u32> {
        let local_port = u32::from(local.port());
        let remote_port = u32::from(remote.port().swap_bytes());
        let ports = local_port << 16 | remote_port;
        Some(match (local.ip(), remote.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let word = |address: std::net::Ipv4Addr| u32::from_le_bytes(address.octets());
                let seed = secrets.v4.wrapping_add(net);
                match self {
                    Self::PortsInside => jhash_3words(word(from), word(to), ports, seed),
                    Self::LocalPortAdded => {
                        local_port.wrapping_add(jhash_3words(word(from), word(to), remote_port, seed))
                    }
                }
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let (from, to) = (words(from), words(to));
                match self {
                    Self::PortsInside => {
                        let to = jhash_4words(to, secrets.v6_address);
                        jhash_3words(from[3], to, ports, secrets.v6.wrapping_add(net))
                    }
                    Self::LocalPortAdded => {
                        local_port.wrapping_add(hash_v6(from, to, remote_port, secrets.v6_address, net))
                    }
                }
            }
            _ => return None,
        })
    }
}

/// The newer hash of a v6 connection: lookup3 of eight address words and a port, without initial value.
fn hash_v6(from: [u32; 4], to: [u32; 4], remote_port: u32, secret: u32, net: u32) -> u32 {
    let add = |[a, b, c]: [u32; 3], x: u32, y: u32, z: u32| {
        [a.wrapping_add(x), b.wrapping_add(y), c.wrapping_add(z)]
    };
    let state = mix(add([secret; 3], from[0] ^ net, from[1], from[2]));
    let state = mix(add(state, from[3], to[0], to[1]));
    finish(add(state, to[2], to[3], remote_port))
}

fn words(address: Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    std::array::from_fn(|index| {
        u32::from_le_bytes([
            octets[index * 4],
            octets[index * 4 + 1],
            octets[index * 4 + 2],
            octets[index * 4 + 3],
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup3_agrees_with_another_implementation() {
        assert_eq!(jhash_3words(0, 0, 0, 0), 0x1b68_e557);
        assert_eq!(jhash_3words(1, 2, 3, 4), 0x8103_143f);
        assert_eq!(jhash_3words(u32::MAX, 1 << 31, 0x1234_5678, 0xdead_beef), 0x47e5_cb81);
        assert_eq!(jhash_4words([0; 4], 0), 0xbaf9_078c);
        assert_eq!(jhash_4words([1, 2, 3, 4], 5), 0x7355_8c35);
        assert_eq!(jhash_4words([u32::MAX, 1 << 31, u32::MAX >> 1, 0x1234_5678], 0xcafe_babe), 0x0503_eb09);
    }

    #[test]
    fn hashes_of_live_sockets_are_reproduced() {
        let debian_6_1 = Secrets { v4: 0xc0f1_6f2a, v6: 0x59bd_acde, v6_address: 0xec3d_8201 };
        let debian_6_12 = Secrets { v4: 0xcf5b_2550, v6: 0x03b7_59b6, v6_address: 0x2ae2_ee08 };
        for (secrets, mix, local, remote, hash) in [
            (debian_6_1, 0xa449_ac09, "127.0.0.1:8081", "127.0.0.1:43420", 0xf897_f055),
            (debian_6_1, 0xa449_ac09, "10.0.0.11:51504", "10.0.0.12:7001", 0x6e2c_18fc),
            (debian_6_1, 0xa449_ac09, "[::1]:33362", "[::1]:8082", 0x6135_aaf8),
            (debian_6_12, 0xa40c_fac5, "127.0.0.1:8083", "127.0.0.1:39778", 0x333c_78c2),
            (debian_6_12, 0xa40c_fac5, "[::1]:8082", "[::1]:53402", 0x25de_2c18),
        ] {
            let found = Form::PortsInside.hash(local.parse().unwrap(), remote.parse().unwrap(), secrets, mix);
            assert_eq!(found, Some(hash), "{local} {remote}");
        }
    }

    #[test]
    fn newer_form_adds_the_local_port() {
        let secrets = Secrets { v4: 1, v6: 2, v6_address: 3 };
        for (local, next, remote) in
            [("10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:3"), ("[fd00::1]:1", "[fd00::1]:2", "[fd00::2]:3")]
        {
            let hash = |local: &str| {
                let form = Form::LocalPortAdded;
                form.hash(local.parse().unwrap(), remote.parse().unwrap(), secrets, 4).unwrap()
            };
            assert_eq!(hash(next), hash(local).wrapping_add(1));
        }
    }
}
