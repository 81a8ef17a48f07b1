// SPDX-License-Identifier: Apache-2.0
//! The poll cores, and which port is at which.

use serde::{Deserialize, Serialize};

/// A poll core.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CoreStatus {
    /// Its number, or `side` for the one that serves guests whose memory may have to be waited for.
    pub core: String,
    /// Whether it answered within two seconds; if not, its counters are all zero.
    pub answers: bool,
    /// Cards that it serves.
    pub ports: u64,
    /// The part of the last second in which it worked, in thousandths.
    pub busy_permille: u32,
    /// Frames that it took from guests and from the host.
    pub frames: u64,
    /// Frames that it handed over to other cores.
    pub handed_over: u64,
    /// Frames dropped because too many were on their way to another core.
    pub link_full: u64,
}

/// A port that was told to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMoved {
    /// Its card, `tenant/vm/nic`.
    pub nic: String,
    /// Where it will be within a moment.
    pub core: String,
}
