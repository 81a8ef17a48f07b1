// SPDX-License-Identifier: Apache-2.0
//! Frames on their way into a guest's receive ring, several at a time.
//!
//! The guest's processor has read every buffer last, so each write waits for a cache line from there. A processor keeps
//! some dozens of writes waiting, in order, and goes on meanwhile; when there are more, it stands still. So buffers are
//! looked for a batch ahead, and their first lines are claimed then: the lines come while the switch reads the next frames.
//! Buffers that were filled are given back together, behind the last frame.

use std::collections::VecDeque;
use std::ops::Range;

use crate::batch::Batch;
use crate::chain::{CACHE_LINE_BYTES, Chain, Direction, FRAME_BYTES_MAX, Rules};
use crate::fault::SendError;
use crate::features::{Features, NUM_BUFFERS_BIT, VNET_HEADER_BYTES};
use crate::log::Marks;
use crate::ring::{Head, Position, Vring, peek_all};
use crate::window::Window;

/// A frame to be sent: `head`, then the bytes of `rest`'s chain from `rest`'s offset on, copied from the one guest's memory
/// to the other's. The header's `num_buffers` is not the sender's to say.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// What decides between the receiver's queue pairs: frames with the same number go into the same one, in order.
    pub spread: u32,
    /// The virtio-net header, its bytes as a little-endian number: a number stays in registers, and what is put together in
    /// memory from parts cannot be read whole until all writes before have reached the guest.
    pub header: u128,
    /// What of the frame is in private memory.
    pub head: &'a [u8],
    /// Where the rest of it is.
    pub rest: Option<(Chain<'a>, usize)>,
}

impl Outgoing<'_> {
    /// Length with the virtio-net header, in bytes.
    #[inline(always)]
    fn len_bytes(&self) -> usize {
        let rest = self.rest.map_or(0, |(chain, offset)| chain.len_bytes().saturating_sub(offset));
        VNET_HEADER_BYTES + self.head.len() + rest
    }

    /// The header as the guest gets it, for a frame that lies in so many buffers: its first eight and last four bytes.
    #[inline(always)]
    fn header_in(&self, buffers: u16) -> (u64, u32) {
        let kept = self.header & ((1 << NUM_BUFFERS_BIT) - 1);
        let whole = kept | u128::from(buffers) << NUM_BUFFERS_BIT;
        (whole as u64, (whole >> 64) as u32)
    }

    /// Writes it into segments of so many buffers, which have room for it.
    #[inline(always)]
    fn write(&self, segments: &[Window<'static>], buffers: u16) {
        let (first, last) = self.header_in(buffers);
        let mut cursor = Cursor::new(segments);
        let begun = VNET_HEADER_BYTES + self.head.len();
        if cursor.current.len() >= begun {
            let start = cursor.current;
            start.put(first.to_le_bytes());
            start.skip(size_of_val(&first)).put(last.to_le_bytes());
            start.skip(VNET_HEADER_BYTES).copy_in(self.head);
            cursor.skip(begun);
        } else {
            cursor.write(&first.to_le_bytes());
            cursor.write(&last.to_le_bytes());
            cursor.write(self.head);
        }
        if let Some((chain, offset)) = self.rest
            && chain.len_bytes() > offset
        {
            cursor.write_chain(chain, offset);
        }
    }
}

/// How many frames were sent, and with how many bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// Buffers found for frames.
#[derive(Debug, Default)]
pub(crate) struct Placements {
    /// Waiting buffers of one segment, from the next one on: what was looked at is not looked at again. At most
    /// [`Batch::FRAMES_MAX`].
    ahead: VecDeque<Waiting>,
    /// Where the ring goes on behind them.
    ahead_end: Option<Position>,
    /// Of the frame that is being put.
    segments: Vec<Window<'static>>,
    /// Buffers to be given back, oldest first: of all frames, and malformed ones.
    given: Vec<Given>,
}

/// A buffer that was looked at and not taken.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    head: Head,
    window: Window<'static>,
}

