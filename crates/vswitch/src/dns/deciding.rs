// SPDX-License-Identifier: Apache-2.0
//! What becomes of a question.

use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use model::{Action, Attribution, FiveTuple, FlowQuery, Party, Protocol, Snapshot, UnknownReason, VmIndex};
use packet::{Tcp, Transport, Udp};

use super::message::{Request, Unusable, Why, encoded};
use super::zone::{Asker, Outcome};
use super::{DNS_PORT, DnsConfig, learned};
use crate::arrival::Arrival;
use crate::key::FlowKey;
use crate::stage::reviewed;
use crate::{Ask, DropReason, FlowSlots, How, Question, Switch, Verdict};

/// What becomes of a question.
enum Decision {
    Answer(Message),
    Refuse(Message),
    /// An upstream is asked.
    Forward,
    /// It is not ours.
    Pass,
    /// Who asks must be known.
    Ask,
}

/// What becomes of a message.
pub(super) enum Reaction {
    Say(Vec<u8>),
    /// Policy does not let it be asked of others; this says so.
    Refuse(Vec<u8>),
    Forward(Request),
    Ask,
    Pass,
    /// There is nothing to say.
    Silence,
}

impl<S: FlowSlots> Switch<S> {
    /// What to do about a message; `passes` if one that is not ours may go on to whom it is for.
    pub(super) fn react(
        &self,
        arrival: &Arrival<'_>,
        vm: VmIndex,
        bytes: &[u8],
        passes: bool,
        len_bytes_max: impl Fn(&Request) -> usize,
    ) -> Reaction {
        let request = match Request::parse(bytes) {
            Ok(request) => request,
            Err(_) if passes => return Reaction::Pass,
            Err(Unusable::NotAQuery) => return Reaction::Silence,
            Err(Unusable::Refused(answer)) => return Reaction::Say(answer),
        };
        match self.decide_question(arrival, vm, &request, passes) {
            Decision::Answer(message) => Reaction::Say(encoded(message, len_bytes_max(&request))),
            Decision::Refuse(message) => Reaction::Refuse(encoded(message, len_bytes_max(&request))),
            Decision::Forward => Reaction::Forward(request),
            Decision::Pass => Reaction::Pass,
            Decision::Ask => Reaction::Ask,
        }
    }

    fn decide_question(
        &self,
        arrival: &Arrival<'_>,
        vm: VmIndex,
        request: &Request,
        passes: bool,
    ) -> Decision {
        let (Some(snapshot), Some(config)) = (&self.snapshot, &self.config.dns) else {
            return Decision::Pass;
        };
        let sender = sender(arrival);
        let client = Party { vm: Some(vm), attribution: sender.as_deref() };
        let own = |code, answers, authorities, additionals| {
            Decision::Answer(request.own_answer(code, answers, authorities, additionals))
        };
        match (Asker { snapshot, client, ttl_s: config.ttl_s }).ask(&request.query) {
            Outcome::Records(answers, useful) => own(ResponseCode::NoError, answers, Vec::new(), useful),
            Outcome::NoData(soa) => own(ResponseCode::NoError, Vec::new(), vec![soa], Vec::new()),
            Outcome::NoName(soa) => own(ResponseCode::NXDomain, Vec::new(), vec![soa], Vec::new()),
            Outcome::Unsure => Decision::Ask,
            Outcome::Foreign if passes => Decision::Pass,
            Outcome::Foreign if !config.has_upstreams => {
                Decision::Answer(request.answer(ResponseCode::Refused, Some(Why::NotAuthoritative)))
            }
            Outcome::Foreign => may_ask_others(snapshot, config, arrival, client, request),
        }
    }

    /// Counts what has become of a message.
    pub(super) fn note_reaction(&mut self, reaction: &Reaction) {
        let counters = &mut self.counters;
        match reaction {
            Reaction::Say(_) => counters.names_answered += 1,
            Reaction::Forward(_) => counters.names_forwarded += 1,
            Reaction::Refuse(_) => counters.names_refused += 1,
            Reaction::Ask | Reaction::Pass | Reaction::Silence => {}
        }
    }

    /// Finds out who has sent the packet.
    pub(super) fn ask_for_sender(&self, arrival: &Arrival<'_>) -> Verdict {
        let Some(key) = FlowKey::of(arrival.ingress, arrival.ip) else {
            return Verdict::Drop(DropReason::Malformed);
        };
        let ask = Ask { port: arrival.ingress, how: How::Frame, tuple: key.tuple() };
        Verdict::Ask(Question { initiator: Some(ask), responder: None })
    }
}

/// Policy about names outside the mesh: the asker must be allowed to send UDP to port 53 of the resolver, or to reach
/// what has the name.
fn may_ask_others(
    snapshot: &Snapshot,
    config: &DnsConfig,
    arrival: &Arrival<'_>,
    client: Party<'_>,
    request: &Request,
) -> Decision {
    let (Transport::Udp(Udp { source_port, .. }) | Transport::Tcp(Tcp { source_port, .. })) =
        arrival.ip.transport
    else {
        return Decision::Pass;
    };
    let query = FlowQuery {
        tuple: FiveTuple {
            source: arrival.ip.addresses.source(),
            destination: config.resolver.into(),
            source_port,
            destination_port: DNS_PORT,
            protocol: Protocol::Udp,
        },
        source: client,
        destination: Party { vm: None, attribution: None },
        names: &[],
    };
    let names_it = |name: String| client.vm.is_some_and(|vm| snapshot.judge.names_domain(vm, &name));
    if learned::plain(request.query.name()).is_some_and(names_it) {
        return Decision::Forward;
    }
    if client.attribution.is_none() && snapshot.judge.needs(&query).source {
        return Decision::Ask;
    }
    match reviewed(&query, None, snapshot.judge.judge(&query)).action {
        Action::Allow => Decision::Forward,
        Action::Deny => Decision::Refuse(request.answer(ResponseCode::Refused, Some(Why::Prohibited))),
    }
}

/// Who sent the packet, if that was asked for; nobody known if no answer was found.
fn sender(arrival: &Arrival<'_>) -> Option<Arc<Attribution>> {
    let unknown = || Arc::new(Attribution::unknown(UnknownReason::NoSocket));
    arrival.answers.map(|answers| answers.initiator.clone().unwrap_or_else(unknown))
}
