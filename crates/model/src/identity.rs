// SPDX-License-Identifier: Apache-2.0
//! Who is behind a flow, and how sure we are.

use std::fmt;
use std::net::SocketAddr;

/// A process as seen in the guest's memory.
///
/// Text from the guest is untrusted: it is bounded by the reader and may say anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Process id (thread group id) in the guest's initial namespace.
    pub pid: u32,
    /// The parent's process id; zero if it has none.
    pub parent_pid: u32,
    /// Start time since the guest booted, in nanoseconds; with `pid` it names the process for good.
    pub start_time_ns: u64,
    /// `comm`: at most 15 bytes.
    pub name: String,
    /// Path of the executable; absent for kernel threads or when it could not be read.
    pub exe: Option<String>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// The machine's own name for that user.
    pub user: Option<String>,
    /// Control group path (version 2 hierarchy), for example `/system.slice/shop.service`.
    pub cgroup: Option<String>,
}

impl Process {
    /// The systemd unit that the control group names: its last `*.service` or `*.scope` component.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        unit_of(self.cgroup.as_deref()?)
    }

    /// The id of the container that the control group names, as Docker, containerd, CRI-O, Podman and
    /// Kubernetes write it: 64 hexadecimal digits.
    #[must_use]
    pub fn container(&self) -> Option<&str> {
        container_of(self.cgroup.as_deref()?)
    }
}

/// Digits of a whole container id.
const CONTAINER_ID_CHARS: usize = 64;

/// The container id in a control group path: `docker-ID.scope`, `cri-containerd-ID.scope`, `crio-ID.scope` and
/// `libpod-ID.scope` under systemd, or a component that is nothing but the id (`/docker/ID`, `/kubepods/podUID/ID`).
fn container_of(cgroup: &str) -> Option<&str> {
    cgroup.rsplit('/').find_map(|part| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        let id = part.rsplit(['-', ':']).next().unwrap_or(part);
        let is_id = id.len() == CONTAINER_ID_CHARS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then_some(id)
    })
}

/// The last component of a control group path that names a systemd service or scope.
fn unit_of(cgroup: &str) -> Option<&str> {
    cgroup.rsplit('/').find(|part| part.ends_with(".service") || part.ends_with(".scope"))
}

/// How sure an [`Attribution`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Confidence {
    /// Nothing is known beyond the virtual machine.
    Unknown,
    /// The socket is known, its process is not: user and control group hold, the process does not.
    Socket,
    /// The socket is in the process's descriptor table, found through the guest's own tables.
    Table,
    /// As `Table`, and the socket was reached from the very descriptor that carried the frame.
    Descriptor,
}

impl Confidence {
    /// The word shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Socket => "socket",
            Self::Table => "table",
            Self::Descriptor => "descriptor",
        }
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a flow has no process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnknownReason {
    /// The guest's memory has not been understood (yet, or ever): unknown kernel or encrypted memory.
    NotAttached,
    /// No socket in the guest matches the frame: sent past the socket layer, or hidden.
    NoSocket,
    /// The socket exists, but no process holds it open any more.
    NoOwner,
    /// The guest's structures changed under the reader, or were inconsistent, on every try.
    Inconsistent,
    /// The answer did not come within the bounded wait.
    TimedOut,
}

impl UnknownReason {
    /// The word shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAttached => "not-attached",
            Self::NoSocket => "no-socket",
            Self::NoOwner => "no-owner",
            Self::Inconsistent => "inconsistent",
            Self::TimedOut => "timed-out",
        }
    }
}

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The kinds of answer to the question whose a flow is. Every flow has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The process is known.
    Known,
    /// It is not, though there may be one: the guest is not understood, its structures contradicted each other,
    /// the answer came too late, or nobody holds the socket any more.
    Unknown,
    /// The guest has no socket that its traffic belongs to: it was sent past the socket layer, or from one that
    /// hides.
    Unattributed,
}

impl Outcome {
    /// The word that rules use and users are shown.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
            Self::Unattributed => "unattributed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What introspection found out about one end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// The owning process; absent when only the socket, or nothing, is known.
    pub process: Option<Process>,
    /// The socket's user id: its creator's, kept after the process changes its own.
    pub socket_uid: Option<u32>,
    /// The machine's own name for that user.
    pub socket_user: Option<String>,
    /// The socket's control group path.
    pub socket_cgroup: Option<String>,
    /// Inode of the socket's network namespace.
    pub socket_netns: Option<u32>,
    /// This end inside the guest, where the guest translates its address, as it does for containers. Known even
    /// when the socket is not.
    pub inner: Option<SocketAddr>,
    /// How sure the above is.
    pub confidence: Confidence,
    /// Why there is no process, when there is none.
    pub unknown: Option<UnknownReason>,
}

