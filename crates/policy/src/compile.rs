// SPDX-License-Identifier: Apache-2.0
//! Compiling: names into machines, selectors into bits, everything into its tenant.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use model::{
    AccessPolicy, Action, Audience, Cidr, Counted, Detour, FlowPolicy, Insertion, Inventory, Level, Mode,
    Name, Origin, PolicySet, PortMatch, RuleId, Service, ServiceFlags, Target, VmIndex, VmRef, VmSelector,
    Workload,
};

use crate::bits::BitSet;
use crate::classifier::Classifier;
use crate::clause::{Clause, Peers, ProcessMatch, Rule, Selection};
use crate::crossing::{CallRule, Callers, Crossings};
use crate::insertion::{FlowRule, FlowRules};
use crate::judge::{CompiledPolicy, CompiledService, TenantRules, VmRules};
use crate::rule_set::RULES_MAX;

/// Every machine of a tenant, whoever acts in it.
static ANY: Workload = Workload { vm: VmSelector { name: None, labels: BTreeMap::new() }, process: None };

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
    /// A flow policy refers to a machine that does not exist.
    #[error("policy `{policy}` names machine `{vm}`, which is not defined")]
    NoMachine {
        /// The policy.
        policy: RuleId,
        /// The missing machine.
        vm: Name,
    },
    /// Where a flow goes is decided before it is known who acts at its ends.
    #[error("policy `{0}` redirects flows and names a process")]
    RedirectsProcess(RuleId),
    /// A policy of the infrastructure names what only its own tenant knows.
    #[error("policy `{0}` is for all tenants and redirects flows or names an application or a service")]
    NotForAll(RuleId),
    /// A policy is about callers of other tenants and something else than infrastructure services, which is all that those
    /// can call.
    #[error("policy `{0}` is about other tenants, and about more than an infrastructure service")]
    BetweenTenants(RuleId),
    /// There are more policies of one kind than can be told apart in bounded memory.
    #[error("there are more than {RULES_MAX} {kind} of `{owner}`")]
    TooMany {
        /// Access or flow policies.
        kind: &'static str,
        /// The tenant whose they are, or the level.
        owner: String,
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
    let mut names = Names::new(inventory, policies)?;
    let mut rules: Vec<Vec<Rule>> = inventory.tenants().iter().map(|_| Vec::new()).collect();
    let mut counts = vec![0; inventory.tenants().len()];
    let mut crossings = Crossings::default();
    for policy in &policies.policies {
        let tenant = names.tenant(&policy.tenant, &policy.name)?;
        if counts[tenant] == RULES_MAX {
            return Err(too_many("access policies", policy.tenant.as_str()));
        }
        counts[tenant] += 1;
        rules[tenant].extend(names.rule(policy)?);
        names.cross(policy, &mut crossings)?;
    }
    let (infrastructure, flow_rules) = flow_rules(&mut names, inventory, policies)?;
    let tenants: Vec<TenantRules> = inventory
        .tenants()
        .iter()
        .zip(rules)
        .zip(flow_rules)
        .map(|((tenant, rules), flow_rules)| TenantRules {
            flow_rules: FlowRules::new(flow_rules),
            default_action: tenant.default_action,
            default_id: RuleId(format!("{}/default", tenant.name).into()),
            isolation_id: RuleId(format!("{}/(isolation)", tenant.name).into()),
            classifier: Classifier::new(rules.iter().enumerate()),
            asking: Classifier::new(rules.iter().enumerate().filter(|(_, rule)| rule.names_process())),
            rules,
        })
        .collect();
    let vms = inventory
        .vms()
        .map(|(_, vm)| VmRules { name: vm.id.to_string(), tenant: names.tenants[&vm.id.tenant] });
    let services = policies.services.iter().map(|service| {
        let selected = names.vms(Some(&service.tenant), &service.selector.vm);
        let compiled = CompiledService { vms: selected.collect(), ports: service.ports.clone() };
        ((service.tenant.clone(), service.name.clone()), compiled)
    });
    let infrastructure = FlowRules::new(infrastructure);
    Ok(CompiledPolicy {
        vms: vms.collect(),
        services: services.collect(),
        tenants,
        infrastructure,
        crossings,
    })
}

fn too_many(kind: &'static str, owner: &str) -> CompileError {
    CompileError::TooMany { kind, owner: owner.to_owned() }
}

