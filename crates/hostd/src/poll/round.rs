// SPDX-License-Identifier: Apache-2.0
//! One poll core: its loop, and what it is told.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use hdrhistogram::Histogram;
use model::Moment;
use packet::VnetHeader;
use platform::{Bell, Poller, Trigger};
use vhost_port::{Batch, GuestMemory, Port, PortEvent, SendError, VNET_HEADER_BYTES};
use vswitch::{Emission, PortId, Previewer, Switch};

use super::finish::Workbench;
use super::lane::{Desk, Lane};
use super::link::{self, Links};
use super::shared::{SharedSwitch, Turn};
use super::strain::Strain;
use super::upkeep::Upkeep;
use super::uplink::Uplink;
use super::{
    Command, CoreId, CoreNumbers, PollHandle, SLEEP_MAX, SPIN, SwitchNumbers, Wiring, latencies, now, record,
};
use crate::handover::FlowMemory;

/// Turns of upkeep before each sleep: other cores may have the switch in between.
const UPKEEP_IDLE_TURNS: usize = 64;
/// Frames taken from another core in a round.
const PARCELS_MAX: usize = 2 * Batch::FRAMES_MAX;

const WAKE_TOKEN: u64 = u64::MAX;

/// One poll core's state.
pub(super) struct Core {
    pub(super) id: CoreId,
    pub(super) handle: PollHandle,
    commands: Receiver<Command>,
    pub(super) links: Links,
    pub(super) shared: Arc<SharedSwitch>,
    pub(super) previewer: Previewer,
    pub(super) wiring: Arc<Wiring>,
    /// Ports by their number; those of other cores are none.
    pub(super) lanes: Vec<Option<Box<Lane>>>,
    pub(super) uplinks: Vec<Uplink>,
    pub(super) poller: Poller,
    /// The batch being handled.
    pub(super) desk: Desk,
    pub(super) workbench: Workbench,
    /// What the switch gave beside its decisions.
    pub(super) turn: Turn,
    /// Where such a frame gets its virtio-net header.
    scratch: Vec<u8>,
    /// Ports that are to be given to other cores before the next batch.
    moves: Vec<(PortId, CoreId)>,
    upkeep: Upkeep,
    /// When the work that is being timed began.
    mark: Moment,
    /// What it is timed by.
    pub(super) clock: fn() -> Moment,
    strain: Strain,
    /// Ports whose memory was waited for in this round.
    pub(super) suspects: Vec<PortId>,
    pub(super) numbers: CoreNumbers,
    pub(super) waits: Histogram<u64>,
    pub(super) lookups: Histogram<u64>,
}

