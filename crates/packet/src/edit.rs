// SPDX-License-Identifier: Apache-2.0
//! Changes made to a frame in place, on its way through the switch.

use model::{MacAddr, Protocol};

use crate::head::be16;
use crate::ip::NETWORK_OFFSET;
use crate::{Addresses, Ip, checksum};

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
/// ports. Checksums are updated and not computed anew, so that one that was wrong stays wrong; where `partial`,
/// the transport's holds only the pseudo header's sum, as virtio's `NEEDS_CSUM` says. A head that is too short
/// for the headers is left alone.
pub fn readdress(head: &mut [u8], ip: &Ip, partial: bool, addresses: Addresses, ports: (u16, u16)) {
    let (at, len) = match (ip.addresses, addresses) {
        (Addresses::V4 { .. }, Addresses::V4 { .. }) => (NETWORK_OFFSET + 12, 8),
        (Addresses::V6 { .. }, Addresses::V6 { .. }) => (NETWORK_OFFSET + 8, 32),
        _ => return,
    };
    let checksum_at = ip.transport_offset
        + match ip.protocol {
            Protocol::Tcp => 16,
            Protocol::Udp => 6,
            _ => return,
        };
    if head.len() < at + len || head.len() < checksum_at + 2 {
        return;
    }
    let mut change = checksum::Change::default();
    match addresses {
        Addresses::V4 { source, destination } => {
            change.write(&mut head[at..at + 4], &source.octets());
            change.write(&mut head[at + 4..at + 8], &destination.octets());
            change.apply(&mut head[NETWORK_OFFSET + 10..NETWORK_OFFSET + 12]);
        }
        Addresses::V6 { source, destination } => {
            change.write(&mut head[at..at + 16], &source.octets());
            change.write(&mut head[at + 16..at + 32], &destination.octets());
        }
    }
    let mut of_ports = checksum::Change::default();
    of_ports.write(&mut head[ip.transport_offset..ip.transport_offset + 2], &ports.0.to_be_bytes());
    of_ports.write(&mut head[ip.transport_offset + 2..ip.transport_offset + 4], &ports.1.to_be_bytes());
    let field = &mut head[checksum_at..checksum_at + 2];
    if partial {
        // The sum of the pseudo header, not yet complemented; ports are part of the data still to be summed.
        field.copy_from_slice(&(!be16(field, 0)).to_be_bytes());
        change.apply(field);
        field.copy_from_slice(&(!be16(field, 0)).to_be_bytes());
    } else if ip.protocol != Protocol::Udp || field != [0, 0] {
        change.and(of_ports).apply(field);
        if ip.protocol == Protocol::Udp && field == [0, 0] {
            field.fill(0xff); // Zero means "no checksum" in UDP (RFC 768).
        }
    }
}
