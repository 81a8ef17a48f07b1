// SPDX-License-Identifier: Apache-2.0
//! The protocol on the daemon's Unix admin socket.
//!
//! One JSON [`Request`] per line; the daemon answers each with one JSON [`Response`] per line, in
//! order. [`Request::FlowWatch`] alone is answered by a stream of [`Response::Flow`] that lasts until
//! either side closes. Lines are at most [`wire::LINE_BYTES_MAX`] long. Who may open the socket is
//! decided by its file permissions; the protocol itself knows no users.
//!
//! Fields are in camel case, tags in kebab case, so that every line reads well in `jq`.
//! Text that comes from a guest (process names, paths) is passed through as it is: whoever prints
//! it escapes it.

mod client;
mod convert;
mod cores;
mod guest;
mod inside;
mod message;
mod qos;
mod services;
mod status;
mod threats;
pub mod wire;

pub use client::{Client, ClientError, Watch};
pub use cores::{CoreStatus, PortMoved};
pub use guest::{Process, Socket, SocketOwner};
pub use inside::{
    AcceptQueue, Conversation, CpuSample, DataFlow, Direction, Feed, FeedConfidence, Namespaces,
    ProcessDetail, ProcessTime, RunQueue, SocketDetail, TcpCounters, ThreadTime, ToldBy,
};
pub use message::{
    Confidence, ExplainedRule, Explanation, Flow, FlowService, Introspection, IntrospectionState, Mode, Nic,
    NicState, Party, Refusal, Request, Response, UnknownReason, Verdict, Vm,
};
pub use qos::{ClassStatus, LimitStatus, VmQos};
pub use services::{EndpointStatus, Service};
pub use status::{Latency, NameStats, PolicyStatus, PollStats, PortStatus, RecordStats, SpanStats, Status};
pub use threats::{Certainty, Threat, Threats};
