// SPDX-License-Identifier: Apache-2.0
//! Virtio features of a network card (virtio 1.2, sections 5.1.3 and 6) and its per-frame header (5.1.6).

/// Length of the header before every frame, in bytes: `virtio_net_hdr` with `num_buffers`.
pub const VNET_HEADER_BYTES: usize = 12;

/// Where `num_buffers` is in the header, as a little-endian number: its last two bytes.
pub(crate) const NUM_BUFFERS_BIT: u32 = 80;

/// `flags`: the checksum is partial and the receiver is to complete it.
const HEADER_NEEDS_CSUM: u8 = 1;
/// `gso_type`: one TCP segment over IPv4, to be cut.
const GSO_TCPV4: u8 = 1;
/// `gso_type`: one TCP segment over IPv6, to be cut.
const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP datagrams of one size, to be cut.
const GSO_UDP: u8 = 5;

/// A set of feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Guest may send frames with partial checksums.
    pub const CSUM: Self = Self(1);
    /// Guest takes frames with partial checksums.
    pub const GUEST_CSUM: Self = Self(1 << 1);
    /// Guest is told its largest packet by its VMM.
    pub const MTU: Self = Self(1 << 3);
    /// Guest takes TCP super-frames over IPv4.
    pub const GUEST_TSO4: Self = Self(1 << 7);
    /// Guest takes TCP super-frames over IPv6.
    pub const GUEST_TSO6: Self = Self(1 << 8);
    /// Guest may send TCP super-frames over IPv4.
    pub const HOST_TSO4: Self = Self(1 << 11);
    /// Guest may send TCP super-frames over IPv6.
    pub const HOST_TSO6: Self = Self(1 << 12);
    /// Guest takes UDP super-frames over IPv4.
    pub const GUEST_USO4: Self = Self(1 << 54);
    /// Guest takes UDP super-frames over IPv6.
    pub const GUEST_USO6: Self = Self(1 << 55);
    /// Guest may send UDP super-frames.
    pub const HOST_USO: Self = Self(1 << 56);
    /// A received frame may span several buffers.
    pub const MRG_RXBUF: Self = Self(1 << 15);
    /// Guest may use several queue pairs.
    pub const MQ: Self = Self(1 << 22);
    /// Pages that we write are to be marked for the VMM.
    pub const LOG_ALL: Self = Self(1 << 26);
    /// A descriptor may name a table of descriptors.
    pub const INDIRECT_DESC: Self = Self(1 << 28);
    /// Both sides say at which index they want to be notified.
    pub const EVENT_IDX: Self = Self(1 << 29);
    /// The vhost-user connection itself has features to negotiate.
    pub const PROTOCOL_FEATURES: Self = Self(1 << 30);
    /// Virtio 1.0 or later.
    pub const VERSION_1: Self = Self(1 << 32);
    /// Rings are packed.
    pub const RING_PACKED: Self = Self(1 << 34);
    /// Buffers are used in the order in which they were made available.
    pub const IN_ORDER: Self = Self(1 << 35);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What a port offers; without `offloads`, every frame is complete and no longer than the MTU.
    #[must_use]
    pub const fn offered(offloads: bool) -> Self {
        let plain = Self::MTU
            .with(Self::MRG_RXBUF)
            .with(Self::MQ)
            .with(Self::LOG_ALL)
            .with(Self::INDIRECT_DESC)
            .with(Self::EVENT_IDX)
            .with(Self::PROTOCOL_FEATURES)
            .with(Self::VERSION_1)
            .with(Self::RING_PACKED)
            .with(Self::IN_ORDER);
        if !offloads {
            return plain;
        }
        plain
            .with(Self::CSUM)
            .with(Self::GUEST_CSUM)
            .with(Self::HOST_TSO4)
            .with(Self::HOST_TSO6)
            .with(Self::GUEST_TSO4)
            .with(Self::GUEST_TSO6)
            .with(Self::HOST_USO)
            .with(Self::GUEST_USO4)
            .with(Self::GUEST_USO6)
    }

    /// Whether a guest with these features takes a frame with this virtio-net header, given as a little-endian number.
    #[must_use]
    #[inline]
    pub fn take(self, header: u128) -> bool {
        let [flags, kind, ..] = header.to_le_bytes();
        if flags == 0 && kind == 0 {
            return true;
        }
        let checksum = flags & HEADER_NEEDS_CSUM == 0 || self.has(Self::GUEST_CSUM);
        let segment = match kind {
            0 => true,
            GSO_TCPV4 => self.has(Self::GUEST_TSO4),
            GSO_TCPV6 => self.has(Self::GUEST_TSO6),
            // The header does not say over what.
            GSO_UDP => self.has(Self::GUEST_USO4.with(Self::GUEST_USO6)),
            _ => false,
        };
        checksum && segment
    }
}
