// SPDX-License-Identifier: Apache-2.0
//! What the switch answers itself: ARP, neighbour discovery, DHCP, echo to the gateway (DNS has a module of its own); and
//! what it refuses before policy is asked: spoofed addresses, broadcast and multicast.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::{MacAddr, Protocol};
use packet::arp::{Arp, Operation};
use packet::emit::Link;
use packet::icmp::{Icmp, Meaning, Quoted};
use packet::nd::{self, Solicitation};
use packet::{Addresses, Layer, Transport, edit, emit};

use crate::arrival::{Arrival, unreadable};
use crate::dhcp::{self, CLIENT_PORT, Outcome, SERVER_PORT};
use crate::key::FlowKey;
use crate::port::{Behind, Port};
use crate::{DropReason, FlowSlots, FlowState, PortId, Switch, Verdict};

impl<S: FlowSlots> Switch<S> {
    /// Answers who has an address on the asker's link.
    pub(crate) fn answer_arp(&mut self, ingress: PortId, arp: &Arp) -> Verdict {
        let Some(port) = self.ports.port(ingress).cloned() else { return Verdict::Drop(DropReason::NoPort) };
        if !port.sends_as(arp.sender_mac) {
            return Verdict::Drop(DropReason::SpoofedMac);
        }
        if !arp.sender.is_unspecified() && !port.holds(arp.sender.into()) {
            return Verdict::Drop(DropReason::SpoofedAddress);
        }
        if arp.operation == Operation::Reply || port.holds(arp.target.into()) {
            return Verdict::Drop(DropReason::NothingToAnswer);
        }
        match self.resolve(&port, arp.target.into()) {
            Some(mac) => {
                self.emit(ingress, arp.reply(mac).emit(port.mac));
                Verdict::Answered
            }
            None => Verdict::Drop(DropReason::NoEndpoint),
        }
    }

    /// The Ethernet address behind a network address on the card's link.
    fn resolve(&self, port: &Port, address: IpAddr) -> Option<MacAddr> {
        let tenant = match &port.behind {
            Behind::Outside { ours, .. } => {
                return ours.contains(&address).then_some(self.config.gateway_mac);
            }
            Behind::Card { tenant, .. } => *tenant,
        };
        let is_switch = port.is_gateway(address) || self.is_resolver(address);
        if is_switch || port.is_on_link(address) && self.shows(port, address) {
            return Some(self.config.gateway_mac);
        }
        if !port.is_on_link(address) {
            return None;
        }
        let holder = self.ports.endpoint(tenant, address)?;
        Some(self.ports.port(holder)?.mac)
    }

    /// Serves or refuses a packet that opens no flow between machines; `None` when it may open one.
    pub(crate) fn serve_locally(&mut self, arrival: &mut Arrival<'_>, port: &Port) -> Option<Verdict> {
        if let Some(verdict) = self.serve_dhcp(arrival, port) {
            return Some(verdict);
        }
        let destination = arrival.ip.addresses.destination();
        if let Some(reason) = refusal(arrival, port) {
            return Some(Verdict::Drop(reason));
        }
        match arrival.ip.transport {
            Transport::Icmp(icmp) if self.is_own(port, destination) => {
                Some(self.answer_echo(arrival, port, &icmp))
            }
            Transport::Tcp(tcp) => self.take_check(arrival, &tcp).or_else(|| self.serve_dns(arrival, port)),
            Transport::Udp(_) => self.serve_dns(arrival, port),
            _ => None,
        }
    }

    /// Whether the switch answers for an address in the name of whoever has it.
    fn is_own(&self, port: &Port, address: IpAddr) -> bool {
        port.is_gateway(address) || self.is_resolver(address) || self.shows(port, address)
    }

    fn serve_dhcp(&mut self, arrival: &mut Arrival<'_>, port: &Port) -> Option<Verdict> {
        let (Transport::Udp(udp), Addresses::V4 { source, destination }) =
            (arrival.ip.transport, arrival.ip.addresses)
        else {
            return None;
        };
        let server = port.dhcp_server();
        let served = arrival.ip.fragment.is_none()
            && (udp.source_port, udp.destination_port) == (CLIENT_PORT, SERVER_PORT)
            && (source.is_unspecified() || port.holds(source.into()))
            && (destination == Ipv4Addr::BROADCAST || destination == server);
        if !served {
            return None;
        }
        let end = udp.payload_offset + udp.payload_len_bytes;
        let payload = match arrival.frame.parsable().slice(udp.payload_offset, end, Layer::Udp) {
            Ok(payload) => payload,
            Err(error) => return Some(unreadable(error, arrival.frame)),
        };
        Some(match dhcp::answer(payload, port, &self.config) {
            Outcome::Answer(answer) => {
                let link = Link { source: self.config.gateway_mac, destination: answer.destination_mac };
                let addresses = Addresses::V4 { source: server, destination: answer.destination };
                let frame = emit::udp(link, addresses, (SERVER_PORT, CLIENT_PORT), &answer.message);
                self.emit(arrival.ingress, frame);
                Verdict::Answered
            }
            Outcome::Silence => Verdict::Drop(DropReason::NothingToAnswer),
            Outcome::NoLease => Verdict::Drop(DropReason::NoLease),
            Outcome::Spoofed => Verdict::Drop(DropReason::SpoofedMac),
            Outcome::Malformed => Verdict::Drop(DropReason::Malformed),
        })
    }

