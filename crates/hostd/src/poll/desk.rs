// SPDX-License-Identifier: Apache-2.0
//! Where a batch lies while it goes through its stages.

use std::ops::Range;

use packet::VnetHeader;
use vhost_port::{Batch, Chain, VNET_HEADER_BYTES};
use vswitch::{Frame, PortId, Preview};

/// Bytes of a frame copied at first: the headers of nearly every packet.
pub(super) const HEAD_FIRST_BYTES: usize = 192;

/// Where a frame goes: a port, and what decides between its queue pairs.
pub(super) type Output = (PortId, u32);

/// What is known of a batch, by position in it.
pub(super) struct Desk {
    pub(super) frames: Box<[Frame]>,
    pub(super) previews: Box<[Preview]>,
    /// Where frames go; nowhere, if the switch has consumed them.
    pub(super) outputs: [Option<Output>; Batch::FRAMES_MAX],
    /// Frames of which another port gets a copy.
    pub(super) mirrored: Positions,
}

impl Desk {
    pub(super) fn new() -> Self {
        let frames = vec![Frame::default(); Batch::FRAMES_MAX].into();
        let previews = vec![Preview::default(); Batch::FRAMES_MAX].into();
        Self { frames, previews, outputs: [None; Batch::FRAMES_MAX], mirrored: Positions::default() }
    }

    /// Room for a frame that comes alone, while no batch is being handled.
    pub(super) fn first(&mut self) -> (&mut Frame, &mut Preview) {
        (&mut self.frames[0], &mut self.previews[0])
    }
}

/// Copies the virtio-net header and the start of the frame into private memory.
#[inline]
pub(super) fn copy_head(frame: &mut Frame, chain: &Chain<'_>, head_bytes: usize) {
    let Frame { vnet, head, head_len_bytes, total_len_bytes, services: _, mirror: _, departs: _ } = frame;
    *vnet = VnetHeader::from_number(chain.header());
    *total_len_bytes = chain.len_bytes() - VNET_HEADER_BYTES;
    *head_len_bytes = (*total_len_bytes).min(head_bytes);
    chain.copy_out(VNET_HEADER_BYTES, &mut head[..*head_len_bytes]);
}

/// The same of a frame that is in private memory with its virtio-net header.
pub(super) fn copy_whole_head(frame: &mut Frame, whole: &[u8], head_bytes: usize) {
    let (header, bytes) = whole.split_at(VNET_HEADER_BYTES);
    frame.vnet = VnetHeader::from_bytes(header.try_into().expect("a header was split off"));
    frame.total_len_bytes = bytes.len();
    frame.head_len_bytes = bytes.len().min(head_bytes);
    frame.head[..frame.head_len_bytes].copy_from_slice(&bytes[..frame.head_len_bytes]);
}

/// Puts what the switch has made of a frame's header and start back before the rest of it.
pub(super) fn put_head(whole: &mut [u8], frame: &Frame) {
    let (header, bytes) = whole.split_at_mut(VNET_HEADER_BYTES);
    header.copy_from_slice(&frame.vnet.to_bytes());
    bytes[..frame.head_len_bytes].copy_from_slice(frame.bytes());
}

/// Positions in a batch, a bit each.
#[derive(Clone, Copy, Default)]
pub(super) struct Positions(u32);

const _: () = assert!(Batch::FRAMES_MAX <= u32::BITS as usize, "a position is a bit");

impl Positions {
    /// Says whether a position is one of them.
    #[inline]
    pub(super) fn set(&mut self, position: usize, member: bool) {
        self.0 = self.0 & !(1 << position) | u32::from(member) << position;
    }

    /// Those of them that are in a range.
    #[inline]
    pub(super) fn within(self, range: Range<usize>) -> Self {
        let below = |end: usize| ((1_u64 << end) - 1) as u32;
        Self(self.0 & below(range.end) & !below(range.start))
    }

    #[inline]
    pub(super) fn first(self) -> Option<usize> {
        (self.0 != 0).then(|| self.0.trailing_zeros() as usize)
    }

    /// Takes those out that belong together.
    #[inline]
    pub(super) fn take(&mut self, belongs: impl Fn(usize) -> bool) -> List {
        let mut taken = List { positions: [0; Batch::FRAMES_MAX], count: 0 };
        let mut left = *self;
        while let Some(position) = left.first() {
            let bit = 1 << position;
            left.0 &= !bit;
            if belongs(position) {
                self.0 &= !bit;
                // Below `Batch::FRAMES_MAX`.
                taken.positions[taken.count] = position as u8;
                taken.count += 1;
            }
        }
        taken
    }
}

/// Positions in a batch, in ascending order.
pub(super) struct List {
    positions: [u8; Batch::FRAMES_MAX],
    count: usize,
}

impl List {
    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.positions[..self.count]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.as_slice().iter().map(|position| usize::from(*position))
    }
}
