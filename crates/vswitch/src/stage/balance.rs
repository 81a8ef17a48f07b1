// SPDX-License-Identifier: Apache-2.0
//! Load balancing: a call to a virtual address goes to an endpoint where whoever offers the service listens.
//!
//! The endpoint has been chosen where the way of the flow was looked up ([`crate::services`]), because that names
//! both ends.

use model::ServiceFlags;

use super::{Opening, Stage};
use crate::arrival::Arrival;
use crate::{DropReason, FlowSlots, Switch, Verdict};

pub(crate) struct Balance;

impl<S: FlowSlots> Stage<S> for Balance {
    const FLAG: ServiceFlags = ServiceFlags::BALANCE;

    fn open(
        switch: &mut Switch<S>,
        arrival: &mut Arrival<'_>,
        opening: &mut Opening,
    ) -> Option<Verdict> {
        match &opening.served {
            // The guest has changed while it was read: no verdict, as whenever an answer comes too late.
            Some(_) if !opening.case.is_offered() && opening.case.is_listener_unread() => {
                Some(Verdict::Drop(DropReason::UnreadListener))
            }
            Some(served) if !opening.case.is_offered() => {
                // Each time there is one endpoint less to choose from.
                switch.nobody_listens(served);
                switch.note_failure(&opening.keys.0, served);
                arrival.answers = None;
                Some(switch.open_flow(arrival, opening.keys.0, opening.replaced))
            }
            _ => None,
        }
    }
}
