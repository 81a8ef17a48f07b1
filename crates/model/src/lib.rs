// SPDX-License-Identifier: Apache-2.0
//! The words of the mesh: names, addresses, identities, inventory and the question put to policy.
//!
//! Every other crate speaks these types, so they hold the invariants: a value that exists is valid.
//!
//! Invariants:
//! - Names are DNS labels; addresses of a NIC lie in the subnet they declare.
//! - A [`Snapshot`] is immutable; a change is a new snapshot with a greater [`Generation`].
//!
//! Deliberately absent: serialisation (see `api`), any I/O, clocks, and the meaning of rules (see `policy`).
#![forbid(unsafe_code)]

mod domain;
mod health;
mod identity;
mod insertion;
mod inventory;
mod judge;
mod layer7;
mod name;
mod net;
mod network;
mod policy;
mod qos;
mod ranges;
mod sample;
mod service;

pub use domain::{DomainPattern, DomainPatternError};
pub use health::{AcceptQueue, EndpointState, HealthCheck, Listener};
pub use identity::{Attribution, Confidence, Outcome, Process, UnknownReason};
pub use insertion::{Insertion, ServiceFlags, Unmet, Unproven};
pub use inventory::{Inventory, InventoryError, Nic, SocketMode, Tenant, Vm, VmIndex};
pub use judge::{Action, Detour, End, FlowQuery, Judge, Judgement, Needs, Party, RuleId, Snapshot};
pub use layer7::{AppProtocol, AppProtocols, Spoken};
pub use name::{Name, NameError, NicRef, VmRef};
pub use net::{Cidr, CidrError, FiveTuple, MacAddr, MacError, Moment, Protocol};
pub use network::{ExternalNetwork, Published};
pub use policy::{
    AccessPolicy, Application, FlowPolicy, Glob, GlobError, Layer7, Mode, Origin, PolicySet, PortMatch,
    PortRange, ProcessSelector, Redirect, Target, UserName, UserNameError, VmSelector, Workload,
};
pub use qos::{BitRate, Counted, LatencyClass, Limit, Part, Qos};
pub use ranges::{Ranges, RangesError, nth_address};
pub use sample::{Sample, SampleError};
pub use service::{
    Audience, Balancing, Directory, Endpoint, Level, Method, NoServices, Offer, OfferIndex, Service, Share,
    Sight,
};

/// Number of a published snapshot. Greater is newer; zero is "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
