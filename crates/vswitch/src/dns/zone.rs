// SPDX-License-Identifier: Apache-2.0
//! What the mesh's own zones say to one asker.
//!
//! Whether a name exists is what [`model::Directory::sees`] says and nothing else: a service that does not exist for
//! the asker has no name, and the answer is the same as for a name that nobody has. Nothing is kept between
//! questions, so that no asker's answers can reach another.

use std::net::IpAddr;

use hickory_proto::op::Query;
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA, SRV};
use hickory_proto::rr::{Name as Domain, RData, Record, RecordType};
use model::{Level, Name, Offer, OfferIndex, Party, Protocol, Sight, Snapshot};

use super::subject::{Ports, Subject, domain, full_name, zone_name};

/// Most ports of one service that are told.
const PORTS_TOLD_MAX: usize = 16;

/// Services by the names that IANA has given their ports, as far as clients ask for them by SRV.
const WELL_KNOWN: [(&str, u16); 12] = [
    ("amqp", 5672),
    ("http", 80),
    ("http-alt", 8080),
    ("https", 443),
    ("imap", 143),
    ("kerberos", 88),
    ("ldap", 389),
    ("mongodb", 27017),
    ("mysql", 3306),
    ("postgresql", 5432),
    ("redis", 6379),
    ("sip", 5060),
];

/// Who asks, and by which state of the mesh.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    pub snapshot: &'a Snapshot,
    pub client: Party<'a>,
    /// How long answers may be kept, in seconds; negative ones too.
    pub ttl_s: u32,
}

/// What the zones say.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// These records; the second are of use with the first.
    Records(Vec<Record>, Vec<Record>),
    /// The name exists and has no such records; the zone's SOA.
    NoData(Record),
    /// The name does not exist; the zone's SOA.
    NoName(Record),
    /// It depends on the asker's process, which must be found out.
    Unsure,
    /// It is not for these zones to say.
    Foreign,
}

/// A service depends on the asker's process.
struct Unsure;

