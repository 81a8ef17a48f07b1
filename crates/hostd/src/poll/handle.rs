// SPDX-License-Identifier: Apache-2.0
//! The other threads' end of the poll cores: commands, and who is told them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use model::{Listener, NicRef, RuleId, Snapshot, VmRef};
use platform::{Bell, Tap};
use vswitch::{DnsReply, EndpointRecord, FlowRecord, Found, PortId};

use super::lane::{Lane, Seat};
use super::load::Loads;
use super::numbers::{CoreNumbers, Numbers, SwitchNumbers};
use super::owners::{CoreId, Owners};
use crate::introspect::Reply;

/// Endpoints told of; more are left out.
pub const ENDPOINTS_MAX: usize = 4096;

/// What the other threads want of the poll cores.
#[derive(Debug)]
pub enum Command {
    /// Serve this port, too.
    AddPort(Seat),
    /// Serve this port, which was added under this serial number, no longer.
    RemovePort(PortId, u64),
    /// Leave this port to another core from now on.
    MovePort(PortId, CoreId),
    /// Tell this core when all that was sent here is delivered: it waits for that with this move of a port.
    Settle(CoreId, u64),
    /// All that was sent to another core is delivered; the answer to that.
    Settled(u64),
    /// Serve this port, which that core has let go of.
    TakeOver(Box<Lane>, CoreId),
    /// Serve this interface of the host, too, as a port of this number.
    AddUplink(PortId, Tap),
    /// Serve it no longer.
    RemoveUplink(PortId),
    /// Work by this snapshot.
    Install {
        /// What to work by.
        snapshot: Arc<Snapshot>,
        /// Which port is which card.
        ports: Vec<(PortId, NicRef)>,
        /// Which port is which interface of the host.
        uplinks: Vec<vswitch::Uplink>,
    },
    /// Whether a service is offered at an endpoint now.
    Listening {
        /// The service.
        service: RuleId,
        /// The endpoint.
        vm: VmRef,
        /// Who listens there.
        listener: Listener,
    },
    /// What was asked about a frame is known.
    Answered(Reply),
    /// Pass on what an upstream has said about a name.
    DnsReply(DnsReply),
    /// Send copies of all flows.
    Flows(Sender<Vec<FlowRecord>>),
    /// Send what machines have found under which names.
    Found(Sender<Vec<Found>>),
    /// Say how the endpoints of services fare, at most [`ENDPOINTS_MAX`].
    Endpoints(Sender<Vec<EndpointRecord>>),
    /// Send numbers of the switch.
    SwitchNumbers(Sender<SwitchNumbers>),
    /// Send numbers of a core.
    Numbers(Sender<CoreNumbers>),
}

/// The other threads' end of the poll cores.
#[derive(Clone, Debug)]
pub struct PollHandle {
    pub(super) cores: Arc<Cores>,
}

/// What everyone knows of the cores.
#[derive(Debug)]
pub(super) struct Cores {
    /// Of each core, the side core's last.
    pub(super) ends: Vec<End>,
    pub(super) owners: Arc<Owners>,
    pub(super) loads: Arc<Loads>,
}

/// Where a core is told something.
#[derive(Debug)]
pub(super) struct End {
    commands: Sender<Command>,
    pub(super) bell: Arc<Bell>,
}

/// A poll core does not answer: it is gone, or a bug holds it up.
#[derive(Debug, thiserror::Error)]
#[error("the poll thread does not answer")]
pub struct NoAnswer;

impl PollHandle {
    /// Longest wait for an answer.
    const ANSWER_WAIT: Duration = Duration::from_secs(2);

    /// For as many cores, and the side core; with what each is told.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub(super) fn new(cores: usize) -> std::io::Result<(Self, Vec<Receiver<Command>>)> {
        let (mut ends, mut commands) = (Vec::new(), Vec::new());
        for _ in 0..=cores {
            let (sender, receiver) = crossbeam_channel::unbounded();
            ends.push(End { commands: sender, bell: Arc::new(Bell::new()?) });
            commands.push(receiver);
        }
        let loads = Arc::new(Loads::new(cores + 1));
        let cores = Arc::new(Cores { ends, owners: Arc::new(Owners::new(cores)), loads });
        Ok((Self { cores }, commands))
    }

    /// Hands a command to the core that it is for.
    pub fn send(&self, command: Command) {
        self.send_to(self.addressee(&command), command);
    }

    pub(super) fn send_to(&self, core: CoreId, command: Command) {
        let end = &self.cores.ends[core.index()];
        // Fails only when the poll core is gone, and then so is the process.
        let _ = end.commands.send(command);
        end.bell.ring_always();
    }

    /// All cores.
    pub(super) fn cores(&self) -> impl Iterator<Item = CoreId> + use<> {
        (0..=self.cores.owners.side().0).map(CoreId)
    }

    /// Who does what a command says. Whoever serves a port no longer sends what is for it on.
    fn addressee(&self, command: &Command) -> CoreId {
        let owners = &self.cores.owners;
        let (id, emptiest) = match command {
            Command::AddPort(Seat { id, .. }) | Command::AddUplink(id, _) => (*id, true),
            Command::RemovePort(id, _) | Command::MovePort(id, _) | Command::RemoveUplink(id) => (*id, false),
            Command::Answered(reply) => (reply.port, false),
            _ => return CoreId::FIRST,
        };
        if emptiest {
            owners.set(id, owners.emptiest());
        }
        owners.of(id).unwrap_or(CoreId::FIRST)
    }

    /// Asks the first core for something and waits for it.
    ///
    /// # Errors
    /// When no answer comes within two seconds.
    pub fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, NoAnswer> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.send(command(sender));
        receiver.recv_timeout(Self::ANSWER_WAIT).map_err(|_| NoAnswer)
    }

    /// Asks all cores for their numbers.
    ///
    /// # Errors
    /// When the first core does not answer within two seconds. The others may stay away.
    pub fn numbers(&self) -> Result<Numbers, NoAnswer> {
        let ask = |core| {
            let (sender, receiver) = crossbeam_channel::bounded(1);
            self.send_to(core, Command::Numbers(sender));
            receiver
        };
        let asked: Vec<_> = self.cores().map(ask).collect();
        let switch = self.ask(Command::SwitchNumbers)?;
        let deadline = Instant::now() + Self::ANSWER_WAIT;
        let cores = asked.into_iter().map(|answer| answer.recv_deadline(deadline).ok()).collect();
        Ok(Numbers { switch, cores })
    }
}

impl PollHandle {
    /// What a core is called: its number, or `side`.
    pub fn name(&self, core: CoreId) -> String {
        if core == self.cores.owners.side() { "side".into() } else { core.0.to_string() }
    }

    /// The core of that name.
    pub fn named(&self, name: &str) -> Option<CoreId> {
        self.cores().find(|core| self.name(*core) == name)
    }

    /// The core that has a port.
    pub fn core_of(&self, port: PortId) -> Option<CoreId> {
        self.cores.owners.of(port)
    }

    /// The part of the last second in which a core worked, in thousandths.
    pub fn busy_permille(&self, core: CoreId) -> u32 {
        self.cores.loads.share_permille(core)
    }

    /// Moves a port to a core, where it stays.
    pub fn place(&self, port: PortId, core: CoreId) {
        self.cores.loads.pin(port);
        self.send(Command::MovePort(port, core));
    }
}
