// SPDX-License-Identifier: Apache-2.0
//! From one poll core to another: frames that were decided on, for ports that the other serves.
//!
//! A link is a bounded queue with one sender and one receiver, and a second queue that brings its buffers back. All buffers are
//! there from the start, so a frame is never waited for and nothing is allocated for one: at most [`SMALL_MAX`] frames of up to
//! [`SMALL_BYTES`] bytes and [`LARGE_MAX`] longer ones are on their way. A frame that finds no buffer is dropped and
//! counted, as one is whose receiver has no buffers posted: its flow has been told the switch already, and to keep
//! it in its guest's ring would make the guest's frames for everybody else wait for one receiver.
//!
//! What is handed over is copied twice, once on either side, and that is what keeps each guest's memory to one core: a
//! guest whose memory faults holds up nobody else.

use std::sync::Arc;

use platform::Bell;
use rtrb::{Consumer, Producer, RingBuffer};
use vhost_port::VNET_HEADER_BYTES;
use vswitch::{FRAME_LEN_BYTES_MAX, PortId};

use super::numbers::CoreNumbers;
use super::owners::Owners;

/// Longest frame with its virtio-net header that takes a small buffer, in bytes.
const SMALL_BYTES: usize = 2048;
/// Small buffers of a link.
const SMALL_MAX: usize = 256;
/// Length of a large buffer, in bytes: the longest frame with its virtio-net header.
const LARGE_BYTES: usize = VNET_HEADER_BYTES + FRAME_LEN_BYTES_MAX;
/// Large buffers of a link.
const LARGE_MAX: usize = 32;
/// Most frames on their way.
pub(super) const FRAMES_MAX: usize = SMALL_MAX + LARGE_MAX;

/// A frame on its way.
#[derive(Debug)]
pub(super) struct Parcel {
    /// The port that it is for.
    pub to: PortId,
    /// What decides between that port's queue pairs.
    pub spread: u32,
    buffer: Box<[u8]>,
    len_bytes: usize,
}

impl Parcel {
    /// The frame with its virtio-net header.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len_bytes]
    }
}

/// The sending end.
#[derive(Debug)]
pub(super) struct Outgoing {
    parcels: Producer<Parcel>,
    spent: Consumer<Box<[u8]>>,
    small: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    bell: Arc<Bell>,
    /// Whether something was sent since the bell was last rung.
    silent: bool,
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Incoming {
    parcels: Consumer<Parcel>,
    spent: Producer<Box<[u8]>>,
}

/// All buffers of that kind are on their way, or the frame is longer than any; or whoever wrote it failed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// No buffer is there.
    Full,
    /// The frame could not be written.
    Unwritten,
}

/// All links of one core.
#[derive(Debug)]
pub(super) struct Links {
    /// To each core. To itself goes what is for a port that is still on its way there.
    pub outgoing: Vec<Outgoing>,
    /// From each core.
    pub incoming: Vec<Incoming>,
    pub owners: Arc<Owners>,
}

impl Links {
    /// Sends a frame to the core that has its port, or is about to, and counts it.
    pub(super) fn hand_over(
        &mut self,
        numbers: &mut CoreNumbers,
        to: (PortId, u32),
        len_bytes: usize,
        write: impl FnOnce(&mut [u8]) -> bool,
    ) {
        let core = self.owners.heads_for(to.0);
        let link = core.and_then(|core| self.outgoing.get_mut(core.index()));
        match link.map(|link| link.send(to, len_bytes, write)) {
            Some(Ok(())) => numbers.handed_over += 1,
            Some(Err(Refused::Full)) => numbers.link_full += 1,
            Some(Err(Refused::Unwritten)) | None => numbers.undelivered += 1,
        }
    }

    /// Wakes the cores that something was sent to.
    pub(super) fn ring(&mut self) {
        for link in &mut self.outgoing {
            link.ring();
        }
    }

    /// Whether nothing has arrived.
    pub(super) fn are_empty(&self) -> bool {
        self.incoming.iter().all(|link| link.parcels.is_empty())
    }
}

/// Makes a link to the core that sleeps by `bell`.
pub(super) fn link(bell: Arc<Bell>) -> (Outgoing, Incoming) {
    let (parcels, arriving) = RingBuffer::new(FRAMES_MAX);
    let (returning, spent) = RingBuffer::new(FRAMES_MAX);
    let buffers = |count, len_bytes| (0..count).map(|_| vec![0; len_bytes].into()).collect();
    let (small, large) = (buffers(SMALL_MAX, SMALL_BYTES), buffers(LARGE_MAX, LARGE_BYTES));
    let outgoing = Outgoing { parcels, spent, small, large, bell, silent: true };
    (outgoing, Incoming { parcels: arriving, spent: returning })
}

