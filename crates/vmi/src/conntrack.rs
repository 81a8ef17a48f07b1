// SPDX-License-Identifier: Apache-2.0
//! Connections whose addresses the guest translates, as it does for containers: from the ends that are seen on the
//! wire to those of the socket inside.
//!
//! The guest follows each connection by two tuples, one for either direction, each as a packet of that direction
//! shows it before it is translated. So what a socket inside sends bears the tuple of its direction; and what
//! arrives for it from the wire bears the tuple whose counterpart, reversed, are the ends of the socket.
//!
//! A routed frame names its connection itself. Without one, the connection is looked for where the guest's own hash
//! puts it: SipHash-2-4 of a tuple without its direction (Linux 5.15 and later). Where that is not understood, the
//! whole table is walked, which is the truth.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::Protocol;

use crate::core::Core;
use crate::ends::Ends;
use crate::error::Fault;
use crate::layout::network::Conntrack;
use crate::memory::Gva;
use crate::table::HashTable;

/// Module that follows connections where the kernel itself does not.
const MODULE: &str = "nf_conntrack";
/// Its variables: the table, its number of buckets, and the key of its hash.
const VARIABLES: [&str; 3] = ["nf_conntrack_hash", "nf_conntrack_htable_size", "nf_conntrack_hash_rnd"];
/// Namespaces that may translate one connection one after the other: a container within a container.
const DEPTH_MAX: usize = 4;
/// Most buckets of the table (the kernel makes 256 Ki at most by itself).
const BUCKETS_MAX: u32 = 1 << 20;
/// The driver keeps the direction and state of a frame in these bits of the pointer to its connection.
const FRAME_STATE: u64 = 7;
/// From this state on, a frame goes the other way (`IP_CT_IS_REPLY`).
const FRAME_IS_REPLY: u64 = 3;
/// Both tuples of a connection lie within so many bytes; 112 in practice.
const TUPLES_BYTES: usize = 128;
/// Bytes of a tuple; 40 in practice.
const TUPLE_BYTES: usize = 64;
/// Connections that must confirm the hash, if there are as many.
const SAMPLES_MAX: usize = 8;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// What is remembered of the guest's table between questions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tracking {
    /// The newest module when its variables were looked for.
    newest_module: Gva,
    variables: Option<Variables>,
    /// The hash was seen to explain where connections hang.
    is_hash_known: bool,
}

/// Where the variables of the table lie.
#[derive(Clone, Copy, Debug)]
struct Variables {
    /// The module that has them, if it is not the kernel itself.
    module: Option<Gva>,
    places: [Gva; 3],
}

/// The table at this moment.
struct Table {
    table: HashTable,
    key: [u64; 2],
}

impl Core {
    /// The ends, as its sender sees them, of a routed frame; `None` if the guest does not follow its connection.
    pub(crate) fn tracked_ends(&self, skb: Gva) -> Result<Option<Ends>, Fault> {
        let Some(layout) = &self.layout.network.conntrack else { return Ok(None) };
        let tracked = self.reader.u64(skb.at(layout.frame.connection))?;
        let connection = Gva(tracked & !FRAME_STATE);
        if connection.is_null() {
            return Ok(None);
        }
        let tuples = self.tuples(layout, connection)?;
        Ok(tuples[usize::from(tracked & FRAME_STATE >= FRAME_IS_REPLY)])
    }

    /// The ends inside of what the wire shows as `ends` (canonical); the same if nothing translates them.
    pub(crate) fn untranslated(&self, tracking: &mut Tracking, ends: Ends) -> Result<Ends, Fault> {
        let mut inner = ends;
        for _ in 0..DEPTH_MAX {
            match self.step_inwards(tracking, inner)? {
                Some(further) if further != inner => inner = further,
                _ => break,
            }
        }
        Ok(inner)
    }

