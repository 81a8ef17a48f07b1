// SPDX-License-Identifier: Apache-2.0
//! The entries of a policy's `from` and `to`, compiled: machines as bits, patterns as matchers.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use model::{
    Action, Attribution, Cidr, DomainPattern, FlowQuery, Mode, Needs, Outcome, Party, PortMatch,
    ProcessSelector, Protocol, RuleId,
};
use wildmatch::WildMatch;

use crate::bits::BitSet;

/// A process selector with its patterns prepared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProcessMatch {
    selector: ProcessSelector,
    exe: Option<WildMatch>,
    unit: Option<WildMatch>,
    container: Option<WildMatch>,
}

impl ProcessMatch {
    pub(crate) fn new(selector: &ProcessSelector) -> Self {
        let glob = |glob: &model::Glob| WildMatch::new(glob.as_str());
        Self {
            exe: selector.exe.as_ref().map(glob),
            unit: selector.unit.as_ref().map(glob),
            container: selector.container.as_ref().map(glob),
            selector: selector.clone(),
        }
    }

    /// Whether all that is selected by is known and matches. Nothing known matches nothing, but a selector that
    /// asks for just that.
    pub(crate) fn matches(&self, attribution: Option<&Attribution>) -> bool {
        let outcome = attribution.map_or(Outcome::Unknown, Attribution::outcome);
        let process = attribution.and_then(|attribution| attribution.process.as_ref());
        let fits = |pattern: &Option<WildMatch>, text: Option<&str>| {
            pattern.as_ref().is_none_or(|pattern| text.is_some_and(|text| pattern.matches(text)))
        };
        let is_wanted = match self.selector.attribution {
            Some(wanted) => wanted == outcome,
            None => outcome == Outcome::Known || self.selector != ProcessSelector::default(),
        };
        is_wanted
            && self.selector.name.as_ref().is_none_or(|name| process.is_some_and(|p| p.name == *name))
            && fits(&self.exe, process.and_then(|p| p.exe.as_deref()))
            && fits(&self.unit, attribution.and_then(Attribution::unit))
            && fits(&self.container, attribution.and_then(Attribution::container))
            && self.selector.user.as_ref().is_none_or(|user| {
                attribution.and_then(Attribution::user).is_some_and(|own| own == user.as_str())
            })
            && self.selector.uid.is_none_or(|uid| attribution.and_then(Attribution::uid) == Some(uid))
    }

    /// Whether it may select a process that is known.
    pub(crate) fn is_for_known(&self) -> bool {
        self.selector.attribution.is_none_or(|wanted| wanted == Outcome::Known)
    }
}

impl fmt::Display for ProcessMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProcessSelector { name, exe, unit, container, user, uid, attribution } = &self.selector;
        let parts = [
            name.as_ref().map(|name| format!("name {name}")),
            exe.as_ref().map(|exe| format!("exe {exe}")),
            unit.as_ref().map(|unit| format!("unit {unit}")),
            container.as_ref().map(|container| format!("container {container}")),
            user.as_ref().map(|user| format!("user {user}")),
            uid.map(|uid| format!("uid {uid}")),
            attribution.map(|attribution| format!("attribution {attribution}")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { f.write_str("any known process") } else { f.write_str(&parts.join(", ")) }
    }
}

/// One end of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) party: Party<'a>,
    pub(crate) address: IpAddr,
    /// What it was found under, if it is outside.
    pub(crate) names: &'a [Arc<str>],
}

impl<'a> End<'a> {
    pub(crate) fn source(query: &FlowQuery<'a>) -> Self {
        Self { party: query.source, address: query.tuple.source, names: &[] }
    }

    pub(crate) fn destination(query: &FlowQuery<'a>) -> Self {
        Self { party: query.destination, address: query.tuple.destination, names: query.names }
    }
}

/// The machines that a selector stands for.
#[derive(Debug)]
pub(crate) struct Selection {
    /// Differs between selectors.
    pub(crate) number: u32,
    pub(crate) vms: BitSet,
}

/// Who can be at an end.
#[derive(Clone, Debug)]
pub(crate) enum Peers {
    /// These machines; shared by all entries that select alike.
    Machines(Arc<Selection>),
    /// Whoever has an address in this network.
    Network(Cidr),
    /// Whoever outside has an address that one of these names was found to have.
    Domain(DomainPattern),
}

