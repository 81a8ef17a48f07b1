// SPDX-License-Identifier: Apache-2.0
//! Which services there are, whom they exist for, and their virtual addresses.
//!
//! Visibility is one pure function, [`Catalogue::sees`]: of everybody, of a tenant's machines, of an
//! application's instances, or of those of its instances that a subset selects too. Everything that depends on
//! visibility (names, virtual addresses, the endpoints' own ports) asks it and nothing else.
//!
//! Virtual addresses are stable: where in its level's range a service lies follows from its tenant and name
//! alone. Only when two meet at one place does the later one, by tenant and name, take the next free place.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use foldhash::fast::RandomState;
use model::{
    Application, Attribution, Audience, Balancing, Cidr, Directory, Endpoint, FlowQuery, Insertion,
    Inventory, Level, Name, Offer, OfferIndex, Party, PolicySet, Ranges, RuleId, Service, Sight, Vm, VmIndex,
    Workload, nth_address,
};

use crate::bits::BitSet;
use crate::clause::ProcessMatch;

/// Why services contradict each other or the inventory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// A service of a tenant that does not exist.
    #[error("service `{0}` belongs to a tenant that is not defined")]
    NoTenant(RuleId),
    /// A service of an application that does not exist.
    #[error("service `{service}` is for application `{application}`, which is not defined")]
    NoApplication {
        /// The service.
        service: RuleId,
        /// The missing application.
        application: Name,
    },
    /// Two services of one level and audience are called the same.
    #[error("services `{first}` and `{second}` are both called `{hostname}` at {level} level")]
    Ambiguous {
        /// One of them.
        first: RuleId,
        /// The other.
        second: RuleId,
        /// What both are called.
        hostname: Name,
        /// Where.
        level: Level,
    },
    /// A virtual address that a network card or another service holds.
    #[error("virtual address {address} of service `{service}` is held by a network card or another service")]
    AddressHeld {
        /// The service.
        service: RuleId,
        /// The address.
        address: IpAddr,
    },
    /// There are more services at a level than addresses in its range.
    #[error("no virtual address is left for service `{0}` in the range of its level")]
    RangeFull(RuleId),
}

impl CatalogueError {
    /// The service that cannot be taken.
    #[must_use]
    pub fn service(&self) -> &RuleId {
        match self {
            Self::NoTenant(service) | Self::RangeFull(service) => service,
            Self::NoApplication { service, .. } | Self::AddressHeld { service, .. } => service,
            Self::Ambiguous { second, .. } => second,
        }
    }
}

/// All services of the mesh. Meaningful only with the inventory it was compiled from.
#[derive(Clone, Debug)]
pub struct Catalogue {
    offers: Vec<Offer>,
    ranges: Ranges,
    /// Beside each offer, whom it exists for and who must be listening.
    reaches: Vec<Reach>,
    listeners: Vec<Option<ProcessMatch>>,
    /// Guests choose what is looked up here, but not what is in it.
    by_address: HashMap<IpAddr, OfferIndex, RandomState>,
    by_hostname: HashMap<Name, Vec<OfferIndex>>,
    /// By machine, what it can offer.
    offered_by: Vec<Vec<OfferIndex>>,
    /// By machine, its tenant.
    tenants: Vec<usize>,
}

/// Whom a service exists for.
#[derive(Clone, Debug)]
enum Reach {
    Everyone,
    Tenant(usize),
    /// Whoever is a member of all of these.
    Members(Vec<Members>),
}

#[derive(Clone, Debug)]
struct Members {
    vms: BitSet,
    process: Option<ProcessMatch>,
}

/// Compiles the services of an inventory.
///
/// # Errors
/// The first contradiction, services taken by tenant and name.
pub fn catalogue(
    inventory: &Inventory,
    policies: &PolicySet,
    ranges: &Ranges,
) -> Result<Catalogue, CatalogueError> {
    let mut services: Vec<&Service> = policies.services.iter().collect();
    services.sort_by_key(|service| (&service.tenant, &service.name));
    unambiguous(&services)?;
    let names = Names { inventory, applications: &policies.applications };
    let mut addresses = Addresses::new(inventory, ranges, &services)?;
    let mut catalogue = Catalogue {
        offers: Vec::with_capacity(services.len()),
        ranges: ranges.clone(),
        reaches: Vec::new(),
        listeners: Vec::new(),
        by_address: HashMap::default(),
        by_hostname: HashMap::new(),
        offered_by: inventory.vms().map(|_| Vec::new()).collect(),
        tenants: inventory.vms().filter_map(|(_, vm)| names.tenant(&vm.id.tenant)).collect(),
    };
    for service in services {
        let offer = names.offer(service, &mut addresses)?;
        catalogue.add(offer, names.reach(service)?, service.selector.process.as_ref().map(ProcessMatch::new));
    }
    let Catalogue { by_hostname, offers, .. } = &mut catalogue;
    for indexes in by_hostname.values_mut() {
        indexes.sort_by_key(|index| std::cmp::Reverse(offers[index.0 as usize].level));
    }
    Ok(catalogue)
}

