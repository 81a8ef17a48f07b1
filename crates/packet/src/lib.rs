// SPDX-License-Identifier: Apache-2.0
//! Reading and writing of frames: Ethernet, ARP, IPv4, IPv6, TCP, UDP, ICMP and the virtio-net header.
//!
//! Guests are hostile, so a frame is parsed from a private copy only, of which the caller usually fills
//! no more than the first bytes: [`Head`] is those bytes together with the length of the whole frame.
//! [`Packet::parse`] answers with plain values and offsets; it borrows nothing and allocates nothing.
//!
//! Invariants:
//! - No input makes a function of this crate panic, loop without bound or read past what it was given.
//! - What the headers claim is checked against the frame: an offset or length in a parsed value lies
//!   within the frame's `total_len_bytes`, though not always within the copied head.
//!
//! Deliberately absent: VLAN tags, IPv6 jumbograms and routing headers (refused), reassembly,
//! and verification of transport checksums, which the receiving guest does anyway.
#![forbid(unsafe_code)]

pub mod arp;
pub mod checksum;
pub mod edit;
pub mod emit;
mod ethernet;
pub mod finish;
mod head;
pub mod icmp;
mod ip;
pub mod nd;
mod parse;
mod plain;
pub mod tcp;
mod transport;
mod vnet;

pub use ethernet::{ETHERNET_LEN_BYTES, EtherType, Ethernet};
pub use head::{Head, Layer, ParseError};
pub use icmp::Icmp;
pub use ip::{Addresses, EXTENSION_HEADERS_MAX, Fragment, Ip};
pub use parse::{Network, Packet};
pub use plain::Plain;
pub use transport::{Tcp, TcpFlags, Transport, Udp};
pub use vnet::{GsoKind, OffloadError, VNET_LEN_BYTES, VnetHeader};
