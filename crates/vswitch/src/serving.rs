// SPDX-License-Identifier: Apache-2.0
//! Virtual addresses: which endpoint a flow to a service goes to, and what is learned from how it fares.
//!
//! A flow to a virtual address is redirected once, when it opens; after that it is a flow like any other, whose
//! translation lies in its keys. A caller from another tenant, which only infrastructure services have, is seen by
//! the endpoint under an address of the callers' range that stands for its port: tenants may use the same
//! addresses. An endpoint that calls itself sees the virtual address as its caller.
//!
//! Where a service names the process that must be listening, the endpoint is asked before its first packet goes
//! out, and another is chosen if nobody or somebody else listens there. Where it does not, a refused or unanswered
//! SYN moves to another endpoint with its next retransmission; the caller never sees the refusal. Whoever does not
//! accept what has come in gets nothing new until it does.

use std::net::IpAddr;

use model::{
    Listener, Moment, Offer, OfferIndex, Party, RuleId, Sight, Snapshot, VmIndex, VmRef, nth_address,
};
use packet::Transport;

use crate::arrival::Arrival;
use crate::balance::{Balancer, Choice, mixed};
use crate::key::FlowKey;
use crate::port::Port;
use crate::services::{EndpointRecord, Served, endpoint_name};
use crate::{DropReason, FlowSlots, FlowState, Switch};

/// How long an endpoint may leave a SYN unanswered before its retransmission goes to another, in milliseconds.
const SYN_PATIENCE_MS: u32 = 900;

impl<S: FlowSlots> Switch<S> {
    /// Notes whether the process that a service is about listens at one of its endpoints, and keeps up there.
    pub fn set_listener(&mut self, now: Moment, service: &RuleId, vm: &VmRef, listener: Listener) {
        let endpoint = (service, endpoint_name(vm));
        self.balancers
            .with_endpoint(endpoint, |balancer, position| balancer.listens(now, position, listener));
    }

