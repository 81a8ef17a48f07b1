// SPDX-License-Identifier: Apache-2.0
//! The poll thread's half of a port: frames out of the guest, frames into the guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use platform::write_then_read;

use crate::batch::Batch;
use crate::counters::PortCounters;
use crate::device::{Device, with};
use crate::failure::SessionError;
use crate::fault::{RingFault, SendError};
use crate::features::Features;
use crate::link::{Command, Envelope, Start};
use crate::memory::GuestMemory;
use crate::outgoing::Outgoing;
use crate::pair::{Bases, PAIRS_MAX, RINGS};
use crate::ring::RingAddresses;
use crate::shared::Shared;

/// One network card, as a poll thread sees it. Nothing here blocks.
///
/// A poll loop calls [`Port::service`], [`Port::receive`], decides, calls [`Port::send_all`] on this and other ports and
/// [`Port::complete`], then [`Port::flush`] on every port it touched.
#[derive(Debug)]
pub struct Port {
    inbox: Receiver<Envelope>,
    lines: [Line; PAIRS_MAX],
    /// Pairs that are running, in ascending order.
    running: Vec<usize>,
    /// Some line has a kick to forget or a fault to tell.
    unsettled: bool,
    counters: PortCounters,
    shared: Arc<Shared>,
}

/// One queue pair, running or not.
#[derive(Debug, Default)]
struct Line {
    device: Option<Device>,
    kick: Option<OwnedFd>,
    /// The device of `kick` has stopped; the caller has until the next `service` to let go of it.
    kick_retired: bool,
    /// The device has stopped by a fault, which is yet to be told as an event.
    faulted: bool,
    /// Where the rings stood when they were last let go of.
    bases: Bases,
}

impl Line {
    /// Lets go of the rings; tells whether there were any.
    fn stop(&mut self) -> bool {
        let Some(mut device) = self.device.take() else { return false };
        self.kick_retired = true;
        with!(&mut device, pair => pair.flush());
        self.bases = with!(&device, pair => pair.bases());
        true
    }
}

/// What [`Port::service`] found out.
#[derive(Debug)]
pub enum PortEvent {
    /// The guest's driver is ready: frames flow. Look for frames at once; kicks from before are lost.
    Started {
        /// Which queue pair.
        pair: usize,
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
    Stopped {
        /// Which queue pair.
        pair: usize,
    },
    /// As `Stopped`, of all pairs, and the VMM is gone. Comes also when frames did not flow.
    Disconnected,
}

impl Port {
    /// Most queue pairs.
    pub const PAIRS_MAX: usize = PAIRS_MAX;

    pub(crate) fn new(inbox: Receiver<Envelope>, shared: Arc<Shared>) -> Self {
        let (lines, running) = (Default::default(), Vec::with_capacity(PAIRS_MAX));
        Self { inbox, lines, running, unsettled: false, counters: PortCounters::default(), shared }
    }

    /// Does what the VMM asked for since the last call; returns the first change that the caller must know. Call between
    /// two batches, until there is none. Costs next to nothing when there is none.
    pub fn service(&mut self) -> Option<PortEvent> {
        if self.unsettled
            && let Some(pair) = self.settle()
        {
            return Some(PortEvent::Stopped { pair });
        }
        while let Ok(Envelope { command, done }) = self.inbox.try_recv() {
            let (event, bases) = self.apply(command);
            // A sender that gave up waiting is no concern here.
            let _ = done.try_send(bases);
            if event.is_some() {
                return event;
            }
        }
        None
    }

    /// Forgets kicks that nobody waits for any more; returns a pair that stopped by a fault, if there is one.
    fn settle(&mut self) -> Option<usize> {
        for line in &mut self.lines {
            if std::mem::take(&mut line.kick_retired) {
                line.kick = None;
            }
        }
        let faulted = self.lines.iter().position(|line| line.faulted);
        if let Some(pair) = faulted {
            let line = &mut self.lines[pair];
            (line.faulted, line.kick_retired) = (false, true);
        }
        self.unsettled = faulted.is_some();
        faulted
    }

