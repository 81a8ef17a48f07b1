// SPDX-License-Identifier: Apache-2.0
//! Authorization: policy decides whether the flow may pass.

use model::{Action, ServiceFlags};

use super::{Opening, Stage, judged};
use crate::arrival::Arrival;
use crate::{FlowSlots, Switch, Verdict};

pub(crate) struct Authorize;

impl<S: FlowSlots> Stage<S> for Authorize {
    const FLAG: ServiceFlags = ServiceFlags::AUTHORIZE;

    fn open(
        switch: &mut Switch<S>,
        arrival: &mut Arrival<'_>,
        opening: &mut Opening,
    ) -> Option<Verdict> {
        let judgement = switch.judgements.share(judged(&opening.case));
        match judgement.action {
            Action::Deny => Some(switch.deny(arrival, opening, judgement)),
            Action::Allow => {
                arrival.frame.services |= judgement.services();
                opening.judgement = Some(judgement);
                None
            }
        }
    }
}
