// SPDX-License-Identifier: Apache-2.0
//! From a flow to the few rules of its tenant that select both ends and the port.
//!
//! Each dimension (source, destination, protocol with port) is looked up by itself and gives the
//! rules that fit there; their intersection is what is left to look at. This is classification by bit
//! vectors (Lakshman, Stiliadis: *High-Speed Policy-Based Packet Forwarding Using Efficient
//! Multi-dimensional Range Matching*, SIGCOMM 1998) with aggregated vectors (Baboescu, Varghese,
//! SIGCOMM 2001; see [`crate::rule_set`]). It was chosen over tuple spaces and decision trees because
//! a verdict reports every rule that matches, not the best alone, and because identities are
//! sets, not prefixes, which only bit vectors treat alike.
//!
//! Machines have their set of rules merged when compiling, shared by all machines that the same
//! selectors select. Prefixes keep theirs apart, or 100,000 of them would each need a bit for each
//! rule; they are joined on lookup. As Baboescu and Varghese propose, rules that are alike are
//! numbered next to each other, which keeps the upper levels of the vectors apart.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use model::{FlowQuery, VmIndex};

use crate::clause::{Clause, Peers, Rule, Selection};
use crate::prefixes::{Prefix, PrefixTable, address_key, port_key};
use crate::rule_set::{Numbers, RuleSet, Union, common};

/// Finds the rules of one tenant. Numbers the rules in an order of its own.
#[derive(Clone, Debug)]
pub(crate) struct Classifier {
    source: EndIndex,
    destination: EndIndex,
    ports: PrefixTable,
    /// By number, the place of the rule among the tenant's.
    places: Box<[u32]>,
}

/// Which rules select an end of a flow.
#[derive(Clone, Debug)]
struct EndIndex {
    machines: Machines,
    v4: PrefixTable,
    v6: PrefixTable,
}

/// The rules that select each machine. Machines are numbered by us, so nobody can aim at a hash.
type Machines = HashMap<VmIndex, Arc<RuleSet>, RandomState>;

impl Classifier {
    /// Indexes rules of a list, each with its place there: at most [`crate::rule_set::RULES_MAX`].
    pub(crate) fn new<'a>(rules: impl Iterator<Item = (usize, &'a Rule)>) -> Self {
        let mut rules: Vec<(usize, &Rule)> = rules.collect();
        rules.sort_by_cached_key(|(_, rule)| likeness(rule));
        let places = rules.iter().map(|(place, _)| *place as u32).collect();
        let numbered = || rules.iter().map(|(_, rule)| *rule).enumerate();
        let mut ports: BTreeMap<Prefix, Vec<usize>> = BTreeMap::new();
        for (number, rule) in numbered() {
            for clause in &rule.to {
                let prefixes = clause.ports.iter().flat_map(|ports| Prefix::of_ports(*ports));
                let every = clause.ports.is_empty().then_some(Prefix::ALL);
                prefixes.chain(every).for_each(|prefix| ports.entry(prefix).or_default().push(number));
            }
        }
        Self {
            source: EndIndex::new(numbered().map(|(number, rule)| (number, &*rule.from))),
            destination: EndIndex::new(numbered().map(|(number, rule)| (number, &*rule.to))),
            ports: PrefixTable::new(ports),
            places,
        }
    }

    /// Those of the indexed rules, which are in `list`, that select both ends and the port, each perhaps by several
    /// entries of which none fits whole; in the order of the list.
    pub(crate) fn among<'l, R>(
        &self,
        list: &'l [R],
        query: &FlowQuery<'_>,
    ) -> impl Iterator<Item = &'l R> + use<'l, R> {
        self.candidates(query).into_iter().map(|place| &list[place])
    }

    /// Their places, which rise.
    fn candidates(&self, query: &FlowQuery<'_>) -> Numbers {
        if self.places.is_empty() {
            return Numbers::new();
        }
        let tuple = &query.tuple;
        let port = port_key(tuple.protocol, tuple.destination_port);
        let mut found = common([
            Union::new(self.source.selecting(query.source.vm, tuple.source)),
            Union::new(self.destination.selecting(query.destination.vm, tuple.destination)),
            Union::new(self.ports.covering(port)),
        ]);
        found.iter_mut().for_each(|number| *number = self.places[*number] as usize);
        found.sort_unstable();
        found
    }

    /// Bytes of memory, without the rules themselves.
    pub(crate) fn heap_bytes(&self) -> usize {
        let ends = self.source.heap_bytes() + self.destination.heap_bytes();
        ends + self.ports.heap_bytes() + size_of_val(&*self.places)
    }
}