    /// How the endpoints of all services fare, in the order of the snapshot.
    pub fn endpoints(&self, now: Moment) -> impl Iterator<Item = EndpointRecord> + '_ {
        let snapshot = self.snapshot.iter();
        snapshot.flat_map(move |snapshot| {
            snapshot
                .services
                .offers()
                .iter()
                .filter_map(|offer| Some((offer, self.balancers.0.get(&offer.id)?)))
                .flat_map(move |(offer, balancer)| {
                    offer.endpoints.iter().zip(0..).map(move |(endpoint, position)| EndpointRecord {
                        service: offer.id.clone(),
                        vm: snapshot.inventory.vm(endpoint.vm).id.clone(),
                        state: balancer.state(now, position),
                        flows: balancer.flows(position),
                        queue: balancer.queue(position),
                    })
                })
        })
    }

    /// The key of a new flow's answers, and who serves it if it is to a virtual address.
    pub(crate) fn route(
        &mut self,
        arrival: &mut Arrival<'_>,
        port: &Port,
        key: &FlowKey,
    ) -> Result<(FlowKey, Option<Served>), DropReason> {
        let destination = arrival.ip.addresses.destination();
        if let Some(vm) = port.vm()
            && let Some(offer) = self.snapshot.as_ref().and_then(|snapshot| snapshot.services.at(destination))
        {
            let (answers, served) = self.redirect(arrival, (port, vm), key, offer)?;
            return Ok((answers, Some(served)));
        }
        let answers = self.course(key, port)?;
        if answers.ingress() == arrival.ingress { Err(DropReason::ToSelf) } else { Ok((answers, None)) }
    }

    fn redirect(
        &mut self,
        arrival: &mut Arrival<'_>,
        (port, vm): (&Port, VmIndex),
        key: &FlowKey,
        index: OfferIndex,
    ) -> Result<(FlowKey, Served), DropReason> {
        let snapshot = self.snapshot.clone().ok_or(DropReason::NoEndpoint)?;
        let offer = snapshot.services.offer(index);
        let client = Party { vm: Some(vm), attribution: None };
        let (_, l4_port) = key.ports();
        let carried = matches!(arrival.ip.transport, Transport::Tcp(_) | Transport::Udp(_));
        if snapshot.services.sees(index, client) == Sight::Hidden
            || !carried
            || !offer.covers(key.protocol(), l4_port)
        {
            return Err(DropReason::NoEndpoint);
        }
        let (name, choice) = self.choose(arrival, key, offer).ok_or(DropReason::NoBackend)?;
        let mut endpoints = offer.endpoints.iter();
        let named =
            |endpoint: &&model::Endpoint| endpoint_name(&snapshot.inventory.vm(endpoint.vm).id) == name;
        let endpoint = endpoints.find(named).ok_or(DropReason::NoBackend)?;
        let answers = self.behind(key, port, &snapshot, offer, endpoint).ok_or(DropReason::NoBackend)?;
        Ok((answers, Served { service: offer.id.clone(), endpoint: name, choice }))
    }

    /// The key of answers to a call that an endpoint serves; `None` when it cannot be reached.
    fn behind(
        &self,
        key: &FlowKey,
        port: &Port,
        snapshot: &Snapshot,
        offer: &Offer,
        endpoint: &model::Endpoint,
    ) -> Option<FlowKey> {
        let (called, (own_port, l4_port)) = (key.tuple().destination, key.ports());
        let address = endpoint.address(called)?;
        let output = self.ports.endpoint(offer.tenant, address)?;
        let answers = key.mirrored(output).with_source(address, l4_port);
        Some(if output == key.ingress() {
            answers.with_destination(called, own_port)
        } else if port.tenant() != Some(offer.tenant) {
            let (v4, v6) = snapshot.services.callers();
            let range = if called.is_ipv4() { v4 } else { v6 };
            answers.with_destination(nth_address(range, key.ingress().0.into()), own_port)
        } else {
            answers
        })
    }

    /// Whether a flow to a virtual address could be opened now with these keys, drained endpoints included.
    pub(crate) fn service_stands(&self, key: &FlowKey, answers: &FlowKey) -> bool {
        let (Some(snapshot), Some(port)) = (&self.snapshot, self.ports.port(key.ingress())) else {
            return false;
        };
        let Some(index) = snapshot.services.at(key.tuple().destination) else { return false };
        let offer = snapshot.services.offer(index);
        port.vm().is_some()
            && offer
                .endpoints
                .iter()
                .any(|endpoint| self.behind(key, port, snapshot, offer, endpoint).as_ref() == Some(answers))
    }

    /// The name of the endpoint that the flow goes to, and why: the one that was asked about, if there are answers.
    fn choose(&mut self, arrival: &mut Arrival<'_>, key: &FlowKey, offer: &Offer) -> Option<(u64, Choice)> {
        let state = &mut self.states[usize::from(arrival.ingress.0)];
        if arrival.answers.is_some() {
            if let Some(chosen) = state.choices.take(key) {
                return Some(chosen);
            }
            // They are about somebody else.
            arrival.answers = None;
        }
        let hash = |words: &[u64]| words.iter().fold(self.config.hash_seed, |hash, word| mixed(hash ^ word));
        let [a, b, c, d, rest] = key.words();
        let (flow, client) = (hash(&[a, b, c, d, rest]), hash(&[a, b, u64::from(arrival.ingress.0)]));
        let balancer = self.balancers.0.get_mut(&offer.id)?;
        let (position, choice) = balancer.choose(self.now, flow, client)?;
        let name = balancer.name(position)?;
        // The frame may have been here before and found nobody free to ask.
        let asked = state.choices.take(key).map(|(_, choice)| choice.retries);
        let retries = state.failures.take(key).or(asked).unwrap_or_default();
        let choice = Choice { retries, ..choice };
        state.choices.keep(*key, (name, choice));
        Some((name, choice))
    }

    /// Notes that a flow was sent to an endpoint in vain and will be opened again.
    pub(crate) fn note_failure(&mut self, key: &FlowKey, served: &Served) {
        let retries = served.choice.retries.saturating_add(1);
        self.states[usize::from(key.ingress().0)].failures.keep(*key, retries);
    }

    /// Marks an endpoint as out where nobody listens who offers the service.
    pub(crate) fn nobody_listens(&mut self, served: &Served) {
        let now = self.now;
        self.balancers.with(served, |balancer, position| balancer.nobody_listens(now, position));
    }

    /// A flow to an endpoint has opened.
    pub(crate) fn serve(&mut self, position: usize, served: Served) {
        self.balancers.with(&served, Balancer::opened);
        let flow = self.table.flow_mut(position);
        (flow.choice, flow.served) = (Some(served.choice), Some(served));
    }

    /// A flow is over: its endpoint has one less.
    pub(crate) fn release(&mut self, position: usize) {
        if let Some(served) = self.table.flow_mut(position).served.take() {
            self.balancers.with(&served, Balancer::closed);
        }
    }

    /// The endpoint of a flow has answered its SYN, or refused it. Tells whether the refusal is to be kept from
    /// the caller, whose next SYN opens the flow anew.
    pub(crate) fn answered(&mut self, position: usize, after: FlowState) -> bool {
        let Some(served) = self.table.flow(position).served.clone() else { return false };
        let (now, is_first) = (self.now, served.choice.retries == 0);
        let mut others = false;
        self.balancers.with(&served, |balancer, endpoint| {
            if after == FlowState::Closed {
                balancer.refused(now, endpoint);
                others = balancer.may_go_elsewhere(now, endpoint, is_first);
            } else {
                balancer.succeeded(endpoint);
            }
        });
        if others {
            self.note_failure(&self.table.keys(position).0, &served);
        }
        others
    }

    /// Whether a SYN that was sent again shows that its endpoint does not answer. That is noted once, however often the
    /// SYN is looked at until it is known who listens where it goes next.
    pub(crate) fn is_unanswered(&mut self, index: usize, state: FlowState, now_ms: u32) -> bool {
        let slot = self.table.slot(index);
        let waited = slot.is_translated()
            && slot.is_initiator()
            && state == FlowState::SynSent
            && slot.idle_ms(now_ms) >= SYN_PATIENCE_MS;
        let position = self.table.flow_at(index);
        if !waited || self.table.flow(position).choice.is_none() {
            return false;
        }
        if let Some(served) = self.table.flow(position).served.clone() {
            let now = self.now;
            self.balancers.with(&served, |balancer, endpoint| balancer.failed(now, endpoint));
            self.note_failure(&self.table.keys(position).0, &served);
            self.release(position);
        }
        true
    }

    /// Whether a virtual address exists for everybody behind a port, so that the link may know of it.
    pub(crate) fn shows(&self, port: &Port, address: IpAddr) -> bool {
        let Some(snapshot) = &self.snapshot else { return false };
        let client = Party { vm: port.vm(), attribution: None };
        let seen = |offer| snapshot.services.sees(offer, client) != Sight::Hidden;
        snapshot.services.at(address).is_some_and(seen)
    }
}
