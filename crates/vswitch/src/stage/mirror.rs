// SPDX-License-Identifier: Apache-2.0
//! Mirroring: a third port gets a copy of each frame, as it is forwarded.

use model::{Judgement, ServiceFlags};

use super::Stage;
use crate::arrival::Arrival;
use crate::{FlowSlots, Switch};

pub(crate) struct Mirror;

impl<S: FlowSlots> Stage<S> for Mirror {
    const FLAG: ServiceFlags = ServiceFlags::MIRROR;
    const PER_FRAME: bool = true;

    /// Finds the collector's port; a flow that the collector is an end of is not copied to it.
    fn judged(switch: &mut Switch<S>, position: usize, judgement: &Judgement) {
        let (key, answers) = switch.table.keys(position);
        let ends = [key.ingress(), answers.ingress()];
        let vm_at = |port| switch.ports.port(port).and_then(|port| port.vm());
        let collector = judgement
            .mirror()
            .filter(|vm| ends.iter().all(|port| vm_at(*port) != Some(*vm)))
            .and_then(|vm| switch.ports.of_machine(vm).next())
            .map(|(port, _)| port);
        switch.table.flow_mut(position).mirror = collector;
    }

    fn forget(switch: &mut Switch<S>, position: usize) {
        switch.table.flow_mut(position).mirror = None;
    }

    fn leaves(switch: &mut Switch<S>, (position, _): (usize, bool), arrival: &mut Arrival<'_>) {
        arrival.frame.mirror = switch.table.flow(position).mirror;
    }
}
