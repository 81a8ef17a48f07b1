// SPDX-License-Identifier: Apache-2.0
//! A flow in question.

use std::sync::Arc;

use model::{
    Attribution, FiveTuple, FlowQuery, Needs, OfferIndex, Party, Sight, Snapshot, Spoken, UnknownReason,
};

use crate::Answers;
use crate::port::Port;

/// A flow in question: both ends, and what is known about them.
pub(crate) struct Case {
    pub snapshot: Arc<Snapshot>,
    pub tuple: FiveTuple,
    /// The service whose virtual address was called.
    pub via: Option<OfferIndex>,
    pub source: Arc<Port>,
    pub destination: Arc<Port>,
    pub source_is: Option<Arc<Attribution>>,
    pub destination_is: Option<Arc<Attribution>>,
    /// What its destination outside was found under.
    pub names: Vec<Arc<str>>,
    /// What is spoken in it, once that is told.
    pub spoken: Option<Spoken>,
}

impl Case {
    pub(crate) fn query(&self) -> FlowQuery<'_> {
        FlowQuery {
            tuple: self.tuple,
            source: Party { vm: self.source.vm(), attribution: self.source_is.as_deref() },
            destination: Party { vm: self.destination.vm(), attribution: self.destination_is.as_deref() },
            names: &self.names,
        }
    }

    /// Which ends policy must know and nobody has been asked about.
    pub(crate) fn missing(&self) -> Needs {
        let needs = self.snapshot.needs(&self.query(), self.via);
        let names_listener = |offer| self.snapshot.services.offer(offer).names_listener;
        let listener = needs.destination || self.via.is_some_and(names_listener);
        Needs {
            source: needs.source && self.source_is.is_none(),
            destination: listener && self.destination_is.is_none(),
        }
    }

    /// Whether what the flow is for exists for whoever opens it.
    pub(crate) fn sight(&self) -> Sight {
        self.snapshot.sight(&self.query(), self.via)
    }

    /// Whether it could not be read who listens, which says nothing about who does.
    pub(crate) fn is_listener_unread(&self) -> bool {
        let unknown = self.destination_is.as_ref().and_then(|listener| listener.unknown);
        matches!(unknown, Some(UnknownReason::Inconsistent | UnknownReason::TimedOut))
    }

    /// Whether whoever listens is the one that offers the service.
    pub(crate) fn is_offered(&self) -> bool {
        let nobody = || Attribution::unknown(UnknownReason::NoSocket);
        let listens = |offer| match &self.destination_is {
            Some(listener) => self.snapshot.services.listens(offer, listener),
            None => self.snapshot.services.listens(offer, &nobody()),
        };
        self.via.is_none_or(listens)
    }

    /// Takes in what the caller found out.
    pub(crate) fn learn(&mut self, answers: &Answers) {
        let replace = |known: &mut Option<_>, new: &Option<_>| {
            if let Some(new) = new {
                *known = Some(Arc::clone(new));
            }
        };
        replace(&mut self.source_is, &answers.initiator);
        replace(&mut self.destination_is, &answers.responder);
    }
}
