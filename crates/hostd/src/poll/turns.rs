// SPDX-License-Identifier: Apache-2.0
//! Whose turn it is: ports in a round, and interactive ones between all others.

use model::Moment;
use vhost_port::Port;
use vswitch::PortId;

use super::core::Core;
use super::numbers::record;

impl Core {
    /// Begins a round: every port may have as much taken up as it is worth.
    pub(super) fn begin_turns(&mut self) {
        self.interactive.clear();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            if let Some(lane) = lane {
                lane.begin_turn();
                if lane.is_interactive() {
                    self.interactive.push(index);
                }
            }
        }
    }

    /// Takes up a port's frames for as long as it is its turn.
    pub(super) fn serve_lane(&mut self, index: usize, now: Moment) -> bool {
        let mut busy = self.release_parked(index, now);
        // The lane is taken out while it is served, so that it can deliver to the others.
        let Some(mut lane) = self.lanes[index].take() else { return busy };
        self.service(&mut lane);
        busy |= self.serve(&mut lane, now);
        self.lanes[index] = Some(lane);
        busy
    }

    /// Looks after interactive ports between the turns of others.
    pub(super) fn serve_interactive(&mut self, now: Moment) -> bool {
        let mut busy = false;
        for place in 0..self.interactive.len() {
            let index = self.interactive[place];
            busy |= self.serve_lane(index, now);
            if let Some(Some(lane)) = self.lanes.get_mut(index)
                && let Some(gap) = lane.look()
            {
                record(&mut self.gaps, gap);
            }
        }
        busy
    }

    /// Lets frames of a port go whose time has come.
    fn release_parked(&mut self, index: usize, now: Moment) -> bool {
        let mut busy = false;
        for place in 0..Port::PAIRS_MAX {
            let Some(Some(lane)) = self.lanes.get_mut(index) else { return busy };
            let Some(pair) = lane.port.running().get(place).copied() else { return busy };
            let Some((mut parking, ring)) = lane.take_parking(pair, now) else { continue };
            busy |= self.release(PortId(index as u16), &mut parking, ring, now);
            if let Some(Some(lane)) = self.lanes.get_mut(index) {
                lane.put_parking(pair, parking);
            }
        }
        busy
    }
}
