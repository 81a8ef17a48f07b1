// SPDX-License-Identifier: Apache-2.0
//! DHCP (RFC 2131) for one card: its only lease is the address that the inventory gives it.
//!
//! There is no state: the same question always gets the same answer.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use dhcproto::v4::borrowed::Message as Request;
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Encodable, Encoder};
use model::MacAddr;

use crate::port::Port;
use crate::{DnsConfig, SwitchConfig, dns};

pub(crate) const SERVER_PORT: u16 = 67;
pub(crate) const CLIENT_PORT: u16 = 68;

/// An answer and where to send it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub destination: Ipv4Addr,
    pub destination_mac: MacAddr,
    pub message: Vec<u8>,
}

/// What a request leads to.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answer(Answer),
    /// Legal, and needs no answer: a release, a refusal, a message for another server.
    Silence,
    /// The card has no IPv4 address.
    NoLease,
    /// It asks for another card.
    Spoofed,
    Malformed,
}

/// What of a request matters.
struct Wish {
    kind: u8,
    address: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl Wish {
    fn read(request: &Request<'_>) -> Self {
        let mut wish = Self { kind: 0, address: None, server: None };
        for option in request.opts() {
            let address = || <[u8; 4]>::try_from(option.data()).ok().map(Ipv4Addr::from);
            match option.code() {
                OptionCode::MessageType => wish.kind = option.data().first().copied().unwrap_or(0),
                OptionCode::RequestedIpAddress => wish.address = address(),
                OptionCode::ServerIdentifier => wish.server = address(),
                _ => {}
            }
        }
        wish
    }
}

/// Answers the client behind `port`. The payload is the guest's and is not trusted.
pub(crate) fn answer(payload: &[u8], port: &Port, config: &SwitchConfig) -> Outcome {
    let Ok(request) = Request::new(payload) else { return Outcome::Malformed };
    // Checked before anything reads the hardware address: the decoder trusts its length.
    if request.hlen() != 6 || request.opcode() != Opcode::BootRequest {
        return Outcome::Malformed;
    }
    if request.chaddr() != port.mac.0 {
        return Outcome::Spoofed;
    }
    let Some((lease, _)) = port.lease() else { return Outcome::NoLease };
    let wish = Wish::read(&request);
    let for_another = wish.server.is_some_and(|server| server != port.dhcp_server());
    let kind = match MessageType::from(wish.kind) {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if for_another => return Outcome::Silence,
        MessageType::Request => {
            let renewed = Some(request.ciaddr()).filter(|address| !address.is_unspecified());
            match wish.address.or(renewed) {
                Some(address) if address == lease => MessageType::Ack,
                _ => MessageType::Nak,
            }
        }
        MessageType::Inform => MessageType::Ack,
        MessageType::Release | MessageType::Decline => return Outcome::Silence,
        _ => return Outcome::Malformed,
    };
    let leases = wish.kind != u8::from(MessageType::Inform);
    let mut reply = reply_to(&request, port, kind);
    if kind != MessageType::Nak {
        describe(&mut reply, port, leases.then_some((lease, config.dhcp_lease)));
        describe_names(&mut reply, port, config.dns.as_ref());
    }
    match encoded(&reply) {
        Some(message) => Outcome::Answer(addressed(&request, port, kind, lease, message)),
        None => Outcome::Malformed,
    }
}

fn reply_to(request: &Request<'_>, port: &Port, kind: MessageType) -> Message {
    let nobody = Ipv4Addr::UNSPECIFIED;
    let mut reply =
        Message::new_with_id(request.xid(), nobody, nobody, nobody, request.giaddr(), &port.mac.0);
    reply.set_opcode(Opcode::BootReply).set_flags(request.flags());
    reply.opts_mut().insert(DhcpOption::MessageType(kind));
    reply.opts_mut().insert(DhcpOption::ServerIdentifier(port.dhcp_server()));
    reply
}

/// Adds what the client must know about its link and, if it takes one, its lease.
fn describe(reply: &mut Message, port: &Port, lease: Option<(Ipv4Addr, Duration)>) {
    let Some((_, subnet)) = port.lease() else { return };
    let mask = u32::MAX.checked_shl(32 - u32::from(subnet.cidr.prefix_len_bits())).unwrap_or(0);
    if let Some((address, time)) = lease {
        reply.set_yiaddr(address);
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        reply.opts_mut().insert(DhcpOption::AddressLeaseTime(seconds));
    }
    reply.opts_mut().insert(DhcpOption::SubnetMask(Ipv4Addr::from_bits(mask)));
    if let Some(IpAddr::V4(gateway)) = subnet.gateway {
        reply.opts_mut().insert(DhcpOption::Router(vec![gateway]));
    }
    reply.opts_mut().insert(DhcpOption::InterfaceMtu(port.mtu_bytes));
}

/// Adds whom to ask about names, and where to look for short ones (RFC 3397). The resolver is reached through the
/// gateway.
fn describe_names(reply: &mut Message, port: &Port, dns: Option<&DnsConfig>) {
    let Some(dns) = dns.filter(|_| port.lease().is_some_and(|(_, subnet)| subnet.gateway.is_some())) else {
        return;
    };
    reply.opts_mut().insert(DhcpOption::DomainNameServer(vec![dns.resolver]));
    reply.opts_mut().insert(DhcpOption::DomainName(dns::SEARCH_DOMAIN.to_owned()));
    reply.opts_mut().insert(DhcpOption::DomainSearch(vec![dns::search_domain()]));
}

fn encoded(reply: &Message) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(320);
    reply.encode(&mut Encoder::new(&mut message)).ok()?;
    Some(message)
}

/// To an address that the client already has, else to the one it is being given, else to all
/// (RFC 2131 section 4.1).
fn addressed(
    request: &Request<'_>,
    port: &Port,
    kind: MessageType,
    lease: Ipv4Addr,
    message: Vec<u8>,
) -> Answer {
    let to_all = kind == MessageType::Nak || request.ciaddr() != lease && request.flags().broadcast();
    let (destination, destination_mac) =
        if to_all { (Ipv4Addr::BROADCAST, MacAddr::BROADCAST) } else { (lease, port.mac) };
    Answer { destination, destination_mac, message }
}
