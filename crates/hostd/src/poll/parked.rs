// SPDX-License-Identifier: Apache-2.0
//! Frames that exceed a limit, until their time comes.
//!
//! Such a frame is not given back to its guest: its descriptor stays out, and so the guest's own queues fill and its
//! senders slow down. What is kept here is a copy, so that the frames behind it in the ring, of other flows, can go on;
//! only frames of the same flow line up behind it. Descriptors are given back strictly in order, so those of frames that
//! went ahead are given back together with the one they have overtaken: a successor of a daemon that was killed in
//! between finds the held frames in the ring, and sends those that went ahead once more.
//!
//! Each flow has at most one frame here whose time was given; the others ask when it has left. So flows that share a limit
//! take turns, each a frame at a time.
//!
//! Bounds, for each queue pair and each interface of the host: [`FRAMES_MAX`] frames and [`BYTES_MAX`] bytes, beyond which
//! the ring itself is left alone until there is room.

use std::collections::VecDeque;

use model::Moment;
use vhost_port::Chain;

/// Most frames; less than the small rings of tests hold, so that they can find out what happens then.
const FRAMES_MAX: usize = if cfg!(test) { 24 } else { 128 };
/// Most bytes, and one frame more.
const BYTES_MAX: usize = 1 << 20;

/// Frames of one queue.
#[derive(Debug, Default)]
pub(super) struct Parking {
    /// In the order in which they came.
    pub(super) frames: VecDeque<Parked>,
    bytes: usize,
    /// For each frame of the ring that was not given back, oldest first, whether it may be.
    book: VecDeque<bool>,
    /// How many frames have ever left the book.
    given_back: u64,
    /// Which frames of the batch being handled are here, by their place behind its first.
    fresh: Vec<usize>,
}

/// A frame that waits.
#[derive(Debug)]
pub(super) struct Parked {
    /// Its number among all that were ever in the book.
    number: u64,
    until: Moment,
    /// What the switch has said of its time, for the switch.
    pub(super) departs: Option<Moment>,
    pub(super) spread: u32,
    /// Its descriptor.
    pub(super) head: u16,
    /// As it came, with its virtio-net header.
    pub(super) whole: Vec<u8>,
}

impl Parking {
    /// Whether nothing more may come in.
    pub(super) fn is_full(&self) -> bool {
        self.frames.len() >= FRAMES_MAX || self.bytes >= BYTES_MAX
    }

    /// Whether a frame with this spread must line up behind another of its flow.
    #[inline]
    pub(super) fn holds_back(&self, spread: u32) -> bool {
        !self.frames.is_empty() && self.frames.iter().any(|parked| parked.spread == spread)
    }

