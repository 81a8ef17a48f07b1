// SPDX-License-Identifier: Apache-2.0
//! Judging: from a flow to the rules that could match, from those to a verdict.

use std::collections::HashMap;
use std::sync::Arc;

use model::{
    Action, Detour, FlowQuery, Insertion, Judge, Judgement, Level, Mode, Name, Needs, PortMatch, RuleId,
    VmIndex,
};

use crate::classifier::Classifier;
use crate::clause::{Clause, Peers, Rule};
use crate::crossing::{Crossings, Side};
use crate::insertion::FlowRules;

/// Policies of all tenants, ready to judge. Meaningful only with the inventory it was compiled from.
#[derive(Clone, Debug)]
pub struct CompiledPolicy {
    /// By position of the machine in the inventory.
    pub(crate) vms: Vec<VmRules>,
    pub(crate) tenants: Vec<TenantRules>,
    pub(crate) services: HashMap<(Name, Name), CompiledService>,
    /// What is done with the flows of all tenants.
    pub(crate) infrastructure: FlowRules,
    /// What is said about calls between tenants.
    pub(crate) crossings: Crossings,
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
}

/// The rules of one tenant.
#[derive(Clone, Debug)]
pub(crate) struct TenantRules {
    pub(crate) default_action: Action,
    /// `tenant/default`.
    pub(crate) default_id: RuleId,
    /// `tenant/(isolation)`: the parentheses keep it apart from every policy's name.
    pub(crate) isolation_id: RuleId,
    /// In the order of their files.
    pub(crate) rules: Vec<Rule>,
    pub(crate) classifier: Classifier,
    /// Finds the rules alone that name processes.
    pub(crate) asking: Classifier,
    /// What else is done with its flows, below the infrastructure.
    pub(crate) flow_rules: FlowRules,
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

    /// Bytes of memory that finding rules takes, beside the rules themselves.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        self.tenants.iter().flat_map(|t| [&t.classifier, &t.asking]).map(Classifier::heap_bytes).sum()
    }

    pub(crate) fn vm(&self, vm: VmIndex) -> &VmRules {
        &self.vms[vm.0 as usize]
    }

    /// The tenant that both ends belong to. What is outside the mesh belongs to whoever it talks to.
    pub(crate) fn tenant_of(&self, query: &FlowQuery<'_>) -> Option<&TenantRules> {
        let (source, destination) = (self.tenant_at(query.source.vm), self.tenant_at(query.destination.vm));
        let tenant = source.or(destination).expect("at least one end of a flow is a machine");
        (source.is_none_or(|own| own == tenant) && destination.is_none_or(|own| own == tenant))
            .then(|| &self.tenants[tenant])
    }

    /// Position of a machine's tenant.
    fn tenant_at(&self, vm: Option<VmIndex>) -> Option<usize> {
        vm.map(|vm| self.vm(vm).tenant)
    }

    /// What is said about a call to another tenant's service, by its owner first, and the caller's tenant.
    pub(crate) fn sides(
        &self,
        service: &RuleId,
        query: &FlowQuery<'_>,
    ) -> (usize, impl Iterator<Item = &Side>) {
        let tenant = self.tenant_at(query.source.vm).expect("only machines call services");
        (tenant, self.crossings.sides(service, tenant))
    }

    /// The answer to a flow between tenants.
    fn isolated(&self, source: VmIndex) -> Judgement {
        Judgement::new(Action::Deny, self.tenants[self.vm(source).tenant].isolation_id.clone())
    }
}

/// # Panics
/// When a machine's position comes from another inventory, or neither end is a machine: a bug.
impl Judge for CompiledPolicy {
    fn needs(&self, query: &FlowQuery<'_>) -> Needs {
        let mut needs = self.infrastructure.needs(query);
        let Some(tenant) = self.tenant_of(query) else { return needs };
        let access = tenant.asking.among(&tenant.rules, query).map(|rule| rule.needs(query));
        for own in access.chain(std::iter::once(tenant.flow_rules.needs(query))) {
            needs.source |= own.source;
            needs.destination |= own.destination;
        }
        needs
    }

