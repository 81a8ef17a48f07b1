// SPDX-License-Identifier: Apache-2.0
//! What can be worked out about a frame before its turn.

use packet::{Network, OffloadError, Packet, ParseError, VnetHeader};

use crate::key::FlowKey;
use crate::table::{Home, Places, Tally};
use crate::{FlowSlot, FlowSlots, Frame, PortId, Switch};

/// What a frame says, and where its flow would be: nothing that another frame could change.
///
/// A caller that has many frames at once previews all of them, fetches their slots ([`Previewer::likely_lines`])
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
    pub(crate) fn read(&mut self, places: &Places, ingress: PortId, frame: &Frame) {
        let packet = Packet::parse(frame.parsable());
        (self.flow, self.vnet) = match &packet {
            Ok(Packet { network: Network::Ip(ip), .. }) => {
                let flow = FlowKey::of(ingress, ip).map(|key| (key, places.home(&key)));
                (flow, frame.vnet.forwarded(frame.total_len_bytes, Some(ip)))
            }
            _ => (None, Ok(frame.vnet)),
        };
        self.packet = packet;
    }
}

/// Previews frames for a switch without having it, so that several threads can do so at once while one of them has the
/// switch decide.
#[derive(Clone, Debug)]
pub struct Previewer {
    places: Places,
    slots_at: usize,
    tallies_at: usize,
}

impl<S: FlowSlots> Switch<S> {
    /// What previews frames for this switch, for as long as it lives.
    #[must_use]
    pub fn previewer(&self) -> Previewer {
        let (slots_at, tallies_at) = self.table.addresses();
        Previewer { places: self.table.places.clone(), slots_at, tallies_at }
    }
}

impl<S: FlowSlots> Switch<S> {
    /// The address of one more cache line than those of [`Previewer::likely_lines`] that the decision will most likely
    /// need: of a translated flow, the slot of its other direction, which says what packets leave with. Looks into the
    /// flow's own slot, which should have been fetched; only a hint, too.
    #[inline]
    #[must_use]
    pub fn likely_partner_line(&self, preview: &Preview) -> Option<usize> {
        let (_, home) = preview.flow.as_ref()?;
        let slot = self.table.slot(home.position());
        let (slots_at, _) = self.table.addresses();
        slot.is_translated()
            .then(|| slots_at.wrapping_add(slot.partner().wrapping_mul(size_of::<FlowSlot>())))
    }
}

impl Previewer {
    /// Previews a frame that came in at `ingress`, for [`Switch::process_previewed`].
    #[inline]
    pub fn preview(&self, ingress: PortId, frame: &Frame, preview: &mut Preview) {
        preview.read(&self.places, ingress, frame);
    }

    /// Addresses of the cache lines that the decision will most likely need: the flow's slot, if the flow is known, and
    /// its counters. Worth fetching while other frames are decided upon, and only a hint.
    #[inline]
    #[must_use]
    pub fn likely_lines(&self, preview: &Preview) -> Option<[usize; 2]> {
        let position = preview.flow.as_ref().map(|(_, home)| home.position())?;
        let line = |start: usize, len: usize| start.wrapping_add(position.wrapping_mul(len));
        Some([line(self.slots_at, size_of::<FlowSlot>()), line(self.tallies_at, size_of::<Tally>())])
    }
}
