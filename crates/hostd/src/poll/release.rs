// SPDX-License-Identifier: Apache-2.0
//! Frames that exceeded a limit go on when their time has come.

use model::Moment;
use vhost_port::Batch;
use vswitch::{HEAD_LEN_BYTES_MAX, PortId, Question, Verdict};

use super::core::Core;
use super::desk::{copy_whole_head, put_head};
use super::parked::{Parked, Parking};
use crate::introspect::Outcome;

impl Core {
    /// Offers frames of a port whose time has come to the switch again, a batch at most; tells whether there were any.
    /// `ring` is where their descriptors are.
    pub(super) fn release(
        &mut self,
        id: PortId,
        parking: &mut Parking,
        ring: Option<u64>,
        now: Moment,
    ) -> bool {
        let (mut any, mut receivers) = (false, Vec::new());
        for _ in 0..Batch::FRAMES_MAX {
            let Some(place) = parking.due(now) else { break };
            any = true;
            let verdict = self.ask_again(id, &parking.frames[place], ring, now);
            if let Verdict::Hold(until) = verdict {
                parking.hold(place, until);
                continue;
            }
            let Some(mut parked) = parking.leave(place) else { break };
            if let Verdict::Forward(to) = verdict {
                let frame = self.desk.first().0;
                put_head(&mut parked.whole, frame);
                let mirror = frame.mirror;
                for to in [Some(to), mirror].into_iter().flatten() {
                    self.deliver_whole(to, parked.spread, &parked.whole);
                    receivers.push(to);
                }
            }
        }
        if any {
            let took = self.lap();
            if self.has_waited(took) {
                self.suspects.extend(receivers);
            }
        }
        any
    }

    fn ask_again(&mut self, id: PortId, parked: &Parked, ring: Option<u64>, now: Moment) -> Verdict {
        let Self { desk, previewer, shared, turn, .. } = self;
        let (frame, preview) = desk.first();
        copy_whole_head(frame, &parked.whole, HEAD_LEN_BYTES_MAX);
        frame.departs = parked.departs;
        previewer.preview(id, frame, preview);
        let verdict =
            shared.with(now, turn, |switch, now| switch.process_previewed(now, id, frame, preview, None));
        match verdict {
            Verdict::Ask(question) => self.ask_knowing(id, &question, (ring, parked.head), now),
            verdict => verdict,
        }
    }

    /// Asks about a frame whose process must be known since policy has changed. Only a glance is worth it: the flow was
    /// known before, so mostly its process is, too.
    fn ask_knowing(
        &mut self,
        id: PortId,
        question: &Question,
        (ring, head): (Option<u64>, u16),
        now: Moment,
    ) -> Verdict {
        let glance = ring.and_then(|ring| self.wiring.introspection.glance(question, (ring, head)));
        let Some(Outcome::Answers(answers)) = glance else {
            self.numbers.late += 1;
            return Verdict::Answered;
        };
        let Self { desk, shared, turn, .. } = self;
        let (frame, preview) = desk.first();
        shared
            .with(now, turn, |switch, now| switch.process_previewed(now, id, frame, preview, Some(&answers)))
    }
}
