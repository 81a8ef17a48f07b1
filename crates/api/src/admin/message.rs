// SPDX-License-Identifier: Apache-2.0
//! The messages of the admin protocol.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::cores::{CoreStatus, PortMoved};
use super::inside::{CpuSample, DataFlow, ProcessDetail, SocketDetail};
use super::qos::{LimitStatus, VmQos};
use super::services::{EndpointStatus, Service};
use super::threats::Threats;
use crate::Diagnostic;

/// What a client asks. Machines are named `tenant/vm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// All machines; answered by [`Response::Vms`].
    VmList,
    /// A machine's processes, read from its memory now; answered by [`Response::Processes`].
    VmProcesses {
        /// The machine.
        vm: String,
    },
    /// A machine's sockets, read from its memory now; answered by [`Response::Sockets`].
    VmSockets {
        /// The machine.
        vm: String,
    },
    /// A machine's processes with what decorates them; answered by [`Response::ProcessDetails`].
    VmProcessDetails {
        /// The machine.
        vm: String,
    },
    /// A machine's sockets with what they count; answered by [`Response::SocketDetails`].
    VmSocketDetails {
        /// The machine.
        vm: String,
    },
    /// What a machine's processors have done; answered by [`Response::Cpu`].
    VmCpu {
        /// The machine.
        vm: String,
    },
    /// Who in a machine talks to whom; answered by [`Response::DataFlow`].
    VmFlows {
        /// The machine.
        vm: String,
    },
    /// What inspections of a machine have found; answered by [`Response::Threats`].
    VmThreats {
        /// The machine.
        vm: String,
    },
    /// Flows in the table, the last seen first; answered by [`Response::Flows`].
    FlowList {
        /// Only those with this machine at one end.
        #[serde(default)]
        vm: Option<String>,
    },
    /// Every flow as it is judged from now on; answered by a stream of [`Response::Flow`].
    FlowWatch {
        /// Only those with this machine at one end.
        #[serde(default)]
        vm: Option<String>,
    },
    /// All services and how their endpoints fare; answered by [`Response::Services`].
    ServiceList,
    /// Why a flow is, or would be, allowed or denied; answered by [`Response::Explanation`].
    Why {
        /// The machine that opens the flow.
        from: String,
        /// Whom it is for: `address:port`, `[address]:port`, `vm:port`, a service of the tenant, or the `name:port` of
        /// something outside that a machine of the tenant has looked up.
        to: String,
        /// `tcp`, `udp`, `icmp` or `icmpv6`.
        protocol: String,
        /// The executable that opens the flow; what was seen last, or *unknown*, if absent.
        #[serde(default)]
        exe: Option<String>,
    },
    /// Moves a card to a poll core, where it stays until the daemon ends; answered by [`Response::PortMoved`].
    PortMove {
        /// The card, `tenant/vm/nic`.
        nic: String,
        /// The core's number, or `side`.
        core: String,
    },
    /// The daemon's health; answered by [`Response::Status`].
    Status,
    /// What policy is in force; answered by [`Response::PolicyStatus`].
    PolicyStatus,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", content = "body", rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::VmList`].
    Vms(Vec<Vm>),
    /// To [`Request::VmProcesses`].
    Processes(Vec<Process>),
    /// To [`Request::VmSockets`].
    Sockets(Vec<Socket>),
    /// To [`Request::VmProcessDetails`].
    ProcessDetails(Vec<ProcessDetail>),
    /// To [`Request::VmSocketDetails`].
    SocketDetails(Vec<SocketDetail>),
    /// To [`Request::VmCpu`].
    Cpu(Box<CpuSample>),
    /// To [`Request::VmFlows`]; of [`Flow::LISTED_MAX`] flows at most.
    DataFlow(Box<DataFlow>),
    /// To [`Request::VmThreats`].
    Threats(Box<Threats>),
    /// To [`Request::FlowList`]; at most [`Flow::LISTED_MAX`].
    Flows(Vec<Flow>),
    /// One of the stream that answers [`Request::FlowWatch`].
    Flow(Box<Flow>),
    /// To [`Request::ServiceList`].
    Services(Vec<Service>),
    /// To [`Request::Why`].
    Explanation(Box<Explanation>),
    /// To [`Request::PortMove`].
    PortMoved(PortMoved),
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::PolicyStatus`].
    PolicyStatus(Box<PolicyStatus>),
    /// To any request that cannot be answered.
    Error(Refusal),
}

/// Why a request was refused, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// What is wrong.
    pub reason: String,
    /// What to do instead; may be empty.
    #[serde(default)]
    pub help: String,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vm {
    /// Its tenant.
    pub tenant: String,
    /// Its name within the tenant.
    pub name: String,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// Its part of the host's capacity.
    #[serde(default)]
    pub qos: VmQos,
    /// What is known of its inside.
    pub introspection: Introspection,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// Its name within the machine.
    pub name: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its addresses with their prefix lengths, `10.0.0.11/24`.
    pub addresses: Vec<String>,
    /// Path of its vhost-user socket.
    pub socket: String,
    /// How far its VMM has come.
    pub state: NicState,
    /// Names of the virtio features in use; empty until negotiated.
    #[serde(default)]
    pub features: Vec<String>,
}

/// How far a network card's VMM has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicState {
    /// No VMM on the socket.
    Waiting,
    /// A VMM is on the socket; the guest's driver has not started the rings.
    Connected,
    /// Frames can flow.
    Running,
}

/// What is known of a machine's inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Introspection {
    /// How far the reader has come.
    pub state: IntrospectionState,
    /// The guest kernel's own version line, once attached.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Why it failed or still waits, or what cannot be told of an attached guest and why.
    #[serde(default)]
    pub reason: Option<String>,
    /// How long attaching took, in milliseconds.
    #[serde(default)]
    pub attach_ms: Option<f64>,
    /// Guest memory that the host has really allocated, in bytes; unchanged by our reading.
    #[serde(default)]
    pub resident_bytes: Option<u64>,
}

/// How far introspection of a machine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntrospectionState {
    /// The machine's memory has not been shared yet.
    Waiting,
    /// Its kernel is being looked for.
    Attaching,
    /// Its kernel is understood.
    Attached,
    /// Its kernel could not be understood; the machine's own identity is used instead.
    Failed,
}

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

/// What was decided about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is refused.
    Deny,
}

/// How sure an identity is; see [`model::Confidence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Nothing beyond the machine.
    Unknown,
    /// The socket, not its process.
    Socket,
    /// The process, through the guest's own tables.
    Table,
    /// The process, from the very descriptor that carried the frame.
    Descriptor,
}

