// SPDX-License-Identifier: Apache-2.0
//! Guests without a VMM, for tests of whoever polls ports, and of daemons.

mod connected;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::link::{Command, Envelope};
use crate::memory::GuestMemory;
use crate::port::Port;
use crate::shared::Shared;
use crate::tests::driver::{Guest, linux};
pub use connected::ConnectedGuest;

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
        guest.start(|_| {});
        (guest, port)
    }

    /// A guest as of [`TestGuest::new`] of whose memory each page that the guest has not touched takes so long to come when
    /// the port first touches it, as with a guest that is being moved (`userfaultfd(2)`). Each receive buffer is a page.
    ///
    /// # Errors
    /// When the system does not let this process handle its own page faults.
    ///
    /// # Panics
    /// As there.
    pub fn with_slow_memory(delay: Duration) -> std::io::Result<(Self, Port)> {
        // SAFETY: the descriptor is used for the memory of `slow_down` only, whose pages it fills with zeros.
        let faults = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | USER_MODE_ONLY) }?;
        let mut guest = Guest::new(RING, linux());
        (0..RING).for_each(|index| guest.post(index, BUFFER_BYTES));
        let (commands, inbox) = sync_channel(1);
        let port = Port::new(inbox, Arc::new(Shared::new("test".into())?));
        let guest = Self { guest, commands, next: 0 };
        guest.start(|memory| slow_down(faults, memory, delay));
        Ok((guest, port))
    }

    /// Has the port take up the rings, where they stand; `prepare` gets what it maps.
    fn start(&self, prepare: impl FnOnce(&GuestMemory)) {
        let start = self.guest.start();
        prepare(&start.memory);
        let (done, _) = sync_channel(1);
        let envelope = Envelope { command: Command::Start(Box::new(start)), done };
        assert!(self.commands.try_send(envelope).is_ok(), "the port takes up one command at a time");
    }

    /// Sends a frame of at most 4 KiB, virtio-net header first. At most as many as the ring has entries may be on their way.
    pub fn send(&mut self, frame: &[u8]) {
        send(&mut self.guest, &mut self.next, frame);
    }

    /// How many of its frames were taken and given back since the last call.
    pub fn completed(&mut self) -> usize {
        self.guest.collect(true).len()
    }

    /// The frames that arrived since the last call, virtio-net headers first; their buffers are posted again.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        received(&mut self.guest)
    }
}

fn send(guest: &mut Guest, next: &mut u16, frame: &[u8]) {
    guest.transmit(*next, &[frame]);
    *next = (*next + 1) % RING;
}

fn received(guest: &mut Guest) -> Vec<Vec<u8>> {
    let seen = guest.receive.seen;
    let frames = guest.received();
    // Chains come back in order, and each buffer is posted under the number that it had.
    let used = guest.receive.seen.wrapping_sub(seen);
    (0..used).for_each(|step| guest.post(seen.wrapping_add(step) % RING, BUFFER_BYTES));
    frames
}

// linux/userfaultfd.h.
const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);
const UFFDIO_API: Opcode = 0xc018_aa3f;
const UFFDIO_REGISTER: Opcode = 0xc020_aa00;
const UFFDIO_ZEROPAGE: Opcode = 0xc020_aa04;
const API: u64 = 0xaa;
const MISSING: u64 = 1;
const PAGE_BYTES: u64 = 4096;

/// Lets a thread fill missing pages of a mapping, each after a while.
fn slow_down(faults: OwnedFd, memory: &GuestMemory, delay: Duration) {
    tell::<UFFDIO_API, 3>(&faults, [API, 0, 0]);
    let window = memory.window(0, memory.size_bytes() as usize).expect("all of the memory is there");
    tell::<UFFDIO_REGISTER, 4>(&faults, [window.address() as u64, window.len() as u64, MISSING, 0]);
    std::thread::spawn(move || {
        let mut message = [0; 32];
        while rustix::io::read(&faults, &mut message) == Ok(message.len()) {
            std::thread::sleep(delay);
            let address = u64::from_ne_bytes(message[16..24].try_into().expect("eight bytes"));
            tell::<UFFDIO_ZEROPAGE, 4>(&faults, [address & !(PAGE_BYTES - 1), PAGE_BYTES, 0, 0]);
        }
    });
}

fn tell<const OPCODE: Opcode, const WORDS: usize>(faults: &OwnedFd, mut words: [u64; WORDS]) {
    // SAFETY: each of the commands above takes as many words as it is given, to read and write.
    let told = unsafe { Updater::<OPCODE, [u64; WORDS]>::new(&mut words) };
    // SAFETY: the argument fits the command; pages are filled in a mapping of our own, where nobody has a reference.
    let told = unsafe { ioctl(faults, told) };
    // A page may have come by another way, or the mapping may be gone.
    debug_assert!(told.is_ok() || OPCODE == UFFDIO_ZEROPAGE, "{told:?}");
}
