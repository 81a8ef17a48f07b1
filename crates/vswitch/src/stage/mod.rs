// SPDX-License-Identifier: Apache-2.0
//! Data-plane services: stages that a flow and its frames go through because a flag of theirs is set.
//!
//! Which flags a flow has is decided when it is judged: some come with what it is for, the others are added by rules
//! ([`model::Judgement::services`]). They are kept with the flow and written into [`crate::Frame::services`] of each of
//! its frames, where a stage finds its own. A slot of the table says in one bit whether any stage has to do with its
//! frames at all, so a flow without services costs one test.
//!
//! A service is one file with a [`Stage`] in it, and its line in the list below. What a stage remembers of a flow it
//! keeps in [`crate::flow::Flow`], of a port in [`crate::ports::PortState`].

use std::sync::Arc;

use model::{Action, FlowQuery, Insertion, Judgement, ServiceFlags, Spoken, Unmet};

use crate::arrival::Arrival;
use crate::case::Case;
use crate::key::FlowKey;
use crate::services::Served;
use crate::{FlowEvent, FlowSlots, FlowState, Switch, Verdict};

/// A flow that is about to be opened.
pub(crate) struct Opening {
    /// The keys of its frames and of its answers.
    pub keys: (FlowKey, FlowKey),
    /// Who serves it, if it is to a virtual address.
    pub served: Option<Served>,
    pub case: Case,
    /// The flow whose place it takes, by a slot.
    pub replaced: Option<usize>,
    /// What was decided about it; nothing before [`Authorize`].
    pub judgement: Option<Arc<Judgement>>,
}

/// One data-plane service. Everything it does not need to do is left out.
pub(crate) trait Stage<S: FlowSlots> {
    /// It runs for what has this flag.
    const FLAG: ServiceFlags;

    /// Whether it has to do with frames after a flow's first, until it says that it is done with them
    /// ([`crate::table::FlowTable::release_frames`]).
    const PER_FRAME: bool = false;

    /// What a flow that rules allow does not meet of what an insertion with the flag demands. Asked whenever the flow is
    /// judged, with what is known to be spoken in it.
    fn unmet(_: &FlowQuery<'_>, _: Option<Spoken>, _: &Insertion) -> Option<Unmet> {
        None
    }

    /// Looks at a flow before it is opened; a verdict on its first frame ends it.
    fn open(_: &mut Switch<S>, _: &mut Arrival<'_>, _: &mut Opening) -> Option<Verdict> {
        None
    }

    /// Compiles what it will need for a flow that was judged for the first time, or anew.
    fn judged(_switch: &mut Switch<S>, _position: usize, _judgement: &Judgement) {}

    /// Drops that again: the flow is judged and has the flag no more, or it is about to be removed.
    fn forget(_switch: &mut Switch<S>, _position: usize) {}

    /// A frame of the flow in this position has come in, from the initiator or not, and nothing has changed yet; a verdict
    /// ends its way.
    fn enters(_: &mut Switch<S>, _: (usize, bool), _: &mut Arrival<'_>) -> Option<Verdict> {
        None
    }