/// The flow policies of the infrastructure, and those of each tenant.
fn flow_rules<'a>(
    names: &mut Names<'a>,
    inventory: &Inventory,
    policies: &'a PolicySet,
) -> Result<(Vec<FlowRule>, Vec<Vec<FlowRule>>), CompileError> {
    let mut infrastructure = Vec::new();
    let mut tenants: Vec<Vec<FlowRule>> = inventory.tenants().iter().map(|_| Vec::new()).collect();
    for policy in &policies.flow_policies {
        let tenant = names.tenant(&policy.tenant, &policy.name)?;
        let (rules, owner) = match policy.audience {
            Audience::Everyone => (&mut infrastructure, Level::Infrastructure.as_str()),
            _ => (&mut tenants[tenant], policy.tenant.as_str()),
        };
        if rules.len() == RULES_MAX {
            return Err(too_many("flow policies", owner));
        }
        rules.push(names.flow_rule(policy)?);
    }
    Ok((infrastructure, tenants))
}

/// What names stand for.
struct Names<'a> {
    inventory: &'a Inventory,
    tenants: HashMap<&'a Name, usize>,
    applications: HashMap<(&'a Name, &'a Name), &'a model::Application>,
    services: HashMap<(&'a Name, &'a Name), &'a Service>,
    /// The machines of each tenant.
    machines: HashMap<&'a Name, Vec<VmIndex>>,
    /// What selectors, by tenant, have been found to stand for; without one, among the machines of all.
    selections: HashMap<(Option<&'a Name>, &'a VmSelector), Arc<Selection>>,
}

impl<'a> Names<'a> {
    fn new(inventory: &'a Inventory, policies: &'a PolicySet) -> Result<Self, CompileError> {
        let tenants = inventory.tenants().iter().zip(0..).map(|(tenant, index)| (&tenant.name, index));
        let mut machines: HashMap<_, Vec<_>> = HashMap::new();
        for (index, vm) in inventory.vms() {
            machines.entry(&vm.id.tenant).or_default().push(index);
        }
        let names = Self {
            inventory,
            machines,
            selections: HashMap::new(),
            tenants: tenants.collect(),
            applications: unique("application", &policies.applications, |a| (&a.tenant, &a.name))?,
            services: unique("service", &policies.services, |s| (&s.tenant, &s.name))?,
        };
        unique("access policy", &policies.policies, |p| (&p.tenant, &p.name))?;
        unique("flow policy", &policies.flow_policies, |p| (&p.tenant, &p.name))?;
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

    /// The tenant's machines that are selected, or everyone's.
    fn vms(&self, tenant: Option<&Name>, selector: &VmSelector) -> impl Iterator<Item = VmIndex> {
        // Most selectors name one machine; only the others have to look at all.
        let candidates = match (tenant, &selector.name) {
            (Some(tenant), Some(name)) => {
                let id = VmRef { tenant: tenant.clone(), name: name.clone() };
                self.inventory.find(&id).into_iter().collect()
            }
            (Some(tenant), None) => self.machines.get(tenant).cloned().unwrap_or_default(),
            (None, _) => self.inventory.vms().map(|(index, _)| index).collect(),
        };
        candidates.into_iter().filter(|index| selector.selects(self.inventory.vm(*index)))
    }

    fn select(&mut self, tenant: Option<&'a Name>, selector: &'a VmSelector) -> Arc<Selection> {
        if let Some(known) = self.selections.get(&(tenant, selector)) {
            return Arc::clone(known);
        }
        let mut vms = BitSet::new(self.inventory.vms().len());
        self.vms(tenant, selector).for_each(|index| vms.insert(index.0 as usize));
        let number = u32::try_from(self.selections.len()).expect("fewer than 2^32 selectors");
        let selection = Arc::new(Selection { number, vms });
        self.selections.insert((tenant, selector), Arc::clone(&selection));
        selection
    }

    fn clause(&mut self, tenant: Option<&'a Name>, workload: &'a Workload, ports: &[PortMatch]) -> Clause {
        let process = workload.process.as_ref().map(ProcessMatch::new);
        Clause { peers: Peers::Machines(self.select(tenant, &workload.vm)), process, ports: ports.into() }
    }

    fn application(&self, tenant: &Name, policy: &RuleId, name: &Name) -> Result<&'a Workload, CompileError> {
        let application = self.applications.get(&(tenant, name)).copied();
        application
            .map(|application| &application.selector)
            .ok_or_else(|| CompileError::NoApplication { policy: policy.clone(), application: name.clone() })
    }

