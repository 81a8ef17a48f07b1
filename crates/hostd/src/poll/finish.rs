// SPDX-License-Identifier: Apache-2.0
//! Frames whose checksum or segmentation their receiver does not take over, finished here before they are delivered.
//!
//! It costs a copy of the frame and one of each piece, which is what the receiver chose.

use packet::finish::{Cut, complete_checksum};
use packet::{GsoKind, OffloadError, VnetHeader};
use vhost_port::{Chain, Outgoing, Port, SendError, VNET_HEADER_BYTES};
use vswitch::{FRAME_LEN_BYTES_MAX, Frame};

/// Whoever takes frames that are in private memory.
pub(super) trait Receiver {
    /// Gives it a frame; `spread` decides between its queues.
    ///
    /// # Errors
    /// [`SendError::Offload`] if the header leaves to it what it does not take over.
    fn send(&mut self, spread: u32, vnet: &VnetHeader, frame: &[u8]) -> Result<(), SendError>;

    /// So many frames follow.
    fn expect_to_send(&mut self, _spread: u32, _frames: usize) {}
}

impl Receiver for Port {
    fn send(&mut self, spread: u32, vnet: &VnetHeader, frame: &[u8]) -> Result<(), SendError> {
        self.send_one(Outgoing { spread, header: vnet.to_number(), head: frame, rest: None })
    }

    fn expect_to_send(&mut self, spread: u32, frames: usize) {
        Self::expect_to_send(self, spread, frames);
    }
}

/// Where frames are finished.
#[derive(Default)]
pub(super) struct Workbench {
    /// The whole frame.
    frame: Vec<u8>,
    /// One piece of it.
    piece: Vec<u8>,
}

impl Workbench {
    /// Finishes and delivers a frame that its receiver has refused as it is; its rest is in its sender's memory.
    pub(super) fn deliver_refused(
        &mut self,
        to: &mut impl Receiver,
        spread: u32,
        frame: &Frame,
        rest: (Chain<'_>, usize),
    ) -> Result<(), SendError> {
        self.gather(frame, rest)?;
        self.finish(to, spread, &frame.vnet)
    }

    /// Delivers a frame whose rest is in its sender's memory, finished if it must be.
    pub(super) fn deliver(
        &mut self,
        to: &mut impl Receiver,
        spread: u32,
        frame: &Frame,
        rest: (Chain<'_>, usize),
    ) -> Result<(), SendError> {
        self.gather(frame, rest)?;
        match to.send(spread, &frame.vnet, &self.frame) {
            Err(SendError::Offload) => self.finish(to, spread, &frame.vnet),
            sent => sent,
        }
    }

    /// The same for a frame that is in private memory as a whole.
    pub(super) fn deliver_whole(
        &mut self,
        to: &mut impl Receiver,
        spread: u32,
        vnet: &VnetHeader,
        frame: &[u8],
    ) -> Result<(), SendError> {
        match to.send(spread, vnet, frame) {
            Err(SendError::Offload) => {
                self.frame.clear();
                self.frame.extend_from_slice(frame);
                self.finish(to, spread, vnet)
            }
            sent => sent,
        }
    }

    /// Finishes the frame that is here and delivers it, in as many pieces as it takes. The first piece that cannot be
    /// delivered ends it.
    fn finish(&mut self, to: &mut impl Receiver, spread: u32, vnet: &VnetHeader) -> Result<(), SendError> {
        let refused = |_: OffloadError| SendError::Offload;
        let finished = VnetHeader::default();
        if vnet.gso().map_err(refused)? == GsoKind::None {
            complete_checksum(vnet, &mut self.frame).map_err(refused)?;
            return to.send(spread, &finished, &self.frame);
        }
        let cut = Cut::plan(vnet, &self.frame).map_err(refused)?;
        to.expect_to_send(spread, cut.pieces());
        for number in 0..cut.pieces() {
            cut.piece(&self.frame, number, &mut self.piece);
            to.send(spread, &finished, &self.piece)?;
        }
        Ok(())
    }

    /// Copies the frame: what was decided on from private memory, the rest from the guest's.
    fn gather(&mut self, frame: &Frame, (chain, offset): (Chain<'_>, usize)) -> Result<(), SendError> {
        if frame.total_len_bytes > FRAME_LEN_BYTES_MAX {
            return Err(SendError::Malformed);
        }
        let head = frame.bytes();
        self.frame.clear();
        self.frame.extend_from_slice(head);
        self.frame.resize(head.len() + chain.len_bytes().saturating_sub(offset), 0);
        chain.copy_out(offset, &mut self.frame[head.len()..]);
        debug_assert_eq!(
            offset,
            VNET_HEADER_BYTES + frame.head_len_bytes,
            "the head ends where the rest begins"
        );
        Ok(())
    }
}
