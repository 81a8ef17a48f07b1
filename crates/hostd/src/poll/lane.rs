// SPDX-License-Identifier: Apache-2.0
//! One port in the loop: of each of its queue pairs a half-done batch, and the frame that waits for an answer.

use std::sync::Arc;
use std::time::Duration;

use model::{Moment, NicRef};
use platform::EventFd;
use vhost_port::{Batch, Port};
use vswitch::{Credit, Frame, PortId};

use super::parked::Parking;
use super::strain::Stay;
use crate::clock;
use crate::introspect::{Outcome, Reply};

/// A port that is to be served.
#[derive(Debug)]
pub struct Seat {
    /// Its number.
    pub id: PortId,
    /// Tells it from others that had the number before or will have it.
    pub serial: u64,
    /// Its card.
    pub card: NicRef,
    /// The port.
    pub port: Box<Port>,
    /// What it signals when it has something for its poll core.
    pub waker: Arc<EventFd>,
}

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
    /// What may still be taken up in this round.
    pub(super) credit: Credit,
    /// Which pair comes first in this round.
    pub(super) first: usize,
    /// When the port was last looked after, if the core has been awake since.
    looked: Option<Moment>,
    pub(super) queues: [Queue; Port::PAIRS_MAX],
}

/// One queue pair of a port.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) pair: usize,
    pub(super) batch: Batch,
    /// Position in the batch of the next frame to be handled; those before it are done.
    pub(super) next: usize,
    pub(super) held: Option<Held>,
    /// Frames that exceed a limit.
    pub(super) parking: Parking,
    /// What the port may do, as the switch said last.
    pub(super) turn: vswitch::Turn,
    pub(super) tickets: u64,
    /// Whether this round may still look for a process by itself.
    pub(super) may_glance: bool,
    /// Guest-physical address of the descriptor table of the ring of frames from the guest.
    pub(super) transmit: Option<u64>,
}

/// The frame at `next` waits for an answer.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) ticket: u64,
    pub(super) since: Moment,
    pub(super) deadline: Moment,
    /// The frame as it was asked about. The guest may write something else into its ring meanwhile; what
    /// is judged by the answer is this.
    pub(super) frame: Box<Frame>,
    pub(super) outcome: Option<Outcome>,
}

impl Lane {
    pub(super) fn new(seat: Seat) -> Self {
        let Seat { id, serial, card, port, waker } = seat;
        let queues = std::array::from_fn(|pair| Queue { pair, ..Queue::default() });
        let (credit, first, looked, stay) = (Credit::default(), 0, None, Stay::default());
        Self { id, serial, card, port: *port, waker, stay, credit, first, looked, queues }
    }

    /// Forgets frames that belong to a pair's rings of before; `transmit` is where the new one lies, if there is one.
    pub(super) fn reset(&mut self, pair: usize, transmit: Option<u64>) {
        let queue = &mut self.queues[pair];
        queue.transmit = transmit;
        queue.batch.clear();
        queue.next = 0;
        queue.held = None;
        queue.parking = Parking::default();
    }

    /// Begins a round.
    pub(super) fn begin_turn(&mut self) {
        self.credit.begin(self.queues[0].turn);
    }

    pub(super) fn is_interactive(&self) -> bool {
        self.queues[0].turn.interactive
    }

    /// Notes that the port is looked after now; tells for how long it was not.
    pub(super) fn look(&mut self) -> Option<Duration> {
        let now = clock::now();
        self.looked.replace(now).map(|before| now.since(before))
    }

    /// Notes that the core goes to sleep.
    pub(super) fn look_away(&mut self) {
        self.looked = None;
    }

    /// Takes out a pair's frames that wait, if the time of one has come, and says where its ring is.
    pub(super) fn take_parking(&mut self, pair: usize, now: Moment) -> Option<(Parking, Option<u64>)> {
        let queue = &mut self.queues[pair];
        queue.parking.deadline().filter(|deadline| *deadline <= now)?;
        Some((std::mem::take(&mut queue.parking), queue.transmit))
    }

    /// Puts a pair's frames that wait back, and gives the guest what may be given back.
    pub(super) fn put_parking(&mut self, pair: usize, mut parking: Parking) {
        self.port.complete(pair, parking.give_back());
        self.queues[pair].parking = parking;
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
    pub(super) fn is_asking(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.outcome.is_none())
    }

    /// Whether it takes nothing up for now.
    fn is_paused(&self) -> bool {
        self.is_asking() || self.parking.is_full()
    }

    fn deadline(&self) -> Option<Moment> {
        let answer = self.held.as_ref().map(|held| held.deadline);
        answer.into_iter().chain(self.parking.deadline()).min()
    }

    /// Where the frames end that may be taken up in this turn.
    pub(super) fn end(&self, batch: &Batch, credit: &mut Credit) -> usize {
        let mut end = self.next;
        while end < batch.len() && credit.is_left() {
            credit.spend(batch.len_bytes_of(end));
            end += 1;
        }
        end
    }
}
