// SPDX-License-Identifier: Apache-2.0
//! From the thread that talks to the VMM to the poll thread: one command at a time, each acknowledged.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use platform::EventFd;

use crate::device::Rings;
use crate::failure::Stalled;
use crate::features::Features;
use crate::log::Marks;
use crate::memory::GuestMemory;
use crate::pair::{Bases, RINGS};
use crate::ring::RingAddresses;
use crate::shared::Shared;

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

#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) command: Command,
    pub(crate) done: SyncSender<Bases>,
}

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
