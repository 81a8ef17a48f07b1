// SPDX-License-Identifier: Apache-2.0
//! Frames whose checksum or segmentation their receiver does not take over, finished here before they are delivered.
//!
//! It costs a copy of the frame and one of each piece, which is what the receiver chose.

use packet::finish::{Cut, complete_checksum};
use packet::{GsoKind, OffloadError, VnetHeader};
use vhost_port::{Chain, Outgoing, Port, SendError, VNET_HEADER_BYTES};
use vswitch::{FRAME_LEN_BYTES_MAX, Frame};

/// Where frames are finished.
#[derive(Default)]
pub(super) struct Workbench {
    /// The whole frame.
    frame: Vec<u8>,
    /// One piece of it.
    piece: Vec<u8>,
}

impl Workbench {
    /// Finishes a frame and delivers it, in as many pieces as it takes. The first piece that cannot be delivered
    /// ends it.
    pub(super) fn deliver(
        &mut self,
        port: &mut Port,
        spread: u32,
        frame: &Frame,
        rest: (Chain<'_>, usize),
    ) -> Result<(), SendError> {
        self.gather(frame, rest)?;
        self.finish(port, spread, &frame.vnet)
    }

    /// The same for a frame that is here as a whole.
    pub(super) fn deliver_whole(
        &mut self,
        port: &mut Port,
        spread: u32,
        vnet: &VnetHeader,
        frame: &[u8],
    ) -> Result<(), SendError> {
        self.frame.clear();
        self.frame.extend_from_slice(frame);
        self.finish(port, spread, vnet)
    }

    fn finish(&mut self, port: &mut Port, spread: u32, vnet: &VnetHeader) -> Result<(), SendError> {
        let refused = |_: OffloadError| SendError::Offload;
        let header = VnetHeader::default().to_number();
        if vnet.gso().map_err(refused)? == GsoKind::None {
            complete_checksum(vnet, &mut self.frame).map_err(refused)?;
            return port.send_one(Outgoing { spread, header, head: &self.frame, rest: None });
        }
        let cut = Cut::plan(vnet, &self.frame).map_err(refused)?;
        port.expect_to_send(spread, cut.pieces());
        for number in 0..cut.pieces() {
            cut.piece(&self.frame, number, &mut self.piece);
            port.send_one(Outgoing { spread, header, head: &self.piece, rest: None })?;
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
