// SPDX-License-Identifier: Apache-2.0
//! Services and how their endpoints fare.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::inside::AcceptQueue;

/// A service as it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// `tenant/name`.
    pub name: String,
    /// How far it reaches: `infrastructure`, `tenant`, `application` or `instance`.
    pub level: String,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Who offers it.
    pub endpoints: Vec<EndpointStatus>,
}

/// An endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// The machine, `tenant/vm`.
    pub vm: String,
    /// Whether it gets new flows, and why not: `in`, `slow-start`, `drained`, `no-port`, `not-listening`, `queue-full`,
    /// `check-failing` or `ejected`.
    pub state: String,
    /// For how long it is still left out, in milliseconds, when it was ejected.
    #[serde(default)]
    pub left_ms: Option<u64>,
    /// Flows that it has.
    pub flows: u32,
    /// What waits to be accepted there, when that is known.
    #[serde(default)]
    pub accept_queue: Option<AcceptQueue>,
}
