// SPDX-License-Identifier: Apache-2.0
//! Frames on their last way: into a guest's ring or the host's interface, or to the core that has it.

use std::ops::Range;

use packet::VnetHeader;
use vhost_port::{Batch, Chain, Outgoing, Port, SendError, VNET_HEADER_BYTES};
use vswitch::{Emission, PortId};

use super::core::Core;
use super::desk::{Desk, List, Positions};
use super::finish::Workbench;
use super::link;

/// Frames taken from another core in a round, while no port moves.
const PARCELS_MAX: usize = 2 * Batch::FRAMES_MAX;

impl Core {
    /// Delivers frames that were decided on: rewritten head from private memory, the rest from guest to guest. Those for
    /// one port go there together.
    pub(super) fn deliver(
        &mut self,
        (own, own_port): (PortId, &mut Port),
        positions: Range<usize>,
        batch: &Batch,
    ) {
        let mut outputs = Positions::default();
        positions.clone().for_each(|position| outputs.set(position, self.desk.outputs[position].is_some()));
        self.deliver_by((own, &mut *own_port), outputs, batch, |desk, position| {
            desk.outputs[position].map(|(to, _)| to)
        });
        let mirrored = self.desk.mirrored.within(positions);
        self.deliver_by((own, own_port), mirrored, batch, |desk, position| desk.frames[position].mirror);
    }

    /// Delivers each frame to the port that `to` says.
    fn deliver_by(
        &mut self,
        (own, own_port): (PortId, &mut Port),
        mut left: Positions,
        batch: &Batch,
        to: impl Fn(&Desk, usize) -> Option<PortId>,
    ) {
        while let Some(receiver) = left.first().and_then(|first| to(&self.desk, first)) {
            let together = left.take(|position| to(&self.desk, position) == Some(receiver));
            self.deliver_to(receiver, (own, &mut *own_port), &together, batch);
        }
    }

    fn deliver_to(
        &mut self,
        to: PortId,
        (own, own_port): (PortId, &mut Port),
        positions: &List,
        batch: &Batch,
    ) {
        // A machine may call a service that it offers itself; its own lane is taken out.
        let receiver = match self.lanes.get_mut(usize::from(to.0)) {
            _ if to == own => Some(own_port),
            Some(Some(lane)) => Some(&mut lane.port),
            _ => None,
        };
        if let Some(port) = receiver {
            let undelivered = deliver_to_guest(port, &self.desk, &mut self.workbench, positions, batch);
            self.numbers.undelivered += undelivered;
            return;
        }
        let uplink = self.uplinks.iter().position(|uplink| uplink.id() == to);
        for position in positions.iter() {
            let rest = rest_of(&self.desk, batch, position);
            match uplink {
                Some(index) => {
                    let (uplink, frame) = (&mut self.uplinks[index], &self.desk.frames[position]);
                    let sent = self.workbench.deliver(uplink, 0, frame, rest);
                    self.numbers.undelivered += u64::from(sent.is_err());
                }
                None => self.hand_frame_over((to, spread_of(&self.desk, position)), position, rest),
            }
        }
    }

