// SPDX-License-Identifier: Apache-2.0
//! Discovery: what does not exist for whoever calls is refused as an address that nobody holds.

use model::{ServiceFlags, Sight};

use super::{Opening, Stage};
use crate::arrival::Arrival;
use crate::{FlowSlots, Switch, Verdict};

pub(crate) struct Discovery;

impl<S: FlowSlots> Stage<S> for Discovery {
    const FLAG: ServiceFlags = ServiceFlags::DISCOVERY;

    fn open(
        switch: &mut Switch<S>,
        arrival: &mut Arrival<'_>,
        opening: &mut Opening,
    ) -> Option<Verdict> {
        match opening.case.sight() {
            Sight::Seen => None,
            Sight::Unsure | Sight::Hidden => Some(switch.refuse_unknown(arrival)),
        }
    }
}
