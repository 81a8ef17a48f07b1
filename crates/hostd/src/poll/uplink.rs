// SPDX-License-Identifier: Apache-2.0
//! A port that leads out of the mesh: a TAP interface of the host in the loop.
//!
//! Frames of the host are read into private memory as a whole and go the way of any other frame. Frames for
//! the host are put together from a guest's memory and written, UDP super-frames in pieces. Neither ever blocks: what the
//! host cannot take at once is lost and counted, and what it sends faster than it is read is lost in the host's queue.

use model::Moment;
use packet::finish::Cut;
use packet::{GsoKind, VnetHeader};
use platform::{Tap, Trigger};
use vhost_port::{Batch, Chain, SendError, VNET_HEADER_BYTES};
use vswitch::{Answers, FRAME_LEN_BYTES_MAX, Frame, HEAD_LEN_BYTES_MAX, PortId, Question, Verdict};

use super::lane::{HEAD_FIRST_BYTES, copy_whole_head, put_head};
use super::parked::Parking;
use super::round::Core;
use crate::introspect::{Inquiry, Outcome, Reply};

/// One uplink in the loop.
#[derive(Debug)]
pub struct Uplink {
    id: PortId,
    tap: Tap,
    /// What was read last, virtio-net header first.
    incoming: Box<[u8]>,
    incoming_len_bytes: usize,
    /// Where a frame for the host is put together.
    outgoing: Vec<u8>,
    /// One piece of it.
    piece: Vec<u8>,
    held: Option<Held>,
    /// Frames that exceed a limit.
    parking: Parking,
    tickets: u64,
}

/// What was read last waits until the process that it is for is known.
#[derive(Debug)]
struct Held {
    deadline: Moment,
    outcome: Option<Outcome>,
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

impl Core {
    /// Serves another interface of the host.
    pub(super) fn add_uplink(&mut self, uplink: Uplink) {
        if let Err(error) = self.poller.add(&uplink.tap, u64::from(uplink.id.0), Trigger::Edge) {
            tracing::error!(%error, "cannot wait for the host's frames");
        }
        self.links.owners.set(uplink.id, self.id);
        self.uplinks.push(uplink);
    }

    /// Moves up to a batch of frames of the host; tells whether there were any.
    pub(super) fn serve_uplink(&mut self, uplink: &mut Uplink, now: Moment) -> bool {
        let mut parking = std::mem::take(&mut uplink.parking);
        let mut busy = self.release(uplink.id, &mut parking, None, now);
        // The host has long had its buffers back.
        parking.give_back();
        uplink.parking = parking;
        if let Some(held) = uplink.held.take() {
            match held.outcome {
                Some(Outcome::Answers(answers)) => self.decide_incoming(uplink, Some(&answers), now),
                Some(Outcome::NotReady) => self.numbers.not_ready += 1,
                None if now < held.deadline => {
                    uplink.held = Some(held);
                    return false;
                }
                None => self.numbers.late += 1,
            }
            busy = true;
        }
        for _ in 0..Batch::FRAMES_MAX {
            if uplink.held.is_some() || uplink.parking.is_full() {
                break;
            }
            let Some(len_bytes) = uplink.tap.receive(&mut uplink.incoming) else { break };
            uplink.incoming_len_bytes = len_bytes;
            self.numbers.frames += 1;
            self.decide_incoming(uplink, None, now);
            busy = true;
        }
        busy
    }

    fn decide_incoming(&mut self, uplink: &mut Uplink, answers: Option<&Answers>, now: Moment) {
        let Self { desk, previewer, shared, turn, .. } = self;
        let (frame, preview) = desk.first();
        let mut verdict = Verdict::NeedMore;
        frame.departs = None;
        for head_bytes in [HEAD_FIRST_BYTES, HEAD_LEN_BYTES_MAX] {
            if verdict == Verdict::NeedMore {
                copy_whole_head(frame, &uplink.incoming[..uplink.incoming_len_bytes], head_bytes);
                previewer.preview(uplink.id, frame, preview);
                if uplink.parking.holds_back(preview.spread()) {
                    break;
                }
                verdict = shared.with(now, turn, |switch, now| {
                    switch.process_previewed(now, uplink.id, frame, preview, answers)
                });
            }
        }
        match verdict {
            Verdict::Forward(to) => self.deliver_incoming(uplink, to),
            Verdict::Ask(question) => self.ask_incoming(uplink, question, now),
            Verdict::Hold(_) => self.park_incoming(uplink),
            Verdict::NeedMore if uplink.parking.holds_back(preview.spread()) => self.park_incoming(uplink),
            Verdict::Answered | Verdict::Drop(_) | Verdict::NeedMore => {}
        }
    }

    /// Gives a guest what was read last, with its head as rewritten, and another one a copy.
    fn deliver_incoming(&mut self, uplink: &mut Uplink, to: PortId) {
        let (frame, preview) = self.desk.first();
        let (spread, mirror) = (preview.spread(), frame.mirror);
        let bytes = &mut uplink.incoming[..uplink.incoming_len_bytes];
        put_head(bytes, frame);
        for to in [Some(to), mirror].into_iter().flatten() {
            self.deliver_whole(to, spread, bytes);
        }
    }

    /// Keeps what was read last until its time, or until the frame of its flow before it has left.
    fn park_incoming(&mut self, uplink: &mut Uplink) {
        let (frame, preview) = self.desk.first();
        let whole = &uplink.incoming[..uplink.incoming_len_bytes];
        uplink.parking.park_whole((preview.spread(), frame.departs), whole);
    }

    fn ask_incoming(&mut self, uplink: &mut Uplink, question: Question, now: Moment) {
        uplink.tickets += 1;
        // The host's frames have no descriptor; only guests' ends are asked for.
        let inquiry = Inquiry { port: uplink.id, ticket: uplink.tickets, question, descriptor: (0, 0) };
        if self.wiring.inquiries.try_send(inquiry).is_err() {
            self.numbers.late += 1;
            return;
        }
        uplink.held = Some(Held { deadline: now.after(self.wiring.attribution_wait), outcome: None });
    }
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
