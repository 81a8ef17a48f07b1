// SPDX-License-Identifier: Apache-2.0
//! Who may talk to whom, as operators say it: selectors, services, applications, access policies.
//!
//! Names among these resources are looked up within the tenant; `policy` compiles them and refuses
//! those that lead nowhere.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{
    Action, AppProtocols, Audience, Cidr, DomainPattern, Limit, Name, Outcome, Part, Protocol, Sample,
    Service,
};

/// A pattern over paths and unit names: `*` stands for any run of characters, `/` included, `?` for
/// any one character, every other character for itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Glob(Arc<str>);

/// Why a text is not a [`Glob`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It would match only what has no name.
    #[error("a pattern cannot be empty")]
    Empty,
    /// It is longer than [`Glob::LEN_BYTES_MAX`].
    #[error("a pattern has at most {} bytes", Glob::LEN_BYTES_MAX)]
    TooLong,
    /// Control characters are almost surely a mistake, and unfit to be shown.
    #[error("a pattern cannot contain control characters")]
    Control,
}

impl Glob {
    /// Longest pattern, in bytes: bounds the time that matching a hostile text can take.
    pub const LEN_BYTES_MAX: usize = 256;

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Glob {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        if text.is_empty() {
            Err(GlobError::Empty)
        } else if text.len() > Self::LEN_BYTES_MAX {
            Err(GlobError::TooLong)
        } else if text.chars().any(char::is_control) {
            Err(GlobError::Control)
        } else {
            Ok(Self(text.into()))
        }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// The name of a user of a guest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(Arc<str>);

/// Why a text is not a [`UserName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserNameError {
    /// It has a length that no name has.
    #[error("a user's name has 1 to {} bytes", UserName::LEN_BYTES_MAX)]
    Length,
    /// It has characters that end a name in the guest's own list.
    #[error("a user's name has neither `:` nor `/` nor space nor control characters")]
    Character,
    /// It is a number, which is not a name.
    #[error("a number is a user's id, not a name")]
    Number,
}

impl UserName {
    /// Longest name, in bytes (`LOGIN_NAME_MAX`).
    pub const LEN_BYTES_MAX: usize = 256;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = UserNameError;

    fn from_str(text: &str) -> Result<Self, UserNameError> {
        if text.is_empty() || text.len() > Self::LEN_BYTES_MAX {
            Err(UserNameError::Length)
        } else if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == ':' || c == '/') {
            Err(UserNameError::Character)
        } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
            Err(UserNameError::Number)
        } else {
            Ok(Self(text.into()))
        }
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Selects machines of one tenant: all that is given must match. The default selects every machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VmSelector {
    /// The machine's name.
    pub name: Option<Name>,
    /// Labels that the machine must carry, with their values.
    pub labels: BTreeMap<String, String>,
}

impl VmSelector {
    /// Whether a machine of the selector's own tenant is selected.
    #[must_use]
    pub fn selects(&self, vm: &crate::Vm) -> bool {
        self.name.as_ref().is_none_or(|name| *name == vm.id.name)
            && self.labels.iter().all(|(key, value)| vm.labels.get(key) == Some(value))
    }
}

/// Selects processes: all that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProcessSelector {
    /// The process's `comm`, exactly. The process can change it, so prefer `exe`.
    pub name: Option<String>,
    /// The path of its executable.
    pub exe: Option<Glob>,
    /// Its systemd unit.
    pub unit: Option<Glob>,
    /// The id of its container.
    pub container: Option<Glob>,
    /// Its effective user, by the name that the machine itself has for it.
    pub user: Option<UserName>,
    /// Its effective user, by number.
    pub uid: Option<u32>,
    /// What kind of answer there is. Without it, what a selector says of a process holds only for known ones.
    pub attribution: Option<Outcome>,
}

impl ProcessSelector {
    /// Longest `comm` a process can have, in bytes (`TASK_COMM_LEN` less the terminator).
    pub const NAME_LEN_BYTES_MAX: usize = 15;
}

/// Processes in machines of one tenant, the same wherever a selector is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Workload {
    /// The machines.
    pub vm: VmSelector,
    /// The processes in them; absent means the machine as a whole, whoever acts in it.
    pub process: Option<ProcessSelector>,
}

