// SPDX-License-Identifier: Apache-2.0
//! Ports on their way from one core to another, as one core knows them.

use model::Moment;
use vswitch::PortId;

use super::lane::Lane;
use super::owners::CoreId;

/// What a core knows of them.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Ports that are to be given to other cores.
    pub(super) wanted: Vec<(PortId, CoreId)>,
    /// The one that is being given away.
    pub(super) leaving: Option<Leaving>,
    /// How many have been.
    pub(super) number: u64,
    /// Cores that want to be told when all that has been sent here is delivered, and for which of their moves.
    pub(super) settling: Vec<(CoreId, u64)>,
    /// The cores that ports have come from since links were last looked into.
    arrived: Vec<CoreId>,
}

#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) lane: Box<Lane>,
    pub(super) to: CoreId,
    pub(super) since: Moment,
    /// Cores that have not settled yet.
    pub(super) unsettled: usize,
}

impl Moves {
    /// A port is to be given to another core. Tells whether that is new.
    pub(super) fn want(&mut self, id: PortId, to: CoreId) -> bool {
        let is_new = !self.wanted.contains(&(id, to));
        if is_new {
            self.wanted.push((id, to));
        }
        is_new
    }

    /// Whether there is nothing to do, and so nothing that links must be looked into whole for.
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
            && self.leaving.is_none()
            && self.settling.is_empty()
            && self.arrived.is_empty()
    }

    /// The core that a port has come from since the last call.
    pub(super) fn next_arrived(&mut self) -> Option<CoreId> {
        self.arrived.pop()
    }

    /// The port that is being given away, if it is this one.
    pub(super) fn leaving(&mut self, id: PortId) -> Option<&mut Lane> {
        self.leaving.as_mut().map(|leaving| &mut *leaving.lane).filter(|lane| lane.id == id)
    }

    pub(super) fn settle(&mut self, core: CoreId, number: u64) {
        self.settling.push((core, number));
    }

    pub(super) fn settled(&mut self, number: u64) {
        if let Some(leaving) = self.leaving.as_mut().filter(|_| self.number == number) {
            leaving.unsettled = leaving.unsettled.saturating_sub(1);
        }
    }

    pub(super) fn arrived(&mut self, from: CoreId) {
        self.arrived.push(from);
    }
}
