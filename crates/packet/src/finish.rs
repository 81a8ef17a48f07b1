// SPDX-License-Identifier: Apache-2.0
//! Finishing what a sender left to its receiver: partial checksums, and super-frames to be cut.
//!
//! For receivers that did not offer to do it. All of it works on a whole frame in private memory; a super-frame becomes
//! pieces with their own headers, checksums included, as the sender's own stack would have made them (Linux
//! `tcp_gso_segment`, `__udp_gso_segment`).

use model::Protocol;

use crate::checksum::Sum;
use crate::ip::{IPV4_LEN_BYTES, NETWORK_OFFSET};
use crate::transport::UDP_LEN_BYTES;
use crate::{Addresses, GsoKind, Head, Network, OffloadError, Packet, TcpFlags, Transport, VnetHeader};

/// Most pieces of one super-frame: those of 64 KiB in segments of 256 bytes. It bounds what one frame can cost.
pub const PIECES_MAX: usize = 256;

/// Where the checksum is in the headers of TCP and UDP.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
/// Congestion window reduced (RFC 3168): said once, in the first piece.
const CWR: u8 = 0x80;

/// Completes a partial checksum, if there is one.
///
/// # Errors
/// When the checksum's place is outside the frame.
pub fn complete_checksum(vnet: &VnetHeader, frame: &mut [u8]) -> Result<(), OffloadError> {
    if !vnet.needs_checksum() {
        return Ok(());
    }
    let start = usize::from(vnet.csum_start);
    let covered = frame.get_mut(start..).ok_or(OffloadError::ChecksumOutside)?;
    let sum = Sum::default().bytes(covered).finish();
    let at = usize::from(vnet.csum_offset);
    let field = covered.get_mut(at..at + 2).ok_or(OffloadError::ChecksumOutside)?;
    // Zero means "none" in UDP (RFC 768), and elsewhere the two are the same number.
    let sum = if sum == 0 && at == UDP_CHECKSUM { 0xffff } else { sum };
    field.copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// How a super-frame is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    addresses: Addresses,
    protocol: Protocol,
    transport: usize,
    /// Where the data is in the frame.
    data: usize,
    end: usize,
    /// Data of every piece but the last, in bytes.
    size: usize,
}

impl Cut {
    /// Reads how `frame` is to be cut.
    ///
    /// # Errors
    /// When it cannot be: its header asks for something else, or contradicts it.
    pub fn plan(vnet: &VnetHeader, frame: &[u8]) -> Result<Self, OffloadError> {
        let kind = vnet.gso()?;
        let Ok(Packet { network: Network::Ip(ip), .. }) = Packet::parse(Head::whole(frame)) else {
            return Err(OffloadError::GsoProtocol);
        };
        let header = match (kind, ip.transport, ip.addresses) {
            (GsoKind::Tcp4, Transport::Tcp(tcp), Addresses::V4 { .. })
            | (GsoKind::Tcp6, Transport::Tcp(tcp), Addresses::V6 { .. }) => {
                ip.payload_len_bytes() - tcp.payload_len_bytes
            }
            (GsoKind::Udp, Transport::Udp(_), _) => UDP_LEN_BYTES,
            _ => return Err(OffloadError::GsoProtocol),
        };
        let (data, size) = (ip.transport_offset + header, usize::from(vnet.gso_size));
        if size == 0 || ip.fragment.is_some() {
            return Err(OffloadError::GsoSize);
        }
        let cut = Self {
            addresses: ip.addresses,
            protocol: ip.protocol,
            transport: ip.transport_offset,
            data,
            end: ip.end,
            size,
        };
        if cut.pieces() > PIECES_MAX { Err(OffloadError::GsoSize) } else { Ok(cut) }
    }

    /// How many pieces there are: one at least.
    #[must_use]
    pub fn pieces(&self) -> usize {
        (self.end - self.data).div_ceil(self.size).max(1)
    }

    /// Writes one piece of the `frame` that was planned, replacing what is in `out`.
    ///
    /// # Panics
    /// When there is no such piece, or the frame is another.
    pub fn piece(&self, frame: &[u8], number: usize, out: &mut Vec<u8>) {
        let skipped = number * self.size;
        let from = self.data + skipped;
        let until = self.end.min(from + self.size);
        out.clear();
        out.extend_from_slice(&frame[..self.data]);
        out.extend_from_slice(&frame[from..until]);
        self.write_network(number, out);
        let segment = &mut out[self.transport..];
        let len = segment.len();
        let checksum = if self.protocol == Protocol::Tcp {
            let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
            // Less than the frame's length.
            let sequence = sequence.wrapping_add(skipped as u32);
            segment[4..8].copy_from_slice(&sequence.to_be_bytes());
            if number > 0 {
                segment[13] &= !CWR;
            }
            if until < self.end {
                segment[13] &= !(TcpFlags::FIN | TcpFlags::PSH).0;
            }
            TCP_CHECKSUM
        } else {
            segment[4..6].copy_from_slice(&(len as u16).to_be_bytes());
            UDP_CHECKSUM
        };
        segment[checksum..checksum + 2].fill(0);
        let sum = Sum::pseudo(self.addresses, self.protocol, len).bytes(segment).finish();
        let sum = if sum == 0 && checksum == UDP_CHECKSUM { 0xffff } else { sum };
        segment[checksum..checksum + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// Lengths, and for IPv4 identification and checksum.
    fn write_network(&self, number: usize, out: &mut [u8]) {
        // No longer than the frame's own packet, whose length was in such a field.
        let len = (out.len() - NETWORK_OFFSET) as u16;
        let transport = self.transport;
        let header = &mut out[NETWORK_OFFSET..transport];
        match self.addresses {
            Addresses::V4 { .. } => {
                header[2..4].copy_from_slice(&len.to_be_bytes());
                let id = u16::from_be_bytes([header[4], header[5]]).wrapping_add(number as u16);
                header[4..6].copy_from_slice(&id.to_be_bytes());
                header[10..12].fill(0);
                debug_assert!(header.len() >= IPV4_LEN_BYTES, "the parser has seen a whole header");
                let sum = Sum::default().bytes(header).finish();
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            Addresses::V6 { .. } => {
                let payload = len - crate::ip::IPV6_LEN_BYTES as u16;
                header[4..6].copy_from_slice(&payload.to_be_bytes());
            }
        }
    }
}