/// Why a flow has no process; see [`model::UnknownReason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownReason {
    /// The guest's memory is not understood.
    NotAttached,
    /// No socket matches the frame.
    NoSocket,
    /// Nobody holds the socket open.
    NoOwner,
    /// The guest's structures were inconsistent.
    Inconsistent,
    /// No answer within the bounded wait.
    TimedOut,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Party {
    /// The machine, `tenant/vm`; absent when no machine holds the address.
    #[serde(default)]
    pub vm: Option<String>,
    /// Its address.
    pub address: IpAddr,
    /// Its layer-4 port; zero where the protocol has none.
    pub port: u16,
    /// The process behind it.
    #[serde(default)]
    pub process: Option<Process>,
    /// The user id that rules see: the process's, else the socket's.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The user's name that rules see, likewise.
    #[serde(default)]
    pub user: Option<String>,
    /// How sure the above is; absent when nobody asked who it is, because no rule needed it.
    #[serde(default)]
    pub confidence: Option<Confidence>,
    /// Why there is no process, if it was asked for and not found.
    #[serde(default)]
    pub unknown: Option<UnknownReason>,
    /// Inode of its network namespace.
    #[serde(default)]
    pub netns: Option<u32>,
    /// Its address and port inside the machine, where that translates them, as for containers.
    #[serde(default)]
    pub inner: Option<SocketAddr>,
}

