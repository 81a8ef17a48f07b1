// SPDX-License-Identifier: Apache-2.0
//! What a poll core is told, by other threads, by other cores and by its ports' VMMs.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use model::Moment;
use platform::Trigger;
use vhost_port::{GuestMemory, Port, PortEvent};
use vswitch::PortId;

use super::core::Core;
use super::handle::{Command, ENDPOINTS_MAX};
use super::lane::Lane;
use super::numbers::{METERS_MAX, SwitchNumbers, record};
use super::uplink::Uplink;
use crate::introspect::Reply;

impl Core {
    pub(super) fn take_commands(&mut self, now: Moment) {
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command, now);
            self.excuse();
        }
    }

    fn obey(&mut self, command: Command, now: Moment) {
        match command {
            Command::AddPort(seat) => self.add_lane(Box::new(Lane::new(seat))),
            Command::RemovePort(id, serial) => self.remove_port(id, serial),
            Command::MovePort(id, to) => {
                self.moves.want(id, to);
            }
            Command::Settle(core, number) => self.moves.settle(core, number),
            Command::Settled(number) => self.moves.settled(number),
            Command::TakeOver(lane, from) => {
                self.moves.arrived(from);
                self.add_lane(lane);
            }
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
            Command::Listening { service, vm, listener } => {
                let Self { shared, turn, .. } = self;
                shared.with(now, turn, |switch, now| switch.set_listener(now, &service, &vm, listener));
            }
            Command::Answered(reply) => self.answered(reply),
            Command::DnsReply(reply) => {
                let Self { shared, turn, .. } = self;
                shared.with(now, turn, |switch, now| switch.dns_reply(now, reply));
            }
            // Whoever asked may have gone.
            Command::Flows(reply) => {
                let Self { shared, turn, .. } = self;
                drop(reply.try_send(shared.with(now, turn, |switch, _| switch.flows().collect())));
            }
            Command::Found(reply) => {
                let Self { shared, turn, .. } = self;
                drop(reply.try_send(shared.with(now, turn, |switch, now| switch.found(now).collect())));
            }
            Command::Endpoints(reply) => {
                let Self { shared, turn, .. } = self;
                let endpoints =
                    shared.with(now, turn, |switch, now| switch.endpoints(now).take(ENDPOINTS_MAX).collect());
                drop(reply.try_send(endpoints));
            }
            Command::SwitchNumbers(reply) => {
                let Self { shared, turn, .. } = self;
                let numbers = shared.with(now, turn, |switch, now| SwitchNumbers {
                    counters: switch.counters().clone(),
                    flows: switch.flow_count(),
                    meters: switch.meters(now).into_iter().take(METERS_MAX).collect(),
                });
                drop(reply.try_send(numbers));
            }
            Command::Numbers(reply) => drop(reply.try_send(self.numbers())),
        }
    }

    fn answered(&mut self, reply: Reply) {
        let (port, took) = (reply.port, reply.took);
        if let Some(lane) = self.lane_or_leaving(port) {
            lane.answered(reply);
            record(&mut self.lookups, took);
        } else if let Some(uplink) = self.uplinks.iter_mut().find(|uplink| uplink.id() == port) {
            uplink.answered(reply);
            record(&mut self.lookups, took);
        } else {
            self.send_on(port, Command::Answered(reply));
        }
    }

    /// Sends what is for a port that is not here to the core that has it, if there is one.
    pub(super) fn send_on(&self, port: PortId, command: Command) {
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

    fn wait_for(&self, lane: &Lane, fd: impl AsFd) {
        if let Err(error) = self.poller.add(fd, u64::from(lane.id.0), Trigger::Edge) {
            tracing::error!(nic = %lane.card, %error, "cannot wait for the guest");
        }
    }

    /// Takes up what the port's VMM wants.
    pub(super) fn service(&mut self, lane: &mut Lane) {
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
}
