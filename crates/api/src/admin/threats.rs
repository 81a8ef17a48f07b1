// SPDX-License-Identifier: Apache-2.0
//! What was found wrong in a guest's kernel.

use serde::{Deserialize, Serialize};

/// What inspections of a machine have found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Threats {
    /// The surest first.
    pub findings: Vec<Threat>,
    /// Pages of kernel text and read-only data.
    pub pages: u64,
    /// Of these, those with a baseline to compare with.
    pub pages_known: u64,
    /// Times all pages have been checked.
    pub rounds: u64,
    /// Times all views of tasks, sockets and hooks have been compared.
    pub views: u64,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Threat {
    /// What it is: `hidden-task`, `hidden-socket`, `modified-text`, ...
    pub kind: String,
    /// How sure it is.
    pub certainty: Certainty,
    /// Where in the guest's kernel, in hexadecimal; absent for what was seen on the wire.
    #[serde(default)]
    pub address: Option<String>,
    /// The kernel's own symbol at or before the address.
    #[serde(default)]
    pub symbol: Option<String>,
    /// What was seen. Names in it are the guest's own and may say anything.
    pub evidence: String,
    /// Time since it was seen first, in milliseconds.
    pub first_seen_ms: u64,
    /// Time since it was seen last, in milliseconds.
    pub last_seen_ms: u64,
}

/// How sure it is that a finding is the work of somebody who hides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// Administrators do this too.
    Possible,
    /// No administrator does this, but some software may.
    Likely,
    /// The kernel never does this by itself.
    Certain,
}

impl Certainty {
    /// The word shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}
