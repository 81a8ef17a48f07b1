// SPDX-License-Identifier: Apache-2.0
//! What the switch does about active checks.

use packet::emit::{self, Link, Segment, Stream};
use packet::{Addresses, Tcp, TcpFlags};

use crate::arrival::Arrival;
use crate::checks::STREAM;
use crate::services::endpoint_name;
use crate::{FlowSlots, PortId, Switch, Verdict};

impl<S: FlowSlots> Switch<S> {
    /// Takes the services of another snapshot, after the balancers have.
    pub(crate) fn update_checks(&mut self) {
        let Some(snapshot) = self.snapshot.clone() else { return };
        self.checks.update(self.now, &snapshot, &self.ports);
        let (now, failing) = (self.now, self.checks.failing());
        for offer in snapshot.services.offers() {
            for endpoint in &offer.endpoints {
                let vm = &snapshot.inventory.vm(endpoint.vm).id;
                let whose = (offer.id.clone(), endpoint_name(vm));
                let passes = !failing.contains(&whose);
                let whose = (&whose.0, whose.1);
                self.balancers
                    .with_endpoint(whose, |balancer, position| balancer.checked(now, position, passes));
            }
        }
    }

    /// Begins the attempts that are due, and gives up those that nobody has answered in time.
    pub(crate) fn look_after_checks(&mut self) {
        while let Some(index) = self.checks.overdue(self.now) {
            self.conclude_check(index, false);
        }
        while let Some(index) = self.checks.next(self.now) {
            let syn = self.checks.begin(self.now, index, self.config.hash_seed);
            let target = &self.checks.targets[index];
            let (ingress, addresses) = (target.ingress, target.addresses);
            self.say_from_gateway(ingress, addresses, syn, STREAM);
        }
    }

    /// Takes a segment that is about an attempt of ours; `None` if it is not.
    pub(crate) fn take_check(&mut self, arrival: &Arrival<'_>, tcp: &Tcp) -> Option<Verdict> {
        let (index, is_answered) = self.checks.find(arrival.ingress, arrival.ip.addresses, tcp)?;
        let addresses = self.checks.targets[index].addresses;
        self.conclude_check(index, is_answered);
        if is_answered {
            let reset = Segment {
                source_port: tcp.destination_port,
                destination_port: tcp.source_port,
                sequence: tcp.acknowledgment,
                acknowledgment: 0,
                flags: TcpFlags::RST,
            };
            self.say_from_gateway(arrival.ingress, addresses, reset, Stream::default());
        }
        Some(Verdict::Answered)
    }

    fn conclude_check(&mut self, index: usize, is_answered: bool) {
        if !self.checks.conclude(self.now, index, is_answered) {
            return;
        }
        let whose = &self.checks.targets[index].whose;
        let passes = self.checks.targets.iter().all(|target| target.sound || target.whose != *whose);
        let (now, whose) = (self.now, (&whose.0, whose.1));
        self.balancers.with_endpoint(whose, |balancer, position| balancer.checked(now, position, passes));
    }

    fn say_from_gateway(&mut self, to: PortId, addresses: Addresses, segment: Segment, stream: Stream) {
        let Some(destination) = self.ports.port(to).map(|port| port.mac) else {
            return;
        };
        let link = Link { source: self.config.gateway_mac, destination };
        self.emit(to, emit::tcp_data(link, addresses, segment, stream, &[]));
    }
}
