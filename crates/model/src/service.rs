// SPDX-License-Identifier: Apache-2.0
//! Services at four levels: who offers what, who may know of it, and how calls are spread.
//!
//! A level is how far a service reaches. A service that does not reach a client does not exist for it: it has
//! no name there, no virtual address, and its endpoints' ports answer as if nobody was there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::{
    Attribution, Cidr, FlowQuery, HealthCheck, Insertion, Limit, Name, Part, Party, PortMatch, Protocol,
    Ranges, RuleId, VmIndex, VmSelector, Workload,
};

/// How far a service reaches, from the outermost level inwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Every instance of every tenant.
    Infrastructure,
    /// The tenant's instances.
    Tenant,
    /// The application's instances.
    Application,
    /// A subset of the application's instances.
    Instance,
}

impl Level {
    /// All levels, from infrastructure inwards.
    pub const ALL: [Self; 4] = [Self::Infrastructure, Self::Tenant, Self::Application, Self::Instance];

    /// The word shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Infrastructure => "infrastructure",
            Self::Tenant => "tenant",
            Self::Application => "application",
            Self::Instance => "instance",
        }
    }

    /// The label of the level's zone in names such as `api.tenant.mesh.internal`.
    #[must_use]
    pub fn zone(self) -> &'static str {
        match self {
            Self::Infrastructure => "infra",
            Self::Tenant => "tenant",
            Self::Application => "app",
            Self::Instance => "instance",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whom a service exists for. The level follows from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Everyone: infrastructure level.
    Everyone,
    /// The service's tenant: tenant level.
    #[default]
    Tenant,
    /// One of the tenant's applications: application level.
    Application(Name),
    /// Those of an application's instances that are also selected here: instance level.
    Subset(Name, Workload),
}

impl Audience {
    /// The level that reaches this audience.
    #[must_use]
    pub fn level(&self) -> Level {
        match self {
            Self::Everyone => Level::Infrastructure,
            Self::Tenant => Level::Tenant,
            Self::Application(_) => Level::Application,
            Self::Subset(..) => Level::Instance,
        }
    }
}

/// Something offered on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The tenant that owns it.
    pub tenant: Name,
    /// Its name within the tenant, by which policies refer to it.
    pub name: Name,
    /// What clients call it. Several services may be called the same; each client means the innermost it sees.
    pub hostname: Name,
    /// Whom it exists for.
    pub audience: Audience,
    /// Which version of what it is called it is; for people.
    pub version: Option<String>,
    /// Who offers it. A process here is the one that must be listening.
    pub selector: Workload,
    /// Where it is offered, by its endpoints and at its virtual addresses alike; never empty.
    pub ports: Vec<PortMatch>,
    /// Virtual addresses chosen by the operator, at most one of each family. The others are allocated.
    pub addresses: Vec<IpAddr>,
    /// How calls are spread.
    pub balancing: Balancing,
    /// What may pass between it and all its callers together, each way for itself.
    pub limit: Option<Limit>,
    /// What it gets of limits that it shares with others, as of its machine's.
    pub part: Option<Part>,
    /// How its endpoints are tried; `None`: they are not.
    pub health: Option<HealthCheck>,
}

impl Service {
    /// A service at tenant level, called by its name, with everything else as it is by default.
    #[must_use]
    pub fn new(tenant: Name, name: Name, selector: Workload, ports: Vec<PortMatch>) -> Self {
        Self {
            tenant,
            hostname: name.clone(),
            name,
            audience: Audience::default(),
            version: None,
            selector,
            ports,
            addresses: Vec::new(),
            balancing: Balancing::default(),
            limit: None,
            part: None,
            health: None,
        }
    }
}

/// How an endpoint is chosen within its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Method {
    /// By a consistent hash of the flow (Eisenbud et al., Maglev, NSDI 2016).
    #[default]
    Maglev,
    /// The endpoint with the fewest open flows.
    LeastOutstanding,
}

/// A share of a service's calls for some of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which of the service's endpoints.
    pub vm: VmSelector,
    /// Their part of the calls together, relative to the other shares; at zero they drain: open flows go on,
    /// new ones go elsewhere.
    pub weight: u32,
}

/// How calls to a service are spread over its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancing {
    /// How an endpoint is chosen. Default: Maglev.
    pub method: Method,
    /// Shares of groups of endpoints; the first that selects an endpoint counts, endpoints that none selects
    /// get no calls. Empty: all endpoints are one group.
    pub shares: Vec<Share>,
    /// Whether a client's flows all go to the same endpoint for as long as it is in. Default: no.
    pub affinity: bool,
    /// Whether endpoints on the client's host are preferred while one of them is in. Default: no.
    pub local_first: bool,
    /// How long a new or returned endpoint takes to get its full part. Default: zero, at once.
    pub slow_start: Duration,
    /// After how many failures in a row an endpoint is left out for a while. Default: 3. At zero never.
    pub ejection_failures: u32,
    /// How long it is left out the first time, twice that the next time and so on, up to 16 times. Default: 10 s.
    pub ejection_time: Duration,
}

