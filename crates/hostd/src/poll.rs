// SPDX-License-Identifier: Apache-2.0
//! The poll cores: threads that move every guest's frames through the switch.
//!
//! Ports are spread over the cores ([`owners`]); a port's queues are touched by its core only. All cores share one switch
//! ([`shared`]), which decides about frames one after the other; a frame for a port of another core goes there through a
//! bounded queue ([`mod@link`]). So nothing about a flow depends on which cores its ends are at, and a port moves from one to
//! another between two batches ([`moves`]).
//!
//! Each round of a core ([`round`]) delivers what others sent it, serves every lane (one port and its half-done batch) once,
//! with at most [`vhost_port::Batch::FRAMES_MAX`] frames, delivers what the switch made itself, and publishes all rings
//! once. The first core also lets the switch do a bounded piece of upkeep. While frames come the loop spins; after
//! [`SPIN`] without any it arms the guests' kicks, looks once more and sleeps on eventfds.
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

mod delivery;
mod finish;
mod lane;
mod link;
mod load;
mod moves;
mod orders;
mod owners;
mod parked;
mod round;
mod shared;
mod strain;
#[cfg(test)]
mod tests;
mod turns;
mod upkeep;
mod uplink;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use hdrhistogram::Histogram;
use model::{Listener, NicRef, RuleId, Snapshot, VmRef};
use platform::{Bell, EventFd, Tap};
use vhost_port::{Port, PortCounters};
use vswitch::{Counters, DnsReply, EndpointRecord, FlowRecord, Found, MeterRecord, PortId, Switch};

use crate::dns::DnsHandle;
use crate::funnel::Funnel;
use crate::handover::FlowMemory;
use crate::introspect::{Inquiry, Introspection, Reply};
use lane::Lane;
use link::{Incoming, Links, Outgoing, link};
use load::Loads;
use owners::Owners;
pub use owners::{CORES_MAX, CoreId};
use round::Core;
use shared::SharedSwitch;

/// How long the loop spins without a frame before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Longest sleep of the first core: the switch's upkeep is due even when nothing moves.
const SLEEP_MAX: Duration = upkeep::PERIOD;
/// Longest wait that is told apart from longer ones.
pub const WAIT_NS_MAX: u64 = 10_000_000_000;
/// Limits told of; more are left out.
pub const METERS_MAX: usize = 1024;
/// Endpoints told of; more are left out.
pub const ENDPOINTS_MAX: usize = 4096;
/// Flow events waiting for the flow log; more are added up.
pub const EVENTS_QUEUED_MAX: usize = 65_536;

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

/// A port that is to be served.
#[derive(Debug)]
pub struct Seat {
    /// Its number.
    pub id: PortId,
    /// Tells it from others that had the number before or will have it.
    pub serial: u64,
    /// Its card.
    pub card: NicRef,
    /// The port.
    pub port: Box<Port>,
    /// What it signals when it has something for its poll core.
    pub waker: Arc<EventFd>,
}

/// What the switch has done so far.
#[derive(Clone, Debug, Default)]
pub struct SwitchNumbers {
    /// Its counters.
    pub counters: Counters,
    /// Flows in the table.
    pub flows: usize,
    /// Its limits, at most [`METERS_MAX`].
    pub meters: Vec<MeterRecord>,
}

/// What a poll core has done so far.
#[derive(Clone, Debug, Default)]
pub struct CoreNumbers {
    /// Counters of each port that it serves.
    pub ports: Vec<(PortId, PortCounters)>,
    /// Rounds over the ports.
    pub rounds: u64,
    /// Rounds that found frames.
    pub busy_rounds: u64,
    /// Times the loop slept.
    pub sleeps: u64,
    /// Frames taken from guests and from the host.
    pub frames: u64,
    /// Frames for ports of other cores.
    pub handed_over: u64,
    /// Frames that were dropped because too many were on their way to another core.
    pub link_full: u64,
    /// Frames that the destination could not take.
    pub undelivered: u64,
    /// Frames dropped because their guest was still being attached to.
    pub not_ready: u64,
    /// Frames dropped because an answer was late.
    pub late: u64,
    /// How long frames waited for an answer, in nanoseconds; to three digits up to [`WAIT_NS_MAX`].
    pub waits: Option<Histogram<u64>>,
    /// How long finding an answer took of that.
    pub lookups: Option<Histogram<u64>>,
    /// How long interactive ports were not looked after while the core was awake, likewise.
    pub gaps: Option<Histogram<u64>>,
}