/// A buffer that is taken.
#[derive(Clone, Copy, Debug)]
struct Given {
    head: Head,
    /// How much of it is filled, in bytes.
    written: u32,
    /// How many that become visible at once begin with this one.
    together: u16,
}

/// What a receiver takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receiver<'p> {
    pub(crate) features: Features,
    pub(crate) indirect: bool,
    pub(crate) mergeable: bool,
    /// Where pages that are written are noted, while the guest is being moved elsewhere.
    pub(crate) marks: Option<&'p Marks>,
}

impl Receiver<'_> {
    /// Notes that segments were written.
    #[inline(always)]
    fn note(&self, segments: &[Window<'_>]) {
        if let Some(marks) = self.marks {
            segments.iter().for_each(|segment| marks.buffer(segment));
        }
    }
}

impl Placements {
    /// Looks at buffers for the next batch, and claims the cache lines that header and head will be written to, of as many as
    /// are to be claimed: one per expected frame, because a page that is not there is waited for.
    #[inline(always)]
    pub(crate) fn look_ahead<R: Vring>(&mut self, ring: &mut R, claimed: usize) {
        let Self { ahead, ahead_end, .. } = self;
        let mut heads = [Head::default(); Batch::FRAMES_MAX];
        let wanted = Batch::FRAMES_MAX.saturating_sub(ahead.len());
        let mut at = ahead_end.filter(|_| !ahead.is_empty()).unwrap_or(ring.next());
        // What is wrong with the ring will be found out by those who depend on it.
        let found = peek_all(ring, at, &mut heads[..wanted]).unwrap_or(0);
        for (number, head) in heads.into_iter().take(found).enumerate() {
            let Some(window) = ring.lone_buffer(head, Direction::ToGuest) else { break };
            // A device may write more of a buffer than it says it has (virtio 1.2, section 2.7.8.2).
            if number < claimed {
                window.claim(0);
                window.claim(CACHE_LINE_BYTES);
            }
            // SAFETY: this structure is dropped before the ring, which holds the memory: both are in a `Pair`, in this order.
            ahead.push_back(Waiting { head, window: unsafe { window.detach() } });
            at = ring.after(at, head);
        }
        *ahead_end = Some(at);
    }

