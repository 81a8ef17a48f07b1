// SPDX-License-Identifier: Apache-2.0
//! One port in the loop: its half-done batch, and the frame that waits for an answer.

use model::{Moment, NicRef};
use packet::VnetHeader;
use vhost_port::{Batch, Chain, Port, SendError, VNET_HEADER_BYTES};
use vswitch::{Answers, Frame, HEAD_LEN_BYTES_MAX, PortId, Question, Verdict};

use super::Poll;
use crate::introspect::{Inquiry, Outcome, Reply};

/// Bytes of a frame copied at first: the headers of nearly every packet.
const HEAD_FIRST_BYTES: usize = 192;

/// One port in the loop.
#[derive(Debug)]
pub struct Lane {
    pub(super) id: PortId,
    pub(super) card: NicRef,
    pub(super) port: Port,
    batch: Batch,
    /// Position in the batch of the next frame to be handled; those before it are done.
    next: usize,
    held: Option<Held>,
    tickets: u64,
    /// Guest-physical address of the descriptor table of the ring of frames from the guest.
    transmit: Option<u64>,
}

/// The frame at `next` waits for an answer.
#[derive(Debug)]
struct Held {
    ticket: u64,
    since: Moment,
    deadline: Moment,
    /// The frame as it was asked about. The guest may write something else into its ring meanwhile; what
    /// is judged by the answer is this.
    frame: Box<Frame>,
    outcome: Option<Outcome>,
}

/// What became of a frame.
enum Handled {
    /// It can be given back to the guest.
    Done,
    /// It stays where it is.
    Held,
}

impl Lane {
    pub(super) fn new(id: PortId, card: NicRef, port: Port) -> Self {
        Self { id, card, port, batch: Batch::new(), next: 0, held: None, tickets: 0, transmit: None }
    }

    /// Forgets frames that belong to rings of before; `transmit` is where the new one lies, if there is one.
    pub(super) fn reset(&mut self, transmit: Option<u64>) {
        self.transmit = transmit;
        self.batch.clear();
        self.next = 0;
        self.held = None;
    }

    pub(super) fn answered(&mut self, reply: Reply) {
        if let Some(held) = self.held.as_mut().filter(|held| held.ticket == reply.ticket) {
            held.outcome = Some(reply.outcome);
        }
    }

    /// Whether the lane waits for an answer.
    pub(super) fn is_paused(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.outcome.is_none())
    }

    /// When the wait for an answer ends.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.held.as_ref().map(|held| held.deadline)
    }

    /// Delivers a frame of the switch's own, complete with checksums.
    pub(super) fn send_own(&mut self, frame: &[u8]) -> Result<(), SendError> {
        let mut bytes = Vec::with_capacity(VNET_HEADER_BYTES + frame.len());
        bytes.extend_from_slice(&VnetHeader::default().to_bytes());
        bytes.extend_from_slice(frame);
        self.port.send(&bytes, None)
    }
}

impl Poll {
    /// Moves up to a batch of frames of one guest; tells whether there were any.
    pub(super) fn serve(&mut self, lane: &mut Lane, now: Moment) -> bool {
        if lane.is_paused() && lane.deadline().is_some_and(|deadline| now < deadline) {
            return false;
        }
        if lane.next == lane.batch.len() {
            lane.next = 0;
            match lane.port.receive(&mut lane.batch) {
                Ok(0) => return false,
                Ok(count) => self.numbers.frames += count as u64,
                Err(fault) => {
                    tracing::warn!(nic = %lane.card, %fault, "guest's ring makes no sense, its port stops");
                    self.stopped(lane);
                    return false;
                }
            }
        }
        let first = lane.next;
        let batch = std::mem::take(&mut lane.batch);
        while lane.next < batch.len() {
            match self.handle(lane, &batch.chain(lane.next), now) {
                Handled::Done => lane.next += 1,
                Handled::Held => break,
            }
        }
        lane.batch = batch;
        let done = lane.next - first;
        lane.port.complete(done);
        done > 0
    }

