// SPDX-License-Identifier: Apache-2.0
//! Flow policies.

use model::{FlowPolicy, Name, Origin, Redirect, Target};

use super::fields::{Field, Fields};
use super::registry::Kind;
use super::resources::{Metadata, Resources};
use super::selectors::maybe;

impl<'a> Resources<'a> {
    pub(super) fn flow_policy(&mut self, metadata: Metadata, spec: &mut Fields<'a>) -> Option<FlowPolicy> {
        let tenant = &metadata.tenant;
        let (from, to) = self.between(tenant, spec);
        let mirror = maybe(spec.optional("mirror"), |field| self.machine(tenant, field));
        let redirect_field = spec.optional("redirect");
        let redirect = maybe(redirect_field.clone(), |field| self.redirect(tenant, field));
        if spec.given(&["mirror", "redirect"]).is_empty() {
            return spec.owner().refuse("the policy does nothing", "give mirror, redirect or both");
        }
        let (from, to) = (from?, to?);
        if let Some(field) = redirect_field.filter(|_| names_process(&from, &to)) {
            return field.refuse(
                "flows of a process cannot be redirected",
                "where a flow goes is decided before its process is known; select machines and ports only",
            );
        }
        let (mirror, redirect) = (mirror?, redirect?);
        Some(FlowPolicy { tenant: metadata.tenant, name: metadata.name, from, to, mirror, redirect })
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

/// Whether an entry itself selects by process; applications and services are looked into when policy is compiled.
fn names_process(from: &[Origin], to: &[Target]) -> bool {
    from.iter().any(|origin| matches!(origin, Origin::Workload(workload) if workload.process.is_some()))
        || to.iter().any(|to| matches!(to, Target::Workload(workload, _) if workload.process.is_some()))
}
