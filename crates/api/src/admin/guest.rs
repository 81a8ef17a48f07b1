// SPDX-License-Identifier: Apache-2.0
//! Processes and sockets of a guest, as read from its memory.

use serde::{Deserialize, Serialize};

/// A process in a guest. All text is the guest's own and may say anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Parent's process id; zero if there is none.
    pub parent_pid: u32,
    /// `comm`.
    pub name: String,
    /// Path of the executable; absent for kernel threads.
    #[serde(default)]
    pub exe: Option<String>,
    /// Effective user id.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The machine's own name for that user.
    #[serde(default)]
    pub user: Option<String>,
    /// systemd unit.
    #[serde(default)]
    pub unit: Option<String>,
    /// Control group path.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// Start time since the guest booted, in nanoseconds.
    pub start_time_ns: u64,
}

/// A socket in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Socket {
    /// `tcp`, `udp`, ...
    pub protocol: String,
    /// `listen`, `established`, ... as `ss` names them.
    pub state: String,
    /// Own address and port.
    pub local: String,
    /// The peer's address and port.
    pub remote: String,
    /// User id of the creator.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Inode number.
    #[serde(default)]
    pub inode: Option<u64>,
    /// Inode number of the network namespace.
    #[serde(default)]
    pub netns: Option<u64>,
    /// Who holds it open.
    #[serde(default)]
    pub owners: Vec<SocketOwner>,
}

/// One descriptor through which a process holds a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SocketOwner {
    /// Process id.
    pub pid: u32,
    /// `comm`.
    pub name: String,
    /// Descriptor number.
    pub fd: u32,
}
