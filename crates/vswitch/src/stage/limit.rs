// SPDX-License-Identifier: Apache-2.0
//! Limits: a frame that comes too soon is held until its time.

use model::{Judgement, ServiceFlags};

use super::{Opening, Stage};
use crate::key::FlowKey;
use crate::qos::FlowMeters;
use crate::arrival::Arrival;
use crate::{FlowSlots, Frame, Switch, Verdict};

pub(crate) struct Limit;

impl<S: FlowSlots> Stage<S> for Limit {
    const FLAG: ServiceFlags = ServiceFlags::LIMIT;
    const PER_FRAME: bool = true;

    /// A first frame waits before its flow exists: whoever opens flow after flow is held to the same limit.
    fn open(
        switch: &mut Switch<S>,
        arrival: &mut Arrival<'_>,
        opening: &mut Opening,
    ) -> Option<Verdict> {
        let judgement = opening.judgement.as_ref()?;
        let meters = switch.meters_of(judgement, &opening.keys);
        if arrival.frame.departs.is_some() {
            return None;
        }
        switch.hold(&meters, (true, true), arrival.frame)
    }

    fn judged(switch: &mut Switch<S>, position: usize, judgement: &Judgement) {
        let meters = switch.meters_of(judgement, &switch.table.keys(position));
        switch.table.flow_mut(position).meters = Some(Box::new(meters));
    }

    fn forget(switch: &mut Switch<S>, position: usize) {
        switch.table.flow_mut(position).meters = None;
    }

    fn enters(
        switch: &mut Switch<S>,
        (position, from_initiator): (usize, bool),
        arrival: &mut Arrival<'_>,
    ) -> Option<Verdict> {
        let meters = switch.table.flow(position).meters.as_deref()?;
        switch.hold(meters, (from_initiator, false), arrival.frame)
    }
}

impl<S: FlowSlots> Switch<S> {
    fn meters_of(&mut self, judgement: &Judgement, (key, answers): &(FlowKey, FlowKey)) -> FlowMeters {
        let ends = [key, answers].map(|key| self.ports.port(key.ingress()).and_then(|port| port.vm()));
        self.meters.of_flow(judgement, ends)
    }

    /// Whether a frame must wait, or wait on. The way is from the initiator or not, and whether its time
    /// is given for good.
    fn hold(&self, meters: &FlowMeters, way: (bool, bool), frame: &mut Frame) -> Option<Verdict> {
        let departs = meters.ask(way, self.now, frame.departs, frame.total_len_bytes);
        frame.departs = Some(departs);
        (departs > self.now).then_some(Verdict::Hold(departs))
    }
}
