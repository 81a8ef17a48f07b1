// SPDX-License-Identifier: Apache-2.0
//! The DNS proxy: what machines ask at port 53 of whomever, answered by the switch.
//!
//! A question about the mesh's own names ([`subject`]) is answered from the snapshot, as it is seen by who asks
//! ([`zone`]). Any other is
//!
//! 1. let through if it is addressed to a machine or service of the mesh: a tenant may have a name server of its own;
//! 2. handed to the caller ([`DnsQuestion`]), who asks an upstream and tells what it said ([`DnsReply`]), if there are
//!    upstreams and policy lets the asker send UDP to port 53 of the resolver's address, or reach what is outside by the very
//!    name; else refused;
//! 3. without upstreams, let through as any flow is, unless it was addressed to the resolver or a gateway, who know
//!    nothing more and refuse.
//!
//! Over TCP the same holds for connections, which are taken up before the question is known. Answers come from whom
//! the question was addressed to. What a machine says on other ports, or in the name of a resolver, is a flow like
//! any other: nobody here listens to it. Only answers of the caller's upstreams teach what rules that name domains need to
//! know ([`learned`]).
//!
//! Bounds: questions of one port per second ([`DnsConfig`]), [`upstream::PENDING_MAX`] questions of one port that wait for an
//! upstream, each for [`upstream::PENDING_TIME`]; connections as [`stream`] says.

mod connection;
mod datagram;
mod deciding;
mod learned;
mod message;
mod stream;
mod subject;
mod upstream;
mod zone;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use model::{Moment, Party, Protocol, Sight, Snapshot};
use packet::Transport;
use packet::emit::Link;

pub use self::learned::Found;
pub use self::upstream::{DnsQuestion, DnsReply, DnsTicket};

use self::learned::Learned;
use self::stream::{Ends, Stream};
use self::upstream::Pending;
use crate::outside::Front;
use crate::ports::{Port, Ports};
use crate::rate::Rate;
use crate::switch::Arrival;
use crate::{FlowSlots, PortId, Switch, Verdict};

/// The port of DNS, over UDP and TCP.
const DNS_PORT: u16 = 53;

/// Longest answer over TCP, in bytes.
const STREAMED_LEN_BYTES_MAX: usize = 65_535;

/// How the DNS proxy behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// The address that DHCP tells machines to ask, and that policies name to allow questions about names outside
    /// the mesh. Default: 169.254.1.53.
    pub resolver: Ipv4Addr,
    /// How long answers about the mesh's names may be kept, in seconds; negative ones too. Default: 5.
    pub ttl_s: u32,
    /// Most questions of one port in a second; more are dropped. Default: 5,000. At zero none is answered.
    pub questions_per_second_max: u32,
    /// Whether the caller has upstreams to ask about other names. Default: no.
    pub has_upstreams: bool,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            resolver: Ipv4Addr::new(169, 254, 1, 53),
            ttl_s: 5,
            questions_per_second_max: 5000,
            has_upstreams: false,
        }
    }
}

/// The domain that DHCP tells machines to look for short names in.
pub(crate) const SEARCH_DOMAIN: &str = "mesh.internal";

/// The same as a name.
pub(crate) fn search_domain() -> hickory_proto::rr::Name {
    subject::zone_name(None)
}

/// What the switch keeps for all ports.
#[derive(Debug, Default)]
pub(crate) struct Dns {
    questions: VecDeque<DnsQuestion>,
    /// The number of the last question or connection.
    last_number: u64,
    /// When connections are to be looked after; never while there are none.
    upkeep: Option<Moment>,
    learned: Learned,
}

impl Dns {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Forgets what was learned for tenants that are gone.
    pub(crate) fn keep_tenants(&mut self, snapshot: &Snapshot) {
        let tenants = snapshot.inventory.tenants();
        self.learned.keep_tenants(|name| tenants.iter().any(|tenant| tenant.name == *name));
    }
}

/// What it keeps for one port.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortDns {
    rate: Rate,
    pending: VecDeque<Pending>,
    streams: Vec<Stream>,
}

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
    fn takes_over(&self, port: &Port, destination: IpAddr, protocol: Protocol) -> bool {
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
    fn asked_by(&mut self, port: PortId) -> &mut PortDns {
        &mut self.states[usize::from(port.0)].dns
    }

    /// Whether a port may ask once more now.
    fn may_ask(&mut self, port: PortId) -> bool {
        let (now, dns) = (self.now, self.config.dns.as_ref());
        let limit = dns.map_or(0, |dns| dns.questions_per_second_max);
        self.asked_by(port).rate.allows(now, limit)
    }
}

/// The ends of what answers a packet.
fn ends(arrival: &Arrival<'_>, (source_port, destination_port): (u16, u16)) -> Ends {
    Ends {
        link: Link { source: arrival.ethernet.destination, destination: arrival.ethernet.source },
        addresses: arrival.ip.addresses.reversed(),
        ports: (destination_port, source_port),
    }
}