impl Attribution {
    /// The answer that says nothing but why.
    #[must_use]
    pub const fn unknown(reason: UnknownReason) -> Self {
        Self {
            process: None,
            socket_uid: None,
            socket_user: None,
            socket_cgroup: None,
            socket_netns: None,
            inner: None,
            confidence: Confidence::Unknown,
            unknown: Some(reason),
        }
    }

    /// The user id to match rules against: the process's, else the socket's.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.process.as_ref().and_then(|p| p.uid).or(self.socket_uid)
    }

    /// The user's name to match rules against: the process's, else the socket's.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        match &self.process {
            Some(process) => process.user.as_deref(),
            None => self.socket_user.as_deref(),
        }
    }

    /// The container to match rules against: the process's, else the socket's.
    #[must_use]
    pub fn container(&self) -> Option<&str> {
        match &self.process {
            Some(process) => process.container(),
            None => container_of(self.socket_cgroup.as_deref()?),
        }
    }

    /// What kind of answer it is.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match (&self.process, self.unknown) {
            (Some(_), _) => Outcome::Known,
            (None, Some(UnknownReason::NoSocket)) => Outcome::Unattributed,
            (None, _) => Outcome::Unknown,
        }
    }

    /// The systemd unit to match rules against: the process's, else the socket's.
    #[must_use]
    pub fn unit(&self) -> Option<&str> {
        match &self.process {
            Some(process) => process.unit(),
            None => unit_of(self.socket_cgroup.as_deref()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_of_one_kind() {
        for (reason, outcome) in [
            (UnknownReason::NoSocket, Outcome::Unattributed),
            (UnknownReason::NoOwner, Outcome::Unknown),
            (UnknownReason::NotAttached, Outcome::Unknown),
            (UnknownReason::Inconsistent, Outcome::Unknown),
            (UnknownReason::TimedOut, Outcome::Unknown),
        ] {
            let unknown = Attribution::unknown(reason);
            assert_eq!(unknown.outcome(), outcome, "{reason}");
            let known = Attribution { process: Some(Process::default()), ..unknown };
            assert_eq!(known.outcome(), Outcome::Known);
        }
    }

    #[test]
    fn container_is_the_innermost_id_however_it_is_written() {
        let id = "0123456789abcdef".repeat(4);
        for (cgroup, found) in [
            (format!("/system.slice/docker-{id}.scope"), true),
            (format!("/docker/{id}"), true),
            (format!("/docker/{id}/init.scope"), true),
            (format!("/kubepods/burstable/pod0a1b-2c/{id}"), true),
            (format!("/kubepods.slice/kubepods-pod0a.slice/cri-containerd-{id}.scope"), true),
            (format!("/system.slice/containerd.service/kubepods-pod0a.slice:cri-containerd:{id}"), true),
            (format!("/machine.slice/libpod-{id}.scope/container"), true),
            (format!("/machine.slice/crio-{id}.scope"), true),
            (format!("/system.slice/docker-{}.scope", &id[1..]), false),
            (format!("/system.slice/docker-{}g.scope", &id[1..]), false),
            ("/system.slice/docker.service".into(), false),
            ("/".into(), false),
        ] {
            let process = Process { cgroup: Some(cgroup.clone()), ..Process::default() };
            assert_eq!(process.container(), found.then_some(id.as_str()), "{cgroup}");
        }
    }

    #[test]
    fn unit_is_the_innermost_service_or_scope() {
        for (cgroup, unit) in [
            ("/system.slice/shop.service", Some("shop.service")),
            ("/system.slice/docker-0123.scope/init", Some("docker-0123.scope")),
            ("/user.slice/user-1.slice/user@1.service/app.slice/app.scope", Some("app.scope")),
            ("/", None),
            ("", None),
        ] {
            let process = Process { cgroup: Some(cgroup.into()), ..Process::default() };
            assert_eq!(process.unit(), unit, "{cgroup}");
        }
    }
}
