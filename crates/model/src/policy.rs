// SPDX-License-Identifier: Apache-2.0
//! Who may talk to whom, as operators say it: selectors, services, applications, access policies.
//!
//! Names among these resources are looked up within the tenant; `policy` compiles them and refuses
//! those that lead nowhere.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Action, Name, Protocol};

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
    /// Its effective user id.
    pub uid: Option<u32>,
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

/// A port, or every port, of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// The layer-4 port; absent means any, and must be absent for protocols without ports.
    pub port: Option<u16>,
    /// The protocol.
    pub protocol: Protocol,
}

impl PortMatch {
    /// Whether a flow to `port` over `protocol` is meant.
    #[must_use]
    pub fn covers(self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && self.port.is_none_or(|own| own == port)
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

/// Something offered on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The tenant that owns it.
    pub tenant: Name,
    /// Its name within the tenant.
    pub name: Name,
    /// Who offers it. A process here is the one that must be listening.
    pub selector: Workload,
    /// Where it is offered; never empty.
    pub ports: Vec<PortMatch>,
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
}

/// Whom a flow is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Selected workloads on some ports; no ports mean all of every protocol.
    Workload(Workload, Vec<PortMatch>),
    /// All of an application on some ports; no ports mean all of every protocol.
    Application(Name, Vec<PortMatch>),
    /// A service: its workloads on its ports.
    Service(Name),
}

/// Allows or denies flows within one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessPolicy {
    /// The tenant that owns it, and the only one whose flows it sees.
    pub tenant: Name,
    /// Its name within the tenant.
    pub name: Name,
    /// What it does.
    pub action: Action,
    /// Whether it decides or only reports.
    pub mode: Mode,
    /// Who opens the flow: any of these; empty means anyone in the tenant.
    pub from: Vec<Origin>,
    /// Whom the flow is for: any of these; empty means anything in the tenant.
    pub to: Vec<Target>,
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let exact = PortMatch { port: Some(80), protocol: Protocol::Tcp };
        let any = PortMatch { port: None, protocol: Protocol::Udp };
        assert!(exact.covers(Protocol::Tcp, 80));
        assert!(!exact.covers(Protocol::Tcp, 81));
        assert!(!exact.covers(Protocol::Udp, 80));
        assert!(any.covers(Protocol::Udp, 0) && any.covers(Protocol::Udp, 53));
        assert!(!any.covers(Protocol::Tcp, 53));
    }
}
