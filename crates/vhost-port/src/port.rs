// SPDX-License-Identifier: Apache-2.0
//! The poll thread's half of a port: frames out of the guest, frames into the guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::chain::{Batch, Chain, Direction, FRAME_BYTES_MAX, Rules};
use crate::control::Shared;
use crate::fault::{ChainFault, RingFault, SendError};
use crate::features::{Features, NUM_BUFFERS, VNET_HEADER_BYTES};
use crate::link::{Command, Envelope, RECEIVE, RINGS, Start, TRANSMIT, UsedIndices};
use crate::memory::GuestMemory;
use crate::ring::{Ring, RingAddresses};
use crate::session::SessionError;
use crate::window::Window;

/// One network card, as a poll thread sees it. Nothing here blocks.
///
/// A poll loop calls [`Port::service`], [`Port::receive`], decides, calls [`Port::send`] on this and other ports and
/// [`Port::complete`], then [`Port::flush`] on every port it touched.
#[derive(Debug)]
pub struct Port {
    inbox: Receiver<Envelope>,
    device: Option<Device>,
    kick: Option<OwnedFd>,
    /// The device of `kick` has stopped; the caller has until the next `service` to let go of it.
    kick_retired: bool,
    /// The device has stopped by a fault, which is yet to be told as an event.
    faulted: bool,
    used: UsedIndices,
    counters: PortCounters,
    shared: Arc<Shared>,
}

/// What [`Port::service`] found out.
#[derive(Debug)]
pub enum PortEvent {
    /// The guest's driver is ready: frames flow. Look for frames at once; kicks from before are lost.
    Started {
        /// All of the guest's memory.
        memory: Arc<GuestMemory>,
        /// The ring of frames from the guest.
        transmit: RingAddresses,
        /// The ring of frames to the guest.
        receive: RingAddresses,
        /// What VMM and driver agreed to.
        features: Features,
    },
    /// The driver is gone or broke a ring, or the VMM is about to change something. The batch received last is void.
    Stopped,
    /// As `Stopped`, and the VMM is gone. Comes also when frames did not flow.
    Disconnected,
}

/// What a port has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames that the guest sent.
    pub received_frames: u64,
    /// Their bytes, virtio-net headers included.
    pub received_bytes: u64,
    /// Frames that the guest was given.
    pub sent_frames: u64,
    /// Their bytes, virtio-net headers included.
    pub sent_bytes: u64,
    /// Chains that were refused, in the order of [`ChainFault::ALL`].
    pub chain_faults: [u64; ChainFault::ALL.len()],
    /// Times that the port was stopped by a ring that makes no sense.
    pub ring_faults: u64,
}

impl Port {
    pub(crate) fn new(inbox: Receiver<Envelope>, shared: Arc<Shared>) -> Self {
        Self {
            inbox,
            device: None,
            kick: None,
            kick_retired: false,
            faulted: false,
            used: [0; RINGS],
            counters: PortCounters::default(),
            shared,
        }
    }

    /// Does what the VMM asked for since the last call; returns the first change that the caller must know. Call between
    /// two batches, until there is none. Costs next to nothing when there is none.
    pub fn service(&mut self) -> Option<PortEvent> {
        if self.kick_retired {
            self.kick = None;
            self.kick_retired = false;
        }
        if self.faulted {
            self.faulted = false;
            self.kick_retired = true;
            return Some(PortEvent::Stopped);
        }
        while let Ok(Envelope { command, done }) = self.inbox.try_recv() {
            let event = self.apply(command);
            // A sender that gave up waiting is no concern here.
            let _ = done.try_send(self.used);
            if event.is_some() {
                return event;
            }
        }
        None
    }

    fn apply(&mut self, command: Command) -> Option<PortEvent> {
        match command {
            Command::Start(start) => {
                self.stop();
                let Start { rings, addresses, kick, memory, features } = *start;
                // Whoever served these rings before may have died before it notified.
                rings.iter().for_each(Ring::call);
                self.kick = kick;
                self.kick_retired = false;
                self.device = Some(Device::new(rings, features));
                let [receive, transmit] = addresses;
                Some(PortEvent::Started { memory, transmit, receive, features })
            }
            Command::Stop => self.stop().then_some(PortEvent::Stopped),
            Command::Disconnect => {
                self.stop();
                Some(PortEvent::Disconnected)
            }
            Command::SetCall { ring, call } => {
                if let Some(device) = &mut self.device {
                    let ring = if ring == TRANSMIT { &mut device.transmit } else { &mut device.receive };
                    ring.set_call(call);
                }
                None
            }
        }
    }

    /// Lets go of the rings; tells whether there were any.
    fn stop(&mut self) -> bool {
        let Some(mut device) = self.device.take() else { return false };
        self.kick_retired = true;
        device.flush();
        self.used[RECEIVE] = device.receive.used_index();
        self.used[TRANSMIT] = device.transmit.used_index();
        true
    }