impl Catalogue {
    fn add(&mut self, offer: Offer, reach: Reach, listener: Option<ProcessMatch>) {
        let index = OfferIndex(self.offers.len() as u32);
        for address in [IpAddr::V4(offer.v4), IpAddr::V6(offer.v6)] {
            self.by_address.insert(address, index);
        }
        for endpoint in &offer.endpoints {
            self.offered_by[endpoint.vm.0 as usize].push(index);
        }
        self.by_hostname.entry(offer.hostname.clone()).or_default().push(index);
        self.offers.push(offer);
        self.reaches.push(reach);
        self.listeners.push(listener);
    }
}

/// # Panics
/// When a position comes from another inventory or catalogue: a bug.
impl Directory for Catalogue {
    fn offers(&self) -> &[Offer] {
        &self.offers
    }

    fn callers(&self) -> (Cidr, Cidr) {
        self.ranges.callers()
    }

    fn owns(&self, address: IpAddr) -> bool {
        self.ranges.contains(address)
    }

    fn at(&self, address: IpAddr) -> Option<OfferIndex> {
        self.by_address.get(&address).copied()
    }

    fn called(&self, hostname: &Name) -> &[OfferIndex] {
        self.by_hostname.get(hostname).map_or(&[], Vec::as_slice)
    }

    fn sees(&self, offer: OfferIndex, client: Party<'_>) -> Sight {
        let Some(vm) = client.vm.map(|vm| vm.0 as usize) else { return Sight::Hidden };
        let members = match &self.reaches[offer.0 as usize] {
            Reach::Everyone => return Sight::Seen,
            Reach::Tenant(tenant) if self.tenants[vm] == *tenant => return Sight::Seen,
            Reach::Tenant(_) => return Sight::Hidden,
            Reach::Members(members) => members,
        };
        if !members.iter().all(|members| members.vms.contains(vm)) {
            return Sight::Hidden;
        }
        let mut processes = members.iter().filter_map(|members| members.process.as_ref());
        match client.attribution {
            None if processes.next().is_some() => Sight::Unsure,
            known if processes.all(|process| process.matches(known)) => Sight::Seen,
            _ => Sight::Hidden,
        }
    }

    fn reaches(&self, query: &FlowQuery<'_>) -> Sight {
        let (protocol, port) = (query.tuple.protocol, query.tuple.destination_port);
        let Some(destination) = query.destination.vm else { return Sight::Seen };
        let offered = self.offered_by[destination.0 as usize].iter();
        let mut sight = None;
        for index in offered.filter(|index| self.offers[index.0 as usize].covers(protocol, port)) {
            let public = self.offers[index.0 as usize].level <= Level::Tenant;
            match self.sees(*index, query.source) {
                Sight::Hidden if query.source.vm.is_none() && public => return Sight::Seen,
                Sight::Seen => return Sight::Seen,
                Sight::Unsure => sight = Some(Sight::Unsure),
                Sight::Hidden => sight = sight.or(Some(Sight::Hidden)),
            }
        }
        sight.unwrap_or(Sight::Seen)
    }

    fn listens(&self, offer: OfferIndex, listener: &Attribution) -> bool {
        match &self.listeners[offer.0 as usize] {
            Some(process) => process.matches(Some(listener)),
            None => true,
        }
    }
}

/// What names stand for.
struct Names<'a> {
    inventory: &'a Inventory,
    applications: &'a [Application],
}

