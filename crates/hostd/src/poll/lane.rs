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
//!
//! The switch is taken for the second stage only, in which no guest's memory is touched: where more of a frame must be
//! copied, or its process looked for, it is given back meanwhile.

use std::sync::Arc;

use model::{Moment, NicRef};
use packet::VnetHeader;
use platform::{EventFd, prefetch};
use vhost_port::{Batch, Chain, Port, VNET_HEADER_BYTES};
use vswitch::{Answers, Frame, HEAD_LEN_BYTES_MAX, PortId, Preview, Question, Verdict};

use super::round::Core;
use super::strain::Stay;
use super::{Seat, record};
use crate::introspect::{Inquiry, Outcome, Reply};

/// Bytes of a frame copied at first: the headers of nearly every packet.
pub(super) const HEAD_FIRST_BYTES: usize = 192;

/// One port in the loop.
#[derive(Debug)]
pub struct Lane {
    pub(super) id: PortId,
    pub(super) serial: u64,
    pub(super) card: NicRef,
    pub(super) port: Port,
    /// What the port signals.
    pub(super) waker: Arc<EventFd>,
    /// Why it is on the side core, if it is.
    pub(super) stay: Stay,
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
pub(super) type Output = (PortId, u32);

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
    pub(super) frames: Box<[Frame]>,
    previews: Box<[Preview]>,
    /// Where frames go; nowhere, if the switch has consumed them.
    pub(super) outputs: [Option<Output>; Batch::FRAMES_MAX],
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

/// How the switch is to be asked about the next frame.
#[derive(Default)]
struct Attempt {
    /// What was found out for it.
    answers: Option<Answers>,
    /// Whether a glance found it.
    glanced: bool,
    /// Whether as much of it was copied as may be.
    whole: bool,
}

/// Why the switch was given back before all frames were decided on.
enum Halt {
    /// All were.
    Done,
    /// More of the next frame must be copied.
    Copy,
    /// Somebody must be known first. Whether that was glanced at already.
    Ask(Question, bool),
}

/// What became of a frame that must wait for an answer.
enum Looked {
    /// It waits no longer.
    Found(Answers),
    /// It is dropped.
    Drop,
    /// It stays where it is.
    Held,
}

impl Lane {
    pub(super) fn new(seat: Seat) -> Self {
        let Seat { id, serial, card, port, waker } = seat;
        let queues = std::array::from_fn(|pair| Queue { pair, ..Queue::default() });
        Self { id, serial, card, port: *port, waker, stay: Stay::default(), queues }
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

impl Core {
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
        let own = self.lap();
        if self.has_waited(own) {
            self.suspects.push(id);
        }
        self.deliver((id, port), first..queue.next, &batch);
        let delivery = self.lap();
        if self.has_waited(delivery) {
            // What a guest has just written is there; buffers to receive in may have been posted long ago.
            let outputs = self.desk.outputs[first..queue.next].iter().flatten();
            self.suspects.extend(outputs.map(|(to, _)| *to));
        }
        self.handle.cores.loads.port_worked(id, own + delivery);
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
        for position in queue.next..batch.len() {
            copy_head(&mut self.desk.frames[position], &batch.chain(position), HEAD_FIRST_BYTES);
        }
        if let Some((to, spread)) = queue.last_output
            && let Some(likely) = self.lane(to)
        {
            likely.port.expect_to_send(spread, batch.len() - queue.next);
        }
        let Desk { frames, previews, .. } = &mut self.desk;
        for (frame, preview) in frames.iter().zip(previews).take(batch.len()).skip(queue.next) {
            self.previewer.preview(id, frame, preview);
            for line in self.previewer.likely_lines(preview).into_iter().flatten() {
                prefetch(line);
            }
        }
    }

    /// Has the switch decide about the queue's frames until one must wait.
    fn decide(&mut self, id: PortId, queue: &mut Queue, batch: &Batch, now: Moment) {
        let mut attempt = Attempt::default();
        if let Some(held) = queue.held.take() {
            attempt.answers = self.resume(held, queue.next);
            match attempt.answers {
                Some(_) => self.preview(id, queue.next),
                None => self.pass_over(queue),
            }
        }
        loop {
            attempt = match self.ask_switch(id, queue, batch.len(), attempt, now) {
                Halt::Done => return,
                Halt::Copy => {
                    let frame = &mut self.desk.frames[queue.next];
                    copy_head(frame, &batch.chain(queue.next), HEAD_LEN_BYTES_MAX);
                    self.preview(id, queue.next);
                    Attempt { whole: true, ..Attempt::default() }
                }
                Halt::Ask(question, glanced) => {
                    match self.look(id, queue, &batch.chain(queue.next), (question, glanced), now) {
                        Looked::Found(answers) => {
                            Attempt { answers: Some(answers), glanced: true, ..Attempt::default() }
                        }
                        Looked::Held => return,
                        Looked::Drop => {
                            self.pass_over(queue);
                            Attempt::default()
                        }
                    }
                }
            };
        }
    }

    /// Lets the next frame of the queue go nowhere.
    fn pass_over(&mut self, queue: &mut Queue) {
        self.desk.outputs[queue.next] = None;
        queue.next += 1;
    }

    /// Works out what a frame of the batch says, once more because it is not what was read at first.
    fn preview(&mut self, id: PortId, position: usize) {
        self.previewer.preview(id, &self.desk.frames[position], &mut self.desk.previews[position]);
    }

    /// Takes the switch and asks it frame by frame, for as long as it needs nothing else.
    fn ask_switch(
        &mut self,
        id: PortId,
        queue: &mut Queue,
        frames: usize,
        mut attempt: Attempt,
        now: Moment,
    ) -> Halt {
        if queue.next == frames {
            return Halt::Done;
        }
        let Self { shared, desk, turn, .. } = self;
        shared.with(now, turn, |switch, now| {
            while queue.next < frames {
                let (frame, preview) = (&mut desk.frames[queue.next], &desk.previews[queue.next]);
                let Attempt { answers, glanced, whole } = std::mem::take(&mut attempt);
                let verdict = switch.process_previewed(now, id, frame, preview, answers.as_ref());
                desk.outputs[queue.next] = match verdict {
                    Verdict::Forward(to) => Some((to, preview.spread())),
                    Verdict::NeedMore if !whole => return Halt::Copy,
                    Verdict::Ask(question) => return Halt::Ask(question, glanced),
                    // The switch has counted why; a frame that asks for more than there is, is dropped.
                    Verdict::Answered | Verdict::Drop(_) | Verdict::NeedMore => None,
                };
                queue.next += 1;
            }
            Halt::Done
        })
    }

    /// Looks for the process at once, which mostly suffices. Once for each guest and round, so that no guest takes
    /// much of the other guests' time: its next frame that needs it stays where it is until the next round.
    fn look(
        &mut self,
        id: PortId,
        queue: &mut Queue,
        chain: &Chain<'_>,
        (question, glanced): (Question, bool),
        now: Moment,
    ) -> Looked {
        let Some(ring) = queue.transmit else { return Looked::Drop };
        let descriptor = (ring, chain.head());
        if glanced {
            return self.ask(id, queue, descriptor, question, now);
        }
        if !std::mem::take(&mut queue.may_glance) {
            return Looked::Held;
        }
        if self.is_aside(&question) {
            return self.ask(id, queue, descriptor, question, now);
        }
        let started = super::now();
        match self.wiring.introspection.glance(&question, descriptor) {
            Some(Outcome::Answers(answers)) => {
                record(&mut self.lookups, super::now().since(started));
                self.record_wait(now);
                Looked::Found(answers)
            }
            Some(Outcome::NotReady) => {
                self.numbers.not_ready += 1;
                Looked::Drop
            }
            None => self.ask(id, queue, descriptor, question, now),
        }
    }

    /// Whether an end's memory may have to be waited for, which only the side core does.
    fn is_aside(&self, question: &Question) -> bool {
        let side = self.links.owners.side();
        let asks = [&question.initiator, &question.responder];
        let mut ports = asks.into_iter().flatten().map(|ask| ask.port);
        self.id != side && ports.any(|port| self.links.owners.of(port) == Some(side))
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

    /// Pauses the queue until the introspection thread has answered.
    fn ask(
        &mut self,
        id: PortId,
        queue: &mut Queue,
        descriptor: (u64, u16),
        question: Question,
        now: Moment,
    ) -> Looked {
        queue.tickets += 1;
        // Of all queues of a port.
        let ticket = queue.tickets * Port::PAIRS_MAX as u64 + queue.pair as u64;
        let inquiry = Inquiry { port: id, ticket, question, descriptor };
        if self.wiring.inquiries.try_send(inquiry).is_err() {
            self.numbers.late += 1;
            return Looked::Drop;
        }
        let deadline = now.after(self.wiring.attribution_wait);
        let frame = Box::new(self.desk.frames[queue.next].clone());
        queue.held = Some(Held { ticket, since: now, deadline, frame, outcome: None });
        Looked::Held
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
