// SPDX-License-Identifier: Apache-2.0
//! The balancers of services, and which endpoints they know.

use std::collections::HashMap;
use std::net::IpAddr;

use model::{AcceptQueue, EndpointState, Moment, Offer, RuleId, Snapshot, VmRef};

use crate::balance::{Balancer, Candidate, Choice, mixed};
use crate::ports::Ports;

/// Which endpoint serves a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub service: RuleId,
    /// The endpoint's name as balancers know it.
    pub endpoint: u64,
    pub choice: Choice,
}

/// How an endpoint fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRecord {
    /// The service, `tenant/name`.
    pub service: RuleId,
    /// The machine.
    pub vm: VmRef,
    /// Whether it gets new flows.
    pub state: EndpointState,
    /// Flows that it has.
    pub flows: u32,
    /// What waits there to be accepted, as far as is known.
    pub queue: Option<AcceptQueue>,
}

/// The balancers of all services, by name, so that what they know outlives a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Balancers(pub(crate) HashMap<RuleId, Balancer>);

impl Balancers {
    /// Takes the services of another snapshot.
    pub(crate) fn update(&mut self, now: Moment, snapshot: &Snapshot, ports: &Ports) {
        let mut kept = std::mem::take(&mut self.0);
        for offer in snapshot.services.offers() {
            let candidates: Vec<Candidate> =
                offer.endpoints.iter().map(|endpoint| candidate(snapshot, offer, endpoint, ports)).collect();
            let balancer = match kept.remove(&offer.id) {
                Some(mut known) => {
                    known.update(now, offer.balancing.clone(), &candidates);
                    known
                }
                None => Balancer::new(offer.balancing.clone(), &candidates),
            };
            self.0.insert(offer.id.clone(), balancer);
        }
    }

    pub(crate) fn with(&mut self, served: &Served, act: impl FnOnce(&mut Balancer, usize)) {
        self.with_endpoint((&served.service, served.endpoint), act);
    }

    /// Does something with an endpoint of a service, by its name, if there is such a one.
    pub(crate) fn with_endpoint(
        &mut self,
        (service, endpoint): (&RuleId, u64),
        act: impl FnOnce(&mut Balancer, usize),
    ) {
        if let Some(balancer) = self.0.get_mut(service)
            && let Some(position) = balancer.position(endpoint)
        {
            act(balancer, position);
        }
    }
}

fn candidate(snapshot: &Snapshot, offer: &Offer, endpoint: &model::Endpoint, ports: &Ports) -> Candidate {
    let addresses = [endpoint.v4.map(IpAddr::V4), endpoint.v6.map(IpAddr::V6)];
    let reachable =
        addresses.into_iter().flatten().any(|address| ports.endpoint(offer.tenant, address).is_some());
    let name = endpoint_name(&snapshot.inventory.vm(endpoint.vm).id);
    Candidate { name, group: endpoint.group, local: reachable, reachable }
}

/// A stable hash of a machine's name.
pub(crate) fn endpoint_name(vm: &VmRef) -> u64 {
    let text = format!("{vm}");
    text.bytes().fold(0, |hash, byte| mixed(hash ^ u64::from(byte)))
}
