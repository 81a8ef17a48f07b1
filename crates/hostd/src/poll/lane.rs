// SPDX-License-Identifier: Apache-2.0
//! One port in the loop: of each of its queue pairs a half-done batch, and the frame that waits for an answer.
//!
//! A batch goes through three stages, each for all of its frames before the next begins, because what a frame
//! needs is mostly far away, in another processor's cache or in the flow table, and is fetched meanwhile:
//!
//! 1. *Read*: the head of every frame is copied into private memory. Then it is parsed, and the slot of its
//!    flow prefetched; and so are as many buffers of the guest that the queue's last frame went to.
//! 2. *Decide*: the switch is asked frame by frame, in order, for a frame's verdict may depend on the frame
//!    before. The first frame that must wait for an answer ends the stage; it and those after it stay in the
//!    queue, and those after it will be read anew.
//! 3. *Deliver*: what was decided goes out, in order; finished first, if its receiver does not take it as it is.
//!
//! Delivery writes to memory that a guest has in its cache. Nothing that was just written is read back in
//! between, because such a read may wait for all of these writes to be done.

use std::ops::Range;

use model::{Moment, NicRef};
use packet::VnetHeader;
use platform::prefetch;
use vhost_port::{Batch, Chain, Port, SendError, VNET_HEADER_BYTES};
use vswitch::{Answers, Frame, HEAD_LEN_BYTES_MAX, PortId, Preview, Question, Verdict};

use super::{Poll, record};
use crate::introspect::{Inquiry, Outcome, Reply};

/// Bytes of a frame copied at first: the headers of nearly every packet.
pub(super) const HEAD_FIRST_BYTES: usize = 192;

/// One port in the loop.
#[derive(Debug)]
pub struct Lane {
    pub(super) id: PortId,
    pub(super) card: NicRef,
    pub(super) port: Port,
    queues: [Queue; Port::PAIRS_MAX],
}

/// One queue pair of a port.
#[derive(Debug, Default)]
struct Queue {
    pair: usize,
    batch: Batch,
    /// Position in the batch of the next frame to be handled; those before it are done.
    next: usize,
    held: Option<Held>,
    /// Where the last frame went, and so perhaps the next ones.
    last_output: Option<Output>,
    tickets: u64,
    /// Whether this round may still look for a process by itself.
    may_glance: bool,
    /// Guest-physical address of the descriptor table of the ring of frames from the guest.
    transmit: Option<u64>,
}

/// Where a frame goes: a port, and what decides between its queue pairs.
type Output = (PortId, u32);

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

/// Where a batch lies while it goes through its stages; by position in the batch.
pub(super) struct Desk {
    frames: Box<[Frame]>,
    previews: Box<[Preview]>,
    /// Where frames go; nowhere, if the switch has consumed them.
    outputs: [Option<Output>; Batch::FRAMES_MAX],
}

impl Desk {
    pub(super) fn new() -> Self {
        let frames = vec![Frame::default(); Batch::FRAMES_MAX].into();
        let previews = vec![Preview::default(); Batch::FRAMES_MAX].into();
        Self { frames, previews, outputs: [None; Batch::FRAMES_MAX] }
    }

    /// Room for a frame that comes alone, while no batch is being handled.
    pub(super) fn first(&mut self) -> (&mut Frame, &mut Preview) {
        (&mut self.frames[0], &mut self.previews[0])
    }
}

/// What became of a frame.
enum Decided {
    /// It can be given back to the guest, once delivered if it has somewhere to go.
    Done(Option<PortId>),
    /// It stays where it is.
    Held,
}

impl Lane {
    pub(super) fn new(id: PortId, card: NicRef, port: Port) -> Self {
        let queues = std::array::from_fn(|pair| Queue { pair, ..Queue::default() });
        Self { id, card, port, queues }
    }

    /// Forgets frames that belong to a pair's rings of before; `transmit` is where the new one lies, if there is one.
    pub(super) fn reset(&mut self, pair: usize, transmit: Option<u64>) {
        let queue = &mut self.queues[pair];
        queue.transmit = transmit;
        queue.batch.clear();
        queue.next = 0;
        queue.held = None;
    }

    pub(super) fn answered(&mut self, reply: Reply) {
        let held = self.queues.iter_mut().filter_map(|queue| queue.held.as_mut());
        if let Some(held) = held.into_iter().find(|held| held.ticket == reply.ticket) {
            held.outcome = Some(reply.outcome);
        }
    }

    /// Asks for kicks; tells whether there is work already.
    pub(super) fn arm(&mut self) -> bool {
        self.port.flush();
        let mut work = false;
        for queue in &self.queues {
            work |= queue.transmit.is_some() && self.port.arm_kicks(queue.pair) && !queue.is_paused();
        }
        work
    }

