// SPDX-License-Identifier: Apache-2.0
//! What resources say about each other: names defined and referred to, things that only one may hold.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use model::{MacAddr, Name, NicRef, RuleId, VmRef};

use super::fields::{Place, Report};
use crate::Diagnostic;

/// Most names that a diagnostic offers instead of a wrong one.
const OFFERED_MAX: usize = 8;

/// What kind of resource a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Tenant,
    VirtualMachine,
    Application,
    Service,
    AccessPolicy,
    FlowPolicy,
    ExternalNetwork,
}

impl Kind {
    /// All kinds under the names that documents carry.
    pub(super) const ALL: [(&'static str, Self); 7] = [
        ("Tenant", Self::Tenant),
        ("VirtualMachine", Self::VirtualMachine),
        ("Application", Self::Application),
        ("Service", Self::Service),
        ("AccessPolicy", Self::AccessPolicy),
        ("FlowPolicy", Self::FlowPolicy),
        ("ExternalNetwork", Self::ExternalNetwork),
    ];

    /// What the kind is called in a sentence.
    fn word(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::VirtualMachine => "virtual machine",
            Self::Application => "application",
            Self::Service => "service",
            Self::AccessPolicy => "access policy",
            Self::FlowPolicy => "flow policy",
            Self::ExternalNetwork => "external network",
        }
    }
}

/// A resource's name in full. Tenants belong to none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    pub(super) kind: Kind,
    pub(super) tenant: Option<Name>,
    pub(super) name: Name,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tenant {
            None => write!(f, "{} `{}`", self.kind.word(), self.name),
            Some(tenant) => write!(f, "{} `{tenant}/{}`", self.kind.word(), self.name),
        }
    }
}

/// Something that at most one network card may hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Claim {
    Nic(VmRef, Name),
    Mac(Name, MacAddr),
    Address(Name, IpAddr),
    Socket(PathBuf),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nic(vm, nic) => write!(f, "network card `{nic}` of `{vm}`"),
            Self::Mac(tenant, mac) => write!(f, "Ethernet address {mac} of tenant `{tenant}`"),
            Self::Address(tenant, address) => write!(f, "address {address} of tenant `{tenant}`"),
            Self::Socket(path) => write!(f, "socket `{}`", path.display()),
        }
    }
}

/// All that is defined, claimed and referred to in one load.
#[derive(Debug)]
pub(super) struct Registry<'a> {
    report: &'a Report,
    defined: HashMap<Id, Place<'a>>,
    claimed: HashMap<Claim, (NicRef, Place<'a>)>,
    references: Vec<(Id, Place<'a>)>,
}

impl<'a> Registry<'a> {
    pub(super) fn new(report: &'a Report) -> Self {
        Self { report, defined: HashMap::new(), claimed: HashMap::new(), references: Vec::new() }
    }

    /// Notes that a resource exists; a second one of its name is refused.
    pub(super) fn define(&mut self, id: Id, place: &Place<'a>) -> Option<()> {
        if let Some(first) = self.defined.get(&id) {
            let reason = format!("{id} is already defined at {first}");
            self.report.note(place, reason, "give each its own name".to_owned());
            return None;
        }
        self.defined.insert(id, place.clone());
        Some(())
    }

    /// Notes that a card holds something; a second holder is refused.
    pub(super) fn claim(&mut self, claim: Claim, nic: &NicRef, place: &Place<'a>) -> Option<()> {
        if let Some((holder, first)) = self.claimed.get(&claim) {
            let reason = format!("{claim} is already held by `{holder}` at {first}");
            self.report.note(place, reason, String::new());
            return None;
        }
        self.claimed.insert(claim, (nic.clone(), place.clone()));
        Some(())
    }

    /// Notes that a resource is referred to; [`Registry::resolve`] says whether it exists.
    pub(super) fn refer(&mut self, id: Id, place: &Place<'a>) {
        self.references.push((id, place.clone()));
    }

    /// Refuses every reference to what is not defined.
    pub(super) fn resolve(&self) {
        for (id, place) in &self.references {
            if !self.defined.contains_key(id) {
                self.report.note(place, format!("{id} is not defined"), self.offer(id));
            }
        }
    }

    /// Where each service is defined, without anything being wrong there yet.
    pub(super) fn services(&self) -> BTreeMap<RuleId, Diagnostic> {
        let services = self.defined.iter().filter(|(id, _)| id.kind == Kind::Service);
        let place = |(id, place): (&Id, &Place<'_>)| {
            let tenant = id.tenant.as_ref()?;
            Some((
                RuleId(format!("{tenant}/{}", id.name).into()),
                place.diagnostic(String::new(), String::new()),
            ))
        };
        services.filter_map(place).collect()
    }

    /// What the operator may have meant.
    fn offer(&self, missing: &Id) -> String {
        let alike = |id: &&Id| id.kind == missing.kind && id.tenant == missing.tenant;
        let mut names: Vec<&str> = self.defined.keys().filter(alike).map(|id| id.name.as_str()).collect();
        names.sort_unstable();
        names.truncate(OFFERED_MAX);
        if names.is_empty() {
            return format!("no {} is defined there at all", missing.kind.word());
        }
        format!("defined there: {}", names.join(", "))
    }
}
