// SPDX-License-Identifier: Apache-2.0
//! Policies read as they are written, one after the other.

use std::sync::Arc;

use model::{
    AccessPolicy, Action, Attribution, Audience, Counted, FiveTuple, FlowPolicy, FlowQuery, Insertion,
    Inventory, Judgement, Level, Mode, Name, Origin, Party, PolicySet, PortMatch, ProcessSelector, RuleId,
    Service, ServiceFlags, Target, UnknownReason, UserName, Vm, VmIndex, VmRef, Workload,
};
use wildmatch::WildMatch;

fn process_matches(selector: &ProcessSelector, attribution: Option<&Attribution>) -> bool {
    let unknown = Attribution::unknown(UnknownReason::NotAttached);
    let attribution = attribution.unwrap_or(&unknown);
    let process = attribution.process.as_ref();
    if let Some(wanted) = selector.attribution
        && wanted != attribution.outcome()
    {
        return false;
    }
    if let Some(container) = &selector.container {
        match attribution.container() {
            Some(text) if WildMatch::new(container.as_str()).matches(text) => {}
            _ => return false,
        }
    }
    if selector.user.is_some() && selector.user.as_ref().map(UserName::as_str) != attribution.user() {
        return false;
    }
    if let Some(name) = &selector.name
        && process.map(|p| &p.name) != Some(name)
    {
        return false;
    }
    if let Some(exe) = &selector.exe {
        match process.and_then(|p| p.exe.as_ref()) {
            Some(path) if WildMatch::new(exe.as_str()).matches(path) => {}
            _ => return false,
        }
    }
    if let Some(unit) = &selector.unit {
        match attribution.unit() {
            Some(text) if WildMatch::new(unit.as_str()).matches(text) => {}
            _ => return false,
        }
    }
    if selector.uid.is_some() && selector.uid != attribution.uid() {
        return false;
    }
    process.is_some() || *selector != ProcessSelector::default()
}

fn workload_matches(
    workload: &Workload,
    tenant: Option<&Name>,
    vm: Option<&Vm>,
    attribution: Option<&Attribution>,
) -> bool {
    vm.is_some_and(|vm| tenant.is_none_or(|tenant| vm.id.tenant == *tenant) && workload.vm.selects(vm))
        && workload.process.as_ref().is_none_or(|process| process_matches(process, attribution))
}

fn ports_match(ports: &[PortMatch], tuple: FiveTuple) -> bool {
    ports.is_empty() || ports.iter().any(|port| port.covers(tuple.protocol, tuple.destination_port))
}

fn application<'a>(set: &'a PolicySet, tenant: &Name, name: &Name) -> &'a Workload {
    &set.applications.iter().find(|a| a.tenant == *tenant && a.name == *name).unwrap().selector
}

/// Whether a flow comes from there, within the tenant.
fn is_origin(
    tenant: Option<&Name>,
    origin: &Origin,
    (set, inventory): (&PolicySet, &Inventory),
    query: &FlowQuery<'_>,
) -> bool {
    let workload = match origin {
        Origin::Workload(workload) => workload,
        Origin::Application(name) => application(set, tenant.unwrap(), name),
        Origin::Network(network) => return network.contains(query.tuple.source),
        Origin::Tenant(_) => return false,
    };
    let source = query.source.vm.map(|vm| inventory.vm(vm));
    workload_matches(workload, tenant, source, query.source.attribution)
}

/// Whether a flow goes from one of `from` to one of `to`, machines of the tenant or, without one, of anybody.
fn selects(
    (tenant, from, to): (Option<&Name>, &[Origin], &[Target]),
    (set, inventory): (&PolicySet, &Inventory),
    query: &FlowQuery<'_>,
) -> bool {
    let vm = |party: &Party<'_>| party.vm.map(|vm| inventory.vm(vm));
    let (source, destination) = (vm(&query.source), vm(&query.destination));
    let origin = |origin: &Origin| is_origin(tenant, origin, (set, inventory), query);
    let target = |target: &Target| {
        let (workload, ports) = match target {
            Target::Workload(workload, ports) => (workload, ports),
            Target::Application(name, ports) => (application(set, tenant.unwrap(), name), ports),
            Target::Network(network, ports) => {
                return network.contains(query.tuple.destination) && ports_match(ports, query.tuple);
            }
            Target::Domain(domain, ports) => {
                let is_it = |name: &std::sync::Arc<str>| match domain.to_string().strip_prefix('*') {
                    Some(end) => name.ends_with(end),
                    None => **name == *domain.to_string(),
                };
                let found = query.names.iter().any(is_it);
                return query.destination.vm.is_none() && found && ports_match(ports, query.tuple);
            }
            Target::Service(name) => {
                let is = |s: &&Service| s.tenant == *tenant.unwrap() && s.name == *name;
                let service = set.services.iter().find(is).unwrap();
                (&service.selector, &service.ports)
            }
            Target::ServiceOf { .. } => return false,
        };
        workload_matches(workload, tenant, destination, query.destination.attribution)
            && ports_match(ports, query.tuple)
    };
    let own = |vm: Option<&Vm>| vm.is_none_or(|vm| tenant.is_none_or(|tenant| vm.id.tenant == *tenant));
    let anyone = |vm: Option<&Vm>| vm.is_some() && own(vm);
    own(source)
        && own(destination)
        && (from.iter().any(origin) || from.is_empty() && anyone(source))
        && (to.iter().any(target) || to.is_empty() && anyone(destination))
}

