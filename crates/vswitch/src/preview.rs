// SPDX-License-Identifier: Apache-2.0
//! What can be worked out about a frame before its turn.

use packet::{Network, OffloadError, Packet, ParseError, VnetHeader};

use crate::key::FlowKey;
use crate::table::{FlowTable, Home};
use crate::{FlowSlot, FlowSlots, Frame, PortId, Switch, Tally};

/// What a frame says, and where its flow would be: nothing that another frame could change.
///
/// A caller that has many frames at once previews all of them, fetches their slots ([`Switch::likely_slot`])
/// and only then has the first one decided upon: slots are far from the cache.
#[derive(Clone, Debug)]
pub struct Preview {
    pub(crate) packet: Result<Packet, ParseError>,
    /// The offloads to hand on, if it is an IP packet.
    pub(crate) vnet: Result<VnetHeader, OffloadError>,
    /// What its flow is looked up by, if it is an IP packet; nothing if it can have none.
    pub(crate) flow: Option<(FlowKey, Home)>,
}

impl Default for Preview {
    fn default() -> Self {
        let packet = Err(ParseError::NeedMore { need_bytes: 0 });
        Self { packet, vnet: Ok(VnetHeader::default()), flow: None }
    }
}

impl Preview {
    /// A number that is the same for all frames of a flow in this direction, and that no guest can aim.
    #[must_use]
    #[inline]
    pub fn spread(&self) -> u32 {
        self.flow.as_ref().map_or(0, |(_, home)| home.spread())
    }

    /// Reads `frame`. What was worked out is put into memory last: a processor that reads back in one piece
    /// what it has just written in two must wait for all stores before them.
    #[inline]
    fn read<S: FlowSlots>(&mut self, table: &FlowTable<S>, ingress: PortId, frame: &Frame) {
        let packet = Packet::parse(frame.parsable());
        (self.flow, self.vnet) = match &packet {
            Ok(Packet { network: Network::Ip(ip), .. }) => {
                let flow = FlowKey::of(ingress, ip).map(|key| (key, table.home(&key)));
                (flow, frame.vnet.forwarded(frame.total_len_bytes, Some(ip)))
            }
            _ => (None, Ok(frame.vnet)),
        };
        self.packet = packet;
    }
}

impl<S: FlowSlots> Switch<S> {
    /// Previews a frame that came in at `ingress`, for [`Switch::process_previewed`].
    #[inline]
    pub fn preview(&self, ingress: PortId, frame: &Frame, preview: &mut Preview) {
        preview.read(&self.table, ingress, frame);
    }

    /// Where a frame's flow most likely lies, if it is known, and its counters: worth fetching while other
    /// frames are decided upon. Only a hint.
    #[inline]
    #[must_use]
    pub fn likely_slot(&self, preview: &Preview) -> Option<(&FlowSlot, &Tally)> {
        preview.flow.as_ref().map(|(_, home)| self.table.at_home(*home))
    }
}
