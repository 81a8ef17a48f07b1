// SPDX-License-Identifier: Apache-2.0
//! Rules filed under prefixes: of addresses, and of protocol and port.
//!
//! A key's rules are those of every prefix that covers it. Prefixes nest and never cross, so the
//! places where one begins or ends cut all keys into spans, each with one innermost prefix; a binary
//! search finds the span, and each prefix names the next wider one. Memory grows with the number of
//! prefixes, not with their lengths; a lookup takes one search and a step for each prefix that
//! covers the key.
//!
//! A range of ports is filed under the fewest prefixes that make it up, at most 30 (Srinivasan et
//! al.: *Fast and Scalable Layer Four Switching*, SIGCOMM 1998).

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::{Cidr, PortMatch, Protocol};

use crate::rule_set::RuleSet;

/// The leading bits of a key, and how many they are. Keys of every width begin at the highest bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Prefix {
    bits: u128,
    len: u32,
}

impl Prefix {
    /// Covers every key.
    pub(crate) const ALL: Self = Self { bits: 0, len: 0 };

    pub(crate) fn of_network(network: Cidr) -> Self {
        Self { bits: address_key(network.network().address()), len: network.prefix_len_bits().into() }
    }

    /// The fewest prefixes that together cover what is meant.
    pub(crate) fn of_ports(ports: PortMatch) -> Vec<Self> {
        let Some(range) = ports.ports else {
            return vec![Self { bits: port_key(ports.protocol, 0), len: PROTOCOL_BITS }];
        };
        let (mut first, last) = (u32::from(range.first()), u32::from(range.last()));
        let mut prefixes = Vec::new();
        while first <= last {
            // The largest block that begins at `first` and ends within the range.
            let aligned = first.trailing_zeros().min(PORT_BITS);
            let fits = (last - first + 1).ilog2();
            let block = aligned.min(fits);
            let bits = port_key(ports.protocol, first as u16);
            prefixes.push(Self { bits, len: PROTOCOL_BITS + PORT_BITS - block });
            first += 1 << block;
        }
        prefixes
    }

    /// The highest key that is covered.
    fn last(self) -> u128 {
        self.bits | u128::MAX.checked_shr(self.len).unwrap_or(0)
    }
}

const PROTOCOL_BITS: u32 = 8;
const PORT_BITS: u32 = 16;

/// Where an address is found.
pub(crate) fn address_key(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << (128 - 32),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Where a port of a protocol is found.
pub(crate) fn port_key(protocol: Protocol, port: u16) -> u128 {
    u128::from(u32::from(protocol.number()) << PORT_BITS | u32::from(port))
        << (128 - PROTOCOL_BITS - PORT_BITS)
}

/// Rules by prefix. Never changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct PrefixTable {
    /// Where spans begin, rising. Before the first nothing is covered.
    starts: Box<[u128]>,
    /// The innermost prefix of each span.
    innermost: Box<[Option<u32>]>,
    filed: Box<[Filed]>,
}

/// The rules of one prefix.
#[derive(Clone, Debug)]
struct Filed {
    rules: RuleSet,
    /// The next wider prefix.
    wider: Option<u32>,
}

impl PrefixTable {
    /// Files rules, by their numbers, which must rise for each prefix.
    pub(crate) fn new(entries: BTreeMap<Prefix, Vec<usize>>) -> Self {
        let mut cuts = Cuts::default();
        let mut filed = Vec::with_capacity(entries.len());
        // Wider prefixes come before those that they cover.
        for ((prefix, mut rules), number) in entries.into_iter().zip(0..) {
            cuts.close_before(Some(prefix.bits));
            let wider = cuts.open.last().map(|(_, number)| *number);
            rules.dedup();
            filed.push(Filed { rules: RuleSet::new(rules), wider });
            cuts.cut(prefix.bits, Some(number));
            cuts.open.push((prefix.last(), number));
        }
        cuts.close_before(None);
        let (starts, innermost): (Vec<_>, Vec<_>) = cuts.spans.into_iter().unzip();
        Self { starts: starts.into(), innermost: innermost.into(), filed: filed.into() }
    }

    /// The rules of each prefix that covers `key`.
    pub(crate) fn covering(&self, key: u128) -> impl Iterator<Item = &RuleSet> {
        let after = self.starts.partition_point(|start| *start <= key);
        let mut next = after.checked_sub(1).and_then(|span| self.innermost[span]);
        std::iter::from_fn(move || {
            let filed = &self.filed[next? as usize];
            next = filed.wider;
            Some(&filed.rules)
        })
    }