impl Peers {
    pub(crate) fn include(&self, end: &End<'_>) -> bool {
        match self {
            Self::Machines(selection) => end.party.vm.is_some_and(|vm| selection.vms.contains(vm.0 as usize)),
            Self::Network(network) => network.contains(end.address),
            Self::Domain(pattern) => {
                end.party.vm.is_none() && end.names.iter().any(|name| pattern.matches(name))
            }
        }
    }

    pub(crate) fn is_nobody(&self) -> bool {
        matches!(self, Self::Machines(selection) if selection.vms.is_empty())
    }
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug)]
pub(crate) struct Clause {
    pub(crate) peers: Peers,
    pub(crate) process: Option<ProcessMatch>,
    /// Empty, as always in `from`, means every port of every protocol.
    pub(crate) ports: Box<[PortMatch]>,
}

impl Clause {
    pub(crate) fn covers(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|own| own.covers(protocol, port))
    }

    pub(crate) fn process_fits(&self, attribution: Option<&Attribution>) -> bool {
        self.process.as_ref().is_none_or(|process| process.matches(attribution))
    }
}

/// An access policy, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) id: RuleId,
    pub(crate) action: Action,
    pub(crate) mode: Mode,
    /// Never empty: an absent `from` is one entry that selects the whole tenant.
    pub(crate) from: Box<[Clause]>,
    /// Never empty, likewise.
    pub(crate) to: Box<[Clause]>,
    /// One entry each way, no process and no domain: whatever the classifier finds matches.
    plain: bool,
}

impl Rule {
    pub(crate) fn new(
        id: RuleId,
        (action, mode): (Action, Mode),
        from: Box<[Clause]>,
        to: Box<[Clause]>,
    ) -> Self {
        let by_index =
            |clause: &Clause| clause.process.is_none() && !matches!(clause.peers, Peers::Domain(_));
        let whole = |clauses: &[Clause]| clauses.len() == 1 && by_index(&clauses[0]);
        let plain = whole(&from) && whole(&to);
        Self { id, action, mode, from, to, plain }
    }

    /// Whether it says anything of processes.
    pub(crate) fn names_process(&self) -> bool {
        self.from.iter().chain(&self.to).any(|clause| clause.process.is_some())
    }

    /// Whether a flow that the classifier found this rule for matches it.
    pub(crate) fn holds(&self, query: &FlowQuery<'_>) -> bool {
        self.plain || self.matches(query)
    }

    /// Which processes decide whether a flow that the classifier found this rule for matches it.
    pub(crate) fn needs(&self, query: &FlowQuery<'_>) -> Needs {
        if self.plain {
            return Needs::default();
        }
        // An entry that fits whoever acts makes the others irrelevant.
        let mut from = self.source_clauses(query).peekable();
        let mut to = self.destination_clauses(query).peekable();
        if from.peek().is_none() || to.peek().is_none() {
            return Needs::default();
        }
        Needs {
            source: from.all(|clause| clause.process.is_some()),
            destination: to.all(|clause| clause.process.is_some()),
        }
    }

    /// Whether a flow matches it, given the right processes at its ends.
    pub(crate) fn could_match(&self, query: &FlowQuery<'_>) -> bool {
        self.source_clauses(query).next().is_some() && self.destination_clauses(query).next().is_some()
    }

    /// The entries that select the source.
    pub(crate) fn source_clauses(&self, query: &FlowQuery<'_>) -> impl Iterator<Item = &Clause> {
        let end = End::source(query);
        self.from.iter().filter(move |clause| clause.peers.include(&end))
    }

    /// The entries that select the destination and the port.
    pub(crate) fn destination_clauses(&self, query: &FlowQuery<'_>) -> impl Iterator<Item = &Clause> {
        let (end, tuple) = (End::destination(query), query.tuple);
        self.to.iter().filter(move |clause| {
            clause.peers.include(&end) && clause.covers(tuple.protocol, tuple.destination_port)
        })
    }

    /// Whether any flow matches it.
    pub(crate) fn matches(&self, query: &FlowQuery<'_>) -> bool {
        self.source_clauses(query).any(|clause| clause.process_fits(query.source.attribution))
            && self
                .destination_clauses(query)
                .any(|clause| clause.process_fits(query.destination.attribution))
    }
}
