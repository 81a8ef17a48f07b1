// SPDX-License-Identifier: Apache-2.0
//! Services for tests of names: who sees which is said outright.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name as Domain, RData, RecordType};
use model::{
    Attribution, Balancing, Directory, Endpoint, FlowQuery, Level, Name, Offer, OfferIndex, Party, PortMatch,
    PortRange, Protocol, Ranges, RuleId, Sight, VmIndex,
};
use packet::emit::Link;
use packet::{Transport, emit};
use vswitch::{PortId, Verdict};

use crate::world::*;

pub const RESOLVER: &str = "169.254.1.53";

/// One service.
#[derive(Clone, Debug)]
pub struct Entry {
    pub called: &'static str,
    pub level: Level,
    /// The machines that see it, by port.
    pub seen_by: Vec<PortId>,
    /// The program that the asker must be.
    pub exe: Option<&'static str>,
    pub ports: Vec<PortMatch>,
    pub endpoints: Vec<Endpoint>,
}

pub fn entry(called: &'static str, level: Level, seen_by: &[PortId]) -> Entry {
    Entry {
        called,
        level,
        seen_by: seen_by.to_vec(),
        exe: None,
        ports: vec![tcp_port(80, 80)],
        endpoints: Vec::new(),
    }
}

pub fn tcp_port(first: u16, last: u16) -> PortMatch {
    PortMatch { ports: PortRange::new(first, last), protocol: Protocol::Tcp }
}

/// The virtual addresses of the service at a position.
pub fn virtual_addresses(position: usize) -> (Ipv4Addr, Ipv6Addr) {
    let number = position as u16 + 1;
    (Ipv4Addr::new(100, 97, 0, number as u8), Ipv6Addr::new(0xfd6d, 0x6573, 0x6800, 1, 0, 0, 0, number))
}

/// A directory of such services.
#[derive(Clone, Debug)]
pub struct Names {
    entries: Vec<Entry>,
    offers: Vec<Offer>,
    /// By what they are called, innermost first.
    called: Vec<(Name, Vec<OfferIndex>)>,
}

impl Names {
    pub fn new(entries: Vec<Entry>) -> Self {
        let offer = |(position, entry): (usize, &Entry)| {
            let (v4, v6) = virtual_addresses(position);
            Offer {
                id: RuleId(format!("acme/s{position}").into()),
                tenant: 0,
                hostname: entry.called.parse().unwrap(),
                level: entry.level,
                v4,
                v6,
                ports: entry.ports.clone(),
                endpoints: entry.endpoints.clone(),
                names_listener: false,
                balancing: Balancing::default(),
                inserted: None,
                health: None,
            }
        };
        let offers: Vec<Offer> = entries.iter().enumerate().map(offer).collect();
        let mut called: Vec<(Name, Vec<OfferIndex>)> = Vec::new();
        for (index, offer) in offers.iter().enumerate() {
            let index = OfferIndex(index as u32);
            match called.iter_mut().find(|(name, _)| *name == offer.hostname) {
                Some((_, indexes)) => indexes.push(index),
                None => called.push((offer.hostname.clone(), vec![index])),
            }
        }
        for (_, indexes) in &mut called {
            indexes.sort_by_key(|index| std::cmp::Reverse(offers[index.0 as usize].level));
        }
        Self { entries, offers, called }
    }
}

impl Directory for Names {
    fn offers(&self) -> &[Offer] {
        &self.offers
    }

    fn callers(&self) -> (model::Cidr, model::Cidr) {
        Ranges::default().callers()
    }

    fn owns(&self, address: IpAddr) -> bool {
        Ranges::default().contains(address)
    }

    fn at(&self, address: IpAddr) -> Option<OfferIndex> {
        let found =
            self.offers.iter().position(|o| address == IpAddr::V4(o.v4) || address == IpAddr::V6(o.v6));
        found.map(|index| OfferIndex(index as u32))
    }

    fn called(&self, hostname: &Name) -> &[OfferIndex] {
        self.called.iter().find(|(name, _)| name == hostname).map_or(&[], |(_, indexes)| indexes)
    }

    fn sees(&self, offer: OfferIndex, client: Party<'_>) -> Sight {
        let entry = &self.entries[offer.0 as usize];
        let Some(vm) = client.vm else { return Sight::Hidden };
        if !entry.seen_by.iter().any(|port| VmIndex(port.0.into()) == vm) {
            return Sight::Hidden;
        }
        match (entry.exe, client.attribution) {
            (None, _) => Sight::Seen,
            (Some(_), None) => Sight::Unsure,
            (Some(exe), Some(who)) if who.process.as_ref().and_then(|p| p.exe.as_deref()) == Some(exe) => {
                Sight::Seen
            }
            _ => Sight::Hidden,
        }
    }

    fn reaches(&self, _: &FlowQuery<'_>) -> Sight {
        Sight::Seen
    }

    fn listens(&self, _: OfferIndex, _: &Attribution) -> bool {
        true
    }
}

pub fn domain(name: &str) -> Domain {
    Domain::from_ascii(name).unwrap()
}

/// A question of number 77.
pub fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(domain(name), kind));
    message
}

/// The same from an asker that takes answers of this length.
pub fn question_with_edns(name: &str, kind: RecordType, payload_len: u16) -> Message {
    let mut message = question(name, kind);
    let mut edns = Edns::new();
    edns.set_max_payload(payload_len);
    message.set_edns(edns);
    message
}

pub fn gateway_link(from: PortId) -> Link {
    Link { source: mac(from), destination: config().gateway_mac }
}

/// The frame with a question from a machine's first IPv4 address.
pub fn datagram_to(from: PortId, to: IpAddr, question: &Message) -> Vec<u8> {
    let own = if to.is_ipv4() { v4(from) } else { v6(from) };
    emit::udp(gateway_link(from), between(own, to), (40_000, 53), &question.to_vec().unwrap())
}

/// The answer in a frame, which must come from where the question went.
#[track_caller]
pub fn answer_in(frame: &[u8], asked: IpAddr) -> Message {
    let (ethernet, packet) = parsed(frame);
    assert_eq!(ethernet.source, config().gateway_mac);
    assert_eq!(packet.addresses.source(), asked);
    let Transport::Udp(udp) = packet.transport else { panic!("not UDP") };
    assert_eq!((udp.source_port, udp.destination_port), (53, 40_000));
    Message::from_vec(&frame[udp.payload_offset..udp.payload_offset + udp.payload_len_bytes]).unwrap()
}

impl World<'_> {
    /// Asks the resolver, which must answer at once.
    #[track_caller]
    pub fn asks(&mut self, from: PortId, question: &Message) -> Message {
        let frame = datagram_to(from, ip(RESOLVER), question);
        assert_eq!(self.offer(from, &frame), Verdict::Answered, "{question}");
        let answer = answer_in(&self.emitted_one(from), ip(RESOLVER));
        assert_eq!((answer.metadata.id, answer.metadata.message_type), (77, MessageType::Response));
        assert_eq!(answer.queries, question.queries);
        answer
    }

    #[track_caller]
    pub fn looks_up(&mut self, from: PortId, name: &str, kind: RecordType) -> Message {
        self.asks(from, &question(name, kind))
    }
}

/// The data of an answer's records.
pub fn data(answer: &Message) -> Vec<&RData> {
    answer.answers.iter().map(|record| &record.data).collect()
}