/// Rules that compare equal, or nearly so, select by the same means.
fn likeness(rule: &Rule) -> impl Ord + use<> {
    let of = |clause: &Clause| match &clause.peers {
        Peers::Machines(selection) => (None, selection.number),
        Peers::Network(network) => (Some(Prefix::of_network(*network)), 0),
        Peers::Domain(_) => (Some(Prefix::ALL), 0),
    };
    let ports = rule.to.first().and_then(|clause| clause.ports.first().copied());
    (rule.from.first().map(of), rule.to.first().map(of), ports)
}

impl EndIndex {
    fn new<'a>(rules: impl Iterator<Item = (usize, &'a [Clause])>) -> Self {
        let mut selections: BTreeMap<u32, (&Selection, Vec<usize>)> = BTreeMap::new();
        let (mut v4, mut v6) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
        for (number, clauses) in rules {
            for clause in clauses {
                match &clause.peers {
                    Peers::Machines(selection) => {
                        let (_, rules) =
                            selections.entry(selection.number).or_insert_with(|| (selection, Vec::new()));
                        rules.push(number);
                    }
                    Peers::Network(network) => {
                        let family = if network.address().is_ipv4() { &mut v4 } else { &mut v6 };
                        family.entry(Prefix::of_network(*network)).or_default().push(number);
                    }
                    // Any address may turn out to be one of theirs.
                    Peers::Domain(_) => {
                        for family in [&mut v4, &mut v6] {
                            family.entry(Prefix::ALL).or_default().push(number);
                        }
                    }
                }
            }
        }
        let machines = merged(selections.into_values());
        Self { machines, v4: PrefixTable::new(v4), v6: PrefixTable::new(v6) }
    }

    /// Sets of the rules that select the machine, if it is one, or the address.
    fn selecting(&self, vm: Option<VmIndex>, address: IpAddr) -> impl Iterator<Item = &RuleSet> {
        let networks = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let machine = vm.and_then(|vm| self.machines.get(&vm)).map(Arc::as_ref);
        machine.into_iter().chain(networks.covering(address_key(address)))
    }

    fn heap_bytes(&self) -> usize {
        let mut sets: Vec<_> = self.machines.values().collect();
        sets.sort_unstable_by_key(|set| Arc::as_ptr(set));
        sets.dedup_by_key(|set| Arc::as_ptr(set));
        let sets: usize = sets.into_iter().map(|set| size_of::<RuleSet>() + set.heap_bytes()).sum();
        let machines = self.machines.capacity() * size_of::<(VmIndex, Arc<RuleSet>)>();
        machines + sets + self.v4.heap_bytes() + self.v6.heap_bytes()
    }
}

/// For each machine the rules of all selections that have it.
fn merged<'a>(selections: impl Iterator<Item = (&'a Selection, Vec<usize>)>) -> Machines {
    let mut sets = Vec::new();
    let mut selecting: BTreeMap<VmIndex, Vec<u32>> = BTreeMap::new();
    for (selection, mut rules) in selections {
        rules.dedup();
        for vm in selection.vms.iter() {
            selecting.entry(VmIndex(vm as u32)).or_default().push(sets.len() as u32);
        }
        sets.push(RuleSet::new(rules));
    }
    let mut alike: HashMap<Vec<u32>, Arc<RuleSet>> = HashMap::new();
    let machines = selecting.into_iter().map(|(vm, selecting)| {
        let union = |selecting: &Vec<u32>| {
            let members: Vec<_> = selecting.iter().map(|number| &sets[*number as usize]).collect();
            Arc::new(RuleSet::union(&members))
        };
        let set = alike.entry(selecting).or_insert_with_key(union);
        (vm, Arc::clone(set))
    });
    machines.collect()
}
