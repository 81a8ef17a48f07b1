// SPDX-License-Identifier: Apache-2.0
//! What can be worked out about a frame before its turn.

use model::MacAddr;
use packet::{Network, OffloadError, Packet, ParseError, Plain, Tcp, VnetHeader};

use crate::key::FlowKey;
use crate::slot::CACHE_LINE_BYTES;
use crate::table::{Home, Places};
use crate::{FlowSlot, FlowSlots, Frame, PortId, Switch};

/// What a frame says, and where its flow would be: nothing that another frame could change.
///
/// A caller that has many frames at once previews all of them, fetches their slots ([`Previewer::likely_lines`])
/// and only then has the first one decided upon: slots are far from the cache.
#[derive(Clone, Debug)]
pub struct Preview {
    /// What its flow is looked up by, if it is an IP packet; nothing if it can have none.
    pub(crate) flow: Option<(FlowKey, Home)>,
    pub(crate) reading: Reading,
}

/// How much of a frame was read.
#[derive(Clone, Debug)]
pub(crate) enum Reading {
    /// As much as a steady flow needs; if that is not enough, the frame is read once more.
    Plain(Glance),
    Whole(Whole),
}

/// What a steady flow needs to know of a plain packet that is not to be cut.
#[derive(Clone, Debug)]
pub(crate) struct Glance {
    pub(crate) source: MacAddr,
    pub(crate) destination: MacAddr,
    /// The segment if it is TCP, else it is UDP.
    pub(crate) tcp: Option<Tcp>,
}

/// All that a frame says.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) packet: Result<Packet, ParseError>,
    /// The offloads to hand on, if it is an IP packet.
    pub(crate) vnet: Result<VnetHeader, OffloadError>,
}

impl Default for Preview {
    fn default() -> Self {
        let packet = Err(ParseError::NeedMore { need_bytes: 0 });
        Self { flow: None, reading: Reading::Whole(Whole { packet, vnet: Ok(VnetHeader::default()) }) }
    }
}

impl Whole {
    pub(crate) fn read(frame: &Frame) -> Self {
        let packet = Packet::parse(frame.parsable());
        let vnet = match &packet {
            Ok(Packet { network: Network::Ip(ip), .. }) => {
                frame.vnet.forwarded(frame.total_len_bytes, Some(ip))
            }
            _ => Ok(frame.vnet),
        };
        Self { packet, vnet }
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
        if frame.vnet.gso_type == 0
            && let Some(plain) = Plain::read(frame.parsable())
        {
            let key = FlowKey::of_plain(ingress, &plain);
            self.flow = Some((key, places.home(&key)));
            self.reading = Reading::Plain(Glance {
                source: plain.ethernet_source,
                destination: plain.ethernet_destination,
                tcp: plain.tcp,
            });
            return;
        }
        self.read_whole(places, ingress, frame);
    }

    /// As [`Preview::read`], whatever is in the frame.
    #[inline(never)]
    pub(crate) fn read_whole(&mut self, places: &Places, ingress: PortId, frame: &Frame) {
        let whole = Whole::read(frame);
        self.flow = match &whole.packet {
            Ok(Packet { network: Network::Ip(ip), .. }) => {
                FlowKey::of(ingress, ip).map(|key| (key, places.home(&key)))
            }
            _ => None,
        };
        self.reading = Reading::Whole(whole);
    }
}

/// Previews frames for a switch without having it, so that several threads can do so at once while one of them has the
/// switch decide.
#[derive(Clone, Debug)]
pub struct Previewer {
    places: Places,
    slots_at: usize,
}

impl<S: FlowSlots> Switch<S> {
    /// What previews frames for this switch, for as long as it lives.
    #[must_use]
    pub fn previewer(&self) -> Previewer {
        Previewer { places: self.table.places.clone(), slots_at: self.table.address() }
    }

    /// Addresses of more cache lines than those of [`Previewer::likely_lines`] that the decision will most likely
    /// need: of a translated flow, the slot of its other direction, which says what packets leave with; of a connection,
    /// what is counted there; of a flow that is to be opened, where its answers will be looked for. Looks into the flow's own
    /// slot, which should have been fetched; only a hint, too.
    #[inline]
    #[must_use]
    pub fn likely_partner_lines(&self, preview: &Preview) -> [Option<usize>; 2] {
        let Some((key, home)) = &preview.flow else { return [None; 2] };
        let slot = self.table.slot(home.position());
        let of_partner = || slot_at(self.table.address(), slot.partner());
        match (slot.is_free(), slot.is_translated(), key.is_tcp()) {
            (true, ..) => self.likely_answers_lines(key),
            (_, true, _) => [Some(of_partner()), None],
            (_, _, true) => [Some(of_partner().wrapping_add(CACHE_LINE_BYTES)), None],
            _ => [None; 2],
        }
    }

    /// Where answers to a new flow will most likely be looked for.
    fn likely_answers_lines(&self, key: &FlowKey) -> [Option<usize>; 2] {
        let tenant = self.ports.port(key.ingress()).and_then(|port| port.tenant());
        let output = tenant.and_then(|tenant| self.ports.endpoint(tenant, key.addresses().destination()));
        let slot = output.map(|output| {
            slot_at(self.table.address(), self.table.places.home(&key.mirrored(output)).position())
        });
        [slot, slot.map(|slot| slot.wrapping_add(CACHE_LINE_BYTES))]
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
        let (_, home) = preview.flow.as_ref()?;
        let slot = slot_at(self.slots_at, home.position());
        Some([slot, slot.wrapping_add(CACHE_LINE_BYTES)])
    }
}

#[inline]
fn slot_at(first: usize, position: usize) -> usize {
    first.wrapping_add(position.wrapping_mul(size_of::<FlowSlot>()))
}