/// Consecutive layer-4 ports; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The ports from `first` to `last`, both included; `None` when there are none.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Some ports, or every port, of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// The layer-4 ports; absent means any, and must be absent for protocols without ports.
    pub ports: Option<PortRange>,
    /// The protocol.
    pub protocol: Protocol,
}

impl PortMatch {
    /// Whether a flow to `port` over `protocol` is meant.
    #[must_use]
    pub fn covers(self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && self.ports.is_none_or(|own| own.contains(port))
    }

    /// Whether all that `inner` means is meant.
    #[must_use]
    pub fn includes(self, inner: Self) -> bool {
        let wide = |own: PortRange| {
            inner.ports.is_some_and(|ports| own.contains(ports.first) && own.contains(ports.last))
        };
        self.protocol == inner.protocol && self.ports.is_none_or(wide)
    }
}

/// A set of workloads under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// The tenant that owns it.
    pub tenant: Name,
    /// Its name within the tenant.
    pub name: Name,
    /// What belongs to it.
    pub selector: Workload,
}

/// Whether a policy decides or only reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It never decides; what it would have done is reported.
    Audit,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        })
    }
}

/// Who opens a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Selected workloads.
    Workload(Workload),
    /// All of an application.
    Application(Name),
    /// Whoever has an address in this network: machines of the tenant, and what is outside the mesh.
    Network(Cidr),
    /// Machines of this other tenant, or of any other, that call an infrastructure service.
    Tenant(Option<Name>),
}

/// Whom a flow is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Selected workloads on some ports; no ports mean all of every protocol.
    Workload(Workload, Vec<PortMatch>),
    /// All of an application on some ports; no ports mean all of every protocol.
    Application(Name, Vec<PortMatch>),
    /// Whoever has an address in this network, outside the mesh included, on some ports; no ports
    /// mean all of every protocol.
    Network(Cidr, Vec<PortMatch>),
    /// Whoever outside the mesh has an address that one of these names was found to have lately, on some ports; no ports
    /// mean all of every protocol.
    Domain(DomainPattern, Vec<PortMatch>),
    /// A service: its workloads on its ports.
    Service(Name),
    /// Calls to an infrastructure service of another tenant.
    ServiceOf {
        /// The other tenant.
        tenant: Name,
        /// The service.
        name: Name,
    },
}

/// Allows or denies flows within one tenant, or calls between it and others to infrastructure services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessPolicy {
    /// The tenant that owns it, and the only one whose flows it sees: within it, or with one end there.
    pub tenant: Name,
    /// Its name within the tenant.
    pub name: Name,
    /// What it does.
    pub action: Action,
    /// Whether it decides or only reports.
    pub mode: Mode,
    /// Who opens the flow: any of these; empty means any machine of the tenant.
    pub from: Vec<Origin>,
    /// Whom the flow is for: any of these; empty means any machine of the tenant.
    pub to: Vec<Target>,
}

/// What is done with flows beside letting them pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowPolicy {
    /// The tenant that owns it.
    pub tenant: Name,
    /// Its name within the tenant.
    pub name: Name,
    /// Whose flows it sees: everyone's, its tenant's, or those with an end in the application or subset.
    pub audience: Audience,
    /// Its place among the policies of its level, lowest first; those alike go by their files.
    pub order: u32,
    /// Who opens the flow, as in an [`AccessPolicy`].
    pub from: Vec<Origin>,
    /// Whom the flow is for, likewise.
    pub to: Vec<Target>,
    /// Whether such flows are denied, whatever an [`AccessPolicy`] says.
    pub denies: bool,
    /// The machine that gets a copy of every frame, in both directions.
    pub mirror: Option<Name>,
    /// Where the flow goes instead. Who acts at its ends must not matter, for that is not known yet.
    pub redirect: Option<Redirect>,
    /// Whether what happens to such flows is written to the log.
    pub log: bool,
    /// What may pass in all such flows together, each way for itself.
    pub limit: Option<Limit>,
    /// Which part of such flows is traced.
    pub trace: Option<Sample>,
    /// What such flows together get of limits that they share with others.
    pub part: Option<Part>,
    /// Whether such flows pass only if it is proven who is behind both ends.
    pub authenticate: bool,
    /// Whether such flows pass only if their frames never leave the host in the clear.
    pub encrypt: bool,
    /// Whether it is told what is spoken in such flows.
    pub layer7: Option<Layer7>,
}

