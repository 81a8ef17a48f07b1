// SPDX-License-Identifier: Apache-2.0
//! Flow policies.

use model::{
    Action, AppProtocol, AppProtocols, Audience, FlowPolicy, Layer7, Name, Origin, Redirect, Sample, Target,
};

use super::fields::{Field, Fields};
use super::qos;
use super::registry::Kind;
use super::resources::{Metadata, Resources, names_domain};
use super::selectors::maybe;

/// Greatest order.
const ORDER_MAX: u32 = 1_000_000;

/// What a policy can do.
const EFFECTS: [&str; 11] = [
    "action",
    "limit",
    "shares",
    "reservation",
    "mirror",
    "redirect",
    "trace",
    "log",
    "authenticate",
    "encrypt",
    "layer7",
];

impl<'a> Resources<'a> {
    pub(super) fn flow_policy(&mut self, metadata: Metadata, spec: &mut Fields<'a>) -> Option<FlowPolicy> {
        let tenant = &metadata.tenant;
        let level = spec.optional("level");
        let audience = self.audience(tenant, spec, "instances");
        let order = maybe(spec.optional("order"), |order| order.integer(0..=ORDER_MAX));
        let (from, to) = self.between(tenant, spec);
        let action = maybe(spec.optional("action"), |action| action.one_of(&[("Deny", Action::Deny)]));
        let mirror = maybe(spec.optional("mirror"), |field| self.machine(tenant, field));
        let redirect_field = spec.optional("redirect");
        let redirect = maybe(redirect_field.clone(), |field| self.redirect(tenant, field));
        let log = maybe(spec.optional("log"), Field::boolean);
        let authenticate = maybe(spec.optional("authenticate"), Field::boolean);
        let encrypt = maybe(spec.optional("encrypt"), Field::boolean);
        let layer7 = maybe(spec.optional("layer7"), layer7);
        let limit = maybe(spec.optional("limit"), qos::limit);
        let trace = maybe(spec.optional("trace"), trace);
        let part = qos::part(spec);
        if spec.given(&EFFECTS).is_empty() {
            let help = format!("give one or more of {}", EFFECTS.join(", "));
            return spec.owner().refuse("the policy does nothing", help);
        }
        let (audience, from, to) = (audience?, from?, to?);
        if names_domain(&to) {
            return spec.owner().refuse("`fqdn` is for access policies only", "select by cidr");
        }
        if let Some(field) = level.filter(|_| audience == Audience::Everyone) {
            self.speaks_for_all(tenant, &field.place);
            if redirect_field.is_some() || names_own(&from, &to) {
                return field.refuse(
                    "a policy for all tenants cannot redirect, nor name an application or a service",
                    "those are a tenant's own; select by vm, process, cidr and ports",
                );
            }
        }
        if let Some(field) = redirect_field.filter(|_| names_process(&from, &to)) {
            return field.refuse(
                "flows of a process cannot be redirected",
                "where a flow goes is decided before its process is known; select machines and ports only",
            );
        }
        Some(FlowPolicy {
            audience,
            order: order?.unwrap_or(FlowPolicy::ORDER_DEFAULT),
            from,
            to,
            denies: action?.is_some(),
            mirror: mirror?,
            redirect: redirect?,
            log: log?.unwrap_or_default(),
            limit: limit?,
            trace: trace?,
            part: part?,
            authenticate: authenticate?.unwrap_or_default(),
            encrypt: encrypt?.unwrap_or_default(),
            layer7: layer7?,
            tenant: metadata.tenant,
            name: metadata.name,
        })
    }

    fn machine(&mut self, tenant: &Name, field: &Field<'a>) -> Option<Name> {
        let mut fields = field.fields()?;
        let vm = fields.required("vm");
        let vm = self.reference(Kind::VirtualMachine, tenant, vm);
        fields.finish();
        vm?
    }

    fn redirect(&mut self, tenant: &Name, field: &Field<'a>) -> Option<Redirect> {
        let mut fields = field.fields()?;
        let vm = fields.required("vm");
        let vm = self.reference(Kind::VirtualMachine, tenant, vm);
        let port = maybe(fields.optional("port"), |port| port.integer(1..=u16::MAX));
        fields.finish();
        Some(Redirect { vm: vm??, port: port? })
    }
}

/// Reads which part of flows is traced: all of them, unless said.
fn trace(field: &Field<'_>) -> Option<Sample> {
    let mut fields = field.fields()?;
    let sample = maybe(fields.optional("sample"), Field::parse);
    fields.finish();
    Some(sample?.unwrap_or(Sample::ALL))
}

/// Reads what may be spoken: anything, unless said.
fn layer7(field: &Field<'_>) -> Option<Layer7> {
    let words = AppProtocol::ALL.map(|(protocol, word)| (word, protocol));
    let mut fields = field.fields()?;
    let protocols = maybe(fields.optional("protocols"), |field| {
        let named = field.items(AppProtocol::ALL.len())?;
        if named.is_empty() {
            return field.refuse("no protocol is named", "name one or more, or leave the field out");
        }
        let protocols: Vec<_> = named.iter().map(|item| item.one_of(&words)).collect();
        protocols.into_iter().collect::<Option<AppProtocols>>()
    });
    fields.finish();
    Some(Layer7 { protocols: protocols? })
}

/// Whether an entry names what only the policy's own tenant has.
fn names_own(from: &[Origin], to: &[Target]) -> bool {
    from.iter().any(|origin| matches!(origin, Origin::Application(_)))
        || to.iter().any(|to| matches!(to, Target::Application(..) | Target::Service(_)))
}

/// Whether an entry itself selects by process; applications and services are looked into when policy is compiled.
fn names_process(from: &[Origin], to: &[Target]) -> bool {
    from.iter().any(|origin| matches!(origin, Origin::Workload(workload) if workload.process.is_some()))
        || to.iter().any(|to| matches!(to, Target::Workload(workload, _) if workload.process.is_some()))
}
