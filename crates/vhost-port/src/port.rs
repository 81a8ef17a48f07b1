// SPDX-License-Identifier: Apache-2.0
//! The poll thread's half of a port: frames out of the guest, frames into the guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::chain::{Batch, Chain};
use crate::control::Shared;
use crate::device::{Device, with};
use crate::fault::{ChainFault, RingFault, SendError};
use crate::features::{Features, VNET_HEADER_BYTES};
use crate::link::{Bases, Command, Envelope, RINGS, Start};
use crate::memory::GuestMemory;
use crate::ring::RingAddresses;
use crate::session::SessionError;

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
    /// Where the rings stood when they were last let go of.
    bases: Bases,
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
            bases: [0; RINGS],
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
            let _ = done.try_send(self.bases);
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
                    with!(device, pair => pair.call(ring)).replace(call);
                }
                None
            }
        }
    }

    /// Lets go of the rings; tells whether there were any.
    fn stop(&mut self) -> bool {
        let Some(mut device) = self.device.take() else { return false };
        self.kick_retired = true;
        with!(&mut device, pair => pair.flush());
        self.bases = with!(&device, pair => pair.bases());
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
        self.device.as_ref().map_or(Features::default(), Device::features)
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
        match with!(device, pair => pair.receive_batch(batch, &mut self.counters)) {
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
            with!(device, pair => pair.complete(count));
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
        match with!(device, pair => pair.send(header, head, rest)) {
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
            with!(device, pair => pair.prefetch_buffers(frames));
        }
    }

    /// Shows the guest everything completed and sent, and notifies it if it wants that.
    #[inline]
    pub fn flush(&mut self) {
        if let Some(device) = &mut self.device {
            with!(device, pair => pair.flush());
        }
    }

    /// Asks for a kick when the guest next sends a frame. Tells whether there is already one to receive, in which case
    /// the caller must not sleep.
    pub fn arm_kicks(&mut self) -> bool {
        let armed = self.device.as_mut().map_or(Ok(false), |device| with!(device, pair => pair.arm()));
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
            with!(device, pair => pair.suppress());
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
