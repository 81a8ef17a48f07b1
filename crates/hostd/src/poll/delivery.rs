// SPDX-License-Identifier: Apache-2.0
//! Frames on their last way: into a guest's ring or the host's interface, or to the core that has it.

use std::ops::Range;

use model::Moment;
use packet::VnetHeader;
use vhost_port::{Batch, Chain, Port, SendError, VNET_HEADER_BYTES};
use vswitch::{Emission, PortId};

use super::round::Core;

impl Core {
    /// Delivers frames that were decided on: rewritten head from private memory, the rest from guest to guest.
    pub(super) fn deliver(
        &mut self,
        (own, own_port): (PortId, &mut Port),
        positions: Range<usize>,
        batch: &Batch,
    ) {
        for position in positions {
            let Some((to, spread)) = self.desk.outputs[position] else { continue };
            self.deliver_to(to, (own, &mut *own_port), spread, position, batch);
            if let Some(collector) = self.desk.frames[position].mirror {
                self.deliver_to(collector, (own, &mut *own_port), spread, position, batch);
            }
        }
    }

    fn deliver_to(
        &mut self,
        to: PortId,
        (own, own_port): (PortId, &mut Port),
        spread: u32,
        position: usize,
        batch: &Batch,
    ) {
        let frame = &self.desk.frames[position];
        let rest = (batch.chain(position), VNET_HEADER_BYTES + frame.head_len_bytes);
        // A machine may call a service that it offers itself; its own lane is taken out.
        let receiver = match self.lanes.get_mut(usize::from(to.0)) {
            _ if to == own => Some(own_port),
            Some(Some(lane)) => Some(&mut lane.port),
            _ => None,
        };
        let sent = match receiver {
            Some(port) => match port.send_parts(spread, frame.vnet.to_bytes(), frame.bytes(), Some(rest)) {
                Err(SendError::Offload) => self.workbench.deliver(port, spread, frame, rest),
                sent => sent,
            },
            None => match self.uplinks.iter_mut().find(|uplink| uplink.id() == to) {
                Some(uplink) => uplink.send_frame(frame, rest),
                None => return self.hand_frame_over((to, spread), position, rest),
            },
        };
        self.numbers.undelivered += u64::from(sent.is_err());
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

    /// Delivers up to so many frames from each of the other cores; tells whether there were any.
    pub(super) fn take_parcels(&mut self, frames_max: usize, now: Moment) -> bool {
        let mut busy = false;
        for index in 0..self.links.incoming.len() {
            for _ in 0..frames_max {
                let Some(parcel) = self.links.incoming[index].receive() else { break };
                if self.lane(parcel.to).is_none() {
                    // It may be on its way here.
                    self.take_commands(now);
                }
                self.deliver_whole(parcel.to, parcel.spread, parcel.bytes());
                self.suspects.push(parcel.to);
                self.links.incoming[index].give_back(parcel);
                busy = true;
            }
        }
        if busy {
            let took = self.lap();
            if !self.has_waited(took) {
                self.suspects.clear();
            }
        }
        busy
    }

    /// Delivers a frame that is in private memory with its virtio-net header.
    pub(super) fn deliver_whole(&mut self, to: PortId, spread: u32, bytes: &[u8]) {
        let Some((header, frame)) = bytes.split_first_chunk::<VNET_HEADER_BYTES>() else { return };
        let sent = match self.lanes.get_mut(usize::from(to.0)) {
            Some(Some(lane)) => match lane.port.send(spread, bytes, None) {
                Err(SendError::Offload) => {
                    let vnet = VnetHeader::from_bytes(*header);
                    self.workbench.deliver_whole(&mut lane.port, spread, &vnet, frame)
                }
                sent => sent,
            },
            _ => match self.uplinks.iter_mut().find(|uplink| uplink.id() == to) {
                Some(uplink) => uplink.send_whole(bytes),
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
