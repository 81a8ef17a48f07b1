// SPDX-License-Identifier: Apache-2.0
//! A guest without a VMM, for tests of whoever polls ports.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::control::Shared;
use crate::link::{Command, Envelope};
use crate::port::Port;
use crate::tests::driver::{Guest, linux};

/// Entries of both rings.
const RING: u16 = 64;
/// Length of a receive buffer, in bytes.
const BUFFER_BYTES: u32 = 2048;

/// A guest with 8 MiB of memory and one pair of split rings, whose driver is a few lines.
pub struct TestGuest {
    guest: Guest,
    commands: SyncSender<Envelope>,
    /// Descriptor of the next frame that it sends.
    next: u16,
}

impl TestGuest {
    /// A guest whose receive ring is full of buffers, and its port, which starts with the first [`Port::service`].
    ///
    /// # Panics
    /// When the system has no memory or descriptors left.
    #[must_use]
    pub fn new() -> (Self, Port) {
        let mut guest = Guest::new(RING, linux());
        (0..RING).for_each(|index| guest.post(index, BUFFER_BYTES));
        let (commands, inbox) = sync_channel(1);
        let port = Port::new(inbox, Arc::new(Shared::new("test".into()).expect("a descriptor is left")));
        let guest = Self { guest, commands, next: 0 };
        guest.start();
        (guest, port)
    }

    /// Has the port take up the rings, where they stand.
    fn start(&self) {
        let (done, _) = sync_channel(1);
        let envelope = Envelope { command: Command::Start(Box::new(self.guest.start())), done };
        assert!(self.commands.try_send(envelope).is_ok(), "the port takes up one command at a time");
    }

    /// Sends a frame of at most 4 KiB, virtio-net header first. At most as many as the ring has entries may be on their way.
    pub fn send(&mut self, frame: &[u8]) {
        self.guest.transmit(self.next, &[frame]);
        self.next = (self.next + 1) % RING;
    }

    /// How many of its frames were taken and given back since the last call.
    pub fn completed(&mut self) -> usize {
        self.guest.collect(true).len()
    }

    /// The frames that arrived since the last call, virtio-net headers first; their buffers are posted again.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        let seen = self.guest.receive.seen;
        let frames = self.guest.received();
        // Chains come back in order, and each buffer is posted under the number that it had.
        let used = self.guest.receive.seen.wrapping_sub(seen);
        (0..used).for_each(|step| self.guest.post(seen.wrapping_add(step) % RING, BUFFER_BYTES));
        frames
    }
}