    /// A frame of the flow in this position leaves, from the initiator or not.
    fn leaves(_: &mut Switch<S>, _: (usize, bool), _: &mut Arrival<'_>) {}

    /// The flow in this position is in another state now.
    fn turns(_switch: &mut Switch<S>, _position: usize, _state: FlowState) {}

    /// Something has happened to the flow.
    fn happened(_switch: &mut Switch<S>, _event: &mut FlowEvent) {}
}

/// The judgement on a flow, once the stages of its services have held it against what they demand. `spoken` is what it is
/// known to speak.
#[must_use]
pub fn reviewed(query: &FlowQuery<'_>, spoken: Option<Spoken>, judgement: Judgement) -> Judgement {
    if judgement.action == Action::Deny {
        return judgement;
    }
    let found = judgement
        .inserted
        .iter()
        .find_map(|insertion| Some((insertion.rule.clone(), unmet(query, spoken, insertion)?)));
    match found {
        Some((rule, unmet)) => judgement.denied_for(rule, unmet),
        None => judgement,
    }
}

/// The judgement on a flow in question.
pub(crate) fn judged(case: &Case) -> Judgement {
    let query = case.query();
    reviewed(&query, case.spoken, case.snapshot.judge(&query, case.via))
}

/// Declares the stages in the order in which they run.
macro_rules! stages {
    ($($module:ident::$stage:ident,)+) => {
        $(mod $module;)+
        $(pub(crate) use $module::$stage;)+

        /// The services whose stages have to do with each frame.
        pub(crate) const PER_FRAME: ServiceFlags = ServiceFlags::union(&[$(
            if <$stage as Stage<Vec<crate::FlowSlot>>>::PER_FRAME {
                <$stage as Stage<Vec<crate::FlowSlot>>>::FLAG
            } else {
                ServiceFlags::NONE
            },
        )+]);

        /// What a flow does not meet of what an insertion demands.
        fn unmet(query: &FlowQuery<'_>, spoken: Option<Spoken>, insertion: &Insertion) -> Option<Unmet> {
            $(if insertion.services.has(<$stage as Stage<Vec<crate::FlowSlot>>>::FLAG)
                && let Some(unmet) = <$stage as Stage<Vec<crate::FlowSlot>>>::unmet(query, spoken, insertion)
            {
                return Some(unmet);
            })+
            None
        }

        impl<S: FlowSlots> Switch<S> {
            /// Takes a flow that is about to be opened through the stages that its first frame has flags for.
            pub(crate) fn open_stages(
                &mut self,
                arrival: &mut Arrival<'_>,
                opening: &mut Opening,
            ) -> Option<Verdict> {
                $(if arrival.frame.services.has(<$stage as Stage<S>>::FLAG)
                    && let Some(verdict) = <$stage as Stage<S>>::open(self, arrival, opening)
                {
                    return Some(verdict);
                })+
                None
            }

            /// Sets the services of a flow that was judged.
            pub(crate) fn compile_stages(&mut self, position: usize, judgement: &Judgement) {
                let (had, services) = (self.table.flow(position).services, judgement.services());
                self.table.set_services(position, services, services.common(PER_FRAME));
                $(if services.has(<$stage as Stage<S>>::FLAG) {
                    <$stage as Stage<S>>::judged(self, position, judgement);
                } else if had.has(<$stage as Stage<S>>::FLAG) {
                    <$stage as Stage<S>>::forget(self, position);
                })+
            }

            /// Has the stages of a flow that is about to be removed forget it.
            pub(crate) fn forget_stages(&mut self, position: usize) {
                let services = self.table.flow(position).services;
                $(if services.has(<$stage as Stage<S>>::FLAG) {
                    <$stage as Stage<S>>::forget(self, position);
                })+
            }

            /// Tells the stages of a flow what state it is in now.
            pub(crate) fn turn_stages(&mut self, position: usize, state: FlowState) {
                let services = self.table.flow(position).services;
                $(if services.has(<$stage as Stage<S>>::FLAG) {
                    <$stage as Stage<S>>::turns(self, position, state);
                })+
            }

            /// Takes a frame that has come in through a slot through the stages of its flow; a verdict ends its way.
            pub(crate) fn enter_stages(&mut self, index: usize, arrival: &mut Arrival<'_>) -> Option<Verdict> {
                let position = self.table.flow_at(index);
                let from_initiator = self.table.slot(index).is_initiator();
                let attends = self.table.flow(position).attends;
                $(if <$stage as Stage<S>>::PER_FRAME
                    && attends.has(<$stage as Stage<S>>::FLAG)
                    && let Some(verdict) =
                        <$stage as Stage<S>>::enters(self, (position, from_initiator), arrival)
                {
                    return Some(verdict);
                })+
                None
            }

            /// Takes a frame that leaves through a slot through the stages of its flow.
            pub(crate) fn leave_stages(&mut self, index: usize, arrival: &mut Arrival<'_>) {
                let position = self.table.flow_at(index);
                let from_initiator = self.table.slot(index).is_initiator();
                let flow = self.table.flow(position);
                let attends = flow.attends;
                arrival.frame.services = flow.services;
                $(if <$stage as Stage<S>>::PER_FRAME && attends.has(<$stage as Stage<S>>::FLAG) {
                    <$stage as Stage<S>>::leaves(self, (position, from_initiator), arrival);
                })+
            }

            /// Tells the stages of a flow what has happened to it.
            pub(crate) fn tell_stages(&mut self, event: &mut FlowEvent) {
                let judgement = event.record.judgement.as_ref();
                let services = judgement.map_or(ServiceFlags::NONE, |judgement| judgement.services());
                $(if services.has(<$stage as Stage<S>>::FLAG) {
                    <$stage as Stage<S>>::happened(self, event);
                })+
            }
        }
    };
}

stages! {
    discovery::Discovery,
    balance::Balance,
    trace::Trace,
    authenticate::Authenticate,
    authorize::Authorize,
    limit::Limit,
    mirror::Mirror,
    log::Log,
    layer7::Layer7,
    encrypt::Encrypt,
}