/// What all poll cores have done so far.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// The switch.
    pub switch: SwitchNumbers,
    /// Each core, in order; none for one that did not answer in time.
    pub cores: Vec<Option<CoreNumbers>>,
}

impl Numbers {
    /// The sum over all cores of one of their numbers.
    pub fn sum(&self, number: impl Fn(&CoreNumbers) -> u64) -> u64 {
        self.cores.iter().flatten().map(number).sum()
    }

    /// All cores' times of one kind.
    pub fn times(&self, of: impl Fn(&CoreNumbers) -> &Option<Histogram<u64>>) -> Histogram<u64> {
        self.cores.iter().flatten().filter_map(|core| of(core).as_ref()).fold(
            latencies(),
            |mut all, times| {
                // They are all of one shape.
                let _ = all.add(times);
                all
            },
        )
    }
}

/// The other threads' end of the poll cores.
#[derive(Clone, Debug)]
pub struct PollHandle {
    cores: Arc<Cores>,
}

/// What everyone knows of the cores.
#[derive(Debug)]
struct Cores {
    /// Of each core, the side core's last.
    ends: Vec<End>,
    owners: Arc<Owners>,
    loads: Arc<Loads>,
}

/// Where a core is told something.
#[derive(Debug)]
struct End {
    commands: Sender<Command>,
    bell: Arc<Bell>,
}

/// A poll core does not answer: it is gone, or a bug holds it up.
#[derive(Debug, thiserror::Error)]
#[error("the poll thread does not answer")]
pub struct NoAnswer;

impl PollHandle {
    /// Longest wait for an answer.
    const ANSWER_WAIT: Duration = Duration::from_secs(2);

    /// Hands a command to the core that it is for.
    pub fn send(&self, command: Command) {
        self.send_to(self.addressee(&command), command);
    }

    fn send_to(&self, core: CoreId, command: Command) {
        let end = &self.cores.ends[core.index()];
        // Fails only when the poll core is gone, and then so is the process.
        let _ = end.commands.send(command);
        end.bell.ring_always();
    }

    /// All cores.
    fn cores(&self) -> impl Iterator<Item = CoreId> + use<> {
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
            self.send_to(CoreId(core), Command::Numbers(sender));
            receiver
        };
        let asked: Vec<_> = (0..).map(ask).take(self.cores.ends.len()).collect();
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

/// What the poll cores work with.
pub struct Wiring {
    /// To the introspection thread.
    pub inquiries: Sender<Inquiry>,
    /// Told about memory that comes and goes.
    pub introspection: Arc<Introspection>,
    /// To the thread that asks upstreams; none when there are none.
    pub dns: Option<DnsHandle>,
    /// Longest wait for an answer.
    pub attribution_wait: Duration,
    /// Whether somebody watches flows as they come and go.
    pub watched: Arc<AtomicBool>,
    /// The CPU of each core; any CPU for those beyond.
    pub cpus: Vec<usize>,
}

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
        let (mut ends, mut commands) = (Vec::new(), Vec::new());
        for _ in 0..=cores {
            let (sender, receiver) = crossbeam_channel::unbounded();
            ends.push(End { commands: sender, bell: Arc::new(Bell::new()?) });
            commands.push(receiver);
        }
        let loads = Arc::new(Loads::new(cores + 1));
        let cores = Arc::new(Cores { ends, owners: Arc::new(Owners::new(cores)), loads });
        Ok(Self { handle: PollHandle { cores }, commands })
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
        load::start(handle)
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

/// Times in nanoseconds, to three digits up to [`WAIT_NS_MAX`].
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_max(WAIT_NS_MAX, 3).expect("a valid range")
}

/// Adds a time to others.
pub fn record(latencies: &mut Histogram<u64>, took: Duration) {
    latencies.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
}
