// SPDX-License-Identifier: Apache-2.0
//! Compiling: names into machines, selectors into bits, everything into its tenant.

use std::collections::HashMap;

use model::{
    AccessPolicy, Inventory, Name, Origin, PolicySet, PortMatch, RuleId, Target, VmIndex, VmSelector,
    Workload,
};

use crate::bits::BitSet;
use crate::clause::{DestinationClause, ProcessMatch, Rule, SourceClause};
use crate::judge::{CompiledPolicy, CompiledService, PortIndex, TenantRules, VmRules};

/// Why a set of policies has no meaning. The loader of manifests refuses all of these with their
/// place; here they guard whoever builds a set in another way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A resource of a tenant that does not exist.
    #[error("`{tenant}/{name}` belongs to a tenant that is not defined")]
    NoTenant {
        /// The missing tenant.
        tenant: Name,
        /// The resource.
        name: Name,
    },
    /// A policy refers to an application that does not exist.
    #[error("policy `{policy}` names application `{application}`, which is not defined")]
    NoApplication {
        /// The policy.
        policy: RuleId,
        /// The missing application.
        application: Name,
    },
    /// A policy refers to a service that does not exist.
    #[error("policy `{policy}` names service `{service}`, which is not defined")]
    NoService {
        /// The policy.
        policy: RuleId,
        /// The missing service.
        service: Name,
    },
    /// Two resources of one kind, tenant and name.
    #[error("{kind} `{tenant}/{name}` is defined twice")]
    Twice {
        /// The kind, in words.
        kind: &'static str,
        /// Its tenant.
        tenant: Name,
        /// Its name.
        name: Name,
    },
}

/// Compiles policies for the machines of an inventory.
///
/// # Errors
/// The first resource, in the order given, that contradicts another or leads nowhere.
pub fn compile(inventory: &Inventory, policies: &PolicySet) -> Result<CompiledPolicy, CompileError> {
    let names = Names::new(inventory, policies)?;
    let mut rules: Vec<Vec<Rule>> = inventory.tenants().iter().map(|_| Vec::new()).collect();
    for policy in &policies.policies {
        rules[names.tenant(&policy.tenant, &policy.name)?].push(names.rule(policy)?);
    }
    let tenants: Vec<TenantRules> = inventory
        .tenants()
        .iter()
        .zip(rules)
        .map(|(tenant, rules)| TenantRules {
            default_action: tenant.default_action,
            default_id: RuleId(format!("{}/default", tenant.name).into()),
            isolation_id: RuleId(format!("{}/(isolation)", tenant.name).into()),
            ports: PortIndex::new(&rules),
            rules,
        })
        .collect();
    let vms = inventory.vms().map(|(index, vm)| {
        let tenant = names.tenants[&vm.id.tenant];
        vm_rules(vm.id.to_string(), tenant, index, &tenants[tenant].rules)
    });
    let services = names.services.iter().map(|((tenant, name), service)| {
        let selected = |vm: &model::Vm| vm.id.tenant == **tenant && service.selector.vm.selects(vm);
        let vms = inventory.vms().filter(|(_, vm)| selected(vm)).map(|(index, _)| index);
        let compiled = CompiledService { vms: vms.collect(), ports: service.ports.clone() };
        (((*tenant).clone(), (*name).clone()), compiled)
    });
    Ok(CompiledPolicy { vms: vms.collect(), services: services.collect(), tenants })
}

fn vm_rules(name: String, tenant: usize, vm: VmIndex, rules: &[Rule]) -> VmRules {
    let mut as_source = BitSet::new(rules.len());
    let mut as_destination = BitSet::new(rules.len());
    for (number, rule) in rules.iter().enumerate() {
        if rule.from.iter().any(|clause| clause.selects(vm)) {
            as_source.insert(number);
        }
        if rule.to.iter().any(|clause| clause.selects(vm)) {
            as_destination.insert(number);
        }
    }
    VmRules { name, tenant, as_source, as_destination }
}

/// What names stand for.
struct Names<'a> {
    inventory: &'a Inventory,
    tenants: HashMap<&'a Name, usize>,
    applications: HashMap<(&'a Name, &'a Name), &'a model::Application>,
    services: HashMap<(&'a Name, &'a Name), &'a model::Service>,
}

