// SPDX-License-Identifier: Apache-2.0
//! The entries of a policy's `from` and `to`, compiled: machines as bits, patterns as matchers.

use std::fmt;

use model::{Action, Attribution, FlowQuery, Mode, PortMatch, ProcessSelector, Protocol, RuleId, VmIndex};
use wildmatch::WildMatch;

use crate::bits::BitSet;

/// A process selector with its patterns prepared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProcessMatch {
    selector: ProcessSelector,
    exe: Option<WildMatch>,
    unit: Option<WildMatch>,
}

impl ProcessMatch {
    pub(crate) fn new(selector: &ProcessSelector) -> Self {
        let glob = |glob: &model::Glob| WildMatch::new(glob.as_str());
        Self {
            exe: selector.exe.as_ref().map(glob),
            unit: selector.unit.as_ref().map(glob),
            selector: selector.clone(),
        }
    }

    /// Whether all that is selected by is known and matches. Nothing known matches nothing.
    pub(crate) fn matches(&self, attribution: Option<&Attribution>) -> bool {
        let Some(attribution) = attribution else { return false };
        let process = attribution.process.as_ref();
        let fits = |pattern: &Option<WildMatch>, text: Option<&str>| {
            pattern.as_ref().is_none_or(|pattern| text.is_some_and(|text| pattern.matches(text)))
        };
        (process.is_some() || self.selector != ProcessSelector::default())
            && self.selector.name.as_ref().is_none_or(|name| process.is_some_and(|p| p.name == *name))
            && fits(&self.exe, process.and_then(|p| p.exe.as_deref()))
            && fits(&self.unit, attribution.unit())
            && self.selector.uid.is_none_or(|uid| attribution.uid() == Some(uid))
    }
}

impl fmt::Display for ProcessMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProcessSelector { name, exe, unit, uid } = &self.selector;
        let parts = [
            name.as_ref().map(|name| format!("name {name}")),
            exe.as_ref().map(|exe| format!("exe {exe}")),
            unit.as_ref().map(|unit| format!("unit {unit}")),
            uid.map(|uid| format!("uid {uid}")),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { f.write_str("any known process") } else { f.write_str(&parts.join(", ")) }
    }
}

/// One entry of `from`.
#[derive(Clone, Debug)]
pub(crate) struct SourceClause {
    pub(crate) vms: BitSet,
    pub(crate) process: Option<ProcessMatch>,
}

/// One entry of `to`.
#[derive(Clone, Debug)]
pub(crate) struct DestinationClause {
    pub(crate) vms: BitSet,
    pub(crate) process: Option<ProcessMatch>,
    /// Empty means every port of every protocol.
    pub(crate) ports: Vec<PortMatch>,
}

impl SourceClause {
    pub(crate) fn selects(&self, vm: VmIndex) -> bool {
        self.vms.contains(vm.0 as usize)
    }

    fn process_fits(&self, attribution: Option<&Attribution>) -> bool {
        self.process.as_ref().is_none_or(|process| process.matches(attribution))
    }
}

impl DestinationClause {
    pub(crate) fn selects(&self, vm: VmIndex) -> bool {
        self.vms.contains(vm.0 as usize)
    }

    pub(crate) fn covers(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|own| own.covers(protocol, port))
    }

    fn process_fits(&self, attribution: Option<&Attribution>) -> bool {
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
    pub(crate) from: Vec<SourceClause>,
    /// Never empty, likewise.
    pub(crate) to: Vec<DestinationClause>,
}

impl Rule {
    /// The entries that select the source's machine.
    pub(crate) fn source_clauses(&self, query: &FlowQuery<'_>) -> impl Iterator<Item = &SourceClause> {
        let vm = query.source.vm;
        self.from.iter().filter(move |clause| clause.selects(vm))
    }

    /// The entries that select the destination's machine and port.
    pub(crate) fn destination_clauses(
        &self,
        query: &FlowQuery<'_>,
    ) -> impl Iterator<Item = &DestinationClause> {
        let (vm, tuple) = (query.destination.vm, query.tuple);
        self.to
            .iter()
            .filter(move |clause| clause.selects(vm) && clause.covers(tuple.protocol, tuple.destination_port))
    }

    pub(crate) fn source_matches(&self, query: &FlowQuery<'_>) -> bool {
        self.source_clauses(query).any(|clause| clause.process_fits(query.source.attribution))
    }

    pub(crate) fn destination_matches(&self, query: &FlowQuery<'_>) -> bool {
        self.destination_clauses(query).any(|clause| clause.process_fits(query.destination.attribution))
    }

    pub(crate) fn matches(&self, query: &FlowQuery<'_>) -> bool {
        self.source_matches(query) && self.destination_matches(query)
    }
}
