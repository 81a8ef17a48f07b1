// SPDX-License-Identifier: Apache-2.0
//! Who gets how much, and what limits do.

use serde::{Deserialize, Serialize};

/// A machine's part of the host's capacity. What is absent is as for machines about which nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmQos {
    /// What it may send at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bits_per_second: Option<u64>,
    /// What is reserved for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_bits_per_second: Option<u64>,
    /// Its shares of what is not reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<u32>,
    /// Its latency class, as manifests name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

/// A limit in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitStatus {
    /// Whose it is: a flow policy, `tenant/vm/(vm)` or `tenant/name/(service)`.
    pub name: String,
    /// Whether it counts what answers, or what calls; a machine's counts whatever that sends.
    pub answers: bool,
    /// What it lets through.
    pub limit_bits_per_second: u64,
    /// What has passed lately, over a second or so.
    pub bits_per_second: u64,
    /// Frames counted.
    pub frames: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes: u64,
    /// Frames that had to wait.
    pub held_frames: u64,
    /// For how long on average, in microseconds.
    pub held_mean_us: u64,
    /// For how long at most, in microseconds.
    pub held_max_us: u64,
    /// Classes of flows that share it, if there are several.
    #[serde(default)]
    pub classes: Vec<ClassStatus>,
}

/// A class of flows that has a part of a limit, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClassStatus {
    /// A flow policy or `tenant/name/(service)`; empty for all other flows.
    pub name: String,
    /// Its shares.
    pub shares: u32,
    /// What is reserved for it, in bits per second.
    #[serde(default)]
    pub reserved_bits_per_second: Option<u64>,
    /// What has passed of it lately, over a second or so.
    pub bits_per_second: u64,
    /// Its bytes, Ethernet headers included.
    pub bytes: u64,
    /// Frames of it that had to wait.
    pub held_frames: u64,
}
