// SPDX-License-Identifier: Apache-2.0
//! Ports and frames, as the caller hands them in.

use std::fmt;

use model::{Moment, ServiceFlags};
use packet::{Head, VnetHeader};

/// A switch port: one network card of one machine.
///
/// The caller numbers the ports and gives the same card the same number for as long as the flow table
/// lives, restarts included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Room for the start of a frame, in bytes. A frame that the switch answers itself (DHCP, echo) must fit.
pub const HEAD_LEN_BYTES_MAX: usize = 2048;

/// Longest frame, in bytes: the largest IP packet behind an Ethernet header.
pub const FRAME_LEN_BYTES_MAX: usize = packet::ETHERNET_LEN_BYTES + 65_535;

/// The caller's private copy of a frame's start.
///
/// Most frames need no more than their first 192 bytes here; [`crate::Verdict::NeedMore`] asks for more. The
/// rest stays where the guest put it. The switch rewrites `head` and `vnet` in place, and only when it
/// answers [`crate::Verdict::Forward`].
///
/// The head begins a cache line, and all else of a frame lies in one: a short frame is in two lines.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Frame {
    /// The frame's first bytes, from the Ethernet header on.
    pub head: [u8; HEAD_LEN_BYTES_MAX],
    /// The offloads that come with the frame.
    pub vnet: VnetHeader,
    /// How many bytes of `head` are filled.
    pub head_len_bytes: usize,
    /// Length of the whole frame, from the Ethernet header on.
    pub total_len_bytes: usize,
    /// Set by the switch: the services whose stages the frame goes through.
    pub services: ServiceFlags,
    /// Set by the switch: where a copy of the frame goes, as it is forwarded.
    pub mirror: Option<PortId>,
    /// When it may leave, once a limit was asked; set by the switch. Whoever offers the same frame again keeps it, whoever puts
    /// another one in its place clears it.
    pub departs: Option<Moment>,
}

const _: () =
    assert!(size_of::<Frame>() == HEAD_LEN_BYTES_MAX + 64, "all but the head lies in one cache line");

impl Default for Frame {
    fn default() -> Self {
        Self {
            vnet: VnetHeader::default(),
            head: [0; HEAD_LEN_BYTES_MAX],
            head_len_bytes: 0,
            total_len_bytes: 0,
            services: ServiceFlags::NONE,
            mirror: None,
            departs: None,
        }
    }
}

impl Frame {
    /// A frame without offloads, of which as much as fits is copied.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut frame = Self::default();
        let len = bytes.len().min(HEAD_LEN_BYTES_MAX);
        frame.head[..len].copy_from_slice(&bytes[..len]);
        frame.head_len_bytes = len;
        frame.total_len_bytes = bytes.len();
        frame
    }

    /// The filled bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.head[..self.head_len_bytes.min(HEAD_LEN_BYTES_MAX)]
    }

    /// The head as the parser takes it.
    pub(crate) fn parsable(&self) -> Head<'_> {
        Head::new(self.bytes(), self.total_len_bytes)
    }

    /// Whether copying more would help a parser that ran out of bytes.
    pub(crate) fn has_more(&self) -> bool {
        self.head_len_bytes < self.total_len_bytes.min(HEAD_LEN_BYTES_MAX)
    }
}
