// SPDX-License-Identifier: Apache-2.0
//! What tests and the demo stand on: real virtual machines, and a daemon under them.
//!
//! Invariants: every wait has a deadline and waits on a descriptor, never by sleeping; whatever is started is
//! ended when its value is dropped, and by the kernel if this process dies first; nothing but loopback and
//! private sockets is touched.
//!
//! Deliberately absent: production builds never link this crate.
#![forbid(unsafe_code)]

pub mod accel;
pub mod capture;
pub mod claim;
pub mod collector;
pub mod daemon;
pub mod guests;
mod migration;
mod monitor;
pub mod names;
pub mod outside;
pub mod process;
pub mod relay;
pub mod scratch;
pub mod serial;
pub mod vm;
pub mod vmm;

mod remains;

pub use remains::abandon;
