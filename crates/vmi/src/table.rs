// SPDX-License-Identifier: Apache-2.0
//! The guest's tables of sockets: connections, listeners and UDP, in all network namespaces.
//!
//! They are hash tables of linked lists. A list of connections ends with a marker that names its bucket: a
//! walk that ends with another one was led astray by a socket that moved meanwhile, and starts over.

use crate::core::Core;
use crate::error::Fault;
use crate::memory::{Gva, is_described};

/// Most network namespaces walked.
const NAMESPACES_MAX: usize = 4096;
/// Most buckets of one table (the kernel makes 512 Ki at most by itself).
const BUCKETS_MAX: u32 = 1 << 20;
/// Largest bucket taken; real ones have 8 to 32 bytes.
const BUCKET_BYTES_MAX: u32 = 256;
/// Buckets of a table of raw sockets (`RAW_HTABLE_SIZE`).
const RAW_BUCKETS: u32 = 256;
/// Buckets read at a time.
const BLOCK_BUCKETS: u32 = 256;
/// Longest list walked.
const CHAIN_MAX: usize = 4096;
/// Times a list is walked when sockets move meanwhile.
const CHAIN_TRIES: usize = 3;
/// Most entries of one table told.
const SOCKETS_MAX: usize = 1 << 18;

/// A hash table of sockets, or of other things that have their place in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HashTable {
    pub(crate) buckets: Gva,
    /// Number of buckets less one.
    pub(crate) mask: u32,
    pub(crate) bucket_bytes: u32,
    /// Where in a bucket its list begins.
    pub(crate) head: u32,
    /// Where in a socket its link lies.
    pub(crate) node: u32,
    /// Lists end with the number of their bucket.
    pub(crate) has_markers: bool,
}

impl Core {
    /// All network namespaces; the initial one first.
    pub(crate) fn namespaces(&self) -> Result<Vec<Gva>, Fault> {
        let entries = self.list(self.anchors.net_namespaces, NAMESPACES_MAX)?;
        Ok(entries.into_iter().map(|entry| entry.container(self.layout.net.list)).collect())
    }

    /// Tables of TCP connections. Usually all namespaces share one.
    pub(crate) fn connection_tables(&self, namespaces: &[Gva]) -> Result<Vec<HashTable>, Fault> {
        let layout = &self.layout.hashinfo;
        if !are_described(&[
            layout.ehash,
            layout.ehash_mask,
            self.layout.ehash_bucket_bytes,
            self.layout.sock.node,
        ]) {
            return Ok(Vec::new());
        }
        self.tcp_tables(namespaces, |info| {
            Ok(HashTable {
                buckets: self.reader.pointer(info.at(layout.ehash))?,
                mask: self.reader.u32(info.at(layout.ehash_mask))?,
                bucket_bytes: self.layout.ehash_bucket_bytes,
                head: 0,
                node: self.layout.sock.node,
                has_markers: true,
            })
        })
    }

    /// Tables of TCP listeners.
    pub(crate) fn listener_tables(&self, namespaces: &[Gva]) -> Result<Vec<HashTable>, Fault> {
        let layout = &self.layout.hashinfo;
        let bucket = (&self.layout.listen_bucket, self.layout.listen_bucket_bytes);
        if !are_described(&[
            layout.lhash2,
            layout.lhash2_mask,
            bucket.0.head,
            bucket.1,
            self.layout.listen_node,
        ]) {
            return Ok(Vec::new());
        }
        self.tcp_tables(namespaces, |info| {
            Ok(HashTable {
                buckets: self.reader.pointer(info.at(layout.lhash2))?,
                mask: self.reader.u32(info.at(layout.lhash2_mask))?,
                bucket_bytes: self.layout.listen_bucket_bytes,
                head: self.layout.listen_bucket.head,
                node: self.layout.listen_node,
                has_markers: false,
            })
        })
    }

    fn tcp_tables(
        &self,
        namespaces: &[Gva],
        table_of: impl Fn(Gva) -> Result<HashTable, Fault>,
    ) -> Result<Vec<HashTable>, Fault> {
        let mut tables = Vec::new();
        if !is_described(self.layout.net.hashinfo) {
            return Ok(tables);
        }
        for net in namespaces {
            let info = self.reader.pointer(net.at(self.layout.net.hashinfo))?;
            // A namespace on its way in or out may have none.
            if info.is_null() {
                continue;
            }
            let table = table_of(info)?;
            if !tables.contains(&table) {
                tables.push(table);
            }
        }
        Ok(tables)
    }

