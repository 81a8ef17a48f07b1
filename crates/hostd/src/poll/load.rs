// SPDX-License-Identifier: Apache-2.0
//! How busy each poll core and each port is.
//!
//! Each core adds up the time that it works, in all and for each port's frames; [`super::balance`] compares.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use vswitch::PortId;

use super::owners::CoreId;
use crate::handover::PORTS_MAX;

/// What was measured, written by the cores and read by all.
#[derive(Debug)]
pub struct Loads {
    /// Time that each core has worked, in nanoseconds.
    pub(super) cores_ns: Box<[AtomicU64]>,
    /// The same for each port's frames.
    pub(super) ports_ns: Box<[AtomicU64]>,
    /// Each core's share of the last window, in thousandths.
    pub(super) shares: Box<[AtomicU32]>,
    /// Ports that were put where they are by hand.
    pinned: Box<[AtomicBool]>,
}

impl Loads {
    /// Nothing has been done yet.
    pub fn new(cores: usize) -> Self {
        Self {
            cores_ns: (0..cores).map(|_| AtomicU64::new(0)).collect(),
            ports_ns: (0..PORTS_MAX).map(|_| AtomicU64::new(0)).collect(),
            shares: (0..cores).map(|_| AtomicU32::new(0)).collect(),
            pinned: (0..PORTS_MAX).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// A core has worked for so long.
    pub fn core_worked(&self, core: CoreId, time: Duration) {
        add(self.cores_ns.get(core.index()), time);
    }

    /// Its core has worked for so long on what a port sent.
    pub fn port_worked(&self, port: PortId, time: Duration) {
        add(self.ports_ns.get(usize::from(port.0)), time);
    }

    /// The part of the last window in which a core worked, in thousandths.
    pub fn share_permille(&self, core: CoreId) -> u32 {
        self.shares.get(core.index()).map_or(0, |share| share.load(Ordering::Relaxed))
    }

    /// A port is put where it is by hand.
    pub fn pin(&self, port: PortId) {
        if let Some(pinned) = self.pinned.get(usize::from(port.0)) {
            pinned.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a port was put where it is by hand.
    pub fn is_pinned(&self, port: PortId) -> bool {
        self.pinned.get(usize::from(port.0)).is_some_and(|pinned| pinned.load(Ordering::Relaxed))
    }
}

/// Adds a time; each is written by one thread at a time, so that nothing is lost between reading and writing.
fn add(total_ns: Option<&AtomicU64>, time: Duration) {
    if let Some(total_ns) = total_ns {
        let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        total_ns.store(total_ns.load(Ordering::Relaxed).wrapping_add(time_ns), Ordering::Relaxed);
    }
}
