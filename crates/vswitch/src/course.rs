// SPDX-License-Identifier: Apache-2.0
//! Where a new flow goes, and what its answers look like when they come in.
//!
//! A flow whose answers come in under another key than the mirror image of its own is *translated*: whatever
//! comes in by one key leaves as the answer to the other. That is all the switch knows of address translation;
//! why the two differ is decided here, once per flow.

use std::net::IpAddr;

use model::{FlowQuery, Party, Protocol};

use crate::key::FlowKey;
use crate::outside::{Backend, Front, Route};
use crate::port::Port;
use crate::{DropReason, FlowSlots, PortId, Switch};

/// Ports below this one are never given to a translated flow (RFC 6056 section 3.2).
const PORT_MIN: u16 = 1024;
/// How many ports are tried for one flow before it is refused.
const PROBES_MAX: u64 = 64;

impl<S: FlowSlots> Switch<S> {
    /// The key under which answers to a new flow, which `key` names and comes in at `port`, will come in.
    pub(crate) fn course(&self, key: &FlowKey, port: &Port) -> Result<FlowKey, DropReason> {
        let front = front(key);
        let behind =
            |backend: Backend| key.mirrored(backend.output).with_source(backend.address, backend.l4_port);
        let Some(tenant) = port.tenant() else {
            let backend = self.ports.outside.backend(key.ingress(), front);
            return backend.map(behind).ok_or(DropReason::NoEndpoint);
        };
        if let Some(output) = self.ports.endpoint(tenant, front.address) {
            return Ok(self.detour(key, port, output).unwrap_or_else(|| key.mirrored(output)));
        }
        if let Some(backend) = self.ports.outside.own_backend(tenant, front) {
            return Ok(behind(backend));
        }
        let route = self.ports.outside.route(tenant, front.address);
        match route.filter(|_| !port.is_on_link(front.address)) {
            Some(route) => self.appear_outside(key, route),
            None => Err(DropReason::NoEndpoint),
        }
    }

    /// The key of answers that come from another instance than the one at `output` that was asked for.
    fn detour(&self, key: &FlowKey, port: &Port, output: PortId) -> Option<FlowKey> {
        let asked = self.ports.port(output)?;
        let party = |port: &Port| Party { vm: port.vm(), attribution: None };
        let query =
            FlowQuery { tuple: key.tuple(), source: party(port), destination: party(asked), names: &[] };
        let detour = self.snapshot.as_ref()?.judge.detour(&query)?;
        if !matches!(query.tuple.protocol, Protocol::Tcp | Protocol::Udp) {
            return None;
        }
        let like = query.tuple.destination;
        let (to, address) = self.ports.of_machine(detour.vm).find_map(|(id, port)| {
            let mut addresses = port.subnets.iter().map(|subnet| subnet.cidr.address());
            Some((id, addresses.find(|address| address.is_ipv4() == like.is_ipv4())?))
        })?;
        let l4_port = detour.l4_port.unwrap_or(query.tuple.destination_port);
        (to != key.ingress()).then(|| key.mirrored(to).with_source(address, l4_port))
    }

    /// Finds an address and port that no other flow to the same destination has; the own port if possible.
    fn appear_outside(&self, key: &FlowKey, route: &Route) -> Result<FlowKey, DropReason> {
        let answers = key.mirrored(route.output);
        // A machine always appears under the same address (RFC 4787 section 4.1).
        let address = route.addresses[low_bits(key.source()) % route.addresses.len()];
        let (own_port, _) = key.ports();
        let probes = match key.protocol() {
            Protocol::Other(_) => 0,
            _ => PROBES_MAX,
        };
        let range = u64::from(u16::MAX - PORT_MIN) + 1;
        let start = self.table.scatter(key);
        let others = (0..probes).map(|probe| PORT_MIN + (start.wrapping_add(probe) % range) as u16);
        std::iter::once(own_port)
            .filter(|port| probes == 0 || *port >= PORT_MIN)
            .chain(others)
            .map(|port| answers.with_destination(address, port))
            .find(|answers| self.table.find(answers).is_none() && !self.is_published(answers))
            .ok_or(DropReason::NoExternalPort)
    }

    fn is_published(&self, answers: &FlowKey) -> bool {
        self.ports.outside.backend(answers.ingress(), front(answers)).is_some()
    }

    /// Whether a flow with these keys could be opened now: its ends are where they were, and so is what has
    /// made it a translated one.
    pub(crate) fn course_stands(&self, key: &FlowKey, answers: &FlowKey) -> bool {
        let (Some(source), Some(destination)) =
            (self.ports.port(key.ingress()), self.ports.port(answers.ingress()))
        else {
            return false;
        };
        let outside = &self.ports.outside;
        let stands_for = |backend: Option<Backend>| {
            backend.is_some_and(|backend| {
                let behind = key.mirrored(backend.output).with_source(backend.address, backend.l4_port);
                behind == *answers
            })
        };
        if key.mirrored(answers.ingress()) != *answers && self.service_stands(key, answers) {
            return source.holds(key.source());
        }
        let held = source.holds(key.source()) && destination.holds(answers.source());
        held && match (source.tenant(), destination.tenant()) {
            (Some(tenant), Some(other)) => {
                tenant == other
                    && (key.mirrored(answers.ingress()) == *answers
                        || self.is_detour(key, answers, tenant)
                        || stands_for(outside.own_backend(tenant, front(key))))
            }
            (Some(tenant), None) => outside.route(tenant, front(key).address).is_some_and(|route| {
                route.output == answers.ingress() && route.addresses.contains(&front(answers).address)
            }),
            (None, Some(_)) => stands_for(outside.backend(key.ingress(), front(key))),
            (None, None) => false,
        }
    }
}

impl<S: FlowSlots> Switch<S> {
    fn is_detour(&self, key: &FlowKey, answers: &FlowKey, tenant: usize) -> bool {
        let asked = self.ports.endpoint(tenant, front(key).address);
        let port = self.ports.port(key.ingress());
        let detour = port.zip(asked).and_then(|(port, asked)| self.detour(key, port, asked));
        detour.as_ref() == Some(answers)
    }
}

/// What a packet with this key is for.
fn front(key: &FlowKey) -> Front {
    let tuple = key.tuple();
    Front { address: tuple.destination, protocol: tuple.protocol, l4_port: tuple.destination_port }
}

fn low_bits(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(address) => address.to_bits() as usize,
        IpAddr::V6(address) => address.to_bits() as usize,
    }
}
