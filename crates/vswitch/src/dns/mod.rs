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
mod pending;
mod stream;
mod subject;
mod taking;
mod upstream;
mod zone;

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use model::{Moment, Snapshot};

pub use self::learned::Found;
pub use self::pending::{DnsQuestion, DnsReply, DnsTicket};

use self::learned::Learned;
use self::pending::Pending;
use self::stream::Stream;
use crate::rate::Rate;

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