    /// Bytes of memory beside the table itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        let sets: usize = self.filed.iter().map(|filed| filed.rules.heap_bytes()).sum();
        size_of_val(&*self.starts) + size_of_val(&*self.innermost) + size_of_val(&*self.filed) + sets
    }
}

/// Cutting all keys into spans, from the lowest up.
#[derive(Default)]
struct Cuts {
    spans: Vec<(u128, Option<u32>)>,
    /// Prefixes that have begun and not ended, the innermost last, with their last keys.
    open: Vec<(u128, u32)>,
}

impl Cuts {
    /// From `start` on `innermost` is in force.
    fn cut(&mut self, start: u128, innermost: Option<u32>) {
        match self.spans.last_mut() {
            Some(span) if span.0 == start => span.1 = innermost,
            _ => self.spans.push((start, innermost)),
        }
    }

    /// Ends the prefixes that end before `start`, or all.
    fn close_before(&mut self, start: Option<u128>) {
        while let Some((last, _)) = self.open.pop_if(|(last, _)| start.is_none_or(|start| *last < start)) {
            if let Some(after) = last.checked_add(1) {
                let outer = self.open.last().map(|(_, number)| *number);
                self.cut(after, outer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use model::PortRange;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::rule_set::{Union, common};

    fn members<'a>(sets: impl Iterator<Item = &'a RuleSet>) -> Vec<usize> {
        let sets: Vec<_> = sets.collect();
        common([0, 1, 2].map(|_| Union::new(sets.iter().copied()))).into_vec()
    }

    fn table(prefixes: impl IntoIterator<Item = (Prefix, usize)>) -> PrefixTable {
        let mut entries: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (prefix, rule) in prefixes {
            entries.entry(prefix).or_default().push(rule);
        }
        PrefixTable::new(entries)
    }

    /// Networks of few different bits, so that they nest.
    fn network() -> impl Strategy<Value = Cidr> {
        let v4 = (any::<[bool; 4]>(), 0..=32_u8).prop_map(|(bits, len)| {
            let octet = |bit: bool| if bit { 0xff } else { 0x0f };
            Cidr::new(IpAddr::from(bits.map(octet)), len).unwrap()
        });
        let v6 = (any::<[bool; 8]>(), 0..=128_u8).prop_map(|(bits, len)| {
            Cidr::new(IpAddr::from(bits.map(|bit| if bit { 0xffff_u16 } else { 1 })), len).unwrap()
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn networks_that_cover_an_address_are_found(
            (networks, addresses) in (vec(network(), 0..40), vec(network(), 1..20)),
        ) {
            for address in addresses.iter().chain(&networks).map(Cidr::address) {
                let alike = networks.iter().enumerate().filter(|(_, n)| n.address().is_ipv4() == address.is_ipv4());
                let found = table(alike.clone().map(|(rule, network)| (Prefix::of_network(*network), rule)));
                let expected: Vec<_> = alike.filter(|(_, n)| n.contains(address)).map(|(rule, _)| rule).collect();
                prop_assert_eq!(members(found.covering(address_key(address))), expected);
            }
        }

        #[test]
        fn ranges_are_found_by_each_of_their_ports(
            (mut bounds, ports) in (vec(any::<[u16; 2]>(), 0..20), vec(any::<u16>(), 1..20)),
        ) {
            bounds.iter_mut().for_each(|bounds| bounds.sort_unstable());
            let matches: Vec<_> = bounds
                .iter()
                .map(|[first, last]| PortMatch { ports: PortRange::new(*first, *last), protocol: Protocol::Udp })
                .collect();
            let prefixes = matches.iter().enumerate().flat_map(|(rule, ports)| {
                Prefix::of_ports(*ports).into_iter().map(move |prefix| (prefix, rule))
            });
            let table = table(prefixes);
            for port in ports.into_iter().chain(bounds.into_iter().flatten()) {
                let covers = |ports: &PortMatch| ports.covers(Protocol::Udp, port);
                let expected: Vec<_> = (0..matches.len()).filter(|rule| covers(&matches[*rule])).collect();
                prop_assert_eq!(members(table.covering(port_key(Protocol::Udp, port))), expected);
                prop_assert!(members(table.covering(port_key(Protocol::Tcp, port))).is_empty());
            }
        }
    }

    #[test]
    fn ranges_take_few_prefixes() {
        let count = |first, last| {
            Prefix::of_ports(PortMatch { ports: PortRange::new(first, last), protocol: Protocol::Tcp }).len()
        };
        assert_eq!([count(80, 80), count(0, 65_535), count(1024, 65_535), count(1, 65_534)], [1, 1, 6, 30]);
    }
}