impl Outgoing {
    /// Sends a frame of this length, virtio-net header included, which `write` puts together and says whether it could.
    pub(super) fn send(
        &mut self,
        (to, spread): (PortId, u32),
        len_bytes: usize,
        write: impl FnOnce(&mut [u8]) -> bool,
    ) -> Result<(), Refused> {
        while let Ok(buffer) = self.spent.pop() {
            self.keep(buffer);
        }
        if len_bytes > LARGE_BYTES {
            return Err(Refused::Full);
        }
        let buffers = if len_bytes <= SMALL_BYTES { &mut self.small } else { &mut self.large };
        let mut buffer = buffers.pop().ok_or(Refused::Full)?;
        if !write(&mut buffer[..len_bytes]) {
            self.keep(buffer);
            return Err(Refused::Unwritten);
        }
        let sent = self.parcels.push(Parcel { to, spread, buffer, len_bytes });
        debug_assert!(sent.is_ok(), "the queue has room for every buffer there is");
        self.silent = false;
        Ok(())
    }

    fn keep(&mut self, buffer: Box<[u8]>) {
        if buffer.len() == SMALL_BYTES { self.small.push(buffer) } else { self.large.push(buffer) }
    }

    /// Wakes the receiver if it sleeps and there is something new for it.
    pub(super) fn ring(&mut self) {
        if !std::mem::replace(&mut self.silent, true) {
            self.bell.ring();
        }
    }
}

impl Incoming {
    /// The port that the next frame is for.
    pub(super) fn next_receiver(&self) -> Option<PortId> {
        self.parcels.peek().ok().map(|parcel| parcel.to)
    }

    /// The frame that has been on its way for longest.
    pub(super) fn receive(&mut self) -> Option<Parcel> {
        self.parcels.pop().ok()
    }

    /// Gives a frame's buffer back.
    pub(super) fn give_back(&mut self, parcel: Parcel) {
        let returned = self.spent.push(parcel.buffer);
        debug_assert!(returned.is_ok(), "the queue has room for every buffer there is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: (PortId, u32) = (PortId(7), 9);

    fn new_link() -> (Outgoing, Incoming) {
        link(Arc::new(Bell::new().unwrap()))
    }

    fn fill(value: u8) -> impl FnOnce(&mut [u8]) -> bool {
        move |bytes| {
            bytes.fill(value);
            true
        }
    }

    #[test]
    fn frames_of_all_lengths_arrive_in_order() {
        let (mut outgoing, mut incoming) = new_link();
        let lengths = [26, SMALL_BYTES, SMALL_BYTES + 1, 26, LARGE_BYTES];
        for (value, len_bytes) in (1..).zip(lengths) {
            outgoing.send(TO, len_bytes, fill(value)).unwrap();
        }
        for (value, len_bytes) in (1..).zip(lengths) {
            let parcel = incoming.receive().unwrap();
            assert_eq!((parcel.to, parcel.spread), TO);
            assert!(parcel.bytes().len() == len_bytes && parcel.bytes().iter().all(|byte| *byte == value));
            incoming.give_back(parcel);
        }
        assert!(incoming.parcels.is_empty());
        assert_eq!(outgoing.send(TO, LARGE_BYTES + 1, fill(0)), Err(Refused::Full));
    }

    #[test]
    fn full_link_refuses_until_buffers_come_back() {
        let (mut outgoing, mut incoming) = new_link();
        for len_bytes in [vec![64; SMALL_MAX], vec![9000; LARGE_MAX]].concat() {
            outgoing.send(TO, len_bytes, fill(1)).unwrap();
        }
        assert_eq!(outgoing.send(TO, 64, fill(2)), Err(Refused::Full));
        assert_eq!(outgoing.send(TO, 9000, fill(2)), Err(Refused::Full));
        let first = incoming.receive().unwrap();
        incoming.give_back(first);
        assert_eq!(outgoing.send(TO, 9000, fill(3)), Err(Refused::Full), "what came back was a small one");
        outgoing.send(TO, 64, fill(3)).unwrap();
    }

    #[test]
    fn a_frame_that_cannot_be_written_takes_no_buffer() {
        let (mut outgoing, incoming) = new_link();
        for _ in 0..=SMALL_MAX {
            assert_eq!(outgoing.send(TO, 64, |_| false), Err(Refused::Unwritten));
        }
        assert!(incoming.parcels.is_empty());
        outgoing.send(TO, 64, fill(1)).unwrap();
    }

    #[test]
    fn every_frame_passes_once_between_two_threads() {
        let (mut outgoing, mut incoming) = new_link();
        let sent = 20_000_u32;
        let receiver = std::thread::spawn(move || {
            let mut expected = 0;
            while expected < sent {
                let Some(parcel) = incoming.receive() else {
                    std::thread::yield_now();
                    continue;
                };
                assert_eq!(parcel.bytes()[..4], expected.to_ne_bytes());
                incoming.give_back(parcel);
                expected += 1;
            }
        });
        let mut number = 0_u32;
        while number < sent {
            let len_bytes = if number.is_multiple_of(7) { 4000 } else { 60 };
            let write = |bytes: &mut [u8]| {
                bytes[..4].copy_from_slice(&number.to_ne_bytes());
                true
            };
            match outgoing.send(TO, len_bytes, write) {
                Ok(()) => number += 1,
                Err(_) => std::thread::yield_now(),
            }
        }
        receiver.join().unwrap();
    }
}
