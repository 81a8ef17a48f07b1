// SPDX-License-Identifier: Apache-2.0
//! Changes made to a frame in place, on its way through the switch.

use model::MacAddr;

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