    /// When the wait for an answer ends, the first of all.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.queues.iter().filter_map(Queue::deadline).min()
    }

    /// Delivers a frame of the switch's own, complete with checksums.
    pub(super) fn send_own(&mut self, frame: &[u8]) -> Result<(), SendError> {
        let mut bytes = Vec::with_capacity(VNET_HEADER_BYTES + frame.len());
        bytes.extend_from_slice(&VnetHeader::default().to_bytes());
        bytes.extend_from_slice(frame);
        self.port.send(0, &bytes, None)
    }
}

impl Queue {
    /// Whether the queue waits for an answer.
    fn is_paused(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.outcome.is_none())
    }

    fn deadline(&self) -> Option<Moment> {
        self.held.as_ref().map(|held| held.deadline)
    }
}

impl Poll {
    /// Moves up to a batch of frames from each of a guest's queues; tells whether there were any.
    pub(super) fn serve(&mut self, lane: &mut Lane, now: Moment) -> bool {
        let Lane { id, port, queues, .. } = lane;
        let (mut busy, mut may_glance) = (false, true);
        for queue in queues.iter_mut().filter(|queue| queue.transmit.is_some()) {
            queue.may_glance = may_glance;
            busy |= self.serve_queue(*id, port, queue, now);
            may_glance = queue.may_glance;
        }
        busy
    }

    fn serve_queue(&mut self, id: PortId, port: &mut Port, queue: &mut Queue, now: Moment) -> bool {
        if queue.is_paused() && queue.deadline().is_some_and(|deadline| now < deadline) {
            return false;
        }
        if !self.take(port, queue) {
            return false;
        }
        let first = queue.next;
        let batch = std::mem::take(&mut queue.batch);
        self.read(id, queue, &batch);
        self.decide(id, queue, &batch, now);
        self.deliver((id, port), first..queue.next, &batch);
        queue.last_output = self.desk.outputs[first..queue.next].last().copied().flatten();
        queue.batch = batch;
        let done = queue.next - first;
        port.complete(queue.pair, done);
        // What comes next is on its way while other lanes are served.
        self.take(port, queue);
        // A question just asked is answered soon: not worth a sleep.
        done > 0 || queue.is_paused()
    }

    /// Takes a batch from the guest if the last one is done; tells whether there are frames to be handled.
    fn take(&mut self, port: &mut Port, queue: &mut Queue) -> bool {
        if queue.next < queue.batch.len() {
            return true;
        }
        queue.next = 0;
        match port.receive(queue.pair, &mut queue.batch) {
            Ok(count) => {
                self.numbers.frames += count as u64;
                count > 0
            }
            Err(fault) => {
                // The port tells of it as an event, too.
                tracing::warn!(%fault, "guest's ring makes no sense, its queue stops");
                false
            }
        }
    }

    /// Copies the heads of the queue's frames, and fetches what the switch will look at.
    fn read(&mut self, id: PortId, queue: &Queue, batch: &Batch) {
        let Desk { frames, previews, .. } = &mut self.desk;
        for position in queue.next..batch.len() {
            copy_head(&mut frames[position], &batch.chain(position), HEAD_FIRST_BYTES);
        }
        if let Some((to, spread)) = queue.last_output
            && let Some(Some(likely)) = self.lanes.get_mut(usize::from(to.0))
        {
            likely.port.expect_to_send(spread, batch.len() - queue.next);
        }
        for (frame, preview) in frames.iter().zip(previews).take(batch.len()).skip(queue.next) {
            self.switch.preview(id, frame, preview);
            if let Some((slot, tally)) = self.switch.likely_slot(preview) {
                prefetch(slot);
                prefetch(tally);
            }
        }
    }

    /// Asks the switch about the queue's frames until one must wait.
    fn decide(&mut self, id: PortId, queue: &mut Queue, batch: &Batch, now: Moment) {
        while queue.next < batch.len() {
            match self.decide_one(id, queue, &batch.chain(queue.next), now) {
                Decided::Done(output) => {
                    let output = output.map(|to| (to, self.desk.previews[queue.next].spread()));
                    self.desk.outputs[queue.next] = output;
                }
                Decided::Held => break,
            }
            queue.next += 1;
        }
    }

    fn decide_one(&mut self, id: PortId, queue: &mut Queue, chain: &Chain<'_>, now: Moment) -> Decided {
        let mut verdict = match queue.held.take() {
            None => self.process(id, queue.next, None, now),
            Some(held) => {
                let Some(answers) = self.resume(held, queue.next) else { return Decided::Done(None) };
                self.preview(id, queue.next);
                self.process(id, queue.next, Some(&answers), now)
            }
        };
        if verdict == Verdict::NeedMore {
            copy_head(&mut self.desk.frames[queue.next], chain, HEAD_LEN_BYTES_MAX);
            self.preview(id, queue.next);
            verdict = self.process(id, queue.next, None, now);
        }
        match verdict {
            Verdict::Ask(question) => self.look(id, queue, chain, question, now),
            verdict => decided(&verdict),
        }
    }