    fn ring_fault(&mut self, fault: RingFault) {
        self.counters.ring_faults += 1;
        self.stop();
        self.kick_retired = false;
        self.faulted = true;
        self.shared.note_error(SessionError::Ring(fault));
    }

    /// Whether frames flow.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.device.is_some()
    }

    /// What VMM and driver agreed to; nothing while the device is not running.
    #[must_use]
    pub fn features(&self) -> Features {
        self.device.as_ref().map_or(Features::default(), |device| device.features)
    }

    /// What has been done so far.
    #[must_use]
    pub fn counters(&self) -> &PortCounters {
        &self.counters
    }

    /// Takes up to [`Batch::FRAMES_MAX`] frames that the guest has sent, replacing what was in the batch; says how many.
    /// They stay the guest's to wait for until [`Port::complete`]. Malformed ones are counted and passed over.
    ///
    /// # Errors
    /// When the ring makes no sense. The port has stopped; the batch is empty.
    #[inline]
    pub fn receive(&mut self, batch: &mut Batch) -> Result<usize, RingFault> {
        let Some(device) = &mut self.device else {
            batch.clear();
            return Ok(0);
        };
        match device.receive_batch(batch, &mut self.counters) {
            Ok(count) => Ok(count),
            Err(fault) => {
                batch.clear();
                self.ring_fault(fault);
                Err(fault)
            }
        }
    }

    /// Gives the `count` oldest received frames back to the guest, visibly after [`Port::flush`]. Frames beyond those
    /// received since the device started do not count.
    #[inline]
    pub fn complete(&mut self, count: usize) {
        if let Some(device) = &mut self.device {
            device.complete(count);
        }
    }

    /// Puts a frame into the guest's receive ring, visibly after [`Port::flush`].
    ///
    /// The frame is `head`, which begins with the virtio-net header, then the bytes of `rest`'s chain from `rest`'s
    /// offset on, copied from the one guest's memory to the other's. The header's `num_buffers` is ours to write. `head`
    /// is best written a while before, or in the pieces that it is read in here: reading what was just written in parts
    /// waits for all stores before it.
    ///
    /// # Errors
    /// When the frame cannot be delivered; see [`SendError`].
    #[inline]
    pub fn send(&mut self, head: &[u8], rest: Option<(Chain<'_>, usize)>) -> Result<(), SendError> {
        let (header, head) = head.split_first_chunk().ok_or(SendError::Malformed)?;
        self.send_parts(*header, head, rest)
    }

    /// As [`Port::send`], with the virtio-net header apart from what of the frame is in private memory.
    ///
    /// # Errors
    /// When the frame cannot be delivered; see [`SendError`].
    #[inline]
    pub fn send_parts(
        &mut self,
        header: [u8; VNET_HEADER_BYTES],
        head: &[u8],
        rest: Option<(Chain<'_>, usize)>,
    ) -> Result<(), SendError> {
        let Some(device) = &mut self.device else { return Err(SendError::Stopped) };
        match device.send(header, head, rest) {
            Ok(len) => {
                self.counters.sent_frames += 1;
                self.counters.sent_bytes += len as u64;
                Ok(())
            }
            Err(error) => {
                match error {
                    SendError::Chain(fault) => self.counters.chain_faults[fault as usize] += 1,
                    SendError::Ring(fault) => self.ring_fault(fault),
                    _ => {}
                }
                Err(error)
            }
        }
    }

    /// Says that about so many frames will be sent next: their buffers are fetched from the guest's caches all at once
    /// instead of one by one. Only a hint.
    #[inline]
    pub fn expect_to_send(&mut self, frames: usize) {
        if let Some(device) = &mut self.device {
            device.prefetch_buffers(frames);
        }
    }

    /// Shows the guest everything completed and sent, and notifies it if it wants that.
    #[inline]
    pub fn flush(&mut self) {
        if let Some(device) = &mut self.device {
            device.flush();
        }
    }

    /// Asks for a kick when the guest next sends a frame. Tells whether there is already one to receive, in which case
    /// the caller must not sleep.
    pub fn arm_kicks(&mut self) -> bool {
        let armed = self.device.as_mut().map_or(Ok(false), |device| device.transmit.arm());
        match armed {
            Ok(waiting) => waiting,
            Err(fault) => {
                self.ring_fault(fault);
                false
            }
        }
    }

    /// Asks for no kicks: the caller polls.
    pub fn suppress_kicks(&mut self) {
        if let Some(device) = &mut self.device {
            device.transmit.suppress();
            device.receive.suppress();
        }
    }

    /// What the guest's kicks arrive on, an event descriptor as a rule: wait with [`platform::Trigger::Edge`] and do not
    /// read it. `None` if the VMM wants the ring polled; then nothing tells of frames.
    ///
    /// There is a new one with [`PortEvent::Started`]. After [`PortEvent::Stopped`] and [`PortEvent::Disconnected`] the old
    /// one, if any, is still here until the next [`Port::service`]: take it out of the poller then, because the VMM
    /// has it, too, and so closing ours does not.
    #[must_use]
    pub fn kick_fd(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(AsFd::as_fd)
    }
}

/// A running device.
#[derive(Debug)]
struct Device {
    /// Buffers gathered for one frame, and their segments; scratch, empty between frames.
    gathered: Vec<Gathered>,
    segments: Vec<Window<'static>>,
    /// First descriptors of the chains held, by position in the transmit ring.
    held: Box<[Held]>,
    receive: Ring,
    transmit: Ring,
    features: Features,
    indirect: bool,
    mergeable: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    head: u16,
    /// Malformed: was not handed out.
    refused: bool,
}

#[derive(Clone, Copy, Debug)]
struct Gathered {
    head: u16,
    room: usize,
}

impl Device {
    fn new(rings: [Ring; RINGS], features: Features) -> Self {
        let [mut receive, mut transmit] = rings;
        receive.suppress();
        transmit.suppress();
        Self {
            gathered: Vec::new(),
            segments: Vec::new(),
            held: vec![Held::default(); usize::from(transmit.size())].into(),
            receive,
            transmit,
            features,
            indirect: features.has(Features::INDIRECT_DESC),
            mergeable: features.has(Features::MRG_RXBUF),
        }
    }

    #[inline(always)]
    fn receive_batch(&mut self, batch: &mut Batch, counters: &mut PortCounters) -> Result<usize, RingFault> {
        let ring = &mut self.transmit;
        batch.begin(ring.memory());
        let count = ring.waiting(Batch::FRAMES_MAX as u16)?.min(Batch::FRAMES_MAX as u16);
        if count == 0 {
            return Ok(0);
        }
        let mut heads = [0; Batch::FRAMES_MAX];
        for (ahead, head) in (0..count).zip(&mut heads) {
            *head = ring.head(ahead)?;
            ring.prefetch_descriptor(*head);
        }
        let rules = Rules { direction: Direction::FromGuest, indirect: self.indirect };
        for (ahead, head) in (0..count).zip(heads) {
            let refused = match batch.add(ring.table(), head, &rules) {
                Ok(()) => false,
                Err(fault) => {
                    counters.chain_faults[fault as usize] += 1;
                    true
                }
            };
            self.held[ring.position(ahead)] = Held { head, refused };
        }
        ring.advance(count);
        batch.prefetch();
        counters.received_frames += batch.len() as u64;
        counters.received_bytes += batch.len_bytes() as u64;
        if batch.is_empty() {
            self.complete(0);
        }
        Ok(batch.len())
    }

    #[inline(always)]
    fn complete(&mut self, count: usize) {
        let mut left = count;
        while let Some(position) = self.transmit.oldest() {
            let Held { head, refused } = self.held[position];
            if !refused {
                if left == 0 {
                    break;
                }
                left -= 1;
            }
            self.transmit.put(head, 0);
        }
    }

    #[inline(always)]
    fn send(
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
        self.receive.advance(buffers);
        let mut left = len;
        for buffer in &self.gathered {
            let written = left.min(buffer.room);
            left -= written;
            // At most `FRAME_BYTES_MAX`.
            self.receive.put(buffer.head, written as u32);
        }
        Ok(len)
    }

    #[inline(always)]
    fn prefetch_buffers(&mut self, frames: usize) {
        let frames = frames.min(Batch::FRAMES_MAX) as u16;
        let ring = &mut self.receive;
        // What is wrong with the ring will be found out by those who depend on it.
        let waiting = ring.waiting(frames).map_or(0, |waiting| waiting.min(frames));
        let mut heads = [0; Batch::FRAMES_MAX];
        for (ahead, head) in (0..waiting).zip(&mut heads) {
            *head = ring.head(ahead).unwrap_or(0);
            ring.prefetch_descriptor(*head);
        }
        for head in &heads[..usize::from(waiting)] {
            ring.table().prefetch_buffer(ring.memory(), *head);
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
        let mut room_total = 0;
        while room_total < len {
            // At most as many as wait, and that is at most 2^15.
            let ahead = gathered.len() as u16;
            if ahead > 0 && !self.mergeable {
                return Err(SendError::TooSmall);
            }
            if receive.waiting(ahead + 1).map_err(SendError::Ring)? <= ahead {
                return Err(SendError::NoBuffers);
            }
            let head = receive.head(ahead).map_err(SendError::Ring)?;
            let walked = receive.table().walk(receive.memory(), head, &rules, |window| {
                // SAFETY: the segments are cleared before the ring, and with it the memory, is let go of: the rings are
                // in this same structure, declared and so dropped later.
                segments.push(unsafe { window.detach() });
            });
            match walked {
                Ok(room) => {
                    gathered.push(Gathered { head, room });
                    room_total = room_total.saturating_add(room);
                }
                Err(fault) => {
                    receive.advance(ahead + 1);
                    gathered.iter().for_each(|buffer| receive.put(buffer.head, 0));
                    receive.put(head, 0);
                    return Err(SendError::Chain(fault));
                }
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn flush(&mut self) {
        self.transmit.publish();
        self.receive.publish();
    }
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