fn policy_matches(
    policy: &AccessPolicy,
    set: &PolicySet,
    inventory: &Inventory,
    query: &FlowQuery<'_>,
) -> bool {
    selects((Some(&policy.tenant), &policy.from, &policy.to), (set, inventory), query)
}

fn flow_policy_matches(
    policy: &FlowPolicy,
    set: &PolicySet,
    inventory: &Inventory,
    query: &FlowQuery<'_>,
) -> bool {
    let tenant = (policy.audience != Audience::Everyone).then_some(&policy.tenant);
    let belongs = |party: &Party<'_>, workload: &Workload| {
        let vm = party.vm.map(|vm| inventory.vm(vm));
        workload_matches(workload, Some(&policy.tenant), vm, party.attribution)
    };
    let is_member = |party: &Party<'_>| match &policy.audience {
        Audience::Everyone | Audience::Tenant => true,
        Audience::Application(name) => belongs(party, application(set, &policy.tenant, name)),
        Audience::Subset(name, subset) => {
            belongs(party, application(set, &policy.tenant, name)) && belongs(party, subset)
        }
    };
    selects((tenant, &policy.from, &policy.to), (set, inventory), query)
        && (is_member(&query.source) || is_member(&query.destination))
}

/// What each matching flow policy of a tenant and of the infrastructure adds, in order.
pub fn inserted(inventory: &Inventory, set: &PolicySet, query: &FlowQuery<'_>) -> Vec<Arc<Insertion>> {
    let mut matching: Vec<_> = set
        .flow_policies
        .iter()
        .filter(|policy| flow_policy_matches(policy, set, inventory, query))
        .collect();
    matching.sort_by_key(|policy| (policy.audience.level(), policy.order));
    let insertion = |policy: &&FlowPolicy| {
        let mut services = ServiceFlags::NONE;
        if policy.mirror.is_some() {
            services |= ServiceFlags::MIRROR;
        }
        if policy.limit.is_some() {
            services |= ServiceFlags::LIMIT;
        }
        if policy.trace.is_some() {
            services |= ServiceFlags::TRACE;
        }
        if policy.part.is_some() {
            services |= ServiceFlags::SHARE;
        }
        if policy.log {
            services |= ServiceFlags::LOG;
        }
        if policy.authenticate {
            services |= ServiceFlags::AUTHENTICATE;
        }
        if policy.encrypt {
            services |= ServiceFlags::ENCRYPT;
        }
        if policy.layer7.is_some() {
            services |= ServiceFlags::LAYER7;
        }
        let vm = |name: &Name| VmRef { tenant: policy.tenant.clone(), name: name.clone() };
        Arc::new(Insertion {
            rule: id(&policy.tenant, &policy.name),
            level: policy.audience.level(),
            order: policy.order,
            denies: policy.denies,
            services,
            mirror: policy.mirror.as_ref().and_then(|name| inventory.find(&vm(name))),
            limit: policy.limit.map(|limit| (limit, Counted::EachWay)),
            trace: policy.trace,
            part: policy.part,
            protocols: policy.layer7.and_then(|layer7| layer7.protocols),
        })
    };
    matching.iter().map(insertion).collect()
}

fn id(tenant: &Name, name: &Name) -> RuleId {
    RuleId(format!("{tenant}/{name}").into())
}

