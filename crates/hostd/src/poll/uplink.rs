// SPDX-License-Identifier: Apache-2.0
//! A port that leads out of the mesh: a TAP interface of the host in the loop.
//!
//! Frames of the host are read into private memory as a whole and go the way of any other frame. Frames for
//! the host are put together from a guest's memory and written, UDP super-frames in pieces. Neither ever blocks: what the
//! host cannot take at once is lost and counted, and what it sends faster than it is read is lost in the host's queue.

use model::Moment;
use packet::finish::Cut;
use packet::{GsoKind, VnetHeader};
use platform::Tap;
use vhost_port::{Chain, SendError, VNET_HEADER_BYTES};
use vswitch::{FRAME_LEN_BYTES_MAX, Frame, PortId};

use super::parked::Parking;
use crate::introspect::{Outcome, Reply};

/// One uplink in the loop.
#[derive(Debug)]
pub struct Uplink {
    pub(super) id: PortId,
    pub(super) tap: Tap,
    /// What was read last, virtio-net header first.
    pub(super) incoming: Box<[u8]>,
    pub(super) incoming_len_bytes: usize,
    /// Where a frame for the host is put together.
    outgoing: Vec<u8>,
    /// One piece of it.
    piece: Vec<u8>,
    pub(super) held: Option<Held>,
    /// Frames that exceed a limit.
    pub(super) parking: Parking,
    pub(super) tickets: u64,
}

/// What was read last waits until the process that it is for is known.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) deadline: Moment,
    pub(super) outcome: Option<Outcome>,
}

impl Uplink {
    pub fn new(id: PortId, tap: Tap) -> Self {
        let room = VNET_HEADER_BYTES + FRAME_LEN_BYTES_MAX;
        Self {
            id,
            tap,
            incoming: vec![0; room].into(),
            incoming_len_bytes: 0,
            outgoing: Vec::with_capacity(room),
            piece: Vec::new(),
            held: None,
            parking: Parking::default(),
            tickets: 0,
        }
    }

    pub(super) fn id(&self) -> PortId {
        self.id
    }

    pub(super) fn answered(&mut self, reply: Reply) {
        if let Some(held) = self.held.as_mut().filter(|_| reply.ticket == self.tickets) {
            held.outcome = Some(reply.outcome);
        }
    }

    /// When the wait for an answer ends.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let answer = self.held.as_ref().map(|held| held.deadline);
        answer.into_iter().chain(self.parking.deadline()).min()
    }

    /// Gives the host a frame that is in private memory with its virtio-net header.
    pub(super) fn send_whole(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        let Self { tap, piece, .. } = self;
        in_pieces(bytes, piece, |bytes| tap.send(bytes).map_err(|_| SendError::Stopped))
    }

    /// Gives the host a frame of a guest: its head, and what follows `from` in the chain.
    pub(super) fn send_frame(
        &mut self,
        frame: &Frame,
        (chain, from): (Chain<'_>, usize),
    ) -> Result<(), SendError> {
        self.outgoing.clear();
        self.outgoing.extend_from_slice(&frame.vnet.to_bytes());
        self.outgoing.extend_from_slice(frame.bytes());
        let start = self.outgoing.len();
        let rest_len_bytes = frame.total_len_bytes - frame.head_len_bytes;
        self.outgoing.resize(start + rest_len_bytes, 0);
        if chain.copy_out(from, &mut self.outgoing[start..]) != rest_len_bytes {
            return Err(SendError::Malformed);
        }
        let Self { tap, outgoing, piece, .. } = self;
        in_pieces(outgoing, piece, |bytes| tap.send(bytes).map_err(|_| SendError::Stopped))
    }
}

/// Has `send` take a frame with its virtio-net header, or each piece of one that is a UDP super-frame: Linux before 6.2
/// refuses those at a TAP interface. The first piece that is not taken ends it.
fn in_pieces(
    bytes: &[u8],
    piece: &mut Vec<u8>,
    mut send: impl FnMut(&[u8]) -> Result<(), SendError>,
) -> Result<(), SendError> {
    let (header, frame) = bytes.split_first_chunk().ok_or(SendError::Malformed)?;
    let vnet = VnetHeader::from_bytes(*header);
    if vnet.gso() != Ok(GsoKind::Udp) {
        return send(bytes);
    }
    let cut = Cut::plan(&vnet, frame).map_err(|_| SendError::Offload)?;
    for number in 0..cut.pieces() {
        cut.piece(frame, number, piece);
        drop(piece.splice(..0, VnetHeader::default().to_bytes()));
        send(piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use model::MacAddr;
    use packet::Addresses;
    use packet::emit::{self, Link};

    use super::*;

    /// Lengths of the frames that the host is given for one with `payload` bytes of UDP.
    fn given((gso_type, gso_size): (u8, u16), payload: usize) -> Result<Vec<usize>, SendError> {
        let link = Link { source: MacAddr([2; 6]), destination: MacAddr([4; 6]) };
        let [source, destination] = [1, 2].map(|host| Ipv4Addr::new(10, 0, 0, host));
        let payload = vec![7; payload];
        let frame = emit::udp(link, Addresses::V4 { source, destination }, (5000, 443), &payload);
        let vnet = VnetHeader { flags: 1, gso_type, gso_size, ..VnetHeader::default() };
        let (mut given, mut piece) = (Vec::new(), Vec::new());
        in_pieces(&[&vnet.to_bytes()[..], &frame].concat(), &mut piece, |bytes| {
            let (header, frame) = bytes.split_first_chunk().ok_or(SendError::Malformed)?;
            // What is whole keeps its header; pieces ask for nothing.
            let expected = if gso_type == 5 { VnetHeader::default() } else { vnet };
            assert_eq!(VnetHeader::from_bytes(*header), expected);
            given.push(frame.len());
            Ok(())
        })?;
        Ok(given)
    }

    #[test]
    fn the_host_gets_udp_super_frames_in_pieces_and_everything_else_whole() {
        const HEADERS: usize = 14 + 20 + 8;
        for (gso_type, payload, expected) in [
            (0, 700, vec![700]),
            (1, 2700, vec![2700]),
            (5, 2700, vec![1200, 1200, 300]),
            (5, 1200, vec![1200]),
        ] {
            let expected: Vec<usize> = expected.into_iter().map(|payload| HEADERS + payload).collect();
            assert_eq!(given((gso_type, 1200), payload), Ok(expected), "type {gso_type}, {payload} bytes");
        }
        assert_eq!(given((5, 1), 257), Err(SendError::Offload), "more pieces than a frame may have");
    }
}
