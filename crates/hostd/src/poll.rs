// SPDX-License-Identifier: Apache-2.0
//! The poll thread: one loop that moves every guest's frames through the switch.
//!
//! Each round serves every lane (one port and its half-done batch) once, with at most
//! [`vhost_port::Batch::FRAMES_MAX`] frames, lets the switch do a bounded piece of upkeep, delivers what
//! the switch made itself, and publishes all rings once. While frames come the loop spins; after
//! [`SPIN`] without any it arms the guests' kicks, looks once more and sleeps on eventfds.
//!
//! A frame whose process must be known first stays in its guest's ring: its lane is paused, the
//! question goes to the introspection thread, and the frame is offered to the switch again with the
//! answer. Nothing is looked up on this thread. A paused lane delays only its own guest, for at most the
//! configured wait; a frame whose answer is late, or whose guest is still being attached to, is dropped
//! without a verdict, so that the guest's retransmission asks again.

mod finish;
mod lane;
mod upkeep;
mod uplink;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use hdrhistogram::Histogram;
use model::{Moment, NicRef, RuleId, Snapshot, VmRef};
use platform::{EventFd, Poller, Tap, Trigger};
use vhost_port::{GuestMemory, Port, PortCounters, PortEvent};
use vswitch::{Counters, Emission, FlowRecord, PortId, Switch};

use crate::funnel::Funnel;
use crate::handover::FlowMemory;
use crate::introspect::{Inquiry, Introspection, Reply};
use finish::Workbench;
use lane::{Desk, Lane};
use upkeep::Upkeep;
use uplink::Uplink;

/// How long the loop spins without a frame before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Longest sleep: the switch's upkeep is due even when nothing moves.
const SLEEP_MAX: Duration = upkeep::PERIOD;
/// Longest wait that is told apart from longer ones.
pub const WAIT_NS_MAX: u64 = 10_000_000_000;
/// Flow events waiting for the flow log; more are added up.
pub const EVENTS_QUEUED_MAX: usize = 65_536;

/// What the other threads want of the poll thread.
#[derive(Debug)]
pub enum Command {
    /// Serve this port, too.
    AddPort {
        /// Its number.
        id: PortId,
        /// Its card.
        card: NicRef,
        /// The port.
        port: Box<Port>,
    },
    /// Serve this port no longer.
    RemovePort(PortId),
    /// Serve this interface of the host, too, as a port of this number.
    AddUplink(PortId, Tap),
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
        /// Whether it is.
        listening: bool,
    },
    /// Send copies of all flows.
    Flows(Sender<Vec<FlowRecord>>),
    /// Send numbers.
    Numbers(Sender<Numbers>),
}

/// What the poll thread has done so far.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// The switch's counters.
    pub switch: Counters,
    /// Flows in the table.
    pub flows: usize,
    /// Each port's counters.
    pub ports: Vec<(PortId, PortCounters)>,
    /// Rounds over the ports.
    pub rounds: u64,
    /// Rounds that found frames.
    pub busy_rounds: u64,
    /// Times the loop slept.
    pub sleeps: u64,
    /// Frames taken from guests.
    pub frames: u64,
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
}

/// The other threads' end of the poll thread.
#[derive(Clone, Debug)]
pub struct PollHandle {
    commands: Sender<Command>,
    waker: Arc<EventFd>,
}

/// The poll thread does not answer: it is gone, or a bug holds it up.
#[derive(Debug, thiserror::Error)]
#[error("the poll thread does not answer")]
pub struct NoAnswer;

impl PollHandle {
    /// Longest wait for an answer.
    const ANSWER_WAIT: Duration = Duration::from_secs(2);

    /// Hands a command over.
    pub fn send(&self, command: Command) {
        // Fails only when the poll thread is gone, and then so is the process.
        let _ = self.commands.send(command);
        self.waker.signal();
    }

    /// Asks for something and waits for it.
    ///
    /// # Errors
    /// When no answer comes within two seconds.
    pub fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, NoAnswer> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.send(command(sender));
        receiver.recv_timeout(Self::ANSWER_WAIT).map_err(|_| NoAnswer)
    }

    /// What ports and threads signal when they have something for the poll thread.
    pub fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.waker)
    }
}

/// Makes the two ends of the command channel.
///
/// # Errors
/// When the process is out of file descriptors.
pub fn handle() -> std::io::Result<(PollHandle, Receiver<Command>)> {
    let (commands, receiver) = crossbeam_channel::unbounded();
    Ok((PollHandle { commands, waker: Arc::new(EventFd::new()?) }, receiver))
}