    /// When the next frame's time comes.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.frames.iter().map(|parked| parked.until).min()
    }

    /// Takes a copy of the frame at a place behind the first of the batch being handled. Without a time it lines up
    /// behind another of its flow.
    pub(super) fn park(&mut self, place: usize, (spread, departs): (u32, Option<Moment>), chain: &Chain<'_>) {
        let mut whole = vec![0; chain.len_bytes()];
        chain.copy_out(0, &mut whole);
        let number = self.given_back + self.book.len() as u64 + place as u64;
        self.fresh.push(place);
        self.push(number, (spread, departs), chain.head(), whole);
    }

    /// Takes a frame that has no descriptor.
    pub(super) fn park_whole(&mut self, (spread, departs): (u32, Option<Moment>), whole: &[u8]) {
        let number = self.given_back + self.book.len() as u64;
        self.book.push_back(false);
        self.push(number, (spread, departs), 0, whole.to_vec());
    }

    fn push(&mut self, number: u64, (spread, departs): (u32, Option<Moment>), head: u16, whole: Vec<u8>) {
        let before = self.frames.iter().rev().find(|parked| parked.spread == spread);
        let until = departs.or(before.map(|parked| parked.until)).unwrap_or_default();
        self.bytes += whole.len();
        self.frames.push_back(Parked { number, until, departs, spread, head, whole });
    }

    /// Notes that so many frames of the batch were handled; tells how many may be given back to the guest.
    #[inline]
    pub(super) fn settle(&mut self, handled: usize) -> usize {
        if self.book.is_empty() && self.fresh.is_empty() {
            return handled;
        }
        let Self { book, fresh, .. } = self;
        book.extend((0..handled).map(|place| !fresh.contains(&place)));
        fresh.clear();
        self.give_back()
    }

    /// How many more frames may be given back to the guest: all up to the oldest that waits.
    pub(super) fn give_back(&mut self) -> usize {
        let count = self.book.iter().take_while(|done| **done).count();
        self.book.drain(..count);
        self.given_back += count as u64;
        count
    }

    /// The place of the oldest frame whose time has come.
    pub(super) fn due(&self, now: Moment) -> Option<usize> {
        self.frames.iter().position(|parked| parked.until <= now)
    }

    /// Another time for the frame at a place, and for those that line up behind it.
    pub(super) fn hold(&mut self, place: usize, until: Moment) {
        let spread = self.frames[place].spread;
        self.frames[place].departs = Some(until);
        for parked in self.frames.iter_mut().skip(place).filter(|parked| parked.spread == spread) {
            parked.until = until;
        }
    }

    /// Lets go of the frame at a place.
    pub(super) fn leave(&mut self, place: usize) -> Option<Parked> {
        let parked = self.frames.remove(place)?;
        self.bytes -= parked.whole.len();
        let at = usize::try_from(parked.number - self.given_back).ok();
        if let Some(done) = at.and_then(|at| self.book.get_mut(at)) {
            *done = true;
        }
        Some(parked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment(1000);

    /// Parks frames of these flows with these times.
    fn parking(frames: &[(u32, Option<u64>)]) -> Parking {
        let mut parking = Parking::default();
        for (spread, departs) in frames {
            parking.park_whole((*spread, departs.map(Moment)), &[0; 100]);
        }
        parking
    }

    #[test]
    fn frames_of_a_flow_leave_in_their_order_and_others_pass() {
        let mut parking = parking(&[(1, Some(2000)), (2, Some(900)), (1, None), (2, None)]);
        assert!(parking.holds_back(1) && parking.holds_back(2) && !parking.holds_back(3));
        assert_eq!(parking.deadline(), Some(Moment(900)));
        let leave = |parking: &mut Parking, now| {
            let place = parking.due(Moment(now))?;
            parking.leave(place).map(|parked| parked.number)
        };
        assert_eq!(leave(&mut parking, 1000), Some(1));
        // The next of that flow asks, and is told to wait.
        let place = parking.due(NOW).unwrap();
        assert_eq!(parking.frames[place].number, 3);
        parking.hold(place, Moment(1500));
        assert_eq!(leave(&mut parking, 1000), None);
        assert_eq!(leave(&mut parking, 1500), Some(3));
        assert_eq!(leave(&mut parking, 1999), None);
        assert_eq!(leave(&mut parking, 2000), Some(0));
        assert_eq!(leave(&mut parking, 2000), Some(2));
        assert_eq!((parking.bytes, parking.deadline()), (0, None));
        assert_eq!(parking.give_back(), 4);
    }

    #[test]
    fn another_time_is_for_all_that_line_up_behind() {
        let mut parking = parking(&[(1, Some(900)), (1, None), (2, Some(950)), (1, None)]);
        parking.hold(0, Moment(3000));
        let times: Vec<u64> = parking.frames.iter().map(|parked| parked.until.0).collect();
        assert_eq!(times, [3000, 3000, 950, 3000]);
    }

    #[test]
    fn descriptors_are_given_back_in_order() {
        let mut parking = Parking::default();
        assert_eq!(parking.settle(32), 32);
        // Of five frames the second and the fourth wait.
        for place in [1, 3] {
            let number = parking.given_back + parking.book.len() as u64 + place as u64;
            parking.fresh.push(place);
            parking.push(number, (place as u32, Some(NOW)), 0, vec![0; 64]);
        }
        assert_eq!(parking.settle(5), 1);
        assert_eq!(parking.settle(2), 0);
        parking.leave(1);
        assert_eq!(parking.give_back(), 0);
        parking.leave(0);
        assert_eq!(parking.give_back(), 6);
        assert_eq!(parking.settle(3), 3);
    }

    #[test]
    fn room_is_bounded_in_frames_and_in_bytes() {
        let mut small = Parking::default();
        while !small.is_full() {
            small.park_whole((1, Some(NOW)), &[0; 64]);
        }
        assert_eq!(small.frames.len(), FRAMES_MAX);
        let mut large = Parking::default();
        while !large.is_full() {
            large.park_whole((1, Some(NOW)), &[0; 65_550]);
        }
        assert!(large.bytes < BYTES_MAX + 65_550);
    }
}
