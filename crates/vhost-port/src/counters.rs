// SPDX-License-Identifier: Apache-2.0
//! What a port has done, in numbers.

use crate::fault::ChainFault;

/// What a port has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames that the guest sent.
    pub received_frames: u64,
    /// Their bytes, virtio-net headers included.
    pub received_bytes: u64,
    /// Frames that the guest was given.
    pub sent_frames: u64,
    /// Their bytes, virtio-net headers included.
    pub sent_bytes: u64,
    /// Chains that were refused, in the order of [`ChainFault::ALL`].
    pub chain_faults: [u64; ChainFault::ALL.len()],
    /// Times that the port was stopped by a ring that makes no sense.
    pub ring_faults: u64,
}
