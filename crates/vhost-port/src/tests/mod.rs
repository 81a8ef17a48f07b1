// SPDX-License-Identifier: Apache-2.0
//! A guest's driver and a VMM, both of a few lines, and what the port must do with them.

#[cfg(test)]
mod dirty;
pub(crate) mod driver;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod frames;
pub(crate) mod frontend;
#[cfg(test)]
mod handshake;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod packed;
pub(crate) mod packed_driver;
#[cfg(test)]
mod random;
#[cfg(test)]
mod together;

use crate::chain::Chain;
use crate::fault::SendError;
use crate::features::VNET_HEADER_BYTES;
use crate::outgoing::Outgoing;
use crate::port::Port;

impl Port {
    /// As [`Port::send_one`], for a frame of which `head` begins with the virtio-net header.
    fn send(&mut self, spread: u32, head: &[u8], rest: Option<(Chain<'_>, usize)>) -> Result<(), SendError> {
        let (header, head) = head.split_at_checked(VNET_HEADER_BYTES).ok_or(SendError::Malformed)?;
        let header = header.iter().rev().fold(0, |number, byte| number << 8 | u128::from(*byte));
        self.send_one(Outgoing { spread, header, head, rest })
    }
}