impl FlowPolicy {
    /// The place of a policy that does not say its own.
    pub const ORDER_DEFAULT: u32 = 1000;

    /// A policy of the tenant about all of its flows, which does nothing.
    #[must_use]
    pub fn new(tenant: Name, name: Name) -> Self {
        Self {
            tenant,
            name,
            audience: Audience::Tenant,
            order: Self::ORDER_DEFAULT,
            from: Vec::new(),
            to: Vec::new(),
            denies: false,
            mirror: None,
            redirect: None,
            log: false,
            limit: None,
            trace: None,
            part: None,
            authenticate: false,
            encrypt: false,
            layer7: None,
        }
    }
}

/// What is spoken in flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layer7 {
    /// What may be spoken; absent: anything.
    pub protocols: Option<AppProtocols>,
}

/// Another instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The machine; its first address of the flow's family is meant.
    pub vm: Name,
    /// Its port; absent: the one that was asked for.
    pub port: Option<u16>,
}

/// All resources that say who may talk to whom, in the order of their files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    /// Applications of all tenants.
    pub applications: Vec<Application>,
    /// Services of all tenants.
    pub services: Vec<Service>,
    /// Access policies of all tenants.
    pub policies: Vec<AccessPolicy>,
    /// Flow policies of all tenants.
    pub flow_policies: Vec<FlowPolicy>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_are_what_a_guest_can_have() {
        for good in ["shop", "_apt", "systemd-network", "0x", "machine$", &"x".repeat(256)] {
            assert_eq!(good.parse::<UserName>().unwrap().as_str(), good);
        }
        for (bad, error) in [
            ("", UserNameError::Length),
            (&*"x".repeat(257), UserNameError::Length),
            ("a:b", UserNameError::Character),
            ("a b", UserNameError::Character),
            ("a\u{1b}", UserNameError::Character),
            ("1000", UserNameError::Number),
        ] {
            assert_eq!(bad.parse::<UserName>(), Err(error));
        }
    }

    #[test]
    fn globs_are_bounded_and_printable() {
        for good in ["*", "/usr/bin/[", "/usr/bin/shop-*", &"x".repeat(256)] {
            assert_eq!(good.parse::<Glob>().unwrap().as_str(), good);
        }
        for (bad, error) in [
            ("", GlobError::Empty),
            (&*"x".repeat(257), GlobError::TooLong),
            ("/usr/bin/\u{1b}[2J", GlobError::Control),
        ] {
            assert_eq!(bad.parse::<Glob>(), Err(error));
        }
    }

    #[test]
    fn port_match_covers_its_protocol_only() {
        let exact = PortMatch { ports: Some(80.into()), protocol: Protocol::Tcp };
        let any = PortMatch { ports: None, protocol: Protocol::Udp };
        assert!(exact.covers(Protocol::Tcp, 80));
        assert!(!exact.covers(Protocol::Tcp, 81));
        assert!(!exact.covers(Protocol::Udp, 80));
        assert!(any.covers(Protocol::Udp, 0) && any.covers(Protocol::Udp, 53));
        assert!(!any.covers(Protocol::Tcp, 53));
    }

    #[test]
    fn port_ranges_include_their_ends() {
        assert_eq!(PortRange::new(2, 1), None);
        let tcp = |first, last| PortMatch { ports: PortRange::new(first, last), protocol: Protocol::Tcp };
        let range = tcp(80, 82);
        assert!([80, 81, 82].iter().all(|port| range.covers(Protocol::Tcp, *port)));
        assert!(![79, 83].iter().any(|port| range.covers(Protocol::Tcp, *port)));
        assert!(range.includes(tcp(81, 82)) && !range.includes(tcp(81, 83)));
        let every = PortMatch { ports: None, protocol: Protocol::Tcp };
        assert!(every.includes(range) && !range.includes(every));
        assert_eq!(range.ports.unwrap().to_string(), "80-82");
    }
}
