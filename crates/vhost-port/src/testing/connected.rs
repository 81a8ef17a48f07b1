// SPDX-License-Identifier: Apache-2.0
//! A guest with just enough of a VMM to connect to a daemon's socket.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{BUFFER_BYTES, RING, received, send};
use crate::tests::driver::{BUFFERS, Guest, INDIRECT, MEMORY_BYTES, NEXT, WRITE, linux};
use crate::tests::frontend::Frontend;

/// Where the guest's rings begin; what its VMM says.
const FIRST_INDEX: u16 = 4711;

/// A guest as [`super::TestGuest`] whose port is another process's: with just enough of a VMM to connect to its socket.
pub struct ConnectedGuest {
    guest: Guest,
    /// The port serves the guest for as long as this is open.
    _vmm: Frontend,
    next: u16,
}

impl ConnectedGuest {
    /// Connects to a port that listens, and starts its rings.
    ///
    /// # Errors
    /// When nobody listens.
    ///
    /// # Panics
    /// When the port does not answer as the protocol says, or the system has no memory or descriptors left.
    pub fn connect(socket: &Path) -> std::io::Result<Self> {
        let vmm = Frontend::new(UnixStream::connect(socket)?);
        let mut guest = Guest::new(RING, linux());
        guest.begin_at(FIRST_INDEX);
        (0..RING).for_each(|index| guest.post(index, BUFFER_BYTES));
        vmm.handshake(&guest);
        Ok(Self { guest, _vmm: vmm, next: 0 })
    }

    /// As [`super::TestGuest::send`], and wakes whoever serves the ring.
    pub fn send(&mut self, frame: &[u8]) {
        send(&mut self.guest, &mut self.next, frame);
        self.guest.transmit.kick.signal();
    }

    /// As [`super::TestGuest::completed`].
    pub fn completed(&mut self) -> usize {
        self.guest.collect(true).len()
    }

    /// As [`super::TestGuest::received`].
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        received(&mut self.guest)
    }

    /// Writes anything into its rings, as `word` gives it, and says that there is work. Nothing else can be done with
    /// the guest afterwards.
    pub fn scribble(&mut self, mut word: impl FnMut() -> u64) {
        for ring in [&self.guest.receive, &self.guest.transmit] {
            let place = ring.addresses;
            for index in 0..RING {
                let (kind, near) = (word(), word());
                let address = match kind % 8 {
                    0 => near,
                    1 => MEMORY_BYTES.wrapping_sub(100).wrapping_add(near % 200),
                    _ => BUFFERS + near % 0x1000,
                };
                let len = (near >> 32) as u32 >> ((kind >> 8) % 32);
                let flags = (kind >> 16) as u16 & (NEXT | WRITE | INDIRECT);
                let next = (kind >> 32) as u16 % if kind & 0x80 == 0 { RING } else { u16::MAX };
                self.guest.describe(place.descriptors, index, address, len, flags, next);
                self.guest.describe(BUFFERS, index, address, len, flags, next);
            }
            let available = self.guest.window(place.available, 4 + 2 * usize::from(RING));
            for slot in 0..usize::from(RING) {
                let head = word();
                let head = if head & 0xf00 == 0 { head as u16 } else { head as u16 % RING };
                available.write_u16(4 + 2 * slot, head);
            }
            let index = word();
            // Mostly an index that a ring can hold.
            let ahead = if index & 0xf_0000 == 0 { index as u16 } else { index as u16 % (RING + 1) };
            available.write_u16(2, ring.available.wrapping_add(ahead));
            ring.kick.signal();
        }
    }
}
