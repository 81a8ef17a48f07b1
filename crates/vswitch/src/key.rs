// SPDX-License-Identifier: Apache-2.0
//! What a frame is looked up by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::{FiveTuple, Protocol};
use packet::icmp::{Meaning, Quoted};
use packet::{Addresses, Ip, Plain, Transport};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::PortId;

const FAMILY_V4: u8 = 4;
const FAMILY_V6: u8 = 6;
/// Stands in for the destination port of an ICMP echo request and reply, so that a request of the responder
/// is another flow.
const ECHO_REQUEST: u16 = 1;
const ECHO_REPLY: u16 = 2;

/// One direction of a flow: where its frames come in, and their tuple before any rewriting.
///
/// Five words, so that keys are made, hashed and compared in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct FlowKey {
    /// High and low half of the address as a number; an IPv4 address has only a low half.
    source: [u64; 2],
    destination: [u64; 2],
    /// From the highest bits: source port, destination port, ingress (16 each), protocol, family (8 each).
    rest: u64,
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

    /// As [`FlowKey::of`], of a plain packet.
    #[inline]
    pub(crate) fn of_plain(ingress: PortId, plain: &Plain) -> Self {
        let protocol = if plain.tcp.is_some() { Protocol::Tcp } else { Protocol::Udp };
        let family = if plain.is_v4 { FAMILY_V4 } else { FAMILY_V6 };
        let rest = rest(plain.ports, ingress, protocol.number(), family);
        Self { source: plain.source, destination: plain.destination, rest }
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
            Addresses::V4 { source, destination } => {
                ([0, source.to_bits().into()], [0, destination.to_bits().into()], FAMILY_V4)
            }
            Addresses::V6 { source, destination } => {
                (halves(source.to_bits()), halves(destination.to_bits()), FAMILY_V6)
            }
        };
        Self { source, destination, rest: rest(ports, ingress, protocol.number(), family) }
    }

    /// Whether both are the same, compared word by word: a call to compare memory would read wide what
    /// was just written narrow.
    #[inline]
    pub(crate) fn is(&self, other: &Self) -> bool {
        let (a, b) = (self.words(), other.words());
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) == 0
    }

    /// The words that make up the key.
    #[inline]
    pub(crate) fn words(&self) -> [u64; 5] {
        let ([a, b], [c, d]) = (self.source, self.destination);
        [a, b, c, d, self.rest]
    }

    /// The key of the answers, which come in at `ingress`.
    pub(crate) fn mirrored(&self, ingress: PortId) -> Self {
        let (source_port, destination_port) = self.raw_ports();
        let ports = match (self.protocol(), destination_port) {
            (Protocol::Icmp | Protocol::Icmpv6, ECHO_REQUEST) => (source_port, ECHO_REPLY),
            (Protocol::Icmp | Protocol::Icmpv6, _) => (source_port, ECHO_REQUEST),
            _ => (destination_port, source_port),
        };
        Self {
            source: self.destination,
            destination: self.source,
            rest: rest(ports, ingress, self.protocol().number(), self.family()),
        }
    }

    /// This key, to another address and port. An echo has one identifier
    /// for both ends.
    pub(crate) fn with_destination(self, address: IpAddr, port: u16) -> Self {
        let (source_port, destination_port) = self.raw_ports();
        let ports = if self.is_icmp() { (port, destination_port) } else { (source_port, port) };
        Self { destination: words_of(address), rest: self.rest_with(ports), ..self }
    }

    /// This key, from another address and port.
    pub(crate) fn with_source(self, address: IpAddr, port: u16) -> Self {
        let (_, destination_port) = self.raw_ports();
        Self { source: words_of(address), rest: self.rest_with((port, destination_port)), ..self }
    }

    fn rest_with(&self, ports: (u16, u16)) -> u64 {
        rest(ports, self.ingress(), self.protocol().number(), self.family())
    }

    #[inline]
    pub(crate) fn is_tcp(&self) -> bool {
        self.protocol() == Protocol::Tcp
    }

    fn is_icmp(&self) -> bool {
        matches!(self.protocol(), Protocol::Icmp | Protocol::Icmpv6)
    }

    /// Whether both are of one protocol over one family.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.rest as u16 == other.rest as u16
    }

    /// Addresses and ports of the packets that packets with this key answer.
    pub(crate) fn answered(&self) -> (Addresses, (u16, u16)) {
        let (source_port, destination_port) = self.ports();
        (self.addresses().reversed(), (destination_port, source_port))
    }

    /// Where frames of this direction come in.
    #[inline]
    pub(crate) fn ingress(&self) -> PortId {
        PortId((self.rest >> 16) as u16)
    }

    pub(crate) fn protocol(&self) -> Protocol {
        ((self.rest >> 8) as u8).into()
    }

    fn family(&self) -> u8 {
        self.rest as u8
    }

    /// Both ports as they stand in the key.
    fn raw_ports(&self) -> (u16, u16) {
        ((self.rest >> 48) as u16, (self.rest >> 32) as u16)
    }

    /// Both addresses, as in a packet.
    pub(crate) fn addresses(&self) -> Addresses {
        if self.family() == FAMILY_V4 {
            let address = |[_, low]: [u64; 2]| Ipv4Addr::from_bits(low as u32);
            Addresses::V4 { source: address(self.source), destination: address(self.destination) }
        } else {
            let address =
                |[high, low]: [u64; 2]| Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low));
            Addresses::V6 { source: address(self.source), destination: address(self.destination) }
        }
    }

    /// The sender's and the receiver's port, as they stand in a packet.
    pub(crate) fn ports(&self) -> (u16, u16) {
        let (source_port, destination_port) = self.raw_ports();
        match self.protocol() {
            Protocol::Icmp | Protocol::Icmpv6 => (source_port, source_port),
            _ => (source_port, destination_port),
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
        matches!(self.family(), FAMILY_V4 | FAMILY_V6)
    }

    /// Whether this is an answer by itself, which can never open a flow.
    pub(crate) fn is_echo_reply(&self) -> bool {
        matches!(self.protocol(), Protocol::Icmp | Protocol::Icmpv6) && self.raw_ports().1 == ECHO_REPLY
    }
}

/// Packs what is not an address.
#[inline]
fn rest(ports: (u16, u16), ingress: PortId, protocol: u8, family: u8) -> u64 {
    u64::from(ports.0) << 48
        | u64::from(ports.1) << 32
        | u64::from(ingress.0) << 16
        | u64::from(protocol) << 8
        | u64::from(family)
}

/// An address as keys hold it.
fn words_of(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [0, address.to_bits().into()],
        IpAddr::V6(address) => halves(address.to_bits()),
    }
}

/// The high and the low half of a number.
#[inline]
fn halves(number: u128) -> [u64; 2] {
    [(number >> 64) as u64, number as u64]
}