pub fn plain_reading(inventory: &Inventory, set: &PolicySet, query: &FlowQuery<'_>) -> Judgement {
    let tenant_of = |vm: VmIndex| &inventory.vm(vm).id.tenant;
    let tenant = tenant_of(query.source.vm.or(query.destination.vm).unwrap());
    if query.destination.vm.is_some_and(|vm| tenant_of(vm) != tenant) {
        return Judgement::new(Action::Deny, RuleId(format!("{tenant}/(isolation)").into()));
    }
    let inserted = inserted(inventory, set, query);
    let matching: Vec<_> = set.policies.iter().filter(|p| policy_matches(p, set, inventory, query)).collect();
    let enforced = || matching.iter().filter(|p| p.mode == Mode::Enforce);
    // Outermost first, flow policies before access policies of the same level.
    let mut denials: Vec<(Level, u8, RuleId)> = Vec::new();
    for insertion in inserted.iter().filter(|insertion| insertion.denies) {
        denials.push((insertion.level, 0, insertion.rule.clone()));
    }
    for policy in enforced().filter(|p| p.action == Action::Deny) {
        denials.push((Level::Tenant, 1, id(&policy.tenant, &policy.name)));
    }
    denials.sort_by_key(|(level, kind, _)| (*level, *kind));
    let allow = enforced().find(|p| p.action == Action::Allow);
    let (action, decided_by) = match (denials.first(), allow) {
        (Some((.., rule)), _) => (Action::Deny, rule.clone()),
        (None, Some(allow)) => (Action::Allow, id(&allow.tenant, &allow.name)),
        (None, None) => {
            (inventory.tenant(tenant).unwrap().default_action, RuleId(format!("{tenant}/default").into()))
        }
    };
    let denying =
        inserted.iter().filter(|insertion| insertion.denies).map(|insertion| insertion.rule.clone());
    let audited = matching.iter().filter(|p| p.mode == Mode::Audit);
    Judgement {
        action,
        decided_by,
        matched: denying.chain(enforced().map(|p| id(&p.tenant, &p.name))).collect(),
        audited: audited.map(|p| (id(&p.tenant, &p.name), p.action)).collect(),
        inserted,
        via: None,
        unmet: None,
    }
}

/// A call from one tenant to service `i` of another.
pub fn plain_call(inventory: &Inventory, set: &PolicySet, query: &FlowQuery<'_>) -> Judgement {
    let tenant_of = |vm: Option<VmIndex>| &inventory.vm(vm.unwrap()).id.tenant;
    let (caller, owner) = (tenant_of(query.source.vm), tenant_of(query.destination.vm));
    let inserted = inserted(inventory, set, query);
    let mut matched: Vec<_> = inserted.iter().filter(|one| one.denies).map(|one| one.rule.clone()).collect();
    let mut denials = matched.clone();
    let (mut allowances, mut audited) = (Vec::new(), Vec::new());
    for (side, others) in
        [(owner, format!("{owner}/i/(callers)")), (caller, format!("{caller}/(calls to {owner}/i)"))]
    {
        let speaks = |policy: &&AccessPolicy| {
            if side == owner {
                policy.from.iter().any(|origin| matches!(origin, Origin::Tenant(_)))
            } else {
                policy.to.iter().any(|target| matches!(target, Target::ServiceOf { .. }))
            }
        };
        let matches = |policy: &&AccessPolicy| {
            let selects = |origin: &Origin| match origin {
                Origin::Tenant(tenant) => side == owner && tenant.as_ref().is_none_or(|one| one == caller),
                own => side == caller && is_origin(Some(caller), own, (set, inventory), query),
            };
            policy.from.is_empty() || policy.from.iter().any(selects)
        };
        let own: Vec<_> = set.policies.iter().filter(|p| p.tenant == *side).filter(speaks).collect();
        let ids = |mode: Mode, action: Action| {
            let fitting = own.iter().copied().filter(matches);
            let fitting = fitting.filter(move |p| p.mode == mode && p.action == action);
            fitting.map(|p| id(&p.tenant, &p.name)).collect::<Vec<_>>()
        };
        denials.extend(ids(Mode::Enforce, Action::Deny));
        let allowed = ids(Mode::Enforce, Action::Allow);
        let is_closed = own.iter().any(|p| p.mode == Mode::Enforce && p.action == Action::Allow);
        if is_closed && allowed.is_empty() {
            denials.push(RuleId(others.into()));
        }
        allowances.extend(allowed);
        for policy in own.iter().copied().filter(matches) {
            let id = id(&policy.tenant, &policy.name);
            match policy.mode {
                Mode::Enforce => matched.push(id),
                Mode::Audit => audited.push((id, policy.action)),
            }
        }
    }
    let (action, decided_by) = match (denials.first(), allowances.first()) {
        (Some(denial), _) => (Action::Deny, denial.clone()),
        (None, Some(allowance)) => (Action::Allow, allowance.clone()),
        (None, None) => (Action::Allow, RuleId(format!("{owner}/i/(service)").into())),
    };
    Judgement { action, decided_by, matched, audited, inserted, via: None, unmet: None }
}
