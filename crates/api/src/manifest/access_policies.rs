// SPDX-License-Identifier: Apache-2.0
//! Access policies, and the two ends of flows that all policies are about.

use model::{AccessPolicy, Action, Audience, DomainPattern, Mode, Name, Origin, Target};

use super::fields::{Field, Fields};
use super::registry::{Id, Kind};
use super::resources::{ACTIONS, Metadata, Resources, names_domain};
use super::selectors::{self, PortList, maybe};

/// Most entries of a policy's `from` or `to`.
const PEERS_MAX: usize = 256;

impl<'a> Resources<'a> {
    pub(super) fn access_policy(
        &mut self,
        metadata: Metadata,
        spec: &mut Fields<'a>,
    ) -> Option<AccessPolicy> {
        let action = spec.required("action").and_then(|action| action.one_of(&ACTIONS));
        let mode = maybe(spec.optional("mode"), |mode| {
            mode.one_of(&[("enforce", Mode::Enforce), ("audit", Mode::Audit)])
        });
        let (from, to) = self.peers(&metadata.tenant, spec);
        let (action, from, to) = (action?, from?, to?);
        self.crossing(&metadata.tenant, (&from, &to), spec)?;
        if action == Action::Deny && names_domain(&to) {
            return spec.owner().refuse(
                "`fqdn` is for action Allow only",
                "addresses are known only while somebody asks for their names; deny by cidr, or allow less",
            );
        }
        Some(AccessPolicy {
            action,
            mode: mode?.unwrap_or_default(),
            from,
            to,
            tenant: metadata.tenant,
            name: metadata.name,
        })
    }

    /// Checks what is said about other tenants, and notes the services that it is about.
    fn crossing(
        &mut self,
        tenant: &Name,
        (from, to): (&[Origin], &[Target]),
        spec: &Fields<'a>,
    ) -> Option<()> {
        let place = &spec.owner().place;
        let foreign = from.iter().any(|origin| matches!(origin, Origin::Tenant(_)));
        for target in to {
            let called = match target {
                Target::Service(name) if foreign => (tenant.clone(), name.clone()),
                Target::ServiceOf { tenant, name } if !foreign => (tenant.clone(), name.clone()),
                _ if foreign => {
                    let reason = "a `tenant` in `from` goes with one's own services in `to` alone";
                    return spec.owner().refuse(reason, "nothing else can be called by other tenants");
                }
                _ => continue,
            };
            self.crossed.push((called.0, called.1, place.clone()));
        }
        if foreign && to.is_empty() {
            let reason = "a `tenant` in `from` takes a `to`";
            return spec.owner().refuse(reason, "name infrastructure services: `to: [{service: NAME}]`");
        }
        Some(())
    }

    /// Reads `from` and `to` within one tenant; an absent one is empty.
    pub(super) fn between(
        &mut self,
        tenant: &Name,
        spec: &mut Fields<'a>,
    ) -> (Option<Vec<Origin>>, Option<Vec<Target>>) {
        let (from, to) = self.peers(tenant, spec);
        let crosses = from.iter().flatten().any(|origin| matches!(origin, Origin::Tenant(_)))
            || to.iter().flatten().any(|target| matches!(target, Target::ServiceOf { .. }));
        if crosses {
            let refused = spec.owner().refuse("`tenant` is for access policies only", "leave the entry out");
            return (refused, None);
        }
        (from, to)
    }

    fn peers(&mut self, tenant: &Name, spec: &mut Fields<'a>) -> (Option<Vec<Origin>>, Option<Vec<Target>>) {
        let from = maybe(spec.optional("from"), |from| {
            let read: Vec<_> = from.items(PEERS_MAX)?.iter().map(|item| self.origin(tenant, item)).collect();
            read.into_iter().collect::<Option<Vec<_>>>()
        });
        let to = maybe(spec.optional("to"), |to| {
            let read: Vec<_> = to.items(PEERS_MAX)?.iter().map(|item| self.target(tenant, item)).collect();
            read.into_iter().collect::<Option<Vec<_>>>()
        });
        (from.map(Option::unwrap_or_default), to.map(Option::unwrap_or_default))
    }