/// A flow and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// Its number, unique while the daemon runs.
    pub id: u64,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or `ip-N`.
    pub protocol: String,
    /// Who opened it.
    pub source: Party,
    /// Whom it is for.
    pub destination: Party,
    /// What was decided.
    pub verdict: Verdict,
    /// The rule, `tenant/name`, or `tenant/default`, that decided.
    pub decided_by: String,
    /// All enforced rules that matched.
    #[serde(default)]
    pub matched: Vec<String>,
    /// All rules in audit mode that matched.
    #[serde(default)]
    pub audited: Vec<String>,
    /// The data-plane services that it goes through, in the order in which they run.
    #[serde(default)]
    pub services: Vec<FlowService>,
    /// The policy generation that decided.
    pub generation: u64,
    /// The connection tracker's word: `new`, `established`, `closing`, ...
    pub state: String,
    /// Packets in both directions.
    pub packets: u64,
    /// Bytes of IP packets in both directions.
    pub bytes: u64,
    /// Age of the first packet, in milliseconds.
    pub first_seen_ms: u64,
    /// Age of the last packet, in milliseconds.
    pub last_seen_ms: u64,
    /// Why packets of it were dropped, if they were.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Flow {
    /// Most flows in one [`Response::Flows`]: the last seen ones. Keeps the answer below
    /// [`super::wire::LINE_BYTES_MAX`].
    pub const LISTED_MAX: usize = 4096;
}

/// A data-plane service of a flow and why the flow has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowService {
    /// `discovery`, `balance`, `authorize`, `limit`, `mirror`, `log`, ...
    pub service: String,
    /// What set its flag: a flow policy, the rule or default that decided, or the service that was called.
    pub rule: String,
    /// The level that a flow policy speaks for.
    #[serde(default)]
    pub level: Option<String>,
    /// A flow policy's place among those of its level, lowest first.
    #[serde(default)]
    pub order: Option<u32>,
}

/// Whether a rule decides or only reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It decides.
    Enforce,
    /// It only reports.
    Audit,
}

/// One rule that may speak for a flow, and whether it applies to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedRule {
    /// `tenant/name`.
    pub rule: String,
    /// The level that it speaks for: `infrastructure`, `tenant`, `application` or `instance`.
    pub level: String,
    /// A flow policy's place among those of its level, lowest first; absent for an access policy.
    #[serde(default)]
    pub order: Option<u32>,
    /// What it decides; absent if it only adds something to the flow.
    #[serde(default)]
    pub action: Option<Verdict>,
    /// What a flow policy adds: services, `trace` with the part that is traced, or `redirect`.
    #[serde(default)]
    pub adds: Vec<String>,
    /// Whether it decides or only reports.
    pub mode: Mode,
    /// Whether it matches the flow.
    pub matched: bool,
    /// Why, or why not: which part of the rule met which fact.
    pub why: String,
}

/// Why a flow is, or would be, allowed or denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The last such flow that was really seen, if any; else what one would look like.
    #[serde(default)]
    pub flow: Option<Flow>,
    /// Whether the verdict is about a flow that was not seen as described.
    pub hypothetical: bool,
    /// Each rule that may speak for the flow, from the infrastructure inwards, in order.
    pub rules: Vec<ExplainedRule>,
    /// The data-plane services that the flow goes, or would go, through.
    #[serde(default)]
    pub services: Vec<FlowService>,
    /// If it is to a service: who offers that, and whether they get new flows now.
    #[serde(default)]
    pub endpoints: Vec<EndpointStatus>,
    /// What is, or would be, decided.
    pub verdict: Verdict,
    /// The rule or default that decides.
    pub decided_by: String,
    /// The policy generation that was asked.
    pub generation: u64,
}