impl Asker<'_> {
    /// Answers one question of class IN.
    pub(super) fn ask(&self, query: &Query) -> Outcome {
        match Subject::of(query.name()) {
            Subject::Foreign => Outcome::Foreign,
            Subject::Nothing(level) => Outcome::NoName(self.soa(&zone_name(level))),
            Subject::Zone(level) => self.zone(query, level),
            Subject::Address(address) => self.reverse(query, address),
            Subject::Service { hostname, level, ports, bare } => {
                let zone = if bare { Domain::root() } else { zone_name(level) };
                match self.find(&hostname, level) {
                    Err(Unsure) => Outcome::Unsure,
                    // Zone cuts are the root's business.
                    Ok(None) if bare && is_of_cuts(query.query_type()) => Outcome::Foreign,
                    Ok(None) => Outcome::NoName(self.soa(&zone)),
                    Ok(Some(offer)) => match &ports {
                        None => self.service(query, offer, &zone),
                        Some(ports) => self.ports(query, offer, ports, &zone),
                    },
                }
            }
        }
    }

    /// The service that a name means to the asker: the innermost that it sees.
    fn find(&self, hostname: &Name, level: Option<Level>) -> Result<Option<&Offer>, Unsure> {
        let services = &self.snapshot.services;
        for index in services.called(hostname) {
            let offer = services.offer(*index);
            if level.is_some_and(|level| level != offer.level) {
                continue;
            }
            if self.sees(*index)? {
                return Ok(Some(offer));
            }
        }
        Ok(None)
    }

    fn sees(&self, index: OfferIndex) -> Result<bool, Unsure> {
        match self.snapshot.services.sees(index, self.client) {
            Sight::Seen => Ok(true),
            Sight::Hidden => Ok(false),
            Sight::Unsure => Err(Unsure),
        }
    }

    /// What a zone's own name has: its SOA, and the addresses of a service that is called like a level.
    fn zone(&self, query: &Query, level: Option<Level>) -> Outcome {
        let name = zone_name(level);
        if matches!(query.query_type(), RecordType::SOA | RecordType::ANY) {
            return Outcome::Records(vec![self.record(query.name(), self.soa(&name).data)], Vec::new());
        }
        let namesake = level.and_then(|level| level.zone().parse().ok());
        match namesake.map(|hostname| self.find(&hostname, None)) {
            Some(Err(Unsure)) => Outcome::Unsure,
            Some(Ok(Some(offer))) => self.service(query, offer, &name),
            _ => Outcome::NoData(self.soa(&name)),
        }
    }

    fn service(&self, query: &Query, offer: &Offer, zone: &Domain) -> Outcome {
        let kind = query.query_type();
        let ports = match kind {
            RecordType::SRV => self.told_ports(query.name(), offer, None, None),
            _ => Vec::new(),
        };
        if !ports.is_empty() {
            return self.told(ports, offer);
        }
        let mut records = self.addresses(query.name(), offer);
        records.retain(|record| kind == RecordType::ANY || record.record_type() == kind);
        match records.is_empty() {
            true => Outcome::NoData(self.soa(zone)),
            false => Outcome::Records(records, Vec::new()),
        }
    }

    /// What a name that starts with a port or protocol has.
    fn ports(&self, query: &Query, offer: &Offer, ports: &Ports, zone: &Domain) -> Outcome {
        let label = ports.label.as_deref().filter(|label| *label != offer.hostname.as_str());
        let number = label.map(|label| {
            let known = WELL_KNOWN.iter().find(|(name, _)| *name == label).map(|(_, port)| *port);
            label.parse().ok().or(known)
        });
        let records = match number {
            Some(None) => Vec::new(),
            number => self.told_ports(query.name(), offer, Some(ports.protocol), number.flatten()),
        };
        match query.query_type() {
            _ if records.is_empty() => Outcome::NoName(self.soa(zone)),
            RecordType::SRV | RecordType::ANY => self.told(records, offer),
            _ => Outcome::NoData(self.soa(zone)),
        }
    }

    /// Ports of a service, by SRV.
    fn told_ports(
        &self,
        name: &Domain,
        offer: &Offer,
        protocol: Option<Protocol>,
        number: Option<u16>,
    ) -> Vec<Record> {
        let target = full_name(&offer.hostname, offer.level);
        let meant = offer.ports.iter().filter(|own| protocol.is_none_or(|protocol| protocol == own.protocol));
        let ranges = meant.filter_map(|own| own.ports);
        let ranges = ranges.filter(|range| number.is_none_or(|number| range.contains(number)));
        let told = ranges.flat_map(|range| match number {
            Some(number) => number..=number,
            None => range.first()..=range.last(),
        });
        let told = told.take(PORTS_TOLD_MAX);
        told.map(|port| self.record(name, RData::SRV(SRV::new(0, 1, port, target.clone())))).collect()
    }

    /// Ports, with the addresses to reach them at.
    fn told(&self, ports: Vec<Record>, offer: &Offer) -> Outcome {
        Outcome::Records(ports, self.addresses(&full_name(&offer.hostname, offer.level), offer))
    }

    /// The virtual addresses of a service, of the families that any of its endpoints has.
    fn addresses(&self, name: &Domain, offer: &Offer) -> Vec<Record> {
        let any = offer.endpoints.is_empty();
        let v4 = any || offer.endpoints.iter().any(|endpoint| endpoint.v4.is_some());
        let v6 = any || offer.endpoints.iter().any(|endpoint| endpoint.v6.is_some());
        let addresses = [v4.then_some(RData::A(A(offer.v4))), v6.then_some(RData::AAAA(AAAA(offer.v6)))];
        addresses.into_iter().flatten().map(|data| self.record(name, data)).collect()
    }

    /// Who has a virtual address. In the ranges of the levels nobody else does.
    fn reverse(&self, query: &Query, address: IpAddr) -> Outcome {
        let services = &self.snapshot.services;
        let zone = query.name().base_name();
        let holder = match services.at(address) {
            Some(index) => match self.sees(index) {
                Ok(seen) => seen.then(|| services.offer(index)),
                Err(Unsure) => return Outcome::Unsure,
            },
            None => None,
        };
        let Some(offer) = holder else {
            return match services.owns(address) {
                true => Outcome::NoName(self.soa(&zone)),
                false => Outcome::Foreign,
            };
        };
        match query.query_type() {
            RecordType::PTR | RecordType::ANY => {
                let name = PTR(full_name(&offer.hostname, offer.level));
                Outcome::Records(vec![self.record(query.name(), RData::PTR(name))], Vec::new())
            }
            _ => Outcome::NoData(self.soa(&zone)),
        }
    }

    fn record(&self, name: &Domain, data: RData) -> Record {
        Record::from_rdata(name.clone(), self.ttl_s, data)
    }

    /// A zone's SOA, whose last number says how long negative answers may be kept (RFC 2308 section 4).
    fn soa(&self, zone: &Domain) -> Record {
        let serial = self.snapshot.generation.0 as u32;
        let (server, people) = (zone_name(None), domain(&["hostmaster", "mesh", "internal"]));
        let data = SOA::new(server, people, serial, 3600, 600, 86_400, self.ttl_s);
        self.record(zone, RData::SOA(data))
    }
}

/// Whether a type is asked of a name to find out where zones begin.
fn is_of_cuts(kind: RecordType) -> bool {
    matches!(kind, RecordType::NS | RecordType::SOA | RecordType::DS | RecordType::DNSKEY)
}