    /// An ICMP message that is no echo.
    pub(crate) fn decide_message(&mut self, arrival: &mut Arrival<'_>) -> Verdict {
        let Some(port) = self.ports.port(arrival.ingress).cloned() else {
            return Verdict::Drop(DropReason::NoPort);
        };
        let Transport::Icmp(icmp) = arrival.ip.transport else { return Verdict::Drop(DropReason::IcmpKind) };
        let meaning = icmp.meaning(arrival.ip.addresses);
        if meaning == Meaning::NeighborSolicitation {
            return self.answer_solicitation(arrival, &port);
        }
        if let Some(reason) = refusal(arrival, &port) {
            return Verdict::Drop(reason);
        }
        match meaning {
            Meaning::Error => self.relate(arrival),
            _ => Verdict::Drop(DropReason::IcmpKind),
        }
    }

    /// Answers who has an IPv6 address on the asker's link.
    fn answer_solicitation(&mut self, arrival: &mut Arrival<'_>, port: &Port) -> Verdict {
        let Addresses::V6 { source, .. } = arrival.ip.addresses else {
            return Verdict::Drop(DropReason::Malformed);
        };
        if !source.is_unspecified() && !source.is_unicast_link_local() && !port.holds(source.into()) {
            return Verdict::Drop(DropReason::SpoofedAddress);
        }
        let solicitation = match Solicitation::parse(arrival.frame.parsable(), arrival.ip) {
            Ok(solicitation) => solicitation,
            Err(error) => return unreadable(error, arrival.frame),
        };
        let target = solicitation.target;
        if port.holds(target.into()) {
            return Verdict::Drop(DropReason::NothingToAnswer);
        }
        match self.resolve(port, target.into()) {
            Some(mac) => {
                let router = port.is_gateway(target.into());
                self.emit(arrival.ingress, nd::advertisement(target, mac, router, (source, port.mac)));
                Verdict::Answered
            }
            None => Verdict::Drop(DropReason::NoEndpoint),
        }
    }

    fn answer_echo(&mut self, arrival: &mut Arrival<'_>, port: &Port, icmp: &Icmp) -> Verdict {
        if arrival.ip.fragment.is_some() {
            return Verdict::Drop(DropReason::Fragment);
        }
        if !matches!(icmp.meaning(arrival.ip.addresses), Meaning::EchoRequest { .. }) {
            return Verdict::Drop(DropReason::NothingToAnswer);
        }
        let link = Link { source: self.config.gateway_mac, destination: port.mac };
        match emit::echo_reply(link, arrival.frame.parsable(), arrival.ip) {
            Ok(reply) => {
                self.emit(arrival.ingress, reply);
                Verdict::Answered
            }
            Err(error) => unreadable(error, arrival.frame),
        }
    }

    /// Forwards an ICMP error to the end whose packet it reports on, if that packet was part of a flow that is
    /// allowed and came out where the error comes in.
    fn relate(&mut self, arrival: &mut Arrival<'_>) -> Verdict {
        let quoted = match Quoted::parse(arrival.frame.parsable(), arrival.ip) {
            Ok(quoted) => quoted,
            Err(error) => return unreadable(error, arrival.frame),
        };
        let unrelated = Verdict::Drop(DropReason::NoConnection);
        let to_sender = quoted.addresses.source() == arrival.ip.addresses.destination();
        // The error goes the way of an answer to the packet; where that came in does not matter here.
        let answer = FlowKey::of_quoted(arrival.ingress, &quoted).filter(|_| to_sender);
        let answer = answer.map(|key| key.mirrored(arrival.ingress));
        let Some(index) = answer.and_then(|answer| self.table.find(&answer)) else { return unrelated };
        let slot = *self.table.slot(index as usize);
        if matches!(slot.state(), None | Some(FlowState::Reset | FlowState::Refused))
            || slot.epoch != self.epoch
        {
            return unrelated;
        }
        if quoted.protocol == Protocol::Tcp
            && !self.table.may_have_sent(slot.partner(), u32::from_be_bytes(quoted.rest))
        {
            return unrelated;
        }
        if let Some(verdict) = self.rewrite(arrival, slot.output()) {
            return verdict;
        }
        if slot.is_translated() {
            let sent = self.table.slot(slot.partner()).key;
            let reporter = arrival.ip.addresses.source();
            let is_end = reporter == slot.key.source();
            let from = if is_end { sent.addresses().destination() } else { reporter };
            let sent = (sent.addresses(), sent.ports());
            edit::readdress_error(&mut arrival.frame.head, arrival.ip, &quoted, from, sent);
        }
        Verdict::Forward(slot.output())
    }
}

/// Why a packet is refused whatever policy says: spoofed, or for a group.
fn refusal(arrival: &Arrival<'_>, port: &Port) -> Option<DropReason> {
    let (source, destination) = (arrival.ip.addresses.source(), arrival.ip.addresses.destination());
    if destination.is_multicast() && (port.holds(source) || is_link_noise(source)) {
        return Some(DropReason::Multicast);
    }
    if !port.holds(source) {
        return Some(DropReason::SpoofedAddress);
    }
    port.is_broadcast(destination).then_some(DropReason::Broadcast)
}

/// The sources that an IPv6 host uses on its link before and beside its own addresses.
fn is_link_noise(source: IpAddr) -> bool {
    match source {
        IpAddr::V6(source) => source == Ipv6Addr::UNSPECIFIED || source.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    }
}