/// One switch port in numbers. Directions are the guest's: outbound leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    /// The network card, `tenant/vm/nic`.
    pub nic: String,
    /// Frames from the guest.
    pub outbound_frames: u64,
    /// Bytes from the guest.
    pub outbound_bytes: u64,
    /// Frames to the guest.
    pub inbound_frames: u64,
    /// Bytes to the guest.
    pub inbound_bytes: u64,
    /// Frames dropped at this port.
    pub dropped_frames: u64,
    /// The poll core that serves it.
    #[serde(default)]
    pub core: String,
}

/// How long something took, over all times since the daemon started, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// How often it happened.
    pub count: u64,
    /// Half of the times it took at most this long.
    pub p50_us: u64,
    /// In 99 of 100 times it took at most this long.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// What the poll cores do with their time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PollStats {
    /// Rounds over the ports.
    pub rounds: u64,
    /// Rounds that found frames.
    pub busy_rounds: u64,
    /// Times it went to sleep on its eventfds.
    pub sleeps: u64,
    /// Frames moved.
    pub frames: u64,
    /// How long machines of latency class `Interactive` were not looked after while frames were moved.
    #[serde(default)]
    pub interactive: Latency,
}

/// What became of the records of flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordStats {
    /// Records that the collector was sent.
    pub exported: u64,
    /// Flows told of together with others, because nobody could keep up.
    pub merged: u64,
    /// Flows that nobody was told of: denials beyond their port's rate, and what did not fit anywhere.
    pub lost: u64,
}

/// What became of the spans of traced flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpanStats {
    /// Spans that the collector has taken.
    pub exported: u64,
    /// Spans that it has not: of flows beyond what a port may have traced, what did not fit anywhere, what the collector
    /// did not want or did not take in time, and all of them when the settings name none.
    pub lost: u64,
}

/// The daemon's health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The policy generation in force.
    pub generation: u64,
    /// Why the last load was refused, while the last good state stays in force; empty if it was not.
    #[serde(default)]
    pub policy_errors: Vec<Diagnostic>,
    /// Time since the daemon started, in milliseconds.
    pub uptime_ms: u64,
    /// Flows in the table.
    pub flows: u64,
    /// The switch ports.
    #[serde(default)]
    pub ports: Vec<PortStatus>,
    /// Frames dropped, by reason.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// All poll cores together.
    #[serde(default)]
    pub poll: PollStats,
    /// Each of them.
    #[serde(default)]
    pub cores: Vec<CoreStatus>,
    /// How long frames waited in their guest's ring for their process to be known.
    #[serde(default)]
    pub attribution: Latency,
    /// How long it took to find out who is behind a flow.
    #[serde(default)]
    pub lookup: Latency,
    /// How long it took to read each view of a guest, by the view's name.
    #[serde(default)]
    pub views: BTreeMap<String, Latency>,
    /// Records of flows.
    #[serde(default)]
    pub records: RecordStats,
    /// Spans of traced flows.
    #[serde(default)]
    pub spans: SpanStats,
    /// Limits that flows have met lately.
    #[serde(default)]
    pub limits: Vec<LimitStatus>,
    /// Questions about names.
    #[serde(default)]
    pub names: NameStats,
}

/// What has become of questions about names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NameStats {
    /// Answered here.
    pub answered: u64,
    /// Asked of an upstream.
    pub forwarded: u64,
    /// Not asked of an upstream, because policy denies it.
    pub refused: u64,
}

/// What policy is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// The generation in force.
    pub generation: u64,
    /// Where it was read from.
    pub source: String,
    /// Time since it came into force, in milliseconds.
    pub age_ms: u64,
    /// Number of resources by kind.
    #[serde(default)]
    pub resources: BTreeMap<String, u64>,
    /// What looks wrong in it, though it is valid.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why the last load was refused; empty if it was not.
    #[serde(default)]
    pub errors: Vec<Diagnostic>,
}
