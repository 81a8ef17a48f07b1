// SPDX-License-Identifier: Apache-2.0
//! What is a question, or a segment of a connection that asks, and what follows from that.

use std::net::IpAddr;
use std::sync::Arc;

use model::{Moment, Party, Protocol, Sight, Snapshot};
use packet::Transport;
use packet::emit::Link;

use super::learned::Found;
use super::stream::Ends;
use super::{DNS_PORT, PortDns};
use crate::arrival::Arrival;
use crate::outside::Front;
use crate::port::Port;
use crate::ports::Ports;
use crate::{FlowSlots, PortId, Switch, Verdict};

impl<S: FlowSlots> Switch<S> {
    /// Answers a packet to port 53; `None` when it is a flow like any other.
    pub(crate) fn serve_dns(&mut self, arrival: &mut Arrival<'_>, port: &Port) -> Option<Verdict> {
        let vm = port.vm()?;
        let is_whole = arrival.ip.fragment.is_none();
        match arrival.ip.transport {
            Transport::Udp(udp) if udp.destination_port == DNS_PORT && is_whole => {
                self.serve_datagram(arrival, (port, vm), &udp)
            }
            Transport::Tcp(tcp) if tcp.destination_port == DNS_PORT && is_whole => {
                self.serve_segment(arrival, (port, vm), &tcp)
            }
            _ => None,
        }
    }

    /// Whether the switch itself is whom an address stands for.
    pub(crate) fn is_resolver(&self, address: IpAddr) -> bool {
        self.config.dns.as_ref().is_some_and(|dns| address == IpAddr::V4(dns.resolver))
    }

    /// Forgets what cards have asked that are gone, or whose port now means another.
    pub(crate) fn forget_dns_without_card(&mut self, ports: &Ports) {
        for (state, id) in self.states.iter_mut().zip(0..) {
            if !self.ports.same_card(ports, PortId(id)) {
                state.dns = PortDns::default();
            }
        }
    }

    /// Whether a question that is not ours is nevertheless for us to see to.
    pub(super) fn takes_over(&self, port: &Port, destination: IpAddr, protocol: Protocol) -> bool {
        let (Some(config), Some(tenant)) = (&self.config.dns, port.tenant()) else { return false };
        let is_ours = port.is_gateway(destination) || self.is_resolver(destination);
        is_ours || config.has_upstreams && !self.is_of_mesh(port, tenant, destination, protocol)
    }

    /// Whether a name server at this address is a machine or a service of the mesh that the sender may know of.
    fn is_of_mesh(&self, port: &Port, tenant: usize, destination: IpAddr, protocol: Protocol) -> bool {
        let is_service = |snapshot: &Arc<Snapshot>| {
            let client = Party { vm: port.vm(), attribution: None };
            snapshot.services.at(destination).is_some_and(|offer| {
                snapshot.services.sees(offer, client) != Sight::Hidden
                    && snapshot.services.offer(offer).covers(protocol, DNS_PORT)
            })
        };
        let front = Front { address: destination, protocol, l4_port: DNS_PORT };
        self.ports.endpoint(tenant, destination).is_some()
            || self.ports.outside.own_backend(tenant, front).is_some()
            || self.snapshot.as_ref().is_some_and(is_service)
    }

    /// What the sender's tenant has found an address outside under.
    pub(crate) fn found_under(&self, from: &Port, to: &Port, address: IpAddr) -> Vec<Arc<str>> {
        match (from.nic(), to.tenant()) {
            (Some(card), None) => self.dns.learned.names(self.now, &card.vm.tenant, address),
            _ => Vec::new(),
        }
    }

    /// The addresses outside that machines have found, and under which names.
    pub fn found(&self, now: Moment) -> impl Iterator<Item = Found> + '_ {
        self.dns.learned.all(now)
    }

    /// Takes over what a predecessor's machines had found.
    pub fn recall(&mut self, now: Moment, found: impl IntoIterator<Item = Found>) {
        for Found { tenant, address, name, expires } in found {
            if expires > now {
                self.dns.learned.learn(now, &tenant, &name, &[(address, expires.since(now))]);
            }
        }
    }

    /// What is kept for a port that there is.
    pub(super) fn asked_by(&mut self, port: PortId) -> &mut PortDns {
        &mut self.states[usize::from(port.0)].dns
    }

    /// Whether a port may ask once more now.
    pub(super) fn may_ask(&mut self, port: PortId) -> bool {
        let (now, dns) = (self.now, self.config.dns.as_ref());
        let limit = dns.map_or(0, |dns| dns.questions_per_second_max);
        self.asked_by(port).rate.allows(now, limit)
    }
}

/// The ends of what answers a packet.
pub(super) fn ends(arrival: &Arrival<'_>, (source_port, destination_port): (u16, u16)) -> Ends {
    Ends {
        link: Link { source: arrival.ethernet.destination, destination: arrival.ethernet.source },
        addresses: arrival.ip.addresses.reversed(),
        ports: (destination_port, source_port),
    }
}
