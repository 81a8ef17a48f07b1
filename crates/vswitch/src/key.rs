// SPDX-License-Identifier: Apache-2.0
//! What a frame is looked up by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::{FiveTuple, Protocol};
use packet::icmp::{Meaning, Quoted};
use packet::{Addresses, Ip, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::PortId;

const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;
/// Stands in for the destination port of an ICMP echo request and reply, so that a request of the responder
/// is another flow.
const ECHO_REQUEST: u16 = 1;
const ECHO_REPLY: u16 = 2;

/// One direction of a flow: where its frames come in, and their tuple before any rewriting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct FlowKey {
    source: [u8; 16],
    destination: [u8; 16],
    source_port: u16,
    destination_port: u16,
    ingress: u16,
    protocol: u8,
    family: u8,
}

impl FlowKey {
    /// The key of a packet; `None` for ICMP messages other than echo.
    #[inline]
    pub(crate) fn of(ingress: PortId, ip: &Ip) -> Option<Self> {
        let ports = match ip.transport {
            Transport::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
            Transport::Udp(udp) => (udp.source_port, udp.destination_port),
            Transport::Icmp(icmp) => match icmp.meaning(ip.addresses) {
                Meaning::EchoRequest { id } => (id, ECHO_REQUEST),
                Meaning::EchoReply { id } => (id, ECHO_REPLY),
                _ => return None,
            },
            Transport::Other => (0, 0),
        };
        Some(Self::new(ingress, ip.addresses, ip.protocol, ports))
    }

    /// The key under which the packet that an ICMP error quotes came in at `ingress`.
    pub(crate) fn of_quoted(ingress: PortId, quoted: &Quoted) -> Option<Self> {
        let ports = match quoted.protocol {
            Protocol::Tcp | Protocol::Udp => (quoted.ports[0], quoted.ports[1]),
            Protocol::Icmp | Protocol::Icmpv6 => {
                let id = u16::from_be_bytes([quoted.rest[0], quoted.rest[1]]);
                match quoted.ports[0].to_be_bytes()[0] {
                    8 | 128 => (id, ECHO_REQUEST),
                    0 | 129 => (id, ECHO_REPLY),
                    _ => return None,
                }
            }
            Protocol::Other(_) => (0, 0),
        };
        Some(Self::new(ingress, quoted.addresses, quoted.protocol, ports))
    }

    #[inline]
    fn new(ingress: PortId, addresses: Addresses, protocol: Protocol, ports: (u16, u16)) -> Self {
        let (source, destination, family) = match addresses {
            Addresses::V4 { source, destination } => (wide(source), wide(destination), FAMILY_V4),
            Addresses::V6 { source, destination } => (source.octets(), destination.octets(), FAMILY_V6),
        };
        Self {
            source,
            destination,
            source_port: ports.0,
            destination_port: ports.1,
            ingress: ingress.0,
            protocol: protocol.number(),
            family,
        }
    }

    /// The key of the answers, which come in at `ingress`.
    pub(crate) fn mirrored(&self, ingress: PortId) -> Self {
        let ports = match (self.protocol(), self.destination_port) {
            (Protocol::Icmp | Protocol::Icmpv6, ECHO_REQUEST) => (self.source_port, ECHO_REPLY),
            (Protocol::Icmp | Protocol::Icmpv6, _) => (self.source_port, ECHO_REQUEST),
            _ => (self.destination_port, self.source_port),
        };
        Self {
            source: self.destination,
            destination: self.source,
            source_port: ports.0,
            destination_port: ports.1,
            ingress: ingress.0,
            ..*self
        }
    }

    /// Where frames of this direction come in.
    #[inline]
    pub(crate) fn ingress(&self) -> PortId {
        PortId(self.ingress)
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol.into()
    }

    /// Both addresses, as in a packet.
    pub(crate) fn addresses(&self) -> Addresses {
        if self.family == FAMILY_V4 {
            Addresses::V4 { source: narrow(self.source), destination: narrow(self.destination) }
        } else {
            Addresses::V6 {
                source: Ipv6Addr::from(self.source),
                destination: Ipv6Addr::from(self.destination),
            }
        }
    }

    /// The sender's and the receiver's port, as they stand in a packet.
    pub(crate) fn ports(&self) -> (u16, u16) {
        match self.protocol() {
            Protocol::Icmp | Protocol::Icmpv6 => (self.source_port, self.source_port),
            _ => (self.source_port, self.destination_port),
        }
    }

    pub(crate) fn source(&self) -> IpAddr {
        self.addresses().source()
    }

    /// The tuple in the model's words.
    pub(crate) fn tuple(&self) -> FiveTuple {
        let addresses = self.addresses();
        let (source_port, destination_port) = self.ports();
        FiveTuple {
            source: addresses.source(),
            destination: addresses.destination(),
            source_port,
            destination_port,
            protocol: self.protocol(),
        }
    }

    /// Whether the fields that name a kind hold values that [`FlowKey::of`] can give.
    pub(crate) fn is_legal(&self) -> bool {
        matches!(self.family, FAMILY_V4 | FAMILY_V6)
    }

    /// Whether this is an answer by itself, which can never open a flow.
    pub(crate) fn is_echo_reply(&self) -> bool {
        matches!(self.protocol(), Protocol::Icmp | Protocol::Icmpv6) && self.destination_port == ECHO_REPLY
    }
}

/// An IPv4 address in the room of an IPv6 address.
#[inline]
fn wide(address: Ipv4Addr) -> [u8; 16] {
    address.to_ipv6_mapped().octets()
}

fn narrow([.., a, b, c, d]: [u8; 16]) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}