    fn judge(&self, query: &FlowQuery<'_>) -> Judgement {
        let Some(tenant) = self.tenant_of(query) else {
            return self.isolated(query.source.vm.expect("ends of two tenants are machines"));
        };
        let mut judgement = Judgement::new(tenant.default_action, tenant.default_id.clone());
        judgement.inserted = self.insert(query);
        let denials = judgement.inserted.iter().filter(|insertion| insertion.denies);
        // Where a denial comes among others: an access policy speaks for the tenant.
        let mut denial = denials.clone().next().map(|denial| (denial.level, denial.rule.clone()));
        judgement.matched = denials.map(|denial| denial.rule.clone()).collect();
        let mut allowed = false;
        for rule in tenant.classifier.among(&tenant.rules, query).filter(|rule| rule.holds(query)) {
            match (rule.mode, rule.action) {
                (Mode::Audit, action) => judgement.audited.push((rule.id.clone(), action)),
                (Mode::Enforce, Action::Allow) => {
                    judgement.matched.push(rule.id.clone());
                    if !std::mem::replace(&mut allowed, true) {
                        (judgement.action, judgement.decided_by) = (Action::Allow, rule.id.clone());
                    }
                }
                (Mode::Enforce, Action::Deny) => {
                    judgement.matched.push(rule.id.clone());
                    if denial.as_ref().is_none_or(|(level, _)| *level > Level::Tenant) {
                        denial = Some((Level::Tenant, rule.id.clone()));
                    }
                }
            }
        }
        if let Some((_, rule)) = denial {
            (judgement.action, judgement.decided_by) = (Action::Deny, rule);
        }
        judgement
    }

    fn needs_of_call(&self, service: &RuleId, query: &FlowQuery<'_>) -> Needs {
        let needs = self.infrastructure.needs(query);
        let (_, mut sides) = self.sides(service, query);
        let own = sides.any(|side| side.rules.iter().any(|rule| rule.needs_process(query)));
        Needs { source: needs.source || own, ..needs }
    }

    fn judge_call(&self, service: &RuleId, query: &FlowQuery<'_>) -> Judgement {
        let inserted = self.insert(query);
        let mut judgement = Judgement {
            inserted,
            ..Judgement::new(Action::Allow, RuleId(format!("{service}/(service)").into()))
        };
        // The infrastructure's rules come first, then the owner's.
        let denials = judgement.inserted.iter().filter(|insertion| insertion.denies);
        judgement.matched = denials.map(|denial| denial.rule.clone()).collect();
        let (mut denial, mut allowance) = (judgement.matched.first().cloned(), None);
        let (tenant, sides) = self.sides(service, query);
        for side in sides {
            let (mut denied, mut allowed) = (None, None);
            for rule in side.rules.iter().filter(|rule| rule.matches(tenant, query)) {
                let decision = match (rule.mode, rule.action) {
                    (Mode::Audit, action) => {
                        judgement.audited.push((rule.id.clone(), action));
                        continue;
                    }
                    (Mode::Enforce, Action::Allow) => &mut allowed,
                    (Mode::Enforce, Action::Deny) => &mut denied,
                };
                judgement.matched.push(rule.id.clone());
                decision.get_or_insert(&rule.id);
            }
            let shut_out = (allowed.is_none() && side.is_closed()).then_some(&side.others);
            denial = denial.or_else(|| denied.or(shut_out).cloned());
            allowance = allowance.or(allowed);
        }
        match (denial, allowance) {
            (Some(rule), _) => (judgement.action, judgement.decided_by) = (Action::Deny, rule),
            (None, Some(rule)) => judgement.decided_by = rule.clone(),
            (None, None) => {}
        }
        judgement
    }

    fn names_domain(&self, from: VmIndex, name: &str) -> bool {
        let source = |clause: &Clause| match &clause.peers {
            Peers::Machines(selection) => selection.vms.contains(from.0 as usize),
            Peers::Network(_) => true,
            Peers::Domain(_) => false,
        };
        let names = |clause: &Clause| matches!(&clause.peers, Peers::Domain(domain) if domain.matches(name));
        let rules = &self.tenants[self.vm(from).tenant].rules;
        rules.iter().any(|rule| {
            let lets = rule.action == Action::Allow && rule.mode == Mode::Enforce;
            lets && rule.to.iter().any(names) && rule.from.iter().any(source)
        })
    }

    fn detour(&self, query: &FlowQuery<'_>) -> Option<Detour> {
        self.tenant_of(query)?.flow_rules.matching(query).find_map(|rule| rule.detour)
    }

    fn insert(&self, query: &FlowQuery<'_>) -> Vec<Arc<Insertion>> {
        let own = self.tenant_of(query).into_iter().flat_map(|tenant| tenant.flow_rules.matching(query));
        self.infrastructure.matching(query).chain(own).map(|rule| Arc::clone(&rule.insertion)).collect()
    }
}
