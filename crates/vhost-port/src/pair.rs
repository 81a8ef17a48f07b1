// SPDX-License-Identifier: Apache-2.0
//! Queue pairs: a ring of frames to the guest, and one of frames from it.

/// The ring of frames to the guest, by its number in the protocol.
pub(crate) const RECEIVE: usize = 0;
/// The ring of frames from the guest.
pub(crate) const TRANSMIT: usize = 1;
/// Rings of a queue pair. In the protocol's numbers, those of one pair come after those of the one before.
pub(crate) const RINGS: usize = 2;
/// Most queue pairs of a port.
pub(crate) const PAIRS_MAX: usize = 8;

/// Where a pair's rings stood when the poll thread last let go of them, as `GET_VRING_BASE` says it.
pub(crate) type Bases = [u32; RINGS];