    fn apply(&mut self, command: Command) -> (Option<PortEvent>, Bases) {
        match command {
            Command::Start(start) => {
                let Start { pair, rings, addresses, kick, memory, features, marks } = *start;
                self.stop(pair);
                let line = &mut self.lines[pair];
                line.kick = kick;
                line.kick_retired = false;
                line.device = Some(Device::new(rings, features, marks));
                self.running.push(pair);
                self.running.sort_unstable();
                let [receive, transmit] = addresses;
                (Some(PortEvent::Started { pair, memory, transmit, receive, features }), line.bases)
            }
            Command::Stop { pair } => {
                let event = self.stop(pair).then_some(PortEvent::Stopped { pair });
                (event, self.lines[pair].bases)
            }
            Command::Disconnect => {
                for pair in 0..PAIRS_MAX {
                    self.stop(pair);
                }
                (Some(PortEvent::Disconnected), Bases::default())
            }
            Command::SetCall { ring, call } => {
                let line = &mut self.lines[ring / RINGS];
                if let Some(device) = &mut line.device {
                    with!(device, pair => pair.call(ring % RINGS)).replace(call);
                }
                (None, line.bases)
            }
        }
    }

    /// Lets go of a pair's rings; tells whether there were any.
    fn stop(&mut self, pair: usize) -> bool {
        self.running.retain(|running| *running != pair);
        let stopped = self.lines[pair].stop();
        self.unsettled |= stopped;
        stopped
    }

    fn ring_fault(&mut self, pair: usize, fault: RingFault) {
        self.counters.ring_faults += 1;
        self.stop(pair);
        let line = &mut self.lines[pair];
        line.kick_retired = false;
        line.faulted = true;
        self.shared.note_error(SessionError::Ring(fault));
    }

    /// The running pair that frames with this number go to: always the same for the same number, as long as the same
    /// pairs are running.
    #[inline]
    fn pair_for(&self, spread: u32) -> Option<usize> {
        match &self.running[..] {
            [] => None,
            [only] => Some(*only),
            several => Some(several[spread as usize % several.len()]),
        }
    }

    /// Pairs through which frames flow, in ascending order.
    #[must_use]
    pub fn running(&self) -> &[usize] {
        &self.running
    }

    /// Whether frames flow.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// What VMM and driver agreed to; nothing while the device is not running.
    #[must_use]
    pub fn features(&self) -> Features {
        let first = self.running.first().and_then(|pair| self.lines[*pair].device.as_ref());
        first.map_or(Features::default(), Device::features)
    }

    /// What has been done so far.
    #[must_use]
    pub fn counters(&self) -> &PortCounters {
        &self.counters
    }

    /// Takes up to [`Batch::FRAMES_MAX`] frames that the guest has sent through a pair, replacing what was in the batch;
    /// says how many. They stay the guest's to wait for until [`Port::complete`]. Malformed ones are counted and passed
    /// over.
    ///
    /// # Errors
    /// When the ring makes no sense. The pair has stopped; the batch is empty.
    #[inline]
    pub fn receive(&mut self, pair: usize, batch: &mut Batch) -> Result<usize, RingFault> {
        let Some(device) = &mut self.lines[pair].device else {
            batch.clear();
            return Ok(0);
        };
        match with!(device, pair => pair.receive_batch(batch, &mut self.counters)) {
            Ok(count) => Ok(count),
            Err(fault) => {
                batch.clear();
                self.ring_fault(pair, fault);
                Err(fault)
            }
        }
    }

    /// Gives the `count` oldest frames received through a pair back to the guest, visibly after [`Port::flush`]. Frames
    /// beyond those received since the device started do not count.
    #[inline]
    pub fn complete(&mut self, pair: usize, count: usize) {
        if let Some(device) = &mut self.lines[pair].device {
            with!(device, pair => pair.complete(count));
        }
    }

    /// Puts frames into the guest's receive rings, in order, visibly after [`Port::flush`], until one cannot be: those
    /// before it are sent then, those behind it are not. `frame` gives the frame of a number up to `count`; it is asked
    /// several times for each.
    ///
    /// A frame's head is best written a while before: reading what was just written in parts waits for all stores before it.
    ///
    /// # Errors
    /// The number of the first frame that cannot be delivered, and why; see [`SendError`].
    #[inline]
    pub fn send_all<'a>(
        &mut self,
        count: usize,
        frame: impl Fn(usize) -> Outgoing<'a>,
    ) -> Result<(), (usize, SendError)> {
        let mut first = 0;
        while first < count {
            let pair = self.pair_for(frame(first).spread).ok_or((first, SendError::Stopped))?;
            let end = self.end_of_run(pair, first, count, &frame);
            let Some(device) = &mut self.lines[pair].device else { return Err((first, SendError::Stopped)) };
            let (sent, outcome) = with!(device, pair => pair.send_all(first..end, &frame));
            self.counters.sent_frames += sent.frames as u64;
            self.counters.sent_bytes += sent.bytes as u64;
            first += sent.frames;
            if let Err(error) = outcome {
                self.note_send_error(pair, error);
                return Err((first, error));
            }
        }
        Ok(())
    }

