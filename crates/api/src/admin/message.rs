// SPDX-License-Identifier: Apache-2.0
//! The messages of the admin protocol.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::cores::PortMoved;
use super::guest::{Process, Socket};
use super::inside::{CpuSample, DataFlow, ProcessDetail, SocketDetail};
use super::qos::VmQos;
use super::services::{EndpointStatus, Service};
use super::status::{PolicyStatus, Status};
use super::threats::Threats;

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
        /// Whom it is for: `address:port`, `[address]:port`, `vm:port`, a service of the tenant, the `tenant/name` of
        /// any service, or the `name:port` of something outside that a machine of the tenant has looked up.
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
    /// What is spoken in it, if a rule wants that told: `http`, `tls`, ..., or `other`.
    #[serde(default)]
    pub speaks: Option<String>,
    /// Who opened it.
    pub source: Party,
    /// Whom it is for.
    pub destination: Party,
    /// What was decided.
    pub verdict: Verdict,
    /// The rule, `tenant/name`, or `tenant/default`, that decided.
    pub decided_by: String,
    /// What the flow did not meet, if it was denied for what a service demands that `decided_by` adds.
    #[serde(default)]
    pub because: Option<String>,
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
    /// What the flow does not meet, if it is denied for what a service demands that `decided_by` adds.
    #[serde(default)]
    pub because: Option<String>,
    /// The policy generation that was asked.
    pub generation: u64,
}