    fn origin(&mut self, tenant: &Name, field: &Field<'a>) -> Option<Origin> {
        let mut fields = field.fields()?;
        let workload = selectors::workload_in(&mut fields);
        let application = self.reference(Kind::Application, tenant, fields.optional("application"));
        let network = maybe(fields.optional("cidr"), selectors::network);
        let other = maybe(fields.optional("tenant"), |other| self.other_tenant(tenant, other));
        let single = alone(&fields, "tenant", &["application", "cidr", "vm", "process"])
            .and_then(|()| alone(&fields, "application", &["cidr", "vm", "process"]))
            .and_then(|()| alone(&fields, "cidr", &["vm", "process"]));
        let empty = fields.given(&["vm", "process", "application", "cidr", "tenant"]).is_empty();
        fields.finish();
        if empty {
            return field.refuse(
                "the entry is empty",
                "give vm, process, application, cidr or tenant; leave `from` out to mean any machine",
            );
        }
        single?;
        Some(match (other?, application?, network?) {
            (Some(other), ..) => Origin::Tenant(other),
            (None, Some(name), _) => Origin::Application(name),
            (None, None, Some(network)) => Origin::Network(network),
            (None, None, None) => Origin::Workload(workload?),
        })
    }

    /// Reads the name of another tenant; `Some(None)` is any other.
    fn other_tenant(&mut self, own: &Name, field: &Field<'a>) -> Option<Option<Name>> {
        if field.text()? == "*" {
            return Some(None);
        }
        let name: Name = field.parse()?;
        if name == *own {
            let reason = format!("`{own}` is the policy's own tenant");
            return field.refuse(reason, "select one's own machines by vm, process or application");
        }
        self.registry.refer(Id { kind: Kind::Tenant, tenant: None, name: name.clone() }, &field.place);
        Some(Some(name))
    }

    fn target(&mut self, tenant: &Name, field: &Field<'a>) -> Option<Target> {
        let mut fields = field.fields()?;
        let workload = selectors::workload_in(&mut fields);
        let application = self.reference(Kind::Application, tenant, fields.optional("application"));
        let owner = maybe(fields.optional("tenant"), |other| self.other_tenant(tenant, other));
        let any = matches!(owner, Some(Some(None)));
        let owner = owner.map(Option::flatten);
        let of = owner.clone().flatten().unwrap_or_else(|| tenant.clone());
        let service = self.reference(Kind::Service, &of, fields.optional("service"));
        let network = maybe(fields.optional("cidr"), selectors::network);
        let domain = maybe(fields.optional("fqdn"), Field::parse::<DomainPattern>);
        let ports = maybe(fields.optional("ports"), |ports| selectors::ports(ports, PortList::Matched));
        let single = alone(&fields, "service", &["application", "cidr", "fqdn", "vm", "process", "ports"])
            .and_then(|()| alone(&fields, "application", &["cidr", "fqdn", "vm", "process"]))
            .and_then(|()| alone(&fields, "cidr", &["fqdn", "vm", "process"]))
            .and_then(|()| alone(&fields, "fqdn", &["vm", "process"]));
        let given = ["vm", "process", "application", "service", "cidr", "fqdn", "ports", "tenant"];
        let named = !fields.given(&["service"]).is_empty();
        let abroad = !fields.given(&["tenant"]).is_empty();
        let empty = fields.given(&given).is_empty();
        fields.finish();
        if empty {
            let help = "give vm, process, application, service, cidr, fqdn or ports; \
                        leave `to` out to mean any machine";
            return field.refuse("the entry is empty", help);
        }
        single?;
        if abroad && (!named || any) {
            let reason = "a `tenant` in `to` says whose the `service` is";
            return field.refuse(reason, "name both: `{service: NAME, tenant: OWNER}`");
        }
        let (owner, ports) = (owner?, ports?.unwrap_or_default());
        Some(match (service?, application?, network?, domain?) {
            (Some(name), ..) => match owner {
                Some(tenant) => Target::ServiceOf { tenant, name },
                None => Target::Service(name),
            },
            (None, Some(application), ..) => Target::Application(application, ports),
            (None, None, Some(network), _) => Target::Network(network, ports),
            (None, None, None, Some(domain)) => Target::Domain(domain, ports),
            (None, None, None, None) => Target::Workload(workload?, ports),
        })
    }

    /// Refuses what is said about calls between tenants to a service that exists for one of them only.
    pub(super) fn check_crossed(&self) {
        for (tenant, name, place) in &self.crossed {
            let mut services = self.policies.services.iter();
            let found = services.find(|service| service.tenant == *tenant && service.name == *name);
            if found.is_some_and(|service| service.audience != Audience::Everyone) {
                let reason = format!("service `{tenant}/{name}` does not exist for other tenants");
                self.report.note(place, reason, "name a service of level `infrastructure`".to_owned());
            }
        }
    }
}

/// Refuses `key` beside any of `others`.
fn alone(fields: &Fields<'_>, key: &'static str, others: &[&'static str]) -> Option<()> {
    if fields.given(&[key]).is_empty() {
        return Some(());
    }
    match fields.given(others).as_slice() {
        [] => Some(()),
        [other, ..] => fields.owner().refuse(
            format!("`{key}` and `{other}` exclude each other"),
            "write two entries, or only one of them",
        ),
    }
}