    /// Up to where frames from `first` on go to the same pair, and no more than a batch.
    #[inline]
    fn end_of_run<'a>(
        &self,
        pair: usize,
        first: usize,
        count: usize,
        frame: &impl Fn(usize) -> Outgoing<'a>,
    ) -> usize {
        let end = count.min(first + Batch::FRAMES_MAX);
        if self.running.len() == 1 {
            return end;
        }
        (first + 1..end).find(|number| self.pair_for(frame(*number).spread) != Some(pair)).unwrap_or(end)
    }

    #[cold]
    fn note_send_error(&mut self, pair: usize, error: SendError) {
        match error {
            SendError::Chain(fault) => self.counters.chain_faults[fault as usize] += 1,
            SendError::Ring(fault) => self.ring_fault(pair, fault),
            _ => {}
        }
    }

    /// As [`Port::send_all`], for one frame.
    ///
    /// # Errors
    /// When the frame cannot be delivered; see [`SendError`].
    pub fn send_one(&mut self, frame: Outgoing<'_>) -> Result<(), SendError> {
        self.send_all(1, |_| frame).map_err(|(_, error)| error)
    }

    /// Says that about so many frames like the one with this `spread` will be sent next: their buffers are claimed from the
    /// guest's caches while the caller does something else. Only a hint; a byte here and there of buffers that wait is written.
    #[inline]
    pub fn expect_to_send(&mut self, spread: u32, frames: usize) {
        if let Some(pair) = self.pair_for(spread)
            && let Some(device) = &mut self.lines[pair].device
        {
            with!(device, pair => pair.look_ahead(frames));
        }
    }

    /// Devices of the pairs that are running.
    fn devices(&mut self) -> impl Iterator<Item = &mut Device> {
        self.lines.iter_mut().filter_map(|line| line.device.as_mut())
    }

    /// Shows the guest everything completed and sent, and notifies it if it wants that.
    pub fn flush(&mut self) {
        Self::flush_all(&mut [self], |port| Some(port));
    }

    /// As [`Port::flush`], for the ports of several `owners`: what was sent to any of them becomes visible first, and
    /// one fence does for all.
    #[inline]
    pub fn flush_all<T>(owners: &mut [T], port_of: impl Fn(&mut T) -> Option<&mut Self>) {
        let mut each = |act: fn(&mut Device)| {
            owners.iter_mut().filter_map(&port_of).for_each(|port| port.each_running(act));
        };
        each(|device| with!(device, pair => pair.show_sent()));
        each(|device| with!(device, pair => pair.show_completed()));
        write_then_read(|| (), || each(|device| with!(device, pair => pair.tell())));
    }

    #[inline]
    fn each_running(&mut self, act: impl Fn(&mut Device)) {
        for pair in &self.running {
            self.lines[*pair].device.iter_mut().for_each(&act);
        }
    }

    /// Asks for a kick when the guest next sends a frame through a pair. Tells whether there is already one to receive, in
    /// which case the caller must not sleep.
    pub fn arm_kicks(&mut self, pair: usize) -> bool {
        let device = self.lines[pair].device.as_mut();
        match device.map_or(Ok(false), |device| with!(device, pair => pair.arm())) {
            Ok(waiting) => waiting,
            Err(fault) => {
                self.ring_fault(pair, fault);
                false
            }
        }
    }

    /// Asks for no kicks: the caller polls.
    pub fn suppress_kicks(&mut self) {
        for device in self.devices() {
            with!(device, pair => pair.suppress());
        }
    }

    /// What the guest's kicks for a pair arrive on, an event descriptor as a rule: wait with [`platform::Trigger::Edge`] and
    /// do not read it. `None` if the VMM wants the ring polled; then nothing tells of frames.
    ///
    /// There is a new one with [`PortEvent::Started`]. After [`PortEvent::Stopped`] and [`PortEvent::Disconnected`] the old
    /// one, if any, is still here until the next [`Port::service`]: take it out of the poller then, because the VMM
    /// has it, too, and so closing ours does not.
    #[must_use]
    pub fn kick_fd(&self, pair: usize) -> Option<BorrowedFd<'_>> {
        self.lines[pair].kick.as_ref().map(AsFd::as_fd)
    }
}