    /// Works out what a frame of the batch says, once more because it is not what was read at first.
    fn preview(&mut self, id: PortId, position: usize) {
        self.switch.preview(id, &self.desk.frames[position], &mut self.desk.previews[position]);
    }

    /// Asks the switch about a frame of the batch.
    fn process(&mut self, id: PortId, position: usize, answers: Option<&Answers>, now: Moment) -> Verdict {
        let (frame, preview) = (&mut self.desk.frames[position], &self.desk.previews[position]);
        self.switch.process_previewed(now, id, frame, preview, answers)
    }

    /// Looks for the process at once, which mostly suffices. Once for each guest and round, so that no guest takes
    /// much of the other guests' time: its next frame that needs it stays where it is until the next round.
    fn look(
        &mut self,
        id: PortId,
        queue: &mut Queue,
        chain: &Chain<'_>,
        question: Question,
        now: Moment,
    ) -> Decided {
        if !std::mem::take(&mut queue.may_glance) {
            return Decided::Held;
        }
        let Some(ring) = queue.transmit else { return Decided::Done(None) };
        let descriptor = (ring, chain.head());
        let started = super::now();
        match self.wiring.introspection.glance(&question, descriptor) {
            Some(Outcome::Answers(answers)) => {
                record(&mut self.lookups, super::now().since(started));
                let verdict = self.process(id, queue.next, Some(&answers), now);
                self.record_wait(now);
                match verdict {
                    Verdict::Ask(question) => self.ask(id, queue, descriptor, question, now),
                    verdict => decided(&verdict),
                }
            }
            Some(Outcome::NotReady) => {
                self.numbers.not_ready += 1;
                Decided::Done(None)
            }
            None => self.ask(id, queue, descriptor, question, now),
        }
    }

    /// Notes how long a frame waited for its process to be known.
    fn record_wait(&mut self, since: Moment) {
        record(&mut self.waits, super::now().since(since));
    }

    /// Puts the held frame back into its place, to be judged with the answers. `None` when it is to be dropped.
    fn resume(&mut self, held: Held, position: usize) -> Option<Answers> {
        match held.outcome {
            Some(Outcome::Answers(answers)) => {
                self.record_wait(held.since);
                self.desk.frames[position] = *held.frame;
                Some(answers)
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

    /// Delivers frames that were decided on: rewritten head from private memory, the rest from guest to guest.
    fn deliver(&mut self, (own, own_port): (PortId, &mut Port), positions: Range<usize>, batch: &Batch) {
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
            Some(Some(Lane { port, .. })) => Some(port),
            _ => None,
        };
        let sent = match receiver {
            Some(port) => match port.send_parts(spread, frame.vnet.to_bytes(), frame.bytes(), Some(rest)) {
                Err(SendError::Offload) => self.workbench.deliver(port, spread, frame, rest),
                sent => sent,
            },
            None => match self.uplinks.iter_mut().find(|uplink| uplink.id() == to) {
                Some(uplink) => uplink.send_frame(frame, rest),
                None => Err(SendError::Stopped),
            },
        };
        self.numbers.undelivered += u64::from(sent.is_err());
    }

    /// Pauses the queue until the introspection thread has answered.
    fn ask(
        &mut self,
        id: PortId,
        queue: &mut Queue,
        descriptor: (u64, u16),
        question: Question,
        now: Moment,
    ) -> Decided {
        queue.tickets += 1;
        // Of all queues of a port.
        let ticket = queue.tickets * Port::PAIRS_MAX as u64 + queue.pair as u64;
        let inquiry = Inquiry { port: id, ticket, question, descriptor };
        if self.wiring.inquiries.try_send(inquiry).is_err() {
            self.numbers.late += 1;
            return Decided::Done(None);
        }
        let deadline = now.after(self.wiring.attribution_wait);
        let frame = Box::new(self.desk.frames[queue.next].clone());
        queue.held = Some(Held { ticket, since: now, deadline, frame, outcome: None });
        Decided::Held
    }
}

/// What becomes of a frame that the switch has judged.
fn decided(verdict: &Verdict) -> Decided {
    match verdict {
        Verdict::Forward(to) => Decided::Done(Some(*to)),
        // The switch has counted why; a frame that asks for more than there is, is dropped.
        Verdict::Answered | Verdict::Drop(_) | Verdict::NeedMore | Verdict::Ask(_) => Decided::Done(None),
    }
}

/// Copies the virtio-net header and the start of the frame into private memory.
fn copy_head(frame: &mut Frame, chain: &Chain<'_>, head_bytes: usize) {
    let Frame { vnet, head, head_len_bytes, total_len_bytes, services: _, mirror: _ } = frame;
    *vnet = VnetHeader::from_bytes(chain.header());
    *total_len_bytes = chain.len_bytes() - VNET_HEADER_BYTES;
    *head_len_bytes = (*total_len_bytes).min(head_bytes);
    chain.copy_out(VNET_HEADER_BYTES, &mut head[..*head_len_bytes]);
}
