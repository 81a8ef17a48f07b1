// SPDX-License-Identifier: Apache-2.0
//! A port that leads out of the mesh: a TAP interface of the host in the loop.
//!
//! Frames of the host are read into private memory as a whole and go the way of any other frame. Frames for
//! the host are put together from a guest's memory and written, UDP super-frames in pieces. Neither ever blocks: what the
//! host cannot take at once is lost and counted, and what it sends faster than it is read is lost in the host's queue.

use model::Moment;
use packet::{GsoKind, VnetHeader};
use platform::Tap;
use vhost_port::{SendError, VNET_HEADER_BYTES};
use vswitch::{FRAME_LEN_BYTES_MAX, PortId};

use super::finish::Receiver;
use super::parked::Parking;
use crate::introspect::{Outcome, Reply};

/// One uplink in the loop.
#[derive(Debug)]
pub struct Uplink {
    pub(super) id: PortId,
    pub(super) tap: Tap,
    /// What was read last, virtio-net header first.
    pub(super) incoming: Box<[u8]>,
    pub(super) incoming_len_bytes: usize,
    pub(super) held: Option<Held>,
    /// Frames that exceed a limit.
    pub(super) parking: Parking,
    pub(super) tickets: u64,
}

/// What was read last waits until the process that it is for is known.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) deadline: Moment,
    pub(super) outcome: Option<Outcome>,
}

impl Uplink {
    pub fn new(id: PortId, tap: Tap) -> Self {
        let room = VNET_HEADER_BYTES + FRAME_LEN_BYTES_MAX;
        Self {
            id,
            tap,
            incoming: vec![0; room].into(),
            incoming_len_bytes: 0,
            held: None,
            parking: Parking::default(),
            tickets: 0,
        }
    }

    pub(super) fn id(&self) -> PortId {
        self.id
    }

    pub(super) fn answered(&mut self, reply: Reply) {
        if let Some(held) = self.held.as_mut().filter(|_| reply.ticket == self.tickets) {
            held.outcome = Some(reply.outcome);
        }
    }

    /// When the wait for an answer ends.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let answer = self.held.as_ref().map(|held| held.deadline);
        answer.into_iter().chain(self.parking.deadline()).min()
    }
}

/// Whether the host takes over what a header leaves to it: not super-frames of UDP, which Linux before 6.2 refuses at a TAP
/// interface.
fn takes_over(vnet: &VnetHeader) -> bool {
    vnet.gso() != Ok(GsoKind::Udp)
}

impl Receiver for Uplink {
    fn send(&mut self, _spread: u32, vnet: &VnetHeader, frame: &[u8]) -> Result<(), SendError> {
        if !takes_over(vnet) {
            return Err(SendError::Offload);
        }
        self.tap.send(&vnet.to_bytes(), frame).map_err(|_| SendError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use model::MacAddr;
    use packet::Addresses;
    use packet::emit::{self, Link};

    use super::*;
    use crate::poll::finish::Workbench;

    /// The host in place of its interface.
    struct Host {
        whole: VnetHeader,
        given: Vec<usize>,
    }

    impl Receiver for Host {
        fn send(&mut self, _spread: u32, vnet: &VnetHeader, frame: &[u8]) -> Result<(), SendError> {
            if !takes_over(vnet) {
                return Err(SendError::Offload);
            }
            // What is whole keeps its header; pieces ask for nothing.
            let expected = if takes_over(&self.whole) { self.whole } else { VnetHeader::default() };
            assert_eq!(*vnet, expected);
            self.given.push(frame.len());
            Ok(())
        }
    }

    /// Lengths of the frames that the host is given for one with `payload` bytes of UDP.
    fn given((gso_type, gso_size): (u8, u16), payload: usize) -> Result<Vec<usize>, SendError> {
        let link = Link { source: MacAddr([2; 6]), destination: MacAddr([4; 6]) };
        let [source, destination] = [1, 2].map(|host| Ipv4Addr::new(10, 0, 0, host));
        let payload = vec![7; payload];
        let frame = emit::udp(link, Addresses::V4 { source, destination }, (5000, 443), &payload);
        let vnet = VnetHeader { flags: 1, gso_type, gso_size, ..VnetHeader::default() };
        let mut host = Host { whole: vnet, given: Vec::new() };
        Workbench::default().deliver_whole(&mut host, 0, &vnet, &frame)?;
        Ok(host.given)
    }

    #[test]
    fn the_host_gets_udp_super_frames_in_pieces_and_everything_else_whole() {
        const HEADERS: usize = 14 + 20 + 8;
        for (gso_type, payload, expected) in [
            (0, 700, vec![700]),
            (1, 2700, vec![2700]),
            (5, 2700, vec![1200, 1200, 300]),
            (5, 1200, vec![1200]),
        ] {
            let expected: Vec<usize> = expected.into_iter().map(|payload| HEADERS + payload).collect();
            assert_eq!(given((gso_type, 1200), payload), Ok(expected), "type {gso_type}, {payload} bytes");
        }
        assert_eq!(given((5, 1), 257), Err(SendError::Offload), "more pieces than a frame may have");
    }
}