    fn service(&self, tenant: &Name, policy: &RuleId, name: &Name) -> Result<&'a Service, CompileError> {
        let service = self.services.get(&(tenant, name)).copied();
        service.ok_or_else(|| CompileError::NoService { policy: policy.clone(), service: name.clone() })
    }

    /// What a policy says within its tenant, if anything.
    fn rule(&mut self, policy: &'a AccessPolicy) -> Result<Option<Rule>, CompileError> {
        let AccessPolicy { from, to, .. } = policy;
        // An absent list means everybody, one that is all about others means nobody here.
        if !from.is_empty() && from.iter().all(is_foreign) || !to.is_empty() && to.iter().all(leads_abroad) {
            return Ok(None);
        }
        let id = rule_id(&policy.tenant, &policy.name);
        let (from, to) = self.clauses((Some(&policy.tenant), &id), from, to)?;
        Ok(Some(Rule::new(id, (policy.action, policy.mode), from.into(), to.into())))
    }

    /// Adds what a policy says about calls between its tenant and others.
    fn cross(&mut self, policy: &'a AccessPolicy, crossings: &mut Crossings) -> Result<(), CompileError> {
        let AccessPolicy { tenant, from, to, action, mode, .. } = policy;
        let id = rule_id(tenant, &policy.name);
        let rule = |callers| CallRule { id: id.clone(), action: *action, mode: *mode, callers };
        let tenants: Vec<_> = from
            .iter()
            .filter_map(|origin| match origin {
                Origin::Tenant(None) => Some(Ok(None)),
                Origin::Tenant(Some(other)) => Some(self.tenant(other, &policy.name).map(Some)),
                _ => None,
            })
            .collect::<Result<_, _>>()?;
        if !tenants.is_empty() {
            let tenants: Arc<[_]> = tenants.into();
            if to.is_empty() {
                return Err(CompileError::BetweenTenants(id));
            }
            for target in to {
                let Target::Service(name) = target else { return Err(CompileError::BetweenTenants(id)) };
                let service = self.infrastructure_service(tenant, &id, name)?;
                crossings.of_owner(&service, rule(Callers::Tenants(Arc::clone(&tenants))));
            }
            return Ok(());
        }
        if !to.iter().any(leads_abroad) {
            return Ok(());
        }
        let (own, _) = self.clauses((Some(tenant), &id), from, &[])?;
        let own: Arc<[Clause]> = own.into();
        let position = self.tenant(tenant, &policy.name)?;
        for target in to {
            let Target::ServiceOf { tenant: owner, name } = target else { continue };
            let service = self.infrastructure_service(owner, &id, name)?;
            if owner == tenant {
                return Err(CompileError::BetweenTenants(id));
            }
            crossings.of_caller(&service, (position, tenant), rule(Callers::Own(Arc::clone(&own))));
        }
        Ok(())
    }

    fn infrastructure_service(
        &self,
        owner: &Name,
        policy: &RuleId,
        name: &Name,
    ) -> Result<RuleId, CompileError> {
        let service = self.service(owner, policy, name)?;
        let is_for_all = service.audience == Audience::Everyone;
        is_for_all.then(|| rule_id(owner, name)).ok_or_else(|| CompileError::BetweenTenants(policy.clone()))
    }

    fn flow_rule(&mut self, policy: &'a FlowPolicy) -> Result<FlowRule, CompileError> {
        let id = rule_id(&policy.tenant, &policy.name);
        let tenant = (policy.audience != Audience::Everyone).then_some(&policy.tenant);
        if policy.from.iter().any(is_foreign) || policy.to.iter().any(leads_abroad) {
            return Err(CompileError::BetweenTenants(id));
        }
        let (from, to) = self.clauses((tenant, &id), &policy.from, &policy.to)?;
        let scope = self.scope(policy, &id)?;
        let vm = |name: &Name| {
            let found = self.inventory.find(&VmRef { tenant: policy.tenant.clone(), name: name.clone() });
            found.ok_or_else(|| CompileError::NoMachine { policy: id.clone(), vm: name.clone() })
        };
        let mirror = policy.mirror.as_ref().map(vm).transpose()?;
        let redirect = policy.redirect.as_ref();
        let detour = redirect.map(|redirect| Ok(Detour { vm: vm(&redirect.vm)?, l4_port: redirect.port }));
        let detour = detour.transpose()?;
        let names_process = from.iter().chain(&to).chain(&scope).any(|clause| clause.process.is_some());
        if detour.is_some() && names_process {
            return Err(CompileError::RedirectsProcess(id));
        }
        if detour.is_some() && tenant.is_none() {
            return Err(CompileError::NotForAll(id));
        }
        let services = ServiceFlags::given([
            (policy.limit.is_some(), ServiceFlags::LIMIT),
            (policy.part.is_some(), ServiceFlags::SHARE),
            (policy.mirror.is_some(), ServiceFlags::MIRROR),
            (policy.log, ServiceFlags::LOG),
            (policy.trace.is_some(), ServiceFlags::TRACE),
            (policy.authenticate, ServiceFlags::AUTHENTICATE),
            (policy.encrypt, ServiceFlags::ENCRYPT),
            (policy.layer7.is_some(), ServiceFlags::LAYER7),
        ]);
        let insertion = Insertion {
            rule: id.clone(),
            level: policy.audience.level(),
            order: policy.order,
            denies: policy.denies,
            services,
            mirror,
            limit: policy.limit.map(|limit| (limit, Counted::EachWay)),
            trace: policy.trace,
            part: policy.part,
            protocols: policy.layer7.and_then(|layer7| layer7.protocols),
        };
        let action = if policy.denies { Action::Deny } else { Action::Allow };
        Ok(FlowRule {
            rule: Rule::new(id, (action, Mode::Enforce), from.into(), to.into()),
            scope: scope.into(),
            insertion: Arc::new(insertion),
            detour,
        })
    }

    /// What one end of a flow must be for the policy to see it.
    fn scope(&mut self, policy: &'a FlowPolicy, id: &RuleId) -> Result<Vec<Clause>, CompileError> {
        let tenant = &policy.tenant;
        let workloads = match &policy.audience {
            Audience::Everyone | Audience::Tenant => Vec::new(),
            Audience::Application(name) => vec![self.application(tenant, id, name)?],
            Audience::Subset(name, subset) => vec![self.application(tenant, id, name)?, subset],
        };
        Ok(workloads.into_iter().map(|workload| self.clause(Some(tenant), workload, &[])).collect())
    }

    /// Both lists compiled, but for what is about other tenants; never empty.
    fn clauses(
        &mut self,
        (tenant, policy): (Option<&'a Name>, &RuleId),
        origins: &'a [Origin],
        targets: &'a [Target],
    ) -> Result<(Vec<Clause>, Vec<Clause>), CompileError> {
        // What is said for all tenants has no tenant to look names up in.
        let own = |tenant: Option<&'a Name>| tenant.ok_or_else(|| CompileError::NotForAll(policy.clone()));
        let mut from = Vec::with_capacity(origins.len().max(1));
        for origin in origins {
            from.push(match origin {
                Origin::Workload(workload) => self.clause(tenant, workload, &[]),
                Origin::Application(name) => {
                    self.clause(tenant, self.application(own(tenant)?, policy, name)?, &[])
                }
                Origin::Network(network) => network_clause(*network, &[]),
                Origin::Tenant(_) => continue,
            });
        }
        let mut to = Vec::with_capacity(targets.len().max(1));
        for target in targets {
            to.push(match target {
                Target::Workload(workload, ports) => self.clause(tenant, workload, ports),
                Target::Application(name, ports) => {
                    self.clause(tenant, self.application(own(tenant)?, policy, name)?, ports)
                }
                Target::Network(network, ports) => network_clause(*network, ports),
                Target::Domain(domain, ports) => {
                    let peers = Peers::Domain(domain.clone());
                    Clause { peers, process: None, ports: ports.as_slice().into() }
                }
                Target::Service(name) => {
                    let service = self.service(own(tenant)?, policy, name)?;
                    self.clause(tenant, &service.selector, &service.ports)
                }
                Target::ServiceOf { .. } => continue,
            });
        }
        for clauses in [&mut from, &mut to] {
            if clauses.is_empty() {
                clauses.push(self.clause(tenant, &ANY, &[]));
            }
        }
        Ok((from, to))
    }
}

/// Whether an entry of `from` is about other tenants.
fn is_foreign(origin: &Origin) -> bool {
    matches!(origin, Origin::Tenant(_))
}

/// Whether an entry of `to` is about another tenant.
fn leads_abroad(target: &Target) -> bool {
    matches!(target, Target::ServiceOf { .. })
}

fn rule_id(tenant: &Name, policy: &Name) -> RuleId {
    RuleId(format!("{tenant}/{policy}").into())
}

fn network_clause(network: Cidr, ports: &[PortMatch]) -> Clause {
    Clause { peers: Peers::Network(network), process: None, ports: ports.into() }
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
