// SPDX-License-Identifier: Apache-2.0
//! Messages about the inside of a machine, beyond who its processes and sockets are. All text is the guest's
//! own and may say anything; what could not be read is absent.

use serde::{Deserialize, Serialize};

use super::guest::{Process, Socket};

/// A process with what decorates it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessDetail {
    /// Who it is.
    #[serde(flatten)]
    pub process: Process,
    /// The words of its command line, 4 KiB of it at most.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// Container id, as its control group names it.
    #[serde(default)]
    pub container: Option<String>,
    /// Inodes of its namespaces.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// Its memory in RAM, in bytes.
    #[serde(default)]
    pub resident_bytes: Option<u64>,
    /// Number of its threads.
    #[serde(default)]
    pub threads: Option<u32>,
    /// The letter that `ps` shows for what its first thread does: `R`, `S`, `D`, ...
    #[serde(default)]
    pub state: Option<char>,
}

/// Inodes of the namespaces of a process, as the links in `/proc/PID/ns` show them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Namespaces {
    /// Of process ids.
    pub pid: Option<u32>,
    /// Of the network.
    pub net: Option<u32>,
    /// Of mounts.
    pub mnt: Option<u32>,
    /// Of users.
    pub user: Option<u32>,
}

/// A socket with what it counts. The protocol may also be `raw`, with the number of the IP protocol as local
/// port, or `packet`, with `ETHERTYPE%DEVICE` as local address and `*` for any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SocketDetail {
    /// The socket.
    #[serde(flatten)]
    pub socket: Socket,
    /// Connections that wait to be accepted, of TCP listeners.
    #[serde(default)]
    pub accept_queue: Option<AcceptQueue>,
    /// What TCP counts, of connections.
    #[serde(default)]
    pub tcp: Option<TcpCounters>,
}

/// Connections that wait to be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcceptQueue {
    /// How many wait.
    pub len: u32,
    /// How many may wait.
    pub max: u32,
}

/// What TCP counts for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpCounters {
    /// Smoothed round-trip time in microseconds; zero until it was measured.
    pub rtt_us: u32,
    /// Segments sent again, ever.
    pub retransmits: u32,
    /// Bytes of data sent, repeated ones included.
    pub sent_bytes: u64,
    /// Bytes of data that the peer has acknowledged.
    pub acked_bytes: u64,
    /// Bytes of data received in order.
    pub received_bytes: u64,
}

/// What a machine's processors have done so far. Two samples and the time between them give shares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuSample {
    /// When it was taken, in nanoseconds by the daemon's clock, whose start means nothing.
    pub at_ns: u64,
    /// Time of every process.
    #[serde(default)]
    pub processes: Vec<ProcessTime>,
    /// Every processor that is online.
    #[serde(default)]
    pub cpus: Vec<RunQueue>,
}

/// The processor time of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessTime {
    /// Process id.
    pub pid: u32,
    /// With `pid` it names the process for good.
    pub start_time_ns: u64,
    /// `comm`.
    pub name: String,
    /// Time of all its threads, exited ones included, in nanoseconds.
    pub runtime_ns: u64,
    /// Its threads.
    #[serde(default)]
    pub threads: Vec<ThreadTime>,
}

/// The processor time of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ThreadTime {
    /// Thread id.
    pub tid: u32,
    /// `comm`.
    pub name: String,
    /// Time since it was made, in nanoseconds.
    pub runtime_ns: u64,
    /// Times it gave up its processor.
    pub voluntary_switches: u64,
    /// Times its processor was taken from it.
    pub involuntary_switches: u64,
}

/// A virtual processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunQueue {
    /// Its number.
    pub cpu: u32,
    /// Process that runs on it; zero when it idles.
    pub pid: u32,
    /// Thread that runs on it; zero when it idles.
    pub tid: u32,
    /// `comm` of that thread.
    pub name: String,
    /// Threads that run or could run on it.
    pub runnable: u32,
    /// Times it has gone over to another thread.
    pub switches: u64,
}

/// Who in a machine talks to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataFlow {
    /// Flows of one process with one peer, the one with most bytes first.
    pub conversations: Vec<Conversation>,
    /// Which inbound conversation feeds which outbound one.
    #[serde(default)]
    pub feeds: Vec<Feed>,
}

/// Flows of one process with one peer in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conversation {
    /// The process; absent when nothing tells it.
    #[serde(default)]
    pub process: Option<Process>,
    /// What tells the process.
    pub told_by: ToldBy,
    /// Who opened its flows.
    pub direction: Direction,
    /// `tcp`, `udp`, ...
    pub protocol: String,
    /// The peer's address.
    pub peer: std::net::IpAddr,
    /// The peer's machine, `tenant/vm`; absent for an outside address.
    #[serde(default)]
    pub peer_vm: Option<String>,
    /// The port that serves: the peer's if outbound, else the machine's own.
    pub port: u16,
    /// Number of flows.
    pub flows: u64,
    /// Frames that the machine sent; one larger than the link's counts once.
    pub sent_frames: u64,
    /// Their bytes, Ethernet headers included.
    pub sent_bytes: u64,
    /// Frames that the machine received.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Smallest round-trip time that the guest's open sockets have measured, in microseconds.
    #[serde(default)]
    pub rtt_us: Option<u32>,
    /// Age of the first packet, in milliseconds.
    pub first_seen_ms: u64,
    /// Age of the last packet, in milliseconds.
    pub last_seen_ms: u64,
}

/// What tells the process of a conversation; the surest of its flows counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToldBy {
    /// Nothing.
    Nothing,
    /// It listens on the port now; the flow's own socket is gone.
    Listener,
    /// It holds the flow's socket now.
    Socket,
    /// It was found when the flow was judged.
    Verdict,
}

/// Who opened a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The peer.
    Inbound,
    /// The machine.
    Outbound,
}

/// An inbound conversation that seems to cause an outbound one of the same process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Feed {
    /// Place of the inbound one among the conversations.
    pub inbound: usize,
    /// Place of the outbound one.
    pub outbound: usize,
    /// How sure that is.
    pub confidence: FeedConfidence,
}

/// How sure it is that one conversation feeds another. Order in time is no proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedConfidence {
    /// Both were live at the same time, but so were others, or the outbound one was open before.
    Possible,
    /// The outbound flow was opened while this was the only live inbound conversation of its process.
    Likely,
}
