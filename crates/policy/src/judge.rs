// SPDX-License-Identifier: Apache-2.0
//! Judging: from a flow to the rules that could match, from those to a verdict.
//!
//! Three indexes leave few rules to look at: per machine the rules that select it as source and as
//! destination, a bit per rule of the tenant each, and per tenant the rules that name a port. What
//! is left is the intersection.

use std::collections::HashMap;

use model::{
    Action, FiveTuple, FlowQuery, Judge, Judgement, Mode, Name, Needs, PortMatch, Protocol, RuleId, VmIndex,
};

use crate::bits::BitSet;
use crate::clause::Rule;

/// Policies of all tenants, ready to judge. Meaningful only with the inventory it was compiled from.
#[derive(Clone, Debug)]
pub struct CompiledPolicy {
    /// By position of the machine in the inventory.
    pub(crate) vms: Vec<VmRules>,
    pub(crate) tenants: Vec<TenantRules>,
    pub(crate) services: HashMap<(Name, Name), CompiledService>,
}

/// A service with the machines that can offer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledService {
    /// The selected machines, in the order of the inventory.
    pub vms: Vec<VmIndex>,
    /// Where it is offered.
    pub ports: Vec<PortMatch>,
}

/// What rules see of one machine.
#[derive(Clone, Debug)]
pub(crate) struct VmRules {
    /// The machine's name, `tenant/vm`, for explanations.
    pub(crate) name: String,
    /// Position of its tenant in [`CompiledPolicy::tenants`].
    pub(crate) tenant: usize,
    /// The tenant's rules that select it as source.
    pub(crate) as_source: BitSet,
    /// The tenant's rules that select it as destination.
    pub(crate) as_destination: BitSet,
}

/// The rules of one tenant.
#[derive(Clone, Debug)]
pub(crate) struct TenantRules {
    pub(crate) default_action: Action,
    /// `tenant/default`.
    pub(crate) default_id: RuleId,
    /// `tenant/(isolation)`: the parentheses keep it apart from every policy's name.
    pub(crate) isolation_id: RuleId,
    pub(crate) rules: Vec<Rule>,
    pub(crate) ports: PortIndex,
}

/// Which rules of a tenant are about a port.
#[derive(Clone, Debug)]
pub(crate) struct PortIndex {
    /// Rules that name exactly this port, in rising order.
    exact: HashMap<(Protocol, u16), Vec<usize>>,
    /// Rules about every port of the protocol, those of `every` included.
    protocol: HashMap<Protocol, BitSet>,
    /// Rules about every port of every protocol.
    every: BitSet,
}

impl PortIndex {
    pub(crate) fn new(rules: &[Rule]) -> Self {
        let empty = BitSet::new(rules.len());
        let mut index = Self { exact: HashMap::new(), protocol: HashMap::new(), every: empty.clone() };
        for (number, rule) in rules.iter().enumerate() {
            for clause in &rule.to {
                if clause.ports.is_empty() {
                    index.every.insert(number);
                }
                for PortMatch { port, protocol } in &clause.ports {
                    match port {
                        Some(port) => index.exact.entry((*protocol, *port)).or_default().push(number),
                        None => {
                            index.protocol.entry(*protocol).or_insert_with(|| empty.clone()).insert(number)
                        }
                    }
                }
            }
        }
        for rules in index.protocol.values_mut() {
            rules.extend(&index.every);
        }
        index
    }

    fn any_port(&self, protocol: Protocol) -> &BitSet {
        self.protocol.get(&protocol).unwrap_or(&self.every)
    }

    fn exact_port(&self, tuple: &FiveTuple) -> &[usize] {
        self.exact.get(&(tuple.protocol, tuple.destination_port)).map_or(&[], Vec::as_slice)
    }
}

impl CompiledPolicy {
    /// A tenant's service of that name.
    #[must_use]
    pub fn service(&self, tenant: &Name, name: &Name) -> Option<&CompiledService> {
        self.services.get(&(tenant.clone(), name.clone()))
    }

    /// Number of rules of all tenants.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.tenants.iter().map(|tenant| tenant.rules.len()).sum()
    }

    pub(crate) fn vm(&self, vm: VmIndex) -> &VmRules {
        &self.vms[vm.0 as usize]
    }

    /// The tenant that both ends belong to.
    pub(crate) fn tenant_of(&self, query: &FlowQuery<'_>) -> Option<&TenantRules> {
        let (source, destination) = (self.vm(query.source.vm).tenant, self.vm(query.destination.vm).tenant);
        (source == destination).then(|| &self.tenants[source])
    }

    /// The tenant's rules that select both machines and the port, in the order of their files.
    fn candidates<'a>(
        &'a self,
        tenant: &'a TenantRules,
        query: &FlowQuery<'_>,
    ) -> impl Iterator<Item = &'a Rule> {
        let source = &self.vm(query.source.vm).as_source;
        let destination = &self.vm(query.destination.vm).as_destination;
        let any_port = tenant.ports.any_port(query.tuple.protocol);
        let mut numbers: Vec<usize> = BitSet::common(source, destination, any_port).collect();
        let exact = tenant.ports.exact_port(&query.tuple).iter().copied();
        numbers.extend(exact.filter(|number| source.contains(*number) && destination.contains(*number)));
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().map(|number| &tenant.rules[number])
    }

    /// The answer to a flow between tenants.
    fn isolated(&self, query: &FlowQuery<'_>) -> Judgement {
        let tenant = &self.tenants[self.vm(query.source.vm).tenant];
        Judgement {
            action: Action::Deny,
            decided_by: tenant.isolation_id.clone(),
            matched: Vec::new(),
            audited: Vec::new(),
        }
    }
}

/// # Panics
/// When a machine's position comes from another inventory: a bug.
impl Judge for CompiledPolicy {
    fn needs(&self, query: &FlowQuery<'_>) -> Needs {
        let mut needs = Needs::default();
        let Some(tenant) = self.tenant_of(query) else { return needs };
        for rule in self.candidates(tenant, query) {
            // An entry that fits whoever acts makes the others irrelevant.
            let mut from = rule.source_clauses(query).peekable();
            let mut to = rule.destination_clauses(query).peekable();
            if from.peek().is_some() && to.peek().is_some() {
                needs.source |= from.all(|clause| clause.process.is_some());
                needs.destination |= to.all(|clause| clause.process.is_some());
            }
        }
        needs
    }

    fn judge(&self, query: &FlowQuery<'_>) -> Judgement {
        let Some(tenant) = self.tenant_of(query) else { return self.isolated(query) };
        let mut judgement = Judgement {
            action: tenant.default_action,
            decided_by: tenant.default_id.clone(),
            matched: Vec::new(),
            audited: Vec::new(),
        };
        let mut decided = None;
        for rule in self.candidates(tenant, query).filter(|rule| rule.matches(query)) {
            match rule.mode {
                Mode::Audit => judgement.audited.push((rule.id.clone(), rule.action)),
                Mode::Enforce => {
                    judgement.matched.push(rule.id.clone());
                    if decided.is_none() || (decided == Some(Action::Allow) && rule.action == Action::Deny) {
                        decided = Some(rule.action);
                        judgement.action = rule.action;
                        judgement.decided_by = rule.id.clone();
                    }
                }
            }
        }
        judgement
    }
}
