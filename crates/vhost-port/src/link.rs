// SPDX-License-Identifier: Apache-2.0
//! From the thread that talks to the VMM to the poll thread: one command at a time, each acknowledged.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use platform::EventFd;

use crate::control::Shared;
use crate::device::Rings;
use crate::features::Features;
use crate::log::Marks;
use crate::memory::GuestMemory;
use crate::ring::RingAddresses;

/// The ring of frames to the guest, by its number in the protocol.
pub(crate) const RECEIVE: usize = 0;
/// The ring of frames from the guest.
pub(crate) const TRANSMIT: usize = 1;
/// Rings of a queue pair. In the protocol's numbers, those of one pair come after those of the one before.
pub(crate) const RINGS: usize = 2;
/// Most queue pairs of a port.
pub(crate) const PAIRS_MAX: usize = 8;

/// Longest time that the poll thread may take to acknowledge; it does so once per loop.
const ACKNOWLEDGE_MAX: Duration = Duration::from_secs(1);
/// How often a waiting sender looks whether its port is being closed.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Commands on their way. A sender that got no answer sends no more, so one would do.
const COMMANDS_MAX: usize = 2;

#[derive(Debug)]
pub(crate) enum Command {
    /// Take up these rings; those of the same pair before, if any, are to be forgotten.
    Start(Box<Start>),
    /// Publish what is complete, forget a pair's rings and its memory.
    Stop { pair: usize },
    /// Notify the guest another way.
    SetCall { ring: usize, call: Option<OwnedFd> },
    /// Stop all, because the VMM is gone.
    Disconnect,
}

#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) pair: usize,
    pub(crate) rings: Rings,
    pub(crate) addresses: [RingAddresses; RINGS],
    pub(crate) kick: Option<OwnedFd>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) features: Features,
    pub(crate) marks: Option<Marks>,
}

/// Where a pair's rings stood when the poll thread last let go of them, as `GET_VRING_BASE` says it.
pub(crate) type Bases = [u32; RINGS];

#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) command: Command,
    pub(crate) done: SyncSender<Bases>,
}

/// The poll thread did not take up a command in time, or is gone, or the port is being closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("poll thread did not answer")]
pub struct Stalled;

/// The sending end.
#[derive(Debug)]
pub(crate) struct Link {
    commands: SyncSender<Envelope>,
    waker: Arc<EventFd>,
    shared: Arc<Shared>,
}

impl Link {
    pub(crate) fn new(waker: Arc<EventFd>, shared: Arc<Shared>) -> (Self, Receiver<Envelope>) {
        let (commands, inbox) = sync_channel(COMMANDS_MAX);
        (Self { commands, waker, shared }, inbox)
    }

    /// Sends a command and waits until the poll thread has taken it up.
    pub(crate) fn send(&self, command: Command) -> Result<Bases, Stalled> {
        let (done, answer) = sync_channel(1);
        self.commands.try_send(Envelope { command, done }).map_err(|_| Stalled)?;
        self.waker.signal();
        let mut waited = Duration::ZERO;
        while waited < ACKNOWLEDGE_MAX {
            match answer.recv_timeout(LOOK_EVERY) {
                Ok(indices) => return Ok(indices),
                Err(RecvTimeoutError::Disconnected) => return Err(Stalled),
                Err(RecvTimeoutError::Timeout) if self.shared.is_closing() => return Err(Stalled),
                Err(RecvTimeoutError::Timeout) => waited += LOOK_EVERY,
            }
        }
        Err(Stalled)
    }
}
