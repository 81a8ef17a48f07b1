// SPDX-License-Identifier: Apache-2.0
//! The stages of a batch.
//!
//! A batch goes through three stages, each for all of its frames before the next begins, because what a frame
//! needs is mostly far away, in another processor's cache or in the flow table, and is fetched meanwhile:
//!
//! 1. *Read*: the head of every frame is copied into private memory. Then it is parsed, and its flow's slot fetched.
//! 2. *Decide*: the other slot is fetched of translated flows and of connections, which the first one names, and of flows to be opened. Then the switch is asked frame
//!    by frame, in order, for a frame's verdict may depend on the frame before. The first frame that must wait for an
//!    answer ends the stage; it and those after it stay in the queue, and those after it will be read anew. So does the
//!    end of the port's turn.
//! 3. *Deliver*: what was decided goes out, all frames for one receiver together and in order; finished first, if it does
//!    not take them as they are. A few frames are shown to their receivers at once: there is time for that, and they need
//!    not wait for the round. Then buffers of the guest that the last frame went to are claimed for the next batch.
//!
//! Delivery writes to memory that a guest has in its cache. Nothing that was just written is read back in
//! between, because such a read may wait for all of these writes to be done.
//!
//! The switch is taken for the second stage only, in which no guest's memory is touched: where more of a frame must be
//! copied, or its process looked for, it is given back meanwhile.

use std::ops::Range;

use model::Moment;
use platform::prefetch;
use vhost_port::{Batch, Chain, Port};
use vswitch::{Answers, Credit, HEAD_LEN_BYTES_MAX, PortId, Question, Verdict};

use super::core::Core;
use super::desk::{Desk, HEAD_FIRST_BYTES, copy_head};
use super::lane::{Held, Lane, Queue};
use super::numbers::record;
use crate::clock;
use crate::introspect::{Inquiry, Outcome};

/// How many frames are few.
const FEW: usize = 4;

/// How many frames after it was copied a frame is parsed.
const PARSED_BEHIND: usize = 4;

/// How the switch is to be asked about the next frame.
#[derive(Default)]
struct Attempt {
    /// What was found out for it.
    answers: Option<Answers>,
    /// Since when it has waited for them.
    waited_since: Option<Moment>,
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
    /// The next frame must wait until then, or behind another of its flow.
    Park(Option<Moment>),
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

impl Core {
    /// Moves up to a batch of frames from each of a guest's queues; tells whether there were any.
    pub(super) fn serve(&mut self, lane: &mut Lane, now: Moment) -> bool {
        let Lane { id, port, queues, credit, first, .. } = lane;
        let (mut busy, mut may_glance) = (false, true);
        // Of several pairs that have more than the turn is worth, each comes first in its round.
        let running = queues.iter().filter(|queue| queue.transmit.is_some()).count();
        *first = (*first + 1) % running.max(1);
        let (later, sooner) = queues.split_at_mut(*first);
        for queue in sooner.iter_mut().chain(later).filter(|queue| queue.transmit.is_some()) {
            queue.may_glance = may_glance;
            busy |= self.serve_queue(*id, (port, credit), queue, now);
            may_glance = queue.may_glance;
        }
        busy
    }

    fn serve_queue(
        &mut self,
        id: PortId,
        (port, credit): (&mut Port, &mut Credit),
        queue: &mut Queue,
        now: Moment,
    ) -> bool {
        if queue.is_asking() && queue.held.as_ref().is_some_and(|held| now < held.deadline)
            || queue.parking.is_full()
        {
            return false;
        }
        if !self.take(port, queue) {
            return false;
        }
        let first = queue.next;
        let batch = std::mem::take(&mut queue.batch);
        let end = queue.end(&batch, credit);
        if end == first {
            // Not its turn any more. What is known of a held frame by now is kept until it is.
            queue.batch = batch;
            return true;
        }
        self.read(id, queue, &batch, end);
        self.decide(id, queue, (&batch, first..end), now);
        let own = self.lap();
        if self.has_waited(own) {
            self.suspects.push(id);
        }
        self.deliver((id, port), first..queue.next, &batch);
        if queue.next - first <= FEW {
            self.show(first..queue.next);
        }
        if let Some((to, spread)) = self.desk.outputs[first..queue.next].last().copied().flatten()
            && let Some(likely) = self.lane(to)
        {
            likely.port.expect_to_send(spread, queue.next - first);
        }
        let delivery = self.lap();
        if self.has_waited(delivery) {
            // What a guest has just written is there; buffers to receive in may have been posted long ago.
            let outputs = self.desk.outputs[first..queue.next].iter().flatten();
            self.suspects.extend(outputs.map(|(to, _)| *to));
        }
        self.handle.cores.loads.port_worked(id, own + delivery);
        queue.batch = batch;
        let (done, more) = (queue.next - first, end < queue.batch.len());
        port.complete(queue.pair, queue.parking.settle(done));
        // What comes next is on its way while other lanes are served.
        self.take(port, queue);
        // A question just asked is answered soon: not worth a sleep.
        done > 0 || queue.is_asking() || more
    }

