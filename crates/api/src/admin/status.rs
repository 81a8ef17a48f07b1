// SPDX-License-Identifier: Apache-2.0
//! The daemon in numbers, and what policy is in force.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cores::CoreStatus;
use super::qos::LimitStatus;
use crate::Diagnostic;

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