    /// Puts frames into a ring, until one cannot be sent.
    #[inline(always)]
    pub(crate) fn send_all<'a, R: Vring>(
        &mut self,
        ring: &mut R,
        receiver: Receiver<'_>,
        mut numbers: Range<usize>,
        frame: &impl Fn(usize) -> Outgoing<'a>,
    ) -> (Sent, Result<(), SendError>) {
        let mut sent = Sent::default();
        let outcome = numbers.try_for_each(|number| {
            sent.bytes += self.put(ring, receiver, &frame(number))?;
            sent.frames += 1;
            Ok(())
        });
        for buffer in self.given.drain(..) {
            ring.make_room(buffer.together.into());
            ring.put(buffer.head, buffer.written);
        }
        (sent, outcome)
    }

    /// Takes buffers for a frame and writes it there; says how long it is. Takes none if there are too few. A malformed one is
    /// given back empty, and so are those before it, because order is kept.
    #[inline(always)]
    fn put<R: Vring>(
        &mut self,
        ring: &mut R,
        receiver: Receiver<'_>,
        frame: &Outgoing<'_>,
    ) -> Result<usize, SendError> {
        let len = frame.len_bytes();
        if len > FRAME_BYTES_MAX {
            return Err(SendError::Malformed);
        }
        if !receiver.features.take(frame.header) {
            return Err(SendError::Offload);
        }
        if let Some(Waiting { head, window }) = self.ahead.front().copied()
            && window.len() >= len
        {
            self.ahead.pop_front();
            ring.take(head);
            // At most `FRAME_BYTES_MAX`.
            self.given.push(Given { head, written: len as u32, together: 1 });
            frame.write(&[window], 1);
            receiver.note(&[window]);
        } else {
            // They will be found again.
            self.ahead.clear();
            self.put_anywhere(ring, receiver, frame, len)?;
        }
        Ok(len)
    }

    /// As [`Placements::put`], into as many buffers of any shape as it takes.
    fn put_anywhere<R: Vring>(
        &mut self,
        ring: &mut R,
        receiver: Receiver<'_>,
        frame: &Outgoing<'_>,
        len: usize,
    ) -> Result<(), SendError> {
        let given_before = self.given.len();
        let found = self.find(ring, receiver, len);
        if found.is_ok() {
            let given = &mut self.given[given_before..];
            // At most one per ring entry, of which there are at most 2^15.
            let buffers = given.len() as u16;
            given[0].together = buffers;
            given.iter().for_each(|buffer| ring.take(buffer.head));
            frame.write(&self.segments, buffers);
            receiver.note(&self.segments);
        }
        self.segments.clear();
        found.inspect_err(|error| self.refuse(ring, given_before, *error))
    }

    /// Takes back what was found before an error.
    #[cold]
    fn refuse<R: Vring>(&mut self, ring: &mut R, given: usize, error: SendError) {
        if !matches!(error, SendError::Chain(_)) {
            self.given.truncate(given);
        }
        for buffer in &mut self.given[given..] {
            (buffer.written, buffer.together) = (0, 1);
            ring.take(buffer.head);
        }
    }

    /// Finds waiting buffers for `len` bytes, without taking them; on a malformed one, the last found is that.
    #[inline(always)]
    fn find<R: Vring>(&mut self, ring: &mut R, receiver: Receiver<'_>, len: usize) -> Result<(), SendError> {
        let Self { segments, given, .. } = self;
        let rules = Rules { direction: Direction::ToGuest, indirect: receiver.indirect };
        let mut buffers_left = if receiver.mergeable { R::BUFFERS_MAX } else { 1 };
        let (mut at, mut left) = (ring.next(), len);
        while left > 0 {
            if buffers_left == 0 {
                return Err(SendError::TooSmall);
            }
            buffers_left -= 1;
            let head = ring.peek(at).map_err(SendError::Ring)?.ok_or(SendError::NoBuffers)?;
            let walked = ring.walk(ring.memory(), head, &rules, |window| {
                // SAFETY: the segments are cleared before the ring, and with it the memory, is let go of: `put_anywhere`
                // leaves none behind.
                segments.push(unsafe { window.detach() });
            });
            let written = walked.map_or(0, |room| room.min(left));
            // At most `FRAME_BYTES_MAX`.
            given.push(Given { head, written: written as u32, together: 0 });
            walked.map_err(SendError::Chain)?;
            left -= written;
            at = ring.after(at, head);
        }
        Ok(())
    }
}

/// Fills segments one after the other. What does not fit is left out.
struct Cursor<'s> {
    segments: std::slice::Iter<'s, Window<'static>>,
    current: Window<'s>,
}

impl<'s> Cursor<'s> {
    #[inline(always)]
    fn new(segments: &'s [Window<'static>]) -> Self {
        let mut segments = segments.iter();
        let current = *segments.next().expect("a frame has bytes, so buffers were found for it");
        Self { segments, current }
    }

    /// Leaves out bytes of the first segment, which has them.
    #[inline(always)]
    fn skip(&mut self, bytes: usize) {
        self.current = self.current.skip(bytes);
    }

    #[inline(always)]
    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.has_room() {
            let written = self.current.copy_in(bytes);
            self.current = self.current.skip(written);
            bytes = &bytes[written..];
        }
    }

    #[inline(always)]
    fn write_chain(&mut self, chain: Chain<'_>, offset: usize) {
        let mut skip = offset;
        for segment in chain.segments() {
            if skip >= segment.len() {
                skip -= segment.len();
                continue;
            }
            let mut from = segment.skip(skip);
            skip = 0;
            while from.len() > 0 && self.has_room() {
                let written = self.current.copy_from(&from);
                self.current = self.current.skip(written);
                from = from.skip(written);
            }
        }
    }

    #[inline(always)]
    fn has_room(&mut self) -> bool {
        while self.current.len() == 0 {
            match self.segments.next() {
                Some(segment) => self.current = *segment,
                None => return false,
            }
        }
        true
    }
}