impl<'a> Names<'a> {
    fn new(inventory: &'a Inventory, policies: &'a PolicySet) -> Result<Self, CompileError> {
        let tenants = inventory.tenants().iter().zip(0..).map(|(tenant, index)| (&tenant.name, index));
        let names = Self {
            inventory,
            tenants: tenants.collect(),
            applications: unique("application", &policies.applications, |a| (&a.tenant, &a.name))?,
            services: unique("service", &policies.services, |s| (&s.tenant, &s.name))?,
        };
        unique("access policy", &policies.policies, |p| (&p.tenant, &p.name))?;
        for (tenant, name) in names.applications.keys().chain(names.services.keys()) {
            names.tenant(tenant, name)?;
        }
        Ok(names)
    }

    fn tenant(&self, tenant: &Name, name: &Name) -> Result<usize, CompileError> {
        self.tenants
            .get(tenant)
            .copied()
            .ok_or_else(|| CompileError::NoTenant { tenant: tenant.clone(), name: name.clone() })
    }

    /// The tenant's machines that are selected.
    fn select(&self, tenant: &Name, selector: &VmSelector) -> BitSet {
        let mut vms = BitSet::new(self.inventory.vms().count());
        for (index, vm) in self.inventory.vms() {
            if vm.id.tenant == *tenant && selector.selects(vm) {
                vms.insert(index.0 as usize);
            }
        }
        vms
    }

    fn source_clause(&self, tenant: &Name, workload: &Workload) -> SourceClause {
        let process = workload.process.as_ref().map(ProcessMatch::new);
        SourceClause { vms: self.select(tenant, &workload.vm), process }
    }

    fn destination_clause(
        &self,
        tenant: &Name,
        workload: &Workload,
        ports: &[PortMatch],
    ) -> DestinationClause {
        let SourceClause { vms, process } = self.source_clause(tenant, workload);
        DestinationClause { vms, process, ports: ports.to_vec() }
    }

    fn rule(&self, policy: &AccessPolicy) -> Result<Rule, CompileError> {
        let tenant = &policy.tenant;
        let id = RuleId(format!("{tenant}/{}", policy.name).into());
        let application = |name: &Name| {
            self.applications
                .get(&(tenant, name))
                .map(|application| &application.selector)
                .ok_or_else(|| CompileError::NoApplication { policy: id.clone(), application: name.clone() })
        };
        let mut from = Vec::with_capacity(policy.from.len());
        for origin in &policy.from {
            from.push(match origin {
                Origin::Workload(workload) => self.source_clause(tenant, workload),
                Origin::Application(name) => self.source_clause(tenant, application(name)?),
            });
        }
        let mut to = Vec::with_capacity(policy.to.len());
        for target in &policy.to {
            to.push(match target {
                Target::Workload(workload, ports) => self.destination_clause(tenant, workload, ports),
                Target::Application(name, ports) => {
                    self.destination_clause(tenant, application(name)?, ports)
                }
                Target::Service(name) => {
                    let service = self.services.get(&(tenant, name)).ok_or_else(|| {
                        CompileError::NoService { policy: id.clone(), service: name.clone() }
                    })?;
                    self.destination_clause(tenant, &service.selector, &service.ports)
                }
            });
        }
        if from.is_empty() {
            from.push(self.source_clause(tenant, &Workload::default()));
        }
        if to.is_empty() {
            to.push(self.destination_clause(tenant, &Workload::default(), &[]));
        }
        Ok(Rule { id, action: policy.action, mode: policy.mode, from, to })
    }
}

/// Resources by tenant and name.
fn unique<'a, T>(
    kind: &'static str,
    resources: &'a [T],
    key: impl Fn(&'a T) -> (&'a Name, &'a Name),
) -> Result<HashMap<(&'a Name, &'a Name), &'a T>, CompileError> {
    let mut found = HashMap::with_capacity(resources.len());
    for resource in resources {
        let (tenant, name) = key(resource);
        if found.insert((tenant, name), resource).is_some() {
            return Err(CompileError::Twice { kind, tenant: tenant.clone(), name: name.clone() });
        }
    }
    Ok(found)
}