    fn step_inwards(&self, tracking: &mut Tracking, ends: Ends) -> Result<Option<Ends>, Fault> {
        let Some(layout) = &self.layout.network.conntrack else { return Ok(None) };
        let Some(table) = self.tracking_table(tracking)? else { return Ok(None) };
        let homes = self.homes(ends.local.ip())?;
        let arriving = ends.reversed();
        for &net in &homes {
            for entry in self.entries_at(&table.table, self.bucket_of(layout, &table, arriving, net)?)? {
                if let Some(found) = self.counterpart(layout, entry, arriving, &[net])? {
                    return Ok(Some(found));
                }
            }
        }
        if tracking.is_hash_known {
            return Ok(None);
        }
        let entries = self.entries(&table.table)?;
        tracking.is_hash_known = self.is_explained(layout, &table, &entries)?;
        for entry in entries {
            if let Some(found) = self.counterpart(layout, entry, arriving, &homes)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Whether the hash puts some of the table's entries where they are.
    fn is_explained(&self, layout: &Conntrack, table: &Table, entries: &[Gva]) -> Result<bool, Fault> {
        let mut samples = 0;
        for &entry in entries {
            let (connection, direction) = self.connection_of(layout, entry)?;
            let Some(own) = self.tuples(layout, connection)?[direction] else { continue };
            let net = self.reader.pointer(connection.at(layout.conn.net))?;
            let bucket = self.bucket_of(layout, table, own, net)?;
            if !self.entries_at(&table.table, bucket)?.contains(&entry) {
                return Ok(false);
            }
            samples += 1;
            if samples == SAMPLES_MAX {
                break;
            }
        }
        Ok(samples > 0)
    }

    /// The bucket of a tuple of a namespace, in the default zone.
    fn bucket_of(&self, layout: &Conntrack, table: &Table, ends: Ends, net: Gva) -> Result<u32, Fault> {
        let mix = self.reader.u32(net.at(self.layout.net.hash_mix))?;
        let hash = siphash_2_4([table.key[0], table.key[1] ^ u64::from(mix)], &tuple_bytes(layout, ends));
        // `reciprocal_scale` of the lower half.
        let buckets = u64::from(table.table.mask) + 1;
        Ok((((hash & u64::from(u32::MAX)) * buckets) >> 32) as u32)
    }

    /// The connection that an entry of the table is of, and the direction that it stands for.
    fn connection_of(&self, layout: &Conntrack, entry: Gva) -> Result<(Gva, usize), Fault> {
        let [direction] = self.reader.array(entry.at(layout.hash.tuple).at(layout.tuple.direction))?;
        if direction > 1 {
            return Err(Fault::Inconsistent);
        }
        let connection = entry.container(layout.conn.tuples + u32::from(direction) * layout.hash_bytes);
        Ok((connection, direction.into()))
    }

    /// If `entry` stands for what arrives as `arriving` in one of the namespaces `homes`: the ends of the socket
    /// that it is for.
    fn counterpart(
        &self,
        layout: &Conntrack,
        entry: Gva,
        arriving: Ends,
        homes: &[Gva],
    ) -> Result<Option<Ends>, Fault> {
        let (connection, direction) = self.connection_of(layout, entry)?;
        let tuples = self.tuples(layout, connection)?;
        let (own, other) = (tuples[direction], tuples[direction ^ 1]);
        if own != Some(arriving) {
            return Ok(None);
        }
        let net = self.reader.pointer(connection.at(layout.conn.net))?;
        Ok(other.filter(|_| homes.contains(&net)))
    }

    /// The tuples of a connection, from one copy; those of other protocols are absent.
    fn tuples(&self, layout: &Conntrack, connection: Gva) -> Result<[Option<Ends>; 2], Fault> {
        let bytes: [u8; TUPLES_BYTES] = self.reader.array(connection.at(layout.conn.tuples))?;
        let at = |direction: u32| {
            let start = (direction * layout.hash_bytes).saturating_add(layout.hash.tuple) as usize;
            bytes.get(start..).and_then(|bytes| ends_of(layout, bytes))
        };
        Ok([at(0), at(1)])
    }

    /// The table of all connections that are followed, if there is one.
    fn tracking_table(&self, tracking: &mut Tracking) -> Result<Option<Table>, Fault> {
        let Some(Variables { places: [table, size, key], .. }) = self.tracking_variables(tracking)? else {
            return Ok(None);
        };
        let (buckets, size) = (self.reader.pointer(table)?, self.reader.u32(size)?);
        if buckets.is_null() || size == 0 {
            return Ok(None);
        }
        if size > BUCKETS_MAX {
            return Err(Fault::Inconsistent);
        }
        let node = self.layout.network.conntrack.as_ref().map_or(0, |layout| layout.hash.node);
        let table = HashTable { buckets, mask: size - 1, bucket_bytes: 8, head: 0, node, has_markers: true };
        let key = [self.reader.u64(key)?, self.reader.u64(key.at(8))?];
        Ok(Some(Table { table, key }))
    }

    /// Where the table's variables lie: as remembered, unless modules came or went since.
    fn tracking_variables(&self, tracking: &mut Tracking) -> Result<Option<Variables>, Fault> {
        if let [Some(table), Some(size), Some(key)] = VARIABLES.map(|name| self.anchors.symbols.find(name)) {
            return Ok(Some(Variables { module: None, places: [table, size, key] }));
        }
        let newest_module = self.newest_module()?;
        let is_current = match tracking.variables.and_then(|known| known.module) {
            Some(module) => self.is_module(module, MODULE),
            None => newest_module == tracking.newest_module,
        };
        if !is_current {
            *tracking = Tracking { newest_module, ..Tracking::default() };
            if let Some(module) = self.find_module(MODULE)? {
                let places = self.module_symbols(module, VARIABLES)?;
                tracking.variables = places.map(|places| Variables { module: Some(module), places });
            }
        }
        Ok(tracking.variables)
    }
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012), which the standard library still has under its old name.
#[expect(deprecated, reason = "its successor promises no particular hash")]
fn siphash_2_4(key: [u64; 2], bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::SipHasher::new_with_keys(key[0], key[1]);
    hasher.write(bytes);
    hasher.finish()
}

/// A tuple as it lies in the guest's memory, without its direction; all else is zero.
fn tuple_bytes(layout: &Conntrack, ends: Ends) -> Vec<u8> {
    let layout = &layout.tuple;
    let mut bytes = [0; TUPLE_BYTES];
    let mut put = |at: u32, value: &[u8]| {
        if let Some(place) = bytes.get_mut(at as usize..).and_then(|rest| rest.get_mut(..value.len())) {
            place.copy_from_slice(value);
        }
    };
    let family = if ends.local.is_ipv4() { AF_INET } else { AF_INET6 };
    for (address, port, address_at, port_at) in [
        (ends.local.ip(), ends.local.port(), layout.source, layout.source_port),
        (ends.remote.ip(), ends.remote.port(), layout.destination, layout.destination_port),
    ] {
        match address {
            IpAddr::V4(address) => put(address_at, &address.octets()),
            IpAddr::V6(address) => put(address_at, &address.octets()),
        }
        put(port_at, &port.to_be_bytes());
    }
    put(layout.family, &family.to_le_bytes());
    put(layout.protocol, &[ends.protocol.number()]);
    bytes[..TUPLE_BYTES.min(layout.protocol as usize + 1)].to_vec()
}

/// What a tuple says; `None` for protocols without ports, and what is no tuple.
fn ends_of(layout: &Conntrack, bytes: &[u8]) -> Option<Ends> {
    let layout = &layout.tuple;
    let family = u16::from_le_bytes(chunk(bytes, layout.family)?);
    let address = |at| -> Option<IpAddr> {
        Some(match family {
            AF_INET => Ipv4Addr::from(chunk::<4>(bytes, at)?).into(),
            AF_INET6 => Ipv6Addr::from(chunk::<16>(bytes, at)?).into(),
            _ => return None,
        })
    };
    let port = |at| chunk(bytes, at).map(u16::from_be_bytes);
    let [protocol] = chunk(bytes, layout.protocol)?;
    let protocol = Protocol::from(protocol);
    let ends = Ends {
        local: SocketAddr::new(address(layout.source)?, port(layout.source_port)?),
        remote: SocketAddr::new(address(layout.destination)?, port(layout.destination_port)?),
        protocol,
    };
    matches!(protocol, Protocol::Tcp | Protocol::Udp).then_some(ends)
}

fn chunk<const N: usize>(bytes: &[u8], at: u32) -> Option<[u8; N]> {
    bytes.get(at as usize..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_agrees_with_the_papers_test_vector() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let bytes: Vec<u8> = (0..15).collect();
        assert_eq!(siphash_2_4(key, &bytes), 0xa129_ca61_49be_45e5);
    }
}
