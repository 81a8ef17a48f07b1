// SPDX-License-Identifier: Apache-2.0
//! How a port gets from one core to another, with the frames of each flow in their order.
//!
//! ```text
//! old core                          every other core                   new core
//! lets go of the port;
//! frames for it head for the new ──►                                   they wait in its links
//! Settle ─────────────────────────► looks into all links, and then
//!          ◄─────────────────────── Settled: what it sent the old core
//!                                   is there, what the port sent is delivered
//! looks into all links, sends on
//! what is for the port; TakeOver ───────────────────────────────────►  looks into the old core's link first,
//!                                                                      then into the others
//! ```
//!
//! So what the port sent through its old core has arrived before the new one takes up the next, and what was sent to the old
//! core for it comes before what was sent to the new one. One port moves at a time ([`super::owners`]), so no two wait for
//! each other. A core that stands still, because a guest's memory has it wait, is waited for no longer than [`WAIT_MAX`]:
//! then frames may be overtaken.

use std::time::Duration;

use model::Moment;
use vhost_port::Port;
use vswitch::PortId;

use super::core::Core;
use super::handle::Command;
use super::lane::Lane;
use super::moves::Leaving;
use super::owners::CoreId;

/// How long a port rests for other cores to settle.
pub(super) const WAIT_MAX: Duration = Duration::from_millis(10);

impl Core {
    /// Goes on with moves, between two batches and after all links were looked into. Tells whether one goes on.
    pub(super) fn go_on_moving(&mut self, now: Moment) -> bool {
        if self.moves.is_empty() {
            return false;
        }
        for (core, number) in std::mem::take(&mut self.moves.settling) {
            self.handle.send_to(core, Command::Settled(number));
        }
        let is_due = |leaving: &Leaving| leaving.unsettled == 0 || now.since(leaving.since) >= WAIT_MAX;
        if self.moves.leaving.as_ref().is_some_and(is_due) {
            self.give_away(now);
        }
        for (id, to) in std::mem::take(&mut self.moves.wanted) {
            self.let_go(id, to, now);
        }
        self.moves.leaving.is_some() || !self.moves.wanted.is_empty()
    }

    /// Begins to move a port, or keeps in mind to do so while another moves.
    fn let_go(&mut self, id: PortId, to: CoreId, now: Moment) {
        if to == self.id || to.index() >= self.handle.cores.ends.len() {
            return;
        }
        if self.moves.leaving(id).is_some() || self.lane(id).is_some() && !self.links.owners.depart(id, to) {
            self.moves.want(id, to);
            return;
        }
        let Some(mut lane) = self.take_lane(id) else { return self.send_on(id, Command::MovePort(id, to)) };
        lane.port.flush();
        self.moves.number += 1;
        let mut unsettled = 0;
        for other in self.handle.cores().filter(|core| *core != self.id) {
            self.handle.send_to(other, Command::Settle(self.id, self.moves.number));
            unsettled += 1;
        }
        self.moves.leaving = Some(Leaving { lane, to, since: now, unsettled });
    }

    fn give_away(&mut self, now: Moment) {
        if let Some(Leaving { lane, to, since, unsettled }) = self.moves.leaving.take() {
            let (id, rested) = (lane.id, now.since(since));
            tracing::info!(
                nic = %lane.card, from = self.id.0, to = to.0, ?rested, unsettled, "port moves to another core"
            );
            self.handle.send_to(to, Command::TakeOver(lane, self.id));
            self.links.owners.arrive(id, self.id, to);
        }
    }

    /// A port that is here, or is being given away.
    pub(super) fn lane_or_leaving(&mut self, id: PortId) -> Option<&mut Lane> {
        let here = self.lanes.get_mut(usize::from(id.0)).and_then(Option::as_deref_mut);
        here.or_else(|| self.moves.leaving(id))
    }

    /// Serves a port of that serial number no longer, if it is here.
    pub(super) fn remove_port(&mut self, id: PortId, serial: u64) {
        match self.lane_or_leaving(id) {
            Some(lane) if lane.serial == serial => {
                if self.moves.leaving(id).is_some() {
                    self.moves.leaving = None;
                    self.links.owners.stay();
                }
                drop(self.take_lane(id));
                self.links.owners.clear(id, self.id);
            }
            Some(_) => {}
            None => self.send_on(id, Command::RemovePort(id, serial)),
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
}