    /// Tables of UDP sockets: the namespaces' own, or the one of older kernels.
    pub(crate) fn udp_tables(&self, namespaces: &[Gva]) -> Result<Vec<HashTable>, Fault> {
        let layout = &self.layout.udp_table;
        let mut tables = Vec::new();
        if !are_described(&[layout.hash, layout.mask, self.layout.udp_slot_bytes, self.layout.sock.node]) {
            return Ok(tables);
        }
        for net in namespaces {
            let table = match self.layout.net_udp_table {
                Some(offset) => self.reader.pointer(net.at(offset))?,
                None => self.anchors.symbols.find("udp_table").unwrap_or_default(),
            };
            if table.is_null() {
                continue;
            }
            let table = HashTable {
                buckets: self.reader.pointer(table.at(layout.hash))?,
                mask: self.reader.u32(table.at(layout.mask))?,
                bucket_bytes: self.layout.udp_slot_bytes,
                head: 0,
                node: self.layout.sock.node,
                has_markers: false,
            };
            if !tables.contains(&table) {
                tables.push(table);
            }
        }
        Ok(tables)
    }

    /// Tables of raw sockets, one for each address family; all namespaces share them.
    pub(crate) fn raw_tables(&self) -> Vec<HashTable> {
        let Some(layout) = &self.layout.transport.raw else { return Vec::new() };
        let tables = ["raw_v4_hashinfo", "raw_v6_hashinfo"].map(|name| self.anchors.symbols.find(name));
        let tables = tables.into_iter().flatten().map(|info| HashTable {
            buckets: info.at(layout.buckets),
            mask: RAW_BUCKETS - 1,
            bucket_bytes: 8,
            head: 0,
            node: self.layout.sock.node,
            has_markers: false,
        });
        tables.collect()
    }

    /// The sockets of a list that is no table's.
    pub(crate) fn sockets_from(&self, head: Gva) -> Result<Vec<Gva>, Fault> {
        Ok(self.chain(head, self.layout.sock.node)?.0)
    }

    /// Every entry of a table.
    pub(crate) fn entries(&self, table: &HashTable) -> Result<Vec<Gva>, Fault> {
        let size = table.bucket_bytes;
        if table.mask >= BUCKETS_MAX || size > BUCKET_BYTES_MAX || table.head.saturating_add(8) > size {
            return Err(Fault::Inconsistent);
        }
        let mut sockets = Vec::new();
        let mut block = vec![0; (BLOCK_BUCKETS * size) as usize];
        for start in (0..=table.mask).step_by(BLOCK_BUCKETS as usize) {
            let count = BLOCK_BUCKETS.min(table.mask - start + 1);
            let bytes = &mut block[..(count * size) as usize];
            self.reader.bytes(table.buckets.element(u64::from(start), size), bytes)?;
            for (bucket, bytes) in (start..).zip(bytes.chunks_exact(size as usize)) {
                let first = bytes[table.head as usize..].first_chunk().copied().map_or(0, u64::from_le_bytes);
                if !is_end(Gva(first)) {
                    sockets.extend(self.entries_at(table, bucket)?);
                }
            }
            if sockets.len() > SOCKETS_MAX {
                return Err(Fault::Exhausted);
            }
        }
        Ok(sockets)
    }

    /// The sockets in the bucket for `hash`.
    pub(crate) fn bucket(&self, table: &HashTable, hash: u32) -> Result<Vec<Gva>, Fault> {
        self.entries_at(table, hash & table.mask)
    }

    /// The entries of a bucket by its number.
    pub(crate) fn entries_at(&self, table: &HashTable, bucket: u32) -> Result<Vec<Gva>, Fault> {
        let head = table.buckets.element(u64::from(bucket), table.bucket_bytes).at(table.head);
        for _ in 0..CHAIN_TRIES {
            let (sockets, end) = self.chain(head, table.node)?;
            // NULLS_MARKER: the bucket's number, shifted past the bit that says "end".
            if !table.has_markers || end.0 == u64::from(bucket) << 1 | 1 {
                return Ok(sockets);
            }
        }
        Err(Fault::Inconsistent)
    }

    /// The entries of a list, and what ended it.
    fn chain(&self, head: Gva, node: u32) -> Result<(Vec<Gva>, Gva), Fault> {
        let mut sockets = Vec::new();
        let mut entry = self.reader.pointer(head)?;
        while !is_end(entry) {
            if sockets.len() == CHAIN_MAX {
                return Err(Fault::Inconsistent);
            }
            sockets.push(entry.container(node));
            entry = self.reader.pointer(entry)?;
        }
        Ok((sockets, entry))
    }
}

fn are_described(offsets: &[u32]) -> bool {
    offsets.iter().copied().all(is_described)
}

/// Whether a link ends its list: null, or a marker with the lowest bit set.
fn is_end(entry: Gva) -> bool {
    entry.is_null() || entry.0 & 1 == 1
}