    /// Sends a frame to the core that has its port.
    fn hand_frame_over(&mut self, to: (PortId, u32), position: usize, (chain, from): (Chain<'_>, usize)) {
        let Self { desk, links, numbers, .. } = self;
        let frame = &desk.frames[position];
        let head_bytes = VNET_HEADER_BYTES + frame.head_len_bytes;
        links.hand_over(numbers, to, VNET_HEADER_BYTES + frame.total_len_bytes, |room| {
            let (head, rest) = room.split_at_mut(head_bytes);
            head[..VNET_HEADER_BYTES].copy_from_slice(&frame.vnet.to_bytes());
            head[VNET_HEADER_BYTES..].copy_from_slice(frame.bytes());
            chain.copy_out(from, rest) == rest.len()
        });
    }

    /// Delivers frames that were sent here, [`PARCELS_MAX`] of each core's, or all while ports move; tells whether there
    /// were any.
    pub(super) fn take_parcels(&mut self) -> bool {
        let frames_max = if self.moves.is_empty() { PARCELS_MAX } else { link::FRAMES_MAX };
        let mut busy = false;
        while let Some(core) = self.moves.next_arrived() {
            busy |= self.take_parcels_from(core.index(), frames_max);
        }
        for core in 0..self.links.incoming.len() {
            busy |= self.take_parcels_from(core, frames_max);
        }
        if busy {
            let took = self.lap();
            if !self.has_waited(took) {
                self.suspects.clear();
            }
        }
        busy
    }

    /// Delivers up to so many frames that a core sent, up to the first for a port that is still on its way here.
    fn take_parcels_from(&mut self, core: usize, frames_max: usize) -> bool {
        let mut busy = false;
        for _ in 0..frames_max {
            let Some(to) = self.links.incoming[core].next_receiver() else { break };
            if self.is_coming(to) {
                break;
            }
            let Some(parcel) = self.links.incoming[core].receive() else { break };
            self.deliver_whole(to, parcel.spread, parcel.bytes());
            self.suspects.push(to);
            self.links.incoming[core].give_back(parcel);
            busy = true;
        }
        busy
    }

    /// Whether a port is this core's, but not here yet.
    fn is_coming(&mut self, id: PortId) -> bool {
        self.lane(id).is_none()
            && self.uplinks.iter().all(|uplink| uplink.id() != id)
            && self.links.owners.heads_for(id) == Some(self.id)
    }

    /// Delivers a frame that is in private memory with its virtio-net header.
    pub(super) fn deliver_whole(&mut self, to: PortId, spread: u32, bytes: &[u8]) {
        let Some((header, frame)) = bytes.split_first_chunk::<VNET_HEADER_BYTES>() else { return };
        let vnet = VnetHeader::from_bytes(*header);
        let sent = match self.lanes.get_mut(usize::from(to.0)) {
            Some(Some(lane)) => self.workbench.deliver_whole(&mut lane.port, spread, &vnet, frame),
            _ => match self.uplinks.iter_mut().find(|uplink| uplink.id() == to) {
                Some(uplink) => self.workbench.deliver_whole(uplink, spread, &vnet, frame),
                None => {
                    return self.links.hand_over(&mut self.numbers, (to, spread), bytes.len(), |room| {
                        room.copy_from_slice(bytes);
                        true
                    });
                }
            },
        };
        self.numbers.undelivered += u64::from(sent.is_err());
    }

    /// Delivers the frames that the switch made itself.
    pub(super) fn deliver_made(&mut self) {
        if self.turn.made.is_empty() {
            return;
        }
        let (mut made, mut whole) = (std::mem::take(&mut self.turn.made), std::mem::take(&mut self.scratch));
        for Emission { port, frame } in made.drain(..) {
            whole.clear();
            whole.extend_from_slice(&VnetHeader::default().to_bytes());
            whole.extend_from_slice(&frame);
            self.deliver_whole(port, 0, &whole);
        }
        (self.turn.made, self.scratch) = (made, whole);
    }
}

/// Puts frames of the batch into a guest's rings; says how many could not be.
fn deliver_to_guest(
    port: &mut Port,
    desk: &Desk,
    workbench: &mut Workbench,
    positions: &List,
    batch: &Batch,
) -> u64 {
    let (mut left, mut undelivered) = (positions.as_slice(), 0);
    loop {
        let sent = port.send_all(left.len(), |number| {
            let position = usize::from(left[number]);
            let frame = &desk.frames[position];
            Outgoing {
                spread: spread_of(desk, position),
                header: frame.vnet.to_number(),
                head: frame.bytes(),
                rest: Some(rest_of(desk, batch, position)),
            }
        });
        let Err((number, error)) = sent else { return undelivered };
        let position = usize::from(left[number]);
        let finished = error == SendError::Offload && {
            let (spread, frame) = (spread_of(desk, position), &desk.frames[position]);
            workbench.deliver_refused(port, spread, frame, rest_of(desk, batch, position)).is_ok()
        };
        undelivered += u64::from(!finished);
        left = &left[number + 1..];
    }
}

/// What of a frame is not in private memory.
#[inline]
fn rest_of<'b>(desk: &Desk, batch: &'b Batch, position: usize) -> (Chain<'b>, usize) {
    (batch.chain(position), VNET_HEADER_BYTES + desk.frames[position].head_len_bytes)
}

#[inline]
fn spread_of(desk: &Desk, position: usize) -> u32 {
    desk.outputs[position].map_or(0, |(_, spread)| spread)
}
