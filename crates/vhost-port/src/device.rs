// SPDX-License-Identifier: Apache-2.0
//! A running device: frames out of and into the rings of one kind.

use std::collections::VecDeque;

use platform::write_then_read;

use crate::chain::{Batch, Chain, Direction, FRAME_BYTES_MAX, Rules};
use crate::fault::{RingFault, SendError};
use crate::features::{Features, NUM_BUFFERS, VNET_HEADER_BYTES};
use crate::link::{Bases, RECEIVE, RINGS, TRANSMIT};
use crate::log::Marks;
use crate::port::PortCounters;
use crate::ring::{Call, Head, Packed, Split, Vring};
use crate::window::Window;

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
    /// Buffers gathered for one frame, and their segments; scratch, empty between frames.
    gathered: Vec<Gathered>,
    segments: Vec<Window<'static>>,
    /// Chains of the transmit ring that are held, oldest first: at most as many as it has entries.
    held: VecDeque<Held>,
    receive: R,
    transmit: R,
    features: Features,
    indirect: bool,
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

#[derive(Clone, Copy, Debug)]
struct Gathered {
    head: Head,
    room: usize,
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
            gathered: Vec::new(),
            segments: Vec::new(),
            held: VecDeque::with_capacity(transmit.size().into()),
            receive,
            transmit,
            features,
            indirect: features.has(Features::INDIRECT_DESC),
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
        let count = peek_all(ring, &mut heads)?;
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
        batch.prefetch();
        counters.received_frames += batch.len() as u64;
        counters.received_bytes += batch.len_bytes() as u64;
        if batch.is_empty() {
            self.complete(0);
        }
        Ok(batch.len())
    }

    #[inline(always)]
    pub(crate) fn complete(&mut self, count: usize) {
        let mut left = count;
        while let Some(Held { head, refused }) = self.held.front().copied() {
            if !refused {
                if left == 0 {
                    break;
                }
                left -= 1;
            }
            self.held.pop_front();
            self.transmit.put(head, 0);
        }
    }

    #[inline(always)]
    pub(crate) fn send(
        &mut self,
        header: [u8; VNET_HEADER_BYTES],
        head: &[u8],
        rest: Option<(Chain<'_>, usize)>,
    ) -> Result<usize, SendError> {
        let rest_len = rest.map_or(0, |(chain, offset)| chain.len_bytes().saturating_sub(offset));
        let len = header.len() + head.len() + rest_len;
        if len > FRAME_BYTES_MAX {
            return Err(SendError::Malformed);
        }
        if !self.features.take(&header) {
            return Err(SendError::Offload);
        }
        self.gather(len)?;
        // At most one per ring entry, of which there are at most 2^15.
        let buffers = self.gathered.len() as u16;
        let mut cursor = Cursor::new(&self.segments);
        cursor.write_header(header);
        cursor.write(head);
        if let Some((chain, offset)) = rest {
            cursor.write_chain(chain, offset);
        }
        // Into the guest's copy, for the sake of speed: see the method's documentation.
        write_at(&self.segments, NUM_BUFFERS, buffers.to_le_bytes());
        if let Some(marks) = &self.marks {
            self.segments.iter().for_each(|segment| marks.buffer(segment));
        }
        self.receive.make_room(self.gathered.len());
        let mut left = len;
        for buffer in &self.gathered {
            self.receive.take(buffer.head);
            let written = left.min(buffer.room);
            left -= written;
            // At most `FRAME_BYTES_MAX`.
            self.receive.put(buffer.head, written as u32);
        }
        Ok(len)
    }

    #[inline(always)]
    pub(crate) fn prefetch_buffers(&mut self, frames: usize) {
        let ring = &mut self.receive;
        let mut heads = [Head::default(); Batch::FRAMES_MAX];
        // What is wrong with the ring will be found out by those who depend on it.
        let waiting = peek_all(ring, &mut heads[..frames.min(Batch::FRAMES_MAX)]).unwrap_or(0);
        for head in heads.into_iter().take(waiting) {
            ring.descriptor(head).prefetch_buffer(ring.memory());
        }
    }

    /// Finds waiting buffers for `len` bytes, without taking them. A malformed one is given back empty, and so are those
    /// before it, because order is kept.
    #[inline(always)]
    fn gather(&mut self, len: usize) -> Result<(), SendError> {
        let Self { gathered, segments, receive, .. } = self;
        gathered.clear();
        segments.clear();
        let rules = Rules { direction: Direction::ToGuest, indirect: self.indirect };
        let buffers_max = if self.mergeable { R::BUFFERS_MAX } else { 1 };
        let mut room_total = 0;
        let mut at = receive.next();
        while room_total < len {
            if gathered.len() == buffers_max {
                return Err(SendError::TooSmall);
            }
            let head = receive.peek(at).map_err(SendError::Ring)?.ok_or(SendError::NoBuffers)?;
            let walked = receive.walk(receive.memory(), head, &rules, |window| {
                // SAFETY: the segments are cleared before the ring, and with it the memory, is let go of: the rings are
                // in this same structure, declared and so dropped later.
                segments.push(unsafe { window.detach() });
            });
            gathered.push(Gathered { head, room: *walked.as_ref().unwrap_or(&0) });
            match walked {
                Ok(room) => room_total = room_total.saturating_add(room),
                Err(fault) => {
                    for buffer in gathered {
                        receive.take(buffer.head);
                        receive.put(buffer.head, 0);
                    }
                    return Err(SendError::Chain(fault));
                }
            }
            at = receive.after(at, head);
        }
        Ok(())
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

/// Looks at as many waiting chains as there are heads to fill, and says how many there were. Their descriptors are being
/// fetched.
#[inline(always)]
fn peek_all(ring: &mut impl Vring, heads: &mut [Head]) -> Result<usize, RingFault> {
    let mut at = ring.next();
    for (count, slot) in heads.iter_mut().enumerate() {
        let Some(head) = ring.peek(at)? else { return Ok(count) };
        ring.prefetch_descriptor(head);
        at = ring.after(at, head);
        *slot = head;
    }
    Ok(heads.len())
}

/// Writes two bytes, which may be in different segments.
#[inline(always)]
fn write_at(segments: &[Window<'static>], offset: usize, bytes: [u8; 2]) {
    if segments[0].skip(offset).put(bytes) {
        return;
    }
    let mut skip = offset;
    let mut left = &bytes[..];
    for segment in segments {
        let written = segment.skip(skip).copy_in(left);
        left = &left[written..];
        skip = skip.saturating_sub(segment.len());
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
        let current = *segments.next().expect("a frame has bytes, so buffers were gathered for it");
        Self { segments, current }
    }

    /// Writes the virtio-net header, which nearly always fits the first segment.
    #[inline(always)]
    fn write_header(&mut self, header: [u8; VNET_HEADER_BYTES]) {
        if self.current.put(header) {
            self.current = self.current.skip(header.len());
        } else {
            self.write(&header);
        }
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
