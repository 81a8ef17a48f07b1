// SPDX-License-Identifier: Apache-2.0
//! Documents into resources, kind by kind.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use model::{
    Action, Application, Cidr, ExternalNetwork, Inventory, MacAddr, Name, Nic, NicRef, PolicySet, Qos,
    SocketMode, Target, Tenant, Vm, VmRef,
};

use super::fields::{Field, Fields, Place, Report, quote};
use super::qos;
use super::registry::{Claim, Id, Kind, Registry};
use super::selectors::{self, maybe};
use super::tree::At;
use super::{API_VERSION, Manifests};

/// Most network cards of one machine.
const NICS_MAX: usize = 16;

/// Most addresses of one network card.
const ADDRESSES_MAX: usize = 16;

/// Longest socket path, in bytes: what `sockaddr_un` holds, less the terminator.
const SOCKET_BYTES_MAX: usize = 107;

/// Smallest MTU, in bytes: IPv6 works over nothing less (RFC 8200 section 5).
const MTU_BYTES_MIN: u16 = 1280;

/// MTU of a card that names none, in bytes.
const MTU_BYTES_DEFAULT: u16 = 1500;

/// The name that verdicts give to what no rule decided.
const DEFAULT_RULE: &str = "default";

pub(super) const ACTIONS: [(&str, Action); 2] = [("Allow", Action::Allow), ("Deny", Action::Deny)];