impl Default for Balancing {
    fn default() -> Self {
        Self {
            method: Method::default(),
            shares: Vec::new(),
            affinity: false,
            local_first: false,
            slow_start: Duration::ZERO,
            ejection_failures: 3,
            ejection_time: Duration::from_secs(10),
        }
    }
}

/// Position of a service in its snapshot's [`Directory`]; meaningless in any other snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OfferIndex(pub u32);

/// A machine that can offer a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The machine.
    pub vm: VmIndex,
    /// Its first IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its first IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Which share of the balancing it belongs to; `None` when it gets no calls.
    pub group: Option<usize>,
}

impl Endpoint {
    /// Its address of the family of `like`.
    #[must_use]
    pub fn address(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

/// A service as the data plane needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// `tenant/name`.
    pub id: RuleId,
    /// Position of its tenant in the inventory.
    pub tenant: usize,
    /// What clients call it.
    pub hostname: Name,
    /// How far it reaches.
    pub level: Level,
    /// Its virtual IPv4 address.
    pub v4: Ipv4Addr,
    /// Its virtual IPv6 address.
    pub v6: Ipv6Addr,
    /// Where it is offered.
    pub ports: Vec<PortMatch>,
    /// Who can offer it.
    pub endpoints: Vec<Endpoint>,
    /// Whether an endpoint is in only while a certain process listens there; see [`Directory::listens`].
    pub names_listener: bool,
    /// How calls are spread.
    pub balancing: Balancing,
    /// What its limit and its part add to calls.
    pub inserted: Option<Arc<Insertion>>,
    /// How its endpoints are tried.
    pub health: Option<HealthCheck>,
}

impl Offer {
    /// Whether it is offered on this port.
    #[must_use]
    pub fn covers(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.iter().any(|own| own.covers(protocol, port))
    }
}

/// Whether something exists for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sight {
    /// It does.
    Seen,
    /// It does not.
    Hidden,
    /// That depends on the client's process, which is not known yet.
    Unsure,
}

/// Which services there are, and whom they exist for: a pure function of the question.
pub trait Directory: fmt::Debug + Send + Sync {
    /// All services.
    fn offers(&self) -> &[Offer];

    /// The IPv4 and the IPv6 range under which endpoints see callers from other tenants.
    fn callers(&self) -> (Cidr, Cidr);

    /// Whether an address lies in a range that virtual addresses come from: if no service has it, nobody does.
    fn owns(&self, address: IpAddr) -> bool;

    /// The service with this virtual address. Virtual addresses are unique in the whole mesh.
    fn at(&self, address: IpAddr) -> Option<OfferIndex>;

    /// The services called so, innermost level first.
    fn called(&self, hostname: &Name) -> &[OfferIndex];

    /// Whether a service exists for a client. Without an attribution the answer may be [`Sight::Unsure`];
    /// a client whose process is *unknown* sees no service that is for certain processes, and one outside the
    /// mesh sees none at all.
    fn sees(&self, offer: OfferIndex, client: Party<'_>) -> Sight;

    /// Whether the destination's port exists for the source: it does when no service is offered there, or one
    /// that the source sees. From outside the mesh, so do the ports of infrastructure and tenant services;
    /// policy decides about those.
    fn reaches(&self, query: &FlowQuery<'_>) -> Sight;

    /// Whether a listener is the one that offers the service.
    fn listens(&self, offer: OfferIndex, listener: &Attribution) -> bool;
}

impl dyn Directory {
    /// The service at a position.
    ///
    /// # Panics
    /// When the position comes from another snapshot: a bug.
    #[must_use]
    pub fn offer(&self, index: OfferIndex) -> &Offer {
        &self.offers()[index.0 as usize]
    }
}

/// The directory of a mesh without services.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoServices;

impl Directory for NoServices {
    fn offers(&self) -> &[Offer] {
        &[]
    }

    fn callers(&self) -> (Cidr, Cidr) {
        Ranges::default().callers()
    }

    fn owns(&self, _: IpAddr) -> bool {
        false
    }

    fn at(&self, _: IpAddr) -> Option<OfferIndex> {
        None
    }

    fn called(&self, _: &Name) -> &[OfferIndex] {
        &[]
    }

    fn sees(&self, _: OfferIndex, _: Party<'_>) -> Sight {
        Sight::Hidden
    }

    fn reaches(&self, _: &FlowQuery<'_>) -> Sight {
        Sight::Seen
    }

    fn listens(&self, _: OfferIndex, _: &Attribution) -> bool {
        false
    }
}
