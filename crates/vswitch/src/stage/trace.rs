// SPDX-License-Identifier: Apache-2.0
//! Tracing: the moments of a flow's life are noted, for a span.
//!
//! Which flows are traced follows from their keys by the hash that guests cannot foresee: it is the random part of the
//! trace's identifier. Both directions have one answer therefore, and so have a successor of the process and any rule
//! that samples the same flow. A port has a bounded number of traced flows in the table; what exceeds it is counted and
//! goes its way untraced.
//!
//! The stage has to do with frames only until the first byte of the answer.

use model::{Judgement, Moment, ServiceFlags};
use packet::Transport;

use super::Stage;
use crate::balance::mixed;
use crate::key::FlowKey;
use crate::arrival::Arrival;
use crate::{FlowSlots, FlowState, FlowTrace, Switch};

pub(crate) struct Trace;

impl<S: FlowSlots> Stage<S> for Trace {
    const FLAG: ServiceFlags = ServiceFlags::TRACE;
    const PER_FRAME: bool = true;

    fn judged(switch: &mut Switch<S>, position: usize, judgement: &Judgement) {
        let opener = switch.opener(position);
        let (key, _) = switch.table.keys(position);
        let flow = switch.table.flow(position);
        let embryonic = switch.table.state(position).is_embryonic();
        let known = flow.trace.clone();
        let whole = known.as_ref().map_or(embryonic && flow.opened == switch.now, |trace| trace.whole);
        let sampled = switch.sampled(judgement, &key, flow.opened);
        let wanted = sampled.filter(|_| !switch.table.state(position).is_over());
        let state = &mut switch.states[usize::from(opener.0)];
        let trace = match (wanted, known) {
            (Some(new), Some(known)) => Some(FlowTrace { sample: new.sample, ..*known }),
            (Some(_), None) if state.traced >= switch.config.traced_per_port_max => {
                switch.counters.traces_lost += 1;
                None
            }
            (Some(new), None) => {
                state.traced += 1;
                Some(FlowTrace { whole, ..new })
            }
            (None, _) => None,
        };
        match trace {
            Some(trace) => switch.table.flow_mut(position).trace = Some(Box::new(trace)),
            None => Self::forget(switch, position),
        }
        switch.settle(position);
    }

    fn forget(switch: &mut Switch<S>, position: usize) {
        let opener = usize::from(switch.opener(position).0);
        if switch.table.flow_mut(position).trace.take().is_some() {
            let state = &mut switch.states[opener];
            state.traced = state.traced.saturating_sub(1);
        }
    }

    fn leaves(switch: &mut Switch<S>, (position, from_initiator): (usize, bool), arrival: &mut Arrival<'_>) {
        let says = match &arrival.ip.transport {
            Transport::Tcp(tcp) => tcp.payload_len_bytes > 0,
            _ => true,
        };
        let now = switch.now;
        if let Some(trace) = switch.table.flow_mut(position).trace.as_mut().filter(|_| says && !from_initiator) {
            trace.answered = trace.answered.or(Some(now));
            switch.settle(position);
        }
    }

    fn turns(switch: &mut Switch<S>, position: usize, state: FlowState) {
        let now = switch.now;
        let Some(trace) = &mut switch.table.flow_mut(position).trace else { return };
        match state {
            FlowState::Established => trace.connected = trace.connected.or(Some(now)),
            FlowState::Closed => trace.closed = trace.closed.or(Some(now)),
            _ => {}
        }
    }
}

impl<S: FlowSlots> Switch<S> {
    /// The trace of a flow that was opened then, if it is among those that are to be traced.
    pub(crate) fn sampled(&self, judgement: &Judgement, key: &FlowKey, opened: Moment) -> Option<FlowTrace> {
        let sample = judgement.sample()?;
        let random = self.table.scatter(key);
        let above = mixed(random ^ mixed(opened.0));
        let id = u128::from(above) << 64 | u128::from(random);
        sample.takes(id).then_some(FlowTrace {
            // An identifier of zeros alone is none.
            id: id.max(1),
            sample,
            whole: true,
            connected: None,
            answered: None,
            closed: None,
        })
    }

    /// Leaves frames alone of which nothing is still to be noted; a flow that is not traced has not the flag.
    fn settle(&mut self, position: usize) {
        let flow = self.table.flow_mut(position);
        match &flow.trace {
            Some(trace) if trace.answered.is_none() => return,
            Some(_) => {}
            None => flow.services = flow.services.without(ServiceFlags::TRACE),
        }
        self.table.release_frames(position, ServiceFlags::TRACE);
    }
}
