// SPDX-License-Identifier: Apache-2.0
//! A running device: frames out of and into the rings of one kind.

use std::collections::VecDeque;
use std::ops::Range;

use platform::write_then_read;

use crate::batch::Batch;
use crate::chain::{Direction, Rules};
use crate::counters::PortCounters;
use crate::fault::{RingFault, SendError};
use crate::features::Features;
use crate::log::Marks;
use crate::outgoing::{Outgoing, Placements, Receiver, Sent};
use crate::pair::{Bases, RECEIVE, RINGS, TRANSMIT};
use crate::ring::{Call, Head, Packed, Split, Vring, peek_all};

/// The rings of a device, not yet running.
#[derive(Debug)]
pub(crate) enum Rings {
    Split([Split; RINGS]),
    Packed([Packed; RINGS]),
}

/// A running device of either kind.
#[derive(Debug)]
pub(crate) enum Device {
    Split(Pair<Split>),
    Packed(Pair<Packed>),
}

/// Does the same with either kind of device.
macro_rules! with {
    ($device:expr, $pair:ident => $do:expr) => {
        match $device {
            $crate::device::Device::Split($pair) => $do,
            $crate::device::Device::Packed($pair) => $do,
        }
    };
}
pub(crate) use with;

impl Device {
    /// Takes up rings; whoever served them before may have died before it notified.
    pub(crate) fn new(rings: Rings, features: Features, marks: Option<Marks>) -> Self {
        match rings {
            Rings::Split(rings) => Self::Split(Pair::new(rings, features, marks)),
            Rings::Packed(rings) => Self::Packed(Pair::new(rings, features, marks)),
        }
    }

    pub(crate) fn features(&self) -> Features {
        with!(self, pair => pair.features)
    }
}

/// A queue pair.
#[derive(Debug)]
pub(crate) struct Pair<R> {
    /// Where frames go that are being sent. Its windows are of the rings' memory, and it is dropped before them.
    placements: Placements,
    /// Chains of the transmit ring that are held, oldest first: at most as many as it has entries.
    held: VecDeque<Held>,
    receive: R,
    transmit: R,
    features: Features,
    indirect: bool,
    in_order: bool,
    mergeable: bool,
    /// While the guest is being moved elsewhere.
    marks: Option<Marks>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    head: Head,
    /// Malformed: was not handed out.
    refused: bool,
}

impl<R: Vring> Pair<R> {
    fn new(rings: [R; RINGS], features: Features, marks: Option<Marks>) -> Self {
        let [mut receive, mut transmit] = rings;
        for ring in [&mut receive, &mut transmit] {
            ring.suppress();
            ring.call().notify();
        }
        marks.iter().for_each(Marks::rings);
        Self {
            placements: Placements::default(),
            held: VecDeque::with_capacity(transmit.size().into()),
            receive,
            transmit,
            features,
            indirect: features.has(Features::INDIRECT_DESC),
            in_order: features.has(Features::IN_ORDER),
            mergeable: features.has(Features::MRG_RXBUF),
            marks,
        }
    }

    /// Where the rings are resumed.
    pub(crate) fn bases(&self) -> Bases {
        let mut bases = [0; RINGS];
        bases[RECEIVE] = self.receive.base();
        bases[TRANSMIT] = self.transmit.base();
        bases
    }

    pub(crate) fn call(&mut self, ring: usize) -> &mut Call {
        if ring == TRANSMIT { self.transmit.call() } else { self.receive.call() }
    }

    pub(crate) fn arm(&mut self) -> Result<bool, RingFault> {
        let armed = self.transmit.arm();
        self.marks.iter().for_each(Marks::rings);
        armed
    }

    pub(crate) fn suppress(&mut self) {
        self.transmit.suppress();
        self.receive.suppress();
        self.marks.iter().for_each(Marks::rings);
    }

    #[inline(always)]
    pub(crate) fn receive_batch(
        &mut self,
        batch: &mut Batch,
        counters: &mut PortCounters,
    ) -> Result<usize, RingFault> {
        let ring = &mut self.transmit;
        batch.begin(ring.memory());
        let mut heads = [Head::default(); Batch::FRAMES_MAX];
        let count = peek_all(ring, ring.next(), &mut heads)?;
        if count == 0 {
            return Ok(0);
        }
        let rules = Rules { direction: Direction::FromGuest, indirect: self.indirect };
        for head in heads.into_iter().take(count) {
            let refused = match batch.add(ring, head, &rules) {
                Ok(()) => false,
                Err(fault) => {
                    counters.chain_faults[fault as usize] += 1;
                    true
                }
            };
            ring.take(head);
            self.held.push_back(Held { head, refused });
        }
        counters.received_frames += batch.len() as u64;
        counters.received_bytes += batch.len_bytes() as u64;
        if batch.is_empty() {
            self.complete(0);
        }
        Ok(batch.len())
    }

    #[inline(always)]
    pub(crate) fn complete(&mut self, count: usize) {
        let (mut left, mut done) = (count, 0);
        let mut run: Option<Head> = None;
        for Held { head, refused } in &self.held {
            if !refused {
                if left == 0 {
                    break;
                }
                left -= 1;
            }
            done += 1;
            if self.in_order {
                run = Some(run.map_or(*head, |run| run.through(*head)));
            } else {
                self.transmit.put(*head, 0);
            }
        }
        if let Some(run) = run {
            self.transmit.put(run, 0);
        }
        self.held.drain(..done);
    }

    /// Puts frames into the receive ring, in order, until one cannot be: says how many were sent, and why the next was not.
    /// `frame` gives the one of a number.
    #[inline(always)]
    pub(crate) fn send_all<'a>(
        &mut self,
        numbers: Range<usize>,
        frame: &impl Fn(usize) -> Outgoing<'a>,
    ) -> (Sent, Result<(), SendError>) {
        let receiver = Receiver {
            features: self.features,
            indirect: self.indirect,
            mergeable: self.mergeable,
            marks: self.marks.as_ref(),
        };
        self.placements.send_all(&mut self.receive, receiver, numbers, frame)
    }

    #[inline(always)]
    pub(crate) fn look_ahead(&mut self, frames: usize) {
        // What is written must be noted, of a guest that is being moved: nothing is, then, that may not be filled after all.
        let claimed = if self.marks.is_some() { 0 } else { frames };
        self.placements.look_ahead(&mut self.receive, claimed);
    }

    /// Shows the guest the frames it was sent.
    #[inline(always)]
    pub(crate) fn show_sent(&mut self) {
        if self.receive.show() {
            self.marks.iter().for_each(Marks::rings);
        }
    }

    /// Shows the guest which of its frames were taken.
    #[inline(always)]
    pub(crate) fn show_completed(&mut self) {
        if self.transmit.show() {
            self.marks.iter().for_each(Marks::rings);
        }
    }

    /// Notifies the guest of both, if it wants that; behind a full fence.
    #[inline(always)]
    pub(crate) fn tell(&mut self) {
        self.receive.tell();
        self.transmit.tell();
    }

    pub(crate) fn flush(&mut self) {
        self.show_sent();
        self.show_completed();
        write_then_read(|| (), || self.tell());
    }
}