/// All resources of a load while they are read.
#[derive(Debug)]
pub(super) struct Resources<'a> {
    pub(super) registry: Registry<'a>,
    /// Whether every document could be read.
    complete: bool,
    pub(super) report: &'a Report,
    tenants: Vec<Tenant>,
    vms: Vec<Vm>,
    pub(super) policies: PolicySet,
    networks: Vec<ExternalNetwork>,
    qos: Vec<(VmRef, Qos)>,
    /// Tenants that may speak for all others.
    infrastructure: HashSet<Name>,
    /// Where a tenant speaks for all others.
    for_all: Vec<(Name, Place<'a>)>,
    /// Where calls between tenants to a service are spoken of: its tenant, its name.
    pub(super) crossed: Vec<(Name, Name, Place<'a>)>,
}

/// Who a resource is.
pub(super) struct Metadata {
    /// For a tenant itself, its own name.
    pub(super) tenant: Name,
    pub(super) name: Name,
    labels: BTreeMap<String, String>,
}

impl Metadata {
    fn vm(&self) -> VmRef {
        VmRef { tenant: self.tenant.clone(), name: self.name.clone() }
    }
}

impl<'a> Resources<'a> {
    pub(super) fn new(report: &'a Report) -> Self {
        Self {
            registry: Registry::new(report),
            complete: true,
            report,
            tenants: Vec::new(),
            vms: Vec::new(),
            policies: PolicySet::default(),
            networks: Vec::new(),
            qos: Vec::new(),
            infrastructure: HashSet::new(),
            for_all: Vec::new(),
            crossed: Vec::new(),
        }
    }

    /// Reads one document; what is wrong with it is in the report.
    pub(super) fn read(&mut self, document: &Field<'a>) {
        let _ = self.read_document(document);
    }

    /// Notes that a document could not be read, so that names it may define are not known.
    pub(super) fn miss(&mut self) {
        self.complete = false;
    }

    /// Checks the resources against each other.
    pub(super) fn finish(self) -> Option<Manifests> {
        // Of a name that leads nowhere one cannot say so while a document is missing.
        if self.complete {
            self.registry.resolve();
            self.check_speakers();
            self.check_crossed();
        }
        if !self.report.is_empty() {
            return None;
        }
        let networks = self.networks;
        match Inventory::new(self.tenants, self.vms).and_then(|inventory| inventory.with_networks(networks)) {
            Ok(inventory) => Some(Manifests {
                inventory: inventory.with_qos(self.qos),
                policies: self.policies,
                services: self.registry.services(),
            }),
            // The registry has refused, with its place, whatever it knows an inventory refuses.
            Err(error) => {
                let place = Place { file: Path::new("manifests"), at: At::default(), field: String::new() };
                self.report.note(&place, error.to_string(), String::new());
                None
            }
        }
    }

    /// Notes that a tenant speaks for all others, here.
    pub(super) fn speaks_for_all(&mut self, tenant: &Name, place: &Place<'a>) {
        self.for_all.push((tenant.clone(), place.clone()));
    }

    /// Refuses what a tenant says for all others without being their infrastructure.
    fn check_speakers(&self) {
        for (tenant, place) in &self.for_all {
            if !self.infrastructure.contains(tenant) {
                let reason = format!("tenant `{tenant}` may not write for the infrastructure");
                let help = "set `infrastructure: true` in the tenant's own spec, or choose another level";
                self.report.note(place, reason, help.to_owned());
            }
        }
    }

    fn read_document(&mut self, document: &Field<'a>) -> Option<()> {
        let mut fields = document.fields()?;
        let version = fields.required("apiVersion").and_then(|version| version.one_of(&[(API_VERSION, ())]));
        let kind = fields.required("kind").and_then(|kind| kind.one_of(&Kind::ALL));
        let metadata = fields.required("metadata");
        let spec = fields.optional("spec");
        fields.finish();
        version?;
        let kind = kind?;
        let metadata = self.metadata(kind, &metadata?);
        let Some(spec) = spec else {
            if kind != Kind::Tenant {
                return document.refuse("field `spec` is missing", "");
            }
            self.tenants.push(Tenant { name: metadata?.name, default_action: Action::Deny });
            return Some(());
        };
        let metadata = metadata?;
        let mut fields = spec.fields()?;
        match kind {
            Kind::Tenant => {
                let tenant = self.tenant(metadata, &mut fields);
                self.tenants.extend(tenant);
            }
            Kind::VirtualMachine => {
                let vm = self.virtual_machine(metadata, &mut fields);
                self.vms.extend(vm);
            }
            Kind::Application => {
                let application = application(metadata, &mut fields);
                self.policies.applications.extend(application);
            }
            Kind::Service => {
                let service = self.service(metadata, &mut fields);
                self.policies.services.extend(service);
            }
            Kind::AccessPolicy => {
                let policy = self.access_policy(metadata, &mut fields);
                self.policies.policies.extend(policy);
            }
            Kind::FlowPolicy => {
                let policy = self.flow_policy(metadata, &mut fields);
                self.policies.flow_policies.extend(policy);
            }
            Kind::ExternalNetwork => {
                let network = self.external_network(metadata, &mut fields);
                self.networks.extend(network);
            }
        }
        fields.finish();
        Some(())
    }

    fn metadata(&mut self, kind: Kind, field: &Field<'a>) -> Option<Metadata> {
        let mut fields = field.fields()?;
        let name_field = fields.required("name");
        let name = name_field.as_ref().and_then(Field::parse::<Name>);
        let labels = maybe(fields.optional("labels"), selectors::labels);
        let tenant = if kind == Kind::Tenant {
            name.clone()
        } else {
            fields.required("tenant").and_then(|field| {
                let tenant: Name = field.parse()?;
                let id = Id { kind: Kind::Tenant, tenant: None, name: tenant.clone() };
                self.registry.refer(id, &field.place);
                Some(tenant)
            })
        };
        fields.finish();
        let (name_field, name, tenant) = (name_field?, name?, tenant?);
        if kind == Kind::AccessPolicy && name.as_str() == DEFAULT_RULE {
            return name_field.refuse(
                "a policy cannot be named `default`",
                "verdicts name the tenant's default so; choose another name",
            );
        }
        let owner = (kind != Kind::Tenant).then(|| tenant.clone());
        self.registry.define(Id { kind, tenant: owner, name: name.clone() }, &name_field.place)?;
        Some(Metadata { tenant, name, labels: labels?.unwrap_or_default() })
    }

    fn tenant(&mut self, metadata: Metadata, spec: &mut Fields<'_>) -> Option<Tenant> {
        let action = maybe(spec.optional("defaultAction"), |action| action.one_of(&ACTIONS));
        let infrastructure = maybe(spec.optional("infrastructure"), Field::boolean);
        if infrastructure?.unwrap_or(false) {
            self.infrastructure.insert(metadata.name.clone());
        }
        Some(Tenant { name: metadata.name, default_action: action?.unwrap_or(Action::Deny) })
    }

    fn virtual_machine(&mut self, metadata: Metadata, spec: &mut Fields<'a>) -> Option<Vm> {
        let qos = maybe(spec.optional("qos"), qos::qos);
        let field = spec.required("nics")?;
        let items = field.items(NICS_MAX)?;
        if items.is_empty() {
            return field.refuse("a machine needs at least one network card", "");
        }
        let id = metadata.vm();
        let nics: Vec<_> = items.iter().map(|item| self.nic(&id, item)).collect();
        self.qos.extend(qos?.map(|qos| (id.clone(), qos)));
        Some(Vm { id, labels: metadata.labels, nics: nics.into_iter().collect::<Option<_>>()? })
    }

    fn nic(&mut self, vm: &VmRef, field: &Field<'a>) -> Option<Nic> {
        let mut fields = field.fields()?;
        let name_field = fields.required("name");
        let name = name_field.as_ref().and_then(Field::parse::<Name>);
        // Messages about a card whose own name is wrong need some name for it.
        let nic = NicRef { vm: vm.clone(), nic: name.clone().unwrap_or_else(|| vm.name.clone()) };
        if let (Some(field), Some(name)) = (&name_field, &name) {
            self.registry.claim(Claim::Nic(vm.clone(), name.clone()), &nic, &field.place);
        }
        let socket = fields.required("socket").and_then(|field| {
            let path = socket(&field)?;
            self.registry.claim(Claim::Socket(path.clone()), &nic, &field.place)?;
            Some(path)
        });
        let mode = maybe(fields.optional("socketMode"), |mode| {
            mode.one_of(&[("Listen", SocketMode::Listen), ("Connect", SocketMode::Connect)])
        });
        let mac = fields.required("mac").and_then(|field| {
            let mac = mac(&field)?;
            self.registry.claim(Claim::Mac(vm.tenant.clone(), mac), &nic, &field.place)?;
            Some(mac)
        });
        let addresses = fields.required("addresses").and_then(|field| self.addresses(&nic, &field));
        let mtu = maybe(fields.optional("mtu"), |mtu| mtu.integer(MTU_BYTES_MIN..=u16::MAX));
        fields.finish();
        Some(Nic {
            name: name?,
            socket: socket?,
            socket_mode: mode?.unwrap_or_default(),
            mac: mac?,
            addresses: addresses?,
            mtu_bytes: mtu?.unwrap_or(MTU_BYTES_DEFAULT),
        })
    }

    fn addresses(&mut self, nic: &NicRef, field: &Field<'a>) -> Option<Vec<Cidr>> {
        let items = field.items(ADDRESSES_MAX)?;
        if items.is_empty() {
            return field.refuse("a network card needs at least one address", "");
        }
        let read: Vec<_> = items
            .iter()
            .map(|item| {
                let cidr = host_address(item)?;
                let claim = Claim::Address(nic.vm.tenant.clone(), cidr.address());
                self.registry.claim(claim, nic, &item.place)?;
                Some(cidr)
            })
            .collect();
        read.into_iter().collect()
    }

    /// Reads the name of another resource of the same tenant.
    pub(super) fn reference(
        &mut self,
        kind: Kind,
        tenant: &Name,
        field: Option<Field<'a>>,
    ) -> Option<Option<Name>> {
        maybe(field, |field| {
            let name: Name = field.parse()?;
            self.registry.refer(Id { kind, tenant: Some(tenant.clone()), name: name.clone() }, &field.place);
            Some(name)
        })
    }
}

fn application(metadata: Metadata, spec: &mut Fields<'_>) -> Option<Application> {
    let selector = spec.required("selector").and_then(|selector| selectors::workload(&selector))?;
    Some(Application { tenant: metadata.tenant, name: metadata.name, selector })
}

fn socket(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    if text.is_empty() || text.len() > SOCKET_BYTES_MAX || text.chars().any(char::is_control) {
        return field.refuse(
            format!("`{}` cannot be a socket's path", quote(text)),
            "use 1 to 107 bytes, relative to the daemon's socket directory or absolute",
        );
    }
    let path = PathBuf::from(text);
    if path.components().any(|part| part == std::path::Component::ParentDir) || path.file_name().is_none() {
        return field.refuse("a socket's path names a file and contains no `..`", "");
    }
    Some(path)
}

fn mac(field: &Field<'_>) -> Option<MacAddr> {
    let mac: MacAddr = field.parse()?;
    if mac.is_multicast() || mac == MacAddr::default() {
        return field.refuse(format!("{mac} cannot be a card's own address"), "use one that starts with 02");
    }
    Some(mac)
}

/// An address that a host can hold in its subnet.
fn host_address(field: &Field<'_>) -> Option<Cidr> {
    let cidr: Cidr = field.parse()?;
    let address = cidr.address();
    let special = address.is_unspecified() || address.is_multicast() || address.is_loopback();
    let reserved = match address {
        IpAddr::V4(v4) if cidr.prefix_len_bits() < 31 => {
            let host = u32::MAX.checked_shr(cidr.prefix_len_bits().into()).unwrap_or(0);
            v4.is_broadcast() || v4.to_bits() & host == 0 || v4.to_bits() & host == host
        }
        IpAddr::V4(v4) => v4.is_broadcast(),
        // All zero is the subnet's router anycast address (RFC 4291 section 2.6.1).
        IpAddr::V6(v6) if cidr.prefix_len_bits() < 127 => {
            v6.to_bits() & u128::MAX.checked_shr(cidr.prefix_len_bits().into()).unwrap_or(0) == 0
        }
        IpAddr::V6(_) => false,
    };
    if special || reserved {
        return field.refuse(
            format!("{cidr} cannot be a host's own address"),
            "use a host address within the subnet",
        );
    }
    Some(cidr)
}

/// Whether an entry names a domain.
pub(super) fn names_domain(to: &[Target]) -> bool {
    to.iter().any(|to| matches!(to, Target::Domain(..)))
}