    /// Shows frames that were delivered to their receivers.
    fn show(&mut self, positions: Range<usize>) {
        let mut shown = None;
        for position in positions {
            let Some((to, _)) = self.desk.outputs[position] else { continue };
            if shown.replace(to) != Some(to)
                && let Some(lane) = self.lane(to)
            {
                lane.port.flush();
            }
        }
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

    /// Copies the heads of the queue's frames, and fetches what the switch will look at. A frame is parsed some frames after
    /// it was copied: what was just written need not be read back, and what is still on its way from the guest is not
    /// waited for meanwhile.
    fn read(&mut self, id: PortId, queue: &Queue, batch: &Batch, end: usize) {
        let Self { desk: Desk { frames, previews, .. }, previewer, .. } = self;
        for position in queue.next..end + PARSED_BEHIND {
            if position < end {
                let frame = &mut frames[position];
                copy_head(frame, &batch.chain(position), HEAD_FIRST_BYTES);
                frame.departs = None;
            }
            let Some(parsed) = position.checked_sub(PARSED_BEHIND).filter(|parsed| *parsed >= queue.next)
            else {
                continue;
            };
            let preview = &mut previews[parsed];
            previewer.preview(id, &frames[parsed], preview);
            if let Some([slot, tally]) = previewer.likely_lines(preview) {
                prefetch(slot);
                prefetch(tally);
            }
        }
    }

    /// Has the switch decide about the queue's frames until one must wait.
    fn decide(
        &mut self,
        id: PortId,
        queue: &mut Queue,
        (batch, frames): (&Batch, Range<usize>),
        now: Moment,
    ) {
        let mut attempt = Attempt::default();
        if let Some(held) = queue.held.take() {
            attempt.waited_since = Some(held.since);
            attempt.answers = self.resume(held, queue.next);
            match attempt.answers {
                Some(_) => self.preview(id, queue.next),
                None => self.pass_over(queue),
            }
        }
        loop {
            attempt = match self.ask_switch(id, queue, frames.end, attempt, now) {
                Halt::Done => return,
                Halt::Copy => {
                    let frame = &mut self.desk.frames[queue.next];
                    copy_head(frame, &batch.chain(queue.next), HEAD_LEN_BYTES_MAX);
                    self.preview(id, queue.next);
                    Attempt { whole: true, ..Attempt::default() }
                }
                Halt::Park(departs) => {
                    let spread = self.desk.previews[queue.next].spread();
                    let chain = batch.chain(queue.next);
                    queue.parking.park(queue.next - frames.start, (spread, departs), &chain);
                    self.pass_over(queue);
                    if queue.parking.is_full() {
                        return;
                    }
                    Attempt::default()
                }
                Halt::Ask(question, glanced) => {
                    match self.look(id, queue, &batch.chain(queue.next), (question, glanced), now) {
                        Looked::Found(answers) => Attempt {
                            answers: Some(answers),
                            waited_since: Some(now),
                            glanced: true,
                            whole: false,
                        },
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
        self.desk.mirrored.set(queue.next, false);
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
        let Self { shared, desk, turn, waits, .. } = self;
        shared.with(now, turn, |switch, now| {
            queue.turn = switch.turn(id);
            for preview in &desk.previews[queue.next..frames] {
                switch.likely_partner_lines(preview).into_iter().flatten().for_each(prefetch);
            }
            while queue.next < frames {
                let (frame, preview) = (&mut desk.frames[queue.next], &desk.previews[queue.next]);
                if queue.parking.holds_back(preview.spread()) {
                    return Halt::Park(None);
                }
                let Attempt { answers, waited_since, glanced, whole } = std::mem::take(&mut attempt);
                let verdict = switch.process_previewed(now, id, frame, preview, answers.as_ref());
                if let Some(since) = waited_since.filter(|_| answers.is_some()) {
                    record(waits, clock::now().since(since));
                }
                desk.outputs[queue.next] = match verdict {
                    Verdict::Forward(to) => Some((to, preview.spread())),
                    Verdict::NeedMore if !whole => return Halt::Copy,
                    Verdict::Hold(until) => return Halt::Park(Some(until)),
                    Verdict::Ask(question) => return Halt::Ask(question, glanced),
                    // The switch has counted why; a frame that asks for more than there is, is dropped.
                    Verdict::Answered | Verdict::Drop(_) | Verdict::NeedMore => None,
                };
                desk.mirrored.set(queue.next, frame.mirror.is_some() && desk.outputs[queue.next].is_some());
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
        let started = clock::now();
        match self.wiring.introspection.glance(&question, descriptor) {
            Some(Outcome::Answers(answers)) => {
                record(&mut self.lookups, clock::now().since(started));
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

    /// Puts the held frame back into its place, to be judged with the answers. `None` when it is to be dropped.
    fn resume(&mut self, held: Held, position: usize) -> Option<Answers> {
        match held.outcome {
            Some(Outcome::Answers(answers)) => {
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
