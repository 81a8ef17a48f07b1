// SPDX-License-Identifier: Apache-2.0
//! What the switch has to say, until the caller drains it.

use std::collections::VecDeque;

use crate::{FlowEvent, PortId};

/// Most frames of the switch's own that wait to be drained; more are lost and counted.
pub const EMISSIONS_MAX: usize = 4096;

/// Most events that wait to be drained; more are lost and counted.
pub const EVENTS_MAX: usize = 4096;

/// A frame that the switch made, for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emission {
    /// Where it goes.
    pub port: PortId,
    /// The whole frame from the Ethernet header on, with complete checksums: its virtio-net header is zero.
    pub frame: Vec<u8>,
}

/// Two bounded queues.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub emissions: VecDeque<Emission>,
    pub events: VecDeque<FlowEvent>,
}

impl Outbox {
    /// Whether the frame was taken.
    pub(crate) fn emit(&mut self, port: PortId, frame: Vec<u8>) -> bool {
        let room = self.emissions.len() < EMISSIONS_MAX;
        if room {
            self.emissions.push_back(Emission { port, frame });
        }
        room
    }

    /// Whether another event would be taken.
    pub(crate) fn takes_event(&self) -> bool {
        self.events.len() < EVENTS_MAX
    }

    /// Whether the event was taken.
    pub(crate) fn report(&mut self, event: FlowEvent) -> bool {
        let room = self.takes_event();
        if room {
            self.events.push_back(event);
        }
        room
    }
}