impl Core {
    /// A core without ports.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub(super) fn new(
        id: CoreId,
        handle: PollHandle,
        commands: Receiver<Command>,
        links: Links,
        shared: Arc<SharedSwitch>,
        wiring: Arc<Wiring>,
    ) -> std::io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&*handle.cores.ends[id.index()].bell, WAKE_TOKEN, Trigger::Level)?;
        Ok(Self {
            id,
            handle,
            commands,
            links,
            previewer: shared.previewer(),
            shared,
            wiring,
            lanes: Vec::new(),
            uplinks: Vec::new(),
            poller,
            desk: Desk::new(),
            workbench: Workbench::default(),
            turn: Turn::default(),
            scratch: Vec::new(),
            moves: Vec::new(),
            upkeep: Upkeep::default(),
            mark: Moment::default(),
            clock: now,
            strain: Strain::default(),
            suspects: Vec::new(),
            numbers: CoreNumbers::default(),
            waits: latencies(),
            lookups: latencies(),
        })
    }

    /// What its thread is called.
    pub(super) fn name(&self) -> String {
        format!("poll-{}", self.handle.name(self.id))
    }

    fn bell(&self) -> &Bell {
        &self.handle.cores.ends[self.id.index()].bell
    }

    /// Runs until the process ends. A panic here is a bug that would leave guests without a network and
    /// without a word: the process ends instead, and its successor takes over.
    pub(super) fn run_or_abort(self) {
        let name = self.name();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run())).is_err();
        tracing::error!(panicked, name, "a poll thread has ended");
        std::process::abort();
    }

    fn run(mut self) -> ! {
        let mut last_busy = now();
        let (mut began, mut busy) = (last_busy, false);
        loop {
            let now = now();
            if busy {
                self.handle.cores.loads.core_worked(self.id, now.since(began));
            }
            began = now;
            self.numbers.rounds += 1;
            busy = self.round(now);
            if busy {
                self.numbers.busy_rounds += 1;
                last_busy = now;
            } else if now.since(last_busy) >= SPIN {
                self.rest(now);
            }
        }
    }

    /// Sleeps, unless there is something to do after all.
    fn rest(&mut self, now: Moment) {
        self.look_after(now, true);
        self.deliver_made();
        self.links.ring();
        let work = self.arm() || self.upkeep.is_urgent();
        let arrived = self.bell().doze(|| !self.links.are_empty());
        if !work && !arrived {
            self.sleep(now);
        }
        self.bell().rise();
        self.suppress();
    }

    /// One round over everything; tells whether any frame moved.
    pub(super) fn round(&mut self, now: Moment) -> bool {
        self.mark = now;
        self.take_commands(now);
        self.send_back(now);
        let frames_max = if self.moves.is_empty() { PARCELS_MAX } else { link::FRAMES_MAX };
        let mut busy = self.take_parcels(frames_max, now);
        self.give_away();
        for index in 0..self.lanes.len() {
            // The lane is taken out while it is served, so that it can deliver to the others.
            let Some(mut lane) = self.lanes[index].take() else { continue };
            self.service(&mut lane);
            if self.serve(&mut lane, now) {
                busy = true;
                // What is for other cores need not wait for the lanes that are left.
                self.links.ring();
            }
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
        self.deliver_made();
        for lane in self.lanes.iter_mut().flatten() {
            lane.port.flush();
        }
        self.links.ring();
        self.set_aside(now);
        busy
    }

    /// Time since the last call, or the round's beginning.
    pub(super) fn lap(&mut self) -> Duration {
        let now = (self.clock)();
        now.since(std::mem::replace(&mut self.mark, now))
    }

    /// Whether work that took so long had to wait for guests' memory.
    pub(super) fn has_waited(&mut self, took: Duration) -> bool {
        if std::mem::take(&mut self.turn.waited) {
            // For another core.
            self.strain.waits = platform::times_blocked();
            return false;
        }
        self.strain.waited(took, platform::times_blocked)
    }

    /// Has ports whose memory was waited for move to the side core.
    fn set_aside(&mut self, now: Moment) {
        for id in std::mem::take(&mut self.suspects) {
            let Some(lane) = self.lane(id) else { continue };
            lane.stay.waited = Some(now);
            self.move_aside(id);
        }
    }

    fn move_aside(&mut self, id: PortId) {
        let side = self.links.owners.side();
        if self.id != side && !self.handle.cores.loads.is_pinned(id) && !self.moves.contains(&(id, side)) {
            tracing::warn!(
                port = id.0,
                "guest's memory may have to be waited for: its port moves to the side core"
            );
            self.moves.push((id, side));
        }
    }

    /// Has ports that need the side core no longer move away from it.
    fn send_back(&mut self, now: Moment) {
        if self.id != self.links.owners.side() {
            return;
        }
        let loads = &self.handle.cores.loads;
        for lane in self.lanes.iter().flatten() {
            if lane.stay.is_over(now) && !loads.is_pinned(lane.id) {
                self.moves.push((lane.id, self.links.owners.emptiest()));
            }
        }
    }

    /// Lets the switch look after flows. The first core does that for all, a few flows at a time, and lets other cores
    /// have the switch before it unless policy has just changed.
    fn look_after(&mut self, now: Moment, idle: bool) {
        let Self { shared, turn, upkeep, .. } = self;
        for _ in 0..if idle { UPKEEP_IDLE_TURNS } else { 1 } {
            if self.id != CoreId::FIRST || !upkeep.is_due(now) {
                return;
            }
            let urgent = upkeep.is_urgent();
            let look = |switch: &mut Switch<FlowMemory>, now| {
                let flows = upkeep.share(now, switch.flow_count(), idle);
                switch.tick(now, flows);
            };
            if urgent {
                shared.with(now, turn, look);
            } else if shared.is_wanted() || shared.try_with(now, turn, look).is_none() {
                return;
            }
        }
    }

    fn take_commands(&mut self, now: Moment) {
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command, now);
            self.excuse();
        }
    }

    fn obey(&mut self, command: Command, now: Moment) {
        match command {
            Command::AddPort(seat) => self.add_lane(Box::new(Lane::new(seat))),
            Command::RemovePort(id, serial) => match self.lane(id) {
                Some(lane) if lane.serial == serial => {
                    drop(self.take_lane(id));
                    self.links.owners.clear(id, self.id);
                }
                Some(_) => {}
                None => self.send_on(id, Command::RemovePort(id, serial)),
            },
            Command::MovePort(id, to) => self.moves.push((id, to)),
            Command::TakeOver(lane) => self.add_lane(lane),
            Command::AddUplink(id, tap) => self.add_uplink(Uplink::new(id, tap)),
            Command::RemoveUplink(id) => {
                self.uplinks.retain(|uplink| uplink.id() != id);
                self.links.owners.clear(id, self.id);
            }
            Command::Install { snapshot, ports, uplinks } => {
                let Self { shared, turn, upkeep, .. } = self;
                shared.with(now, turn, |switch, now| {
                    switch.install(now, snapshot, &ports, &uplinks);
                    upkeep.hurry(switch.flow_count());
                });
            }
            Command::Listening { service, vm, listening } => {
                let Self { shared, turn, .. } = self;
                shared.with(now, turn, |switch, now| switch.set_listening(now, &service, &vm, listening));
            }
            Command::Answered(reply) => {
                let port = reply.port;
                if let Some(lane) = self.lane(port) {
                    let took = reply.took;
                    lane.answered(reply);
                    record(&mut self.lookups, took);
                } else if let Some(uplink) = self.uplinks.iter_mut().find(|uplink| uplink.id() == port) {
                    record(&mut self.lookups, reply.took);
                    uplink.answered(reply);
                } else {
                    self.send_on(port, Command::Answered(reply));
                }
            }
            Command::DnsReply(reply) => {
                let Self { shared, turn, .. } = self;
                shared.with(now, turn, |switch, now| switch.dns_reply(now, reply));
            }
            // Whoever asked may have gone.
            Command::Flows(reply) => {
                let Self { shared, turn, .. } = self;
                drop(reply.try_send(shared.with(now, turn, |switch, _| switch.flows().collect())));
            }
            Command::SwitchNumbers(reply) => {
                let Self { shared, turn, .. } = self;
                let numbers = shared.with(now, turn, |switch, _| SwitchNumbers {
                    counters: switch.counters().clone(),
                    flows: switch.flow_count(),
                });
                drop(reply.try_send(numbers));
            }
            Command::Numbers(reply) => drop(reply.try_send(self.numbers())),
        }
    }

    /// Sends what is for a port that is not here to the core that has it, if there is one.
    fn send_on(&self, port: PortId, command: Command) {
        if let Some(core) = self.links.owners.of(port).filter(|core| *core != self.id) {
            self.handle.send_to(core, command);
        }
    }

    fn add_lane(&mut self, lane: Box<Lane>) {
        let index = usize::from(lane.id.0);
        if self.lanes.len() <= index {
            self.lanes.resize_with(index + 1, || None);
        }
        self.wait_for(&lane, &*lane.waker);
        for pair in lane.port.running() {
            if let Some(kick) = lane.port.kick_fd(*pair) {
                self.wait_for(&lane, kick);
            }
        }
        self.links.owners.set(lane.id, self.id);
        self.lanes[index] = Some(lane);
    }

    fn wait_for(&self, lane: &Lane, fd: impl std::os::fd::AsFd) {
        if let Err(error) = self.poller.add(fd, u64::from(lane.id.0), Trigger::Edge) {
            tracing::error!(nic = %lane.card, %error, "cannot wait for the guest");
        }
    }

    /// Gives ports to other cores, between two batches. What was on its way to them through here has been delivered; what
    /// comes here later is sent on, and may then be overtaken by what goes there directly.
    fn give_away(&mut self) {
        for (id, to) in std::mem::take(&mut self.moves) {
            if to == self.id || to.index() >= self.handle.cores.ends.len() {
                continue;
            }
            match self.take_lane(id) {
                Some(mut lane) => {
                    lane.port.flush();
                    tracing::info!(nic = %lane.card, from = self.id.0, to = to.0, "port moves to another core");
                    self.handle.send_to(to, Command::TakeOver(lane));
                    self.links.owners.pass(id, self.id, to);
                }
                None => self.send_on(id, Command::MovePort(id, to)),
            }
        }
    }

    /// Lets go of a lane, and of what it is waited for by.
    fn take_lane(&mut self, id: PortId) -> Option<Box<Lane>> {
        let lane = self.lanes.get_mut(usize::from(id.0))?.take()?;
        // Those of pairs that do not run are not there.
        let _ = self.poller.remove(&*lane.waker);
        for kick in (0..Port::PAIRS_MAX).filter_map(|pair| lane.port.kick_fd(pair)) {
            let _ = self.poller.remove(kick);
        }
        Some(lane)
    }

    /// Takes up what the port's VMM wants.
    fn service(&mut self, lane: &mut Lane) {
        let mut events = false;
        while let Some(event) = lane.port.service() {
            events = true;
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
        if events {
            self.excuse();
        }
    }

    /// Has nobody be blamed for the time that passed up to now.
    fn excuse(&mut self) {
        self.lap();
        self.strain.waits = platform::times_blocked();
    }

    fn started(&mut self, lane: &mut Lane, pair: usize, memory: Arc<GuestMemory>) {
        if let Some(kick) = lane.port.kick_fd(pair) {
            self.wait_for(lane, kick);
        }
        lane.stay.pageable = memory.is_pageable();
        if lane.stay.pageable {
            self.move_aside(lane.id);
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

    pub(super) fn lane(&mut self, id: PortId) -> Option<&mut Lane> {
        self.lanes.get_mut(usize::from(id.0))?.as_deref_mut()
    }

    /// Delivers up to so many frames from each of the other cores; tells whether there were any.
    fn take_parcels(&mut self, frames_max: usize, now: Moment) -> bool {
        let mut busy = false;
        for index in 0..self.links.incoming.len() {
            for _ in 0..frames_max {
                let Some(parcel) = self.links.incoming[index].receive() else { break };
                if self.lane(parcel.to).is_none() {
                    // It may be on its way here.
                    self.take_commands(now);
                }
                self.deliver_whole(parcel.to, parcel.spread, parcel.bytes());
                self.suspects.push(parcel.to);
                self.links.incoming[index].give_back(parcel);
                busy = true;
            }
        }
        if busy {
            let took = self.lap();
            if !self.has_waited(took) {
                self.suspects.clear();
            }
        }
        busy
    }

    /// Delivers a frame that is in private memory with its virtio-net header.
    pub(super) fn deliver_whole(&mut self, to: PortId, spread: u32, bytes: &[u8]) {
        let Some((header, frame)) = bytes.split_first_chunk::<VNET_HEADER_BYTES>() else { return };
        let sent = match self.lanes.get_mut(usize::from(to.0)) {
            Some(Some(lane)) => match lane.port.send(spread, bytes, None) {
                Err(SendError::Offload) => {
                    let vnet = VnetHeader::from_bytes(*header);
                    self.workbench.deliver_whole(&mut lane.port, spread, &vnet, frame)
                }
                sent => sent,
            },
            _ => match self.uplinks.iter_mut().find(|uplink| uplink.id() == to) {
                Some(uplink) => uplink.send_whole(bytes),
                None => {
                    return self.links.hand_over(&mut self.numbers, (to, spread), bytes.len(), |room| {
                        room.copy_from_slice(bytes);
                        true
                    });
                }
            },
        };
        self.numbers.undelivered += u64::from(sent.is_err());
    }

    /// Delivers the frames that the switch made itself.
    fn deliver_made(&mut self) {
        if self.turn.made.is_empty() {
            return;
        }
        let (mut made, mut whole) = (std::mem::take(&mut self.turn.made), std::mem::take(&mut self.scratch));
        for Emission { port, frame } in made.drain(..) {
            whole.clear();
            whole.extend_from_slice(&VnetHeader::default().to_bytes());
            whole.extend_from_slice(&frame);
            self.deliver_whole(port, 0, &whole);
        }
        (self.turn.made, self.scratch) = (made, whole);
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
        let deadlines = self.lanes.iter().flatten().filter_map(|lane| lane.deadline());
        let deadlines = deadlines.chain(self.uplinks.iter().filter_map(Uplink::deadline));
        let deadline = deadlines.map(|deadline| deadline.since(now)).min();
        // The first core looks after flows, the side core after ports that may leave it.
        let side = self.id == self.links.owners.side() && self.lanes.iter().any(Option::is_some);
        let upkeep = (side || self.id == CoreId::FIRST).then_some(SLEEP_MAX);
        let timeout: Option<Duration> = deadline.into_iter().chain(upkeep).min();
        self.numbers.sleeps += 1;
        let rang = match self.poller.wait(timeout) {
            Ok(mut woken) => woken.any(|token| token == WAKE_TOKEN),
            Err(error) => {
                tracing::error!(%error, "cannot wait for kicks");
                false
            }
        };
        if rang {
            self.bell().hush();
        }
        // So far it was the loop itself that waited.
        self.strain.waits = platform::times_blocked();
    }

    /// Whether nothing waits for this core.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.links.are_empty()
            && self.commands.is_empty()
            && self.turn.made.is_empty()
            && self.moves.is_empty()
    }

    fn numbers(&self) -> CoreNumbers {
        let counters = |lane: &Lane| (lane.id, *lane.port.counters());
        CoreNumbers {
            ports: self.lanes.iter().flatten().map(|lane| counters(lane)).collect(),
            waits: Some(self.waits.clone()),
            lookups: Some(self.lookups.clone()),
            ..self.numbers.clone()
        }
    }
}
