// SPDX-License-Identifier: Apache-2.0
//! Serving the host's interfaces.

use model::Moment;
use platform::Trigger;
use vhost_port::Batch;
use vswitch::{Answers, HEAD_LEN_BYTES_MAX, PortId, Question, Verdict};

use super::core::Core;
use super::desk::{HEAD_FIRST_BYTES, copy_whole_head, put_head};
use super::uplink::{Held, Uplink};
use crate::introspect::{Inquiry, Outcome};

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
