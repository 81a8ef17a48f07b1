// SPDX-License-Identifier: Apache-2.0
//! Findings, and what makes one.

use std::fmt;
use std::time::Duration;

/// Sightings that make a suspect a finding.
pub const SIGHTINGS_MIN: u32 = 3;
/// How long a suspect must have been seen to be a finding: longer than the kernel takes to rewrite itself.
pub const SUSPECT_FOR: Duration = Duration::from_millis(1200);
/// How long a suspect that is not seen again is remembered.
pub const SUSPECT_KEPT: Duration = Duration::from_secs(3);
/// How long a finding that is not seen again is told.
pub const FINDING_KEPT: Duration = Duration::from_secs(60);
/// Suspects and findings kept at most; more are dropped.
pub const SUSPECTS_MAX: usize = 1024;

/// What kind of threat a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// A task that runs, or has a process id, but is in no list of tasks.
    HiddenTask,
    /// A process in the list of tasks that has no process id: `/proc` does not show it.
    TaskWithoutId,
    /// A socket that a process holds, but that is in no table of sockets.
    HiddenSocket,
    /// A packet socket that no descriptor refers to.
    PacketSocket,
    /// A network device that takes frames for others.
    Promiscuous,
    /// Kernel text that is not as it was.
    ModifiedText,
    /// Read-only data that is not as it was.
    ModifiedData,
    /// A system call that leads out of the kernel's text.
    SyscallEntry,
    /// An interrupt gate that leads out of the kernel's text.
    InterruptEntry,
    /// A tracer that leads to code of no known module, or redirects functions into a module.
    FunctionHook,
    /// A probe that leads to code of no known module.
    Probe,
    /// A packet filter that leads to code of no known module.
    PacketHook,
    /// A module that is loaded, but not in the list of modules.
    HiddenModule,
    /// Pages that may be executed and are code of no known module.
    UnknownCode,
}

impl FindingKind {
    /// The word shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HiddenTask => "hidden-task",
            Self::TaskWithoutId => "task-without-id",
            Self::HiddenSocket => "hidden-socket",
            Self::PacketSocket => "packet-socket",
            Self::Promiscuous => "promiscuous",
            Self::ModifiedText => "modified-text",
            Self::ModifiedData => "modified-data",
            Self::SyscallEntry => "syscall-entry",
            Self::InterruptEntry => "interrupt-entry",
            Self::FunctionHook => "function-hook",
            Self::Probe => "probe",
            Self::PacketHook => "packet-hook",
            Self::HiddenModule => "hidden-module",
            Self::UnknownCode => "unknown-code",
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How sure it is that a finding is the work of somebody who hides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// A threat that was seen several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// How sure it is.
    pub certainty: Certainty,
    /// Guest-virtual address of what was found.
    pub address: u64,
    /// The kernel's own symbol at or before the address, `name+0x10`, if it lies in the kernel's image.
    pub symbol: Option<String>,
    /// What was seen, for people. Names in it are the guest's own and may say anything.
    pub evidence: String,
    /// When it was seen first, on the clock of the caller of [`crate::Guest::inspect`].
    pub first_seen: Duration,
    /// When it was seen last.
    pub last_seen: Duration,
}

/// What has been inspected, and what is known to be inspectable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Pages of text and read-only data.
    pub pages: usize,
    /// Of these, those with a baseline.
    pub pages_known: usize,
    /// Times all pages have been checked.
    pub rounds: u64,
    /// Times all views have been compared.
    pub views: u64,
}