impl Names<'_> {
    fn tenant(&self, name: &Name) -> Option<usize> {
        self.inventory.tenants().iter().position(|tenant| tenant.name == *name)
    }

    fn members(&self, tenant: &Name, workload: &Workload) -> Members {
        let mut vms = BitSet::new(self.inventory.vms().count());
        for (index, vm) in self.inventory.vms() {
            if vm.id.tenant == *tenant && workload.vm.selects(vm) {
                vms.insert(index.0 as usize);
            }
        }
        Members { vms, process: workload.process.as_ref().map(ProcessMatch::new) }
    }

    fn application(&self, service: &Service, name: &Name) -> Result<Members, CatalogueError> {
        let found = self.applications.iter().find(|a| a.tenant == service.tenant && a.name == *name);
        let found = found.ok_or_else(|| CatalogueError::NoApplication {
            service: id(service),
            application: name.clone(),
        })?;
        Ok(self.members(&service.tenant, &found.selector))
    }

    fn reach(&self, service: &Service) -> Result<Reach, CatalogueError> {
        Ok(match &service.audience {
            Audience::Everyone => Reach::Everyone,
            Audience::Tenant => Reach::Tenant(
                self.tenant(&service.tenant).ok_or_else(|| CatalogueError::NoTenant(id(service)))?,
            ),
            Audience::Application(name) => Reach::Members(vec![self.application(service, name)?]),
            Audience::Subset(name, subset) => {
                let application = self.application(service, name)?;
                Reach::Members(vec![application, self.members(&service.tenant, subset)])
            }
        })
    }

    fn offer(&self, service: &Service, addresses: &mut Addresses<'_>) -> Result<Offer, CatalogueError> {
        let tenant = self.tenant(&service.tenant).ok_or_else(|| CatalogueError::NoTenant(id(service)))?;
        let (v4, v6) = (addresses.of(service, true)?, addresses.of(service, false)?);
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (v4, v6) else {
            unreachable!("addresses are of the family that was asked for")
        };
        let selected =
            |(_, vm): &(VmIndex, &Vm)| vm.id.tenant == service.tenant && service.selector.vm.selects(vm);
        let endpoints = self.inventory.vms().filter(selected);
        Ok(Offer {
            id: id(service),
            tenant,
            hostname: service.hostname.clone(),
            level: service.audience.level(),
            v4,
            v6,
            ports: service.ports.clone(),
            endpoints: endpoints.map(|(index, vm)| endpoint(index, vm, &service.balancing)).collect(),
            names_listener: service.selector.process.is_some(),
            balancing: service.balancing.clone(),
            health: service.health,
            inserted: Insertion::of_service(
                RuleId(format!("{}/(service)", id(service)).into()),
                service.audience.level(),
                service.limit,
                service.part,
            ),
        })
    }
}

fn id(service: &Service) -> RuleId {
    RuleId(format!("{}/{}", service.tenant, service.name).into())
}

fn endpoint(index: VmIndex, vm: &Vm, balancing: &Balancing) -> Endpoint {
    let addresses = || vm.nics.iter().flat_map(|nic| &nic.addresses).map(|cidr| cidr.address());
    let group = match balancing.shares.as_slice() {
        [] => Some(0),
        shares => shares.iter().position(|share| share.vm.selects(vm)),
    };
    Endpoint {
        vm: index,
        v4: addresses().find_map(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None }),
        v6: addresses().find_map(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None }),
        group,
    }
}

/// Virtual addresses while they are given out.
struct Addresses<'a> {
    ranges: &'a Ranges,
    /// Held by a card, chosen by an operator, or given out.
    taken: HashSet<IpAddr>,
}

impl<'a> Addresses<'a> {
    /// Notes what is held already; addresses that operators chose come before all that are allocated.
    fn new(inventory: &Inventory, ranges: &'a Ranges, services: &[&Service]) -> Result<Self, CatalogueError> {
        let cards = inventory.vms().flat_map(|(_, vm)| &vm.nics).flat_map(|nic| &nic.addresses);
        let mut taken: HashSet<IpAddr> = cards.map(|cidr| cidr.address()).collect();
        for service in services {
            for address in &service.addresses {
                if !taken.insert(*address) {
                    return Err(CatalogueError::AddressHeld { service: id(service), address: *address });
                }
            }
        }
        Ok(Self { ranges, taken })
    }

    fn of(&mut self, service: &Service, v4: bool) -> Result<IpAddr, CatalogueError> {
        if let Some(chosen) = service.addresses.iter().find(|address| address.is_ipv4() == v4) {
            return Ok(*chosen);
        }
        let (v4_range, v6_range) = self.ranges.level(service.audience.level());
        let range = if v4 { v4_range } else { v6_range };
        let first = stable_hash(&format!("{}/{}", service.tenant, service.name));
        // Every place of the range once; as many services as that there never are.
        for step in 0..=u64::from(u16::MAX) {
            let address = nth_address(range, first.wrapping_add(step));
            if self.taken.insert(address) {
                return Ok(address);
            }
        }
        Err(CatalogueError::RangeFull(id(service)))
    }
}

/// FNV-1a: the same on every host and in every version, which is all that matters here.
fn stable_hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Refuses two services that a client could not tell apart. At instance level that depends on the client;
/// there the first by name is meant.
fn unambiguous(services: &[&Service]) -> Result<(), CatalogueError> {
    let mut seen: HashMap<_, &Service> = HashMap::new();
    for service in services {
        let (tenant, application) = match &service.audience {
            Audience::Everyone => (None, None),
            Audience::Tenant => (Some(&service.tenant), None),
            Audience::Application(name) => (Some(&service.tenant), Some(name)),
            Audience::Subset(..) => continue,
        };
        let level = service.audience.level();
        if let Some(first) = seen.insert((level, tenant, application, &service.hostname), service) {
            let (first, second) = (id(first), id(service));
            return Err(CatalogueError::Ambiguous {
                first,
                second,
                hostname: service.hostname.clone(),
                level,
            });
        }
    }
    Ok(())
}
