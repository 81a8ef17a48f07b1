// SPDX-License-Identifier: Apache-2.0
//! Changes made to a frame in place, on its way through the switch.

use std::net::IpAddr;

use model::{MacAddr, Protocol};

use crate::head::be16;
use crate::icmp::Quoted;
use crate::ip::NETWORK_OFFSET;
use crate::{Addresses, Ip, Transport, checksum};

/// Writes the Ethernet destination. A head without an Ethernet header is left alone.
#[inline]
pub fn set_destination(head: &mut [u8], mac: MacAddr) {
    if let Some(field) = head.get_mut(..6) {
        field.copy_from_slice(&mac.0);
    }
}

/// Writes the Ethernet source. A head without an Ethernet header is left alone.
#[inline]
pub fn set_source(head: &mut [u8], mac: MacAddr) {
    if let Some(field) = head.get_mut(6..12) {
        field.copy_from_slice(&mac.0);
    }
}

/// Takes one from the time to live of the packet `ip` that was parsed from `head`.
/// A time to live of zero stays; the caller drops such packets.
pub fn decrement_ttl(head: &mut [u8], ip: &Ip) {
    let ttl = ip.ttl.saturating_sub(1);
    match ip.addresses {
        Addresses::V4 { .. } => {
            let Some(header) = head.get_mut(NETWORK_OFFSET..NETWORK_OFFSET + 20) else { return };
            let old = be16(header, 8);
            header[8] = ttl;
            let sum = checksum::updated(be16(header, 10), old, be16(header, 8));
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Addresses::V6 { .. } => {
            if let Some(field) = head.get_mut(NETWORK_OFFSET + 7) {
                *field = ttl;
            }
        }
    }
}

/// Gives the packet `ip` that was parsed from `head` other addresses of its family and, over TCP and UDP, other
/// ports, or an echo the first of them as its identifier. Checksums are updated and not computed anew, so that
/// one that was wrong stays wrong; where `partial`, the transport's holds only the pseudo header's sum, as virtio's
/// `NEEDS_CSUM` says. A head that is too short for the headers is left alone.
pub fn readdress(head: &mut [u8], ip: &Ip, partial: bool, addresses: Addresses, ports: (u16, u16)) {
    let at = ip.transport_offset;
    let fields = Fields::of(ip.transport, ip.addresses);
    if head.len() < at + fields.as_ref().map_or(0, |fields| fields.checksum + 2) {
        return;
    }
    let Some(change) = write_addresses(head, NETWORK_OFFSET, addresses, ip.addresses) else { return };
    let Some(fields) = fields else { return };
    let of_ports = fields.write_ports(head, at, ports);
    let field = &mut head[at + fields.checksum..at + fields.checksum + 2];
    if partial {
        // The sum of the pseudo header, not yet complemented; ports are part of the data still to be summed.
        field.copy_from_slice(&(!be16(field, 0)).to_be_bytes());
        change.apply(field);
        field.copy_from_slice(&(!be16(field, 0)).to_be_bytes());
    } else if !fields.is_udp || field != [0, 0] {
        let change = if fields.has_pseudo { change.and(of_ports) } else { of_ports };
        change.apply(field);
        if fields.is_udp && field == [0, 0] {
            field.fill(0xff); // Zero means "no checksum" in UDP (RFC 768).
        }
    }
}

/// Gives the ICMP error `ip` that was parsed from `head` another sender, and the packet that it quotes the
/// addresses and ports that its sender gave it; that sender is who the error is for. Checksums are updated,
/// those within the quote included, as far as they are quoted.
pub fn readdress_error(
    head: &mut [u8],
    ip: &Ip,
    quoted: &Quoted,
    from: IpAddr,
    (addresses, ports): (Addresses, (u16, u16)),
) {
    let outer = match (from, addresses) {
        (IpAddr::V4(source), Addresses::V4 { source: destination, .. }) => {
            Addresses::V4 { source, destination }
        }
        (IpAddr::V6(source), Addresses::V6 { source: destination, .. }) => {
            Addresses::V6 { source, destination }
        }
        _ => return,
    };
    let message = ip.transport_offset;
    let end = head.len().min(ip.end);
    if quoted.transport_offset + QUOTED_LEN_BYTES > end {
        return;
    }
    let Some(of_outer) = write_addresses(head, NETWORK_OFFSET, outer, ip.addresses) else { return };
    let before = head[message + QUOTE_OFFSET..quoted.transport_offset].to_vec();
    let Some(of_inner) = write_addresses(head, quoted.offset, addresses, quoted.addresses) else { return };
    let mut change = checksum::Change::of(&before, &head[message + QUOTE_OFFSET..quoted.transport_offset]);
    if let Some(fields) = Fields::quoted(quoted) {
        let of_ports = fields.write_ports(head, quoted.transport_offset, ports);
        change = change.and(of_ports);
        let at = quoted.transport_offset + fields.checksum;
        if at + 2 <= end && !(fields.is_udp && head[at..at + 2] == [0, 0]) {
            let before = be16(head, at).to_be_bytes();
            let of_transport = if fields.has_pseudo { of_inner.and(of_ports) } else { of_ports };
            of_transport.apply(&mut head[at..at + 2]);
            change = change.and(checksum::Change::of(&before, &head[at..at + 2]));
        }
    }
    if let Addresses::V6 { .. } = addresses {
        change = change.and(of_outer);
    }
    change.apply(&mut head[message + 2..message + 4]);
}

/// Where a quote starts in an ICMP message.
const QUOTE_OFFSET: usize = 8;
/// What a quote holds of a transport header at the least.
const QUOTED_LEN_BYTES: usize = 8;

/// Where a transport header holds what depends on addresses and ports.
struct Fields {
    checksum: usize,
    /// Where the ports are, or the identifier of an echo.
    ports: usize,
    is_echo: bool,
    is_udp: bool,
    has_pseudo: bool,
}

impl Fields {
    const TCP: Self = Self { checksum: 16, ports: 0, is_echo: false, is_udp: false, has_pseudo: true };
    const UDP: Self = Self { checksum: 6, is_udp: true, ..Self::TCP };

    fn echo(addresses: Addresses) -> Self {
        let has_pseudo = matches!(addresses, Addresses::V6 { .. });
        Self { checksum: 2, ports: 4, is_echo: true, is_udp: false, has_pseudo }
    }

    /// Of a packet; none if it is no first piece, or of a protocol without ports.
    fn of(transport: Transport, addresses: Addresses) -> Option<Self> {
        match transport {
            Transport::Tcp(_) => Some(Self::TCP),
            Transport::Udp(_) => Some(Self::UDP),
            Transport::Icmp(_) => Some(Self::echo(addresses)),
            Transport::Other => None,
        }
    }

    fn quoted(quoted: &Quoted) -> Option<Self> {
        match quoted.protocol {
            Protocol::Tcp => Some(Self::TCP),
            Protocol::Udp => Some(Self::UDP),
            Protocol::Icmp | Protocol::Icmpv6 => Some(Self::echo(quoted.addresses)),
            Protocol::Other(_) => None,
        }
    }

    fn write_ports(&self, head: &mut [u8], at: usize, ports: (u16, u16)) -> checksum::Change {
        let mut change = checksum::Change::default();
        let at = at + self.ports;
        change.write(&mut head[at..at + 2], &ports.0.to_be_bytes());
        if !self.is_echo {
            change.write(&mut head[at + 2..at + 4], &ports.1.to_be_bytes());
        }
        change
    }
}

/// Writes the addresses into the IP header at `at`, if it is of their family, and updates its checksum.
fn write_addresses(
    head: &mut [u8],
    at: usize,
    addresses: Addresses,
    old: Addresses,
) -> Option<checksum::Change> {
    let mut change = checksum::Change::default();
    match (addresses, old) {
        (Addresses::V4 { source, destination }, Addresses::V4 { .. }) => {
            let header = head.get_mut(at..at + 20)?;
            change.write(&mut header[12..16], &source.octets());
            change.write(&mut header[16..20], &destination.octets());
            change.apply(&mut header[10..12]);
        }
        (Addresses::V6 { source, destination }, Addresses::V6 { .. }) => {
            let header = head.get_mut(at..at + 40)?;
            change.write(&mut header[8..24], &source.octets());
            change.write(&mut header[24..40], &destination.octets());
        }
        _ => return None,
    }
    Some(change)
}
