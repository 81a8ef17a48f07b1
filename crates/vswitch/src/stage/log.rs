// SPDX-License-Identifier: Apache-2.0
//! Logging: what happens to the flow is to be written down, within a rate for each port.

use model::ServiceFlags;

use super::Stage;
use crate::{FlowEvent, FlowSlots, Switch};

pub(crate) struct Log;

impl<S: FlowSlots> Stage<S> for Log {
    const FLAG: ServiceFlags = ServiceFlags::LOG;

    fn happened(switch: &mut Switch<S>, event: &mut FlowEvent) {
        let opener = usize::from(event.record.initiator.port.0);
        let rate = switch.states.get_mut(opener).map(|state| &mut state.logged);
        event.logged = rate.is_some_and(|rate| rate.allows(switch.now, switch.config.logged_per_second_max));
        switch.counters.log_lost += u64::from(!event.logged);
    }
}
