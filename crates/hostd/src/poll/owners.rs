// SPDX-License-Identifier: Apache-2.0
//! Which poll core serves which port.
//!
//! A port's queues are touched by its core's thread only. Everyone else reads here where to send what is for the port; what
//! arrives at a core that has given the port away meanwhile is sent on by it. A core that takes a port over has it in its queue of
//! commands before it is named here, so whoever is named finds the port after a look into that queue.
//!
//! While a port moves, frames for it already head for the core that it moves to ([`super::moves`]). One moves at a time.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use vswitch::PortId;

use crate::handover::PORTS_MAX;

const NOBODY: u8 = u8::MAX;
const NOTHING_MOVES: u32 = u32::MAX;

/// A poll core. Those that ports are spread over come first, then the side core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u8);

impl CoreId {
    /// The core that does what is to be done once: it looks after all flows and takes up snapshots.
    pub const FIRST: Self = Self(0);

    /// Its position among all cores.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The core of every port.
#[derive(Debug)]
pub struct Owners {
    of: Box<[AtomicU8]>,
    /// The port that moves, and below it in eight bits the core that it moves to.
    moving: AtomicU32,
    /// How many cores there are beside the side core.
    regular: u8,
}

impl Owners {
    /// Nobody has any port. `regular` is at most [`crate::config::CORES_MAX`].
    pub fn new(regular: usize) -> Self {
        let of = (0..PORTS_MAX).map(|_| AtomicU8::new(NOBODY)).collect();
        Self {
            of,
            moving: AtomicU32::new(NOTHING_MOVES),
            regular: u8::try_from(regular).unwrap_or(NOBODY - 1),
        }
    }

    /// The core whose ports may have memory that faults.
    pub fn side(&self) -> CoreId {
        CoreId(self.regular)
    }

    /// Whose port it is.
    #[inline]
    pub fn of(&self, port: PortId) -> Option<CoreId> {
        let core = self.of.get(usize::from(port.0))?.load(Ordering::Acquire);
        (core != NOBODY).then_some(CoreId(core))
    }

    /// Where a frame for a port is to be sent: to whose it is, or is about to be.
    #[inline]
    pub fn heads_for(&self, port: PortId) -> Option<CoreId> {
        let moving = self.moving.load(Ordering::Acquire);
        // Whoever does not see it move any more sees whose it has become, as that was written before.
        if moving >> 8 == u32::from(port.0) { Some(CoreId(moving as u8)) } else { self.of(port) }
    }

    /// Frames for a port head for another core from now on, unless another port moves.
    #[must_use]
    pub fn depart(&self, port: PortId, to: CoreId) -> bool {
        let moving = u32::from(port.0) << 8 | u32::from(to.0);
        self.moving.compare_exchange(NOTHING_MOVES, moving, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The port that moves is another core's from now on, if it is this one's. The other one has been told already, and may
    /// have given it away again.
    pub fn arrive(&self, port: PortId, core: CoreId, to: CoreId) {
        self.exchange(port, core, to.0);
        self.stay();
    }

    /// The port that moves does so no longer.
    pub fn stay(&self) {
        self.moving.store(NOTHING_MOVES, Ordering::Release);
    }

    /// It is this core's from now on.
    pub fn set(&self, port: PortId, core: CoreId) {
        if let Some(of) = self.of.get(usize::from(port.0)) {
            of.store(core.0, Ordering::Release);
        }
    }

    /// It is nobody's any more, if it is this core's.
    pub fn clear(&self, port: PortId, core: CoreId) {
        self.exchange(port, core, NOBODY);
    }

    fn exchange(&self, port: PortId, core: CoreId, to: u8) {
        if let Some(of) = self.of.get(usize::from(port.0)) {
            // Somebody else's already is as good.
            let _ = of.compare_exchange(core.0, to, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// All ports with their cores, in the order of their numbers.
    pub fn all(&self) -> impl Iterator<Item = (PortId, CoreId)> + '_ {
        let ports = (0..).map(PortId);
        ports.take(PORTS_MAX).filter_map(|port| Some((port, self.of(port)?)))
    }

    /// How many ports a core has.
    pub fn count(&self, core: CoreId) -> usize {
        self.all().filter(|(_, of)| *of == core).count()
    }

    /// The core with the fewest ports, the side core left out.
    pub fn emptiest(&self) -> CoreId {
        (0..self.regular).map(CoreId).min_by_key(|core| self.count(*core)).unwrap_or(CoreId::FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_spread_over_all_cores_but_the_side_core() {
        let owners = Owners::new(3);
        for number in 0..7 {
            owners.set(PortId(number), owners.emptiest());
        }
        let counts: Vec<usize> = (0..4).map(|core| owners.count(CoreId(core))).collect();
        assert_eq!(counts, [3, 2, 2, 0]);
        assert_eq!(owners.side(), CoreId(3));
    }

    #[test]
    fn only_its_own_core_gives_a_port_up() {
        let owners = Owners::new(2);
        owners.set(PortId(7), CoreId(1));
        owners.clear(PortId(7), CoreId(0));
        assert_eq!(owners.of(PortId(7)), Some(CoreId(1)));
        owners.clear(PortId(7), CoreId(1));
        assert_eq!(owners.of(PortId(7)), None);
        assert_eq!(owners.of(PortId(u16::MAX)), None);
    }
}
