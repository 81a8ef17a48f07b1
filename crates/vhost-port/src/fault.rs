// SPDX-License-Identifier: Apache-2.0
//! What a guest can get wrong.

/// A descriptor chain that cannot be used. Only its frame or buffer is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum ChainFault {
    /// A descriptor's `next` is not in its table.
    #[error("descriptor index outside its table")]
    DescriptorIndex,
    /// More descriptors than the table has, or than any frame needs.
    #[error("descriptors form a loop")]
    Loop,
    /// A buffer, or indirect table, is not within one memory region.
    #[error("descriptor address outside guest memory")]
    Address,
    /// A buffer of no bytes.
    #[error("descriptor of no bytes")]
    Empty,
    /// A frame to be sent that is longer than any frame can be.
    #[error("frame too long")]
    TooLong,
    /// A frame to be sent that cannot hold a virtio-net and an Ethernet header, or a buffer without room for them.
    #[error("frame too short")]
    TooShort,
    /// A buffer of the transmit ring that the device may write, or one of the receive ring that it may not.
    #[error("descriptor of the wrong direction")]
    Direction,
    /// An indirect table in an indirect table, or followed by another descriptor.
    #[error("misplaced indirect table")]
    Nested,
    /// An indirect table that is not a whole number of descriptors, has none, or too many.
    #[error("indirect table of impossible length")]
    IndirectLength,
    /// An indirect table that is not at a multiple of eight bytes.
    #[error("misaligned indirect table")]
    IndirectAlignment,
    /// An indirect table without the feature.
    #[error("indirect table was not negotiated")]
    IndirectRefused,
}

impl ChainFault {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 11] = [
        Self::DescriptorIndex,
        Self::Loop,
        Self::Address,
        Self::Empty,
        Self::TooLong,
        Self::TooShort,
        Self::Direction,
        Self::Nested,
        Self::IndirectLength,
        Self::IndirectAlignment,
        Self::IndirectRefused,
    ];
}

/// A ring that makes no sense. The port stops until its VMM sets the rings up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RingFault {
    /// The available index ran backwards, or further ahead than the ring has entries.
    #[error("available index {available} is not within {size} of used index {used}")]
    AvailableIndex {
        /// What the guest wrote.
        available: u16,
        /// What has been given back.
        used: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A chain of a packed ring that goes on through descriptors that are not the guest's to use.
    #[error("a chain does not end within a ring of {size}")]
    Endless {
        /// Entries of the ring.
        size: u16,
    },
    /// An available entry names no descriptor, or no buffer.
    #[error("available entry {head} is outside a table of {size}")]
    Head {
        /// What the guest wrote.
        head: u16,
        /// Entries of the table.
        size: u16,
    },
}

/// Why a frame was not delivered. It is dropped; nothing else happens unless said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SendError {
    /// No driver is ready to receive.
    #[error("device is not running")]
    Stopped,
    /// The guest has not provided enough buffers.
    #[error("guest has no receive buffers")]
    NoBuffers,
    /// The guest's driver takes one buffer per frame, and the next is too small.
    #[error("receive buffer is too small for the frame")]
    TooSmall,
    /// The frame's header asks for work (checksum, segmentation) that the guest's driver did not offer to do.
    #[error("guest's driver does not take the frame's offloads")]
    Offload,
    /// Not a frame: no room for the virtio-net header, or longer than any frame can be.
    #[error("not a frame")]
    Malformed,
    /// The next receive buffer is malformed; it was given back empty.
    #[error("malformed receive buffer")]
    Chain(#[source] ChainFault),
    /// The receive ring makes no sense; the port has stopped.
    #[error("malformed receive ring")]
    Ring(#[source] RingFault),
}
