// SPDX-License-Identifier: Apache-2.0
//! Live introspection of Linux guests on x86-64 from raw RAM, with nothing known about the kernel beforehand; only one
//! that was built without type information needs to be described from outside ([`Profiles`]).
//!
//! A [`Guest`] is attached to any [`PhysicalMemory`]: the kernel's own type information and symbol table are
//! found in RAM, its page tables are walked, and its processes and sockets are read while it runs.
//!
//! Invariants:
//! - The guest may lie. Every walk, table and allocation has a bound, every query a budget of reads; bad
//!   structures give typed errors or [`model::UnknownReason`], never a panic.
//! - The guest runs meanwhile. What contradicts itself is read again a few times, then *unknown*.
//! - What any process may imitate in its own memory is not believed alone. Many imitations can keep the
//!   kernel from being found (an error), but not have another one found in its place.
//! - Reading never makes a guest's page resident; only resident extents are scanned.
//!
//! Deliberately absent: writes, mapping, clocks, threads, debug files, CPU registers and any knowledge of one
//! particular kernel beyond the names of its structures.
#![forbid(unsafe_code)]
mod attach;
mod bootstrap;
mod btf;
mod cgroup;
mod conntrack;
mod core;
mod cpu;
mod detail;
mod ends;
mod error;
mod fd;
mod found;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guest;
mod hash;
mod heartbeats;
mod home;
mod integrity;
mod kallsyms;
mod layout;
mod lookup;
mod memory;
mod module;
mod owner;
mod paging;
mod path;
mod reader;
mod scan;
mod search;
mod socket;
mod symbols;
mod table;
mod task;
#[cfg(any(test, fuzzing))]
mod tests;
mod transport;
mod user;
mod users;
mod vring;

pub use attach::Profiles;
pub use cpu::{CpuSample, ProcessTime, RunQueue, ThreadTime};
pub use detail::{Namespaces, ProcessDetail, ProcessState};
pub use error::{AttachError, TypesError, ViewError};
pub use found::Kernel;
pub use guest::Guest;
pub use heartbeats::Heartbeats;
pub use integrity::{Certainty, Coverage, Finding, FindingKind};
pub use layout::Gap;
pub use memory::{PhysicalMemory, Unmapped};
pub use socket::{Owner, Socket, SocketState};
pub use transport::{PacketSocket, SocketDetail, SocketDetails, TcpCounters};