/// The channels of the poll thread.
pub struct Wiring {
    /// From everyone.
    pub commands: Receiver<Command>,
    /// To the introspection thread.
    pub inquiries: Sender<Inquiry>,
    /// From the introspection thread.
    pub replies: Receiver<Reply>,
    /// To the flow log.
    pub events: Funnel,
    /// Told about memory that comes and goes.
    pub introspection: Arc<Introspection>,
    /// Signalled by everyone who sends.
    pub waker: Arc<EventFd>,
    /// Longest wait for an answer.
    pub attribution_wait: Duration,
}

/// The loop's state.
pub struct Poll {
    switch: Switch<FlowMemory>,
    lanes: Vec<Option<Lane>>,
    uplinks: Vec<Uplink>,
    wiring: Wiring,
    poller: Poller,
    /// The batch being handled.
    desk: Desk,
    workbench: Workbench,
    upkeep: Upkeep,
    numbers: Numbers,
    waits: Histogram<u64>,
    lookups: Histogram<u64>,
}

const WAKE_TOKEN: u64 = u64::MAX;

impl Poll {
    /// A loop without ports.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new(switch: Switch<FlowMemory>, wiring: Wiring) -> std::io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&*wiring.waker, WAKE_TOKEN, Trigger::Level)?;
        let (lanes, desk, numbers) = (Vec::new(), Desk::new(), Numbers::default());
        let (waits, lookups, workbench) = (latencies(), latencies(), Workbench::default());
        let uplinks = Vec::new();
        Ok(Self {
            switch,
            lanes,
            uplinks,
            wiring,
            poller,
            desk,
            workbench,
            upkeep: Upkeep::default(),
            numbers,
            waits,
            lookups,
        })
    }

    /// Runs until the process ends. A panic here is a bug that would leave guests without a network and
    /// without a word: the process ends instead, and its successor takes over.
    pub fn run_or_abort(self) {
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run())).is_err();
        tracing::error!(panicked, "the poll thread has ended");
        std::process::abort();
    }

    fn run(mut self) -> ! {
        let mut last_busy = now();
        loop {
            let now = now();
            self.numbers.rounds += 1;
            if self.round(now) {
                self.numbers.busy_rounds += 1;
                last_busy = now;
            } else if now.since(last_busy) >= SPIN {
                self.look_after(now, true);
                self.deliver_own();
                if !self.arm() && !self.upkeep.is_urgent() {
                    self.sleep(now);
                }
                self.suppress();
            }
        }
    }

    /// One round over everything; tells whether any frame moved.
    fn round(&mut self, now: Moment) -> bool {
        self.take_commands(now);
        self.take_replies();
        let mut busy = false;
        for index in 0..self.lanes.len() {
            // The lane is taken out while it is served, so that it can deliver to the others.
            let Some(mut lane) = self.lanes[index].take() else { continue };
            self.service(&mut lane);
            busy |= self.serve(&mut lane, now);
            self.lanes[index] = Some(lane);
        }
        for index in 0..self.uplinks.len() {
            let mut uplink = self.uplinks.swap_remove(index);
            busy |= self.serve_uplink(&mut uplink, now);
            self.uplinks.push(uplink);
            let last = self.uplinks.len() - 1;
            self.uplinks.swap(index, last);
        }
        self.look_after(now, false);
        self.deliver_own();
        for lane in self.lanes.iter_mut().flatten() {
            lane.port.flush();
        }
        busy
    }

    fn look_after(&mut self, now: Moment, idle: bool) {
        let flows = self.upkeep.share(now, self.switch.flow_count(), idle);
        self.switch.tick(now, flows);
    }

    fn take_commands(&mut self, now: Moment) {
        while let Ok(command) = self.wiring.commands.try_recv() {
            match command {
                Command::AddPort { id, card, port } => {
                    let index = usize::from(id.0);
                    if self.lanes.len() <= index {
                        self.lanes.resize_with(index + 1, || None);
                    }
                    self.lanes[index] = Some(Lane::new(id, card, *port));
                }
                Command::RemovePort(id) => {
                    if let Some(lane) = self.lane(id) {
                        *lane = None;
                    }
                    self.uplinks.retain(|uplink| uplink.id() != id);
                }
                Command::AddUplink(id, tap) => self.add_uplink(Uplink::new(id, tap)),
                Command::Install { snapshot, ports, uplinks } => {
                    self.switch.install(now, snapshot, &ports, &uplinks);
                    self.upkeep.hurry(self.switch.flow_count());
                }
                Command::Listening { service, vm, listening } => {
                    self.switch.set_listening(now, &service, &vm, listening);
                }
                // Whoever asked may have gone.
                Command::Flows(reply) => drop(reply.try_send(self.switch.flows().collect())),
                Command::Numbers(reply) => drop(reply.try_send(self.numbers())),
            }
        }
    }

    fn take_replies(&mut self) {
        while let Ok(reply) = self.wiring.replies.try_recv() {
            record(&mut self.lookups, reply.took);
            if let Some(Some(lane)) = self.lane(reply.port) {
                lane.answered(reply);
            } else if let Some(uplink) = self.uplinks.iter_mut().find(|uplink| uplink.id() == reply.port) {
                uplink.answered(reply);
            }
        }
    }

    /// Takes up what the port's VMM wants.
    fn service(&mut self, lane: &mut Lane) {
        while let Some(event) = lane.port.service() {
            match event {
                PortEvent::Started { pair, memory, transmit, .. } => {
                    tracing::info!(nic = %lane.card, pair, "guest drives its card");
                    lane.reset(pair, Some(transmit.descriptors));
                    self.started(lane, pair, memory);
                }
                PortEvent::Stopped { pair } => self.stopped(lane, pair..pair + 1),
                PortEvent::Disconnected => self.stopped(lane, 0..Port::PAIRS_MAX),
            }
        }
    }

    fn started(&mut self, lane: &mut Lane, pair: usize, memory: Arc<GuestMemory>) {
        if let Some(kick) = lane.port.kick_fd(pair)
            && let Err(error) = self.poller.add(kick, u64::from(lane.id.0), Trigger::Edge)
        {
            tracing::error!(nic = %lane.card, pair, %error, "cannot wait for the guest's kicks");
        }
        if lane.port.running() == [pair] {
            self.wiring.introspection.memory_shared(lane.id, memory);
        }
    }

    fn stopped(&mut self, lane: &mut Lane, pairs: Range<usize>) {
        for pair in pairs {
            if let Some(kick) = lane.port.kick_fd(pair) {
                // Not there if it could not be waited for.
                let _ = self.poller.remove(kick);
            }
            lane.reset(pair, None);
        }
        if !lane.port.is_running() {
            tracing::info!(nic = %lane.card, "guest's card is at rest");
            self.wiring.introspection.memory_gone(lane.id);
        }
    }

    fn lane(&mut self, id: PortId) -> Option<&mut Option<Lane>> {
        self.lanes.get_mut(usize::from(id.0))
    }

    /// Delivers the frames that the switch made itself, and passes its events on.
    fn deliver_own(&mut self) {
        for Emission { port, frame } in self.switch.emissions() {
            let sent = match self.lanes.get_mut(usize::from(port.0)) {
                Some(Some(lane)) => lane.send_own(&frame),
                _ => match self.uplinks.iter_mut().find(|uplink| uplink.id() == port) {
                    Some(uplink) => uplink.send_own(&frame),
                    None => Ok(()),
                },
            };
            self.numbers.undelivered += u64::from(sent.is_err());
        }
        self.wiring.events.drain();
        for event in self.switch.events() {
            self.wiring.events.offer(event);
        }
    }

    /// Asks all guests to kick; tells whether one has work already.
    fn arm(&mut self) -> bool {
        let mut work = false;
        for lane in self.lanes.iter_mut().flatten() {
            work |= lane.arm();
        }
        work
    }

    fn suppress(&mut self) {
        for lane in self.lanes.iter_mut().flatten() {
            lane.port.suppress_kicks();
        }
    }

    fn sleep(&mut self, now: Moment) {
        let deadlines = self.lanes.iter().flatten().filter_map(Lane::deadline);
        let deadlines = deadlines.chain(self.uplinks.iter().filter_map(Uplink::deadline));
        let timeout = deadlines.map(|deadline| deadline.since(now)).min().unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        self.numbers.sleeps += 1;
        match self.poller.wait(Some(timeout)) {
            Ok(mut woken) => {
                if woken.any(|token| token == WAKE_TOKEN) {
                    self.wiring.waker.drain();
                }
            }
            Err(error) => tracing::error!(%error, "cannot wait for kicks"),
        }
    }

    fn numbers(&self) -> Numbers {
        let counters = |lane: &Lane| (lane.id, *lane.port.counters());
        Numbers {
            switch: self.switch.counters().clone(),
            flows: self.switch.flow_count(),
            ports: self.lanes.iter().flatten().map(counters).collect(),
            waits: Some(self.waits.clone()),
            lookups: Some(self.lookups.clone()),
            ..self.numbers.clone()
        }
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

/// Monotonic time. Its epoch is the host's boot, so it goes on across restarts of the daemon.
pub fn now() -> Moment {
    Moment(platform::monotonic_ns())
}