    /// Takes one frame through the switch.
    fn handle(&mut self, lane: &mut Lane, chain: &Chain<'_>, now: Moment) -> Handled {
        let Some(answers) = self.resume(lane, chain, now) else { return Handled::Done };
        let mut verdict = self.switch.process(now, lane.id, &mut self.frame, answers.as_ref());
        if verdict == Verdict::NeedMore {
            self.copy_head(chain, HEAD_LEN_BYTES_MAX);
            verdict = self.switch.process(now, lane.id, &mut self.frame, answers.as_ref());
        }
        match verdict {
            Verdict::Forward(to) => self.forward(to, chain),
            Verdict::Ask(question) => return self.ask(lane, chain, question, now),
            // The switch has counted why.
            Verdict::Answered | Verdict::Drop(_) | Verdict::NeedMore => {}
        }
        Handled::Done
    }

    /// Makes the frame ready to be judged: a new one without answers, or the held one with them. `None` when it
    /// is to be dropped.
    fn resume(&mut self, lane: &mut Lane, chain: &Chain<'_>, now: Moment) -> Option<Option<Answers>> {
        let Some(held) = lane.held.take() else {
            self.copy_head(chain, HEAD_FIRST_BYTES);
            return Some(None);
        };
        match held.outcome {
            Some(Outcome::Answers(answers)) => {
                let waited = u64::try_from(now.since(held.since).as_nanos()).unwrap_or(u64::MAX);
                self.waits.saturating_record(waited);
                self.frame = held.frame;
                Some(Some(answers))
            }
            Some(Outcome::NotReady) => {
                self.numbers.not_ready += 1;
                None
            }
            None => {
                self.numbers.late += 1;
                None
            }
        }
    }

    /// Copies the virtio-net header and the start of the frame into private memory.
    fn copy_head(&mut self, chain: &Chain<'_>, head_bytes: usize) {
        let Frame { vnet, head, head_len_bytes, total_len_bytes } = &mut *self.frame;
        let mut vnet_bytes = [0; VNET_HEADER_BYTES];
        chain.copy_out(0, &mut vnet_bytes);
        *vnet = VnetHeader::from_bytes(vnet_bytes);
        *total_len_bytes = chain.len_bytes() - VNET_HEADER_BYTES;
        *head_len_bytes = (*total_len_bytes).min(head_bytes);
        chain.copy_out(VNET_HEADER_BYTES, &mut head[..*head_len_bytes]);
    }

    /// Delivers the frame: rewritten head from private memory, the rest from guest to guest.
    fn forward(&mut self, to: PortId, chain: &Chain<'_>) {
        let frame = &self.frame;
        let head_len = VNET_HEADER_BYTES + frame.head_len_bytes;
        let head = &mut self.head[..head_len];
        head[..VNET_HEADER_BYTES].copy_from_slice(&frame.vnet.to_bytes());
        head[VNET_HEADER_BYTES..].copy_from_slice(frame.bytes());
        let sent = match self.lanes.get_mut(usize::from(to.0)) {
            Some(Some(lane)) => lane.port.send(head, Some((*chain, head_len))),
            _ => Err(SendError::Stopped),
        };
        if sent.is_err() {
            self.numbers.undelivered += 1;
        }
    }

    /// Pauses the lane until the introspection thread has answered.
    fn ask(&mut self, lane: &mut Lane, chain: &Chain<'_>, question: Question, now: Moment) -> Handled {
        lane.tickets += 1;
        let ticket = lane.tickets;
        let Some(ring) = lane.transmit else { return Handled::Done };
        let inquiry = Inquiry { port: lane.id, ticket, question, descriptor: (ring, chain.head()) };
        if self.wiring.inquiries.try_send(inquiry).is_err() {
            self.numbers.late += 1;
            return Handled::Done;
        }
        let deadline = now.after(self.wiring.attribution_wait);
        let frame = std::mem::take(&mut self.frame);
        lane.held = Some(Held { ticket, since: now, deadline, frame, outcome: None });
        Handled::Held
    }
}
