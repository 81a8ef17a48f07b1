// SPDX-License-Identifier: Apache-2.0
//! The poll cores: threads that move every guest's frames through the switch.
//!
//! Ports are spread over the cores ([`owners`]); a port's queues are touched by its core only. All cores share one switch
//! ([`shared`]), which decides about frames one after the other; a frame for a port of another core goes there through a
//! bounded queue ([`mod@link`]). So nothing about a flow depends on which cores its ends are at, and a port moves from one to
//! another between two batches ([`moving`]).
//!
//! Each round of a core ([`round`]) delivers what others sent it, serves every lane (one port and its half-done batch) once,
//! with at most [`vhost_port::Batch::FRAMES_MAX`] frames, delivers what the switch made itself, and publishes all rings
//! once. The first core also lets the switch do a bounded piece of upkeep. While frames come the loop spins; after
//! 50 us without any it arms the guests' kicks, looks once more and sleeps on eventfds.
//!
//! A frame whose process must be known first stays in its guest's ring: its lane is paused, the
//! question goes to the introspection thread, and the frame is offered to the switch again with the
//! answer. Nothing is looked up on this thread beyond a glance. A paused lane delays only its own guest, for at most the
//! configured wait; a frame whose answer is late, or whose guest is still being attached to, is dropped
//! without a verdict, so that the guest's retransmission asks again. A frame that exceeds a limit waits, too, but lets
//! frames of other flows pass ([`parked`]).
//!
//! In a round each port may have as many bytes taken up as its machine's shares and reservation are worth
//! ([`vswitch::Turn`]), so that nobody waits long for a port that sends all it can; ports of latency class `Interactive` are
//! looked after between all others.

mod aside;
mod balance;
mod core;
mod delivery;
mod desk;
mod finish;
mod handle;
mod lane;
mod link;
mod load;
mod moves;
mod moving;
mod numbers;
mod orders;
mod owners;
mod parked;
mod release;
mod round;
mod shared;
mod stages;
mod strain;
#[cfg(test)]
mod tests;
mod turns;
mod upkeep;
mod uplink;
mod uplinks;

use std::sync::Arc;

use crossbeam_channel::Receiver;
use vswitch::Switch;

use crate::funnel::Funnel;
use crate::handover::FlowMemory;
use core::Core;
pub use core::Wiring;
pub use handle::{Command, ENDPOINTS_MAX, PollHandle};
pub use lane::Seat;
use link::{Incoming, Links, Outgoing, link};
pub use numbers::{CoreNumbers, Numbers, latencies, record};
pub use owners::CoreId;
use shared::SharedSwitch;

/// Flow events waiting for the flow log; more are added up.
pub const EVENTS_QUEUED_MAX: usize = 65_536;

/// The poll cores before they run.
pub struct Poll {
    handle: PollHandle,
    /// What each is told.
    commands: Vec<Receiver<Command>>,
}

impl Poll {
    /// As many cores, and the side core.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new(cores: usize) -> std::io::Result<Self> {
        let (handle, commands) = PollHandle::new(cores)?;
        Ok(Self { handle, commands })
    }

    /// Where they can be told something, now and later.
    pub fn handle(&self) -> PollHandle {
        self.handle.clone()
    }

    /// Starts a thread for each core.
    ///
    /// # Errors
    /// When the process is out of threads or file descriptors.
    pub fn start(self, switch: Switch<FlowMemory>, events: Funnel, wiring: Wiring) -> std::io::Result<()> {
        let (cpus, handle) = (wiring.cpus.clone(), self.handle());
        for (index, core) in self.cores(switch, events, wiring)?.into_iter().enumerate() {
            let cpu = cpus.get(index).copied();
            std::thread::Builder::new().name(core.name()).spawn(move || {
                if let Some(cpu) = cpu
                    && let Err(error) = platform::pin_current_thread(cpu)
                {
                    tracing::warn!(cpu, %error, "the poll thread runs on any CPU");
                }
                core.run_or_abort();
            })?;
        }
        balance::start(handle)
    }

    /// All cores, with a link from each to each.
    fn cores(self, switch: Switch<FlowMemory>, events: Funnel, wiring: Wiring) -> std::io::Result<Vec<Core>> {
        let shared =
            Arc::new(SharedSwitch::new(switch, (events, Arc::clone(&wiring.watched)), wiring.dns.clone()));
        let wiring = Arc::new(wiring);
        let count = self.commands.len();
        let mut outgoing: Vec<Vec<Outgoing>> = Vec::new();
        let mut incoming: Vec<Vec<Incoming>> = (0..count).map(|_| Vec::new()).collect();
        for _ in 0..count {
            let to = |to: usize| {
                let (outgoing, end) = link(Arc::clone(&self.handle.cores.ends[to].bell));
                incoming[to].push(end);
                outgoing
            };
            outgoing.push((0..count).map(to).collect());
        }
        let ends = outgoing.into_iter().zip(incoming).zip(self.commands);
        let core = |(id, ((outgoing, incoming), commands))| {
            let links = Links { outgoing, incoming, owners: Arc::clone(&self.handle.cores.owners) };
            let (shared, wiring) = (Arc::clone(&shared), Arc::clone(&wiring));
            Core::new(CoreId(id), self.handle.clone(), commands, links, shared, wiring)
        };
        (0..).zip(ends).map(core).collect()
    }
}
