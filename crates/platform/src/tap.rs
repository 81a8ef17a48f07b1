// SPDX-License-Identifier: Apache-2.0
//! A TAP interface: the host's network stack as the far end of a cable.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl};

/// Length of the virtio-net header before each frame, in bytes: that of virtio 1.0, with the number of buffers.
const VNET_LEN_BYTES: i32 = 12;
/// Longest name of an interface, in bytes (`IFNAMSIZ` less the terminator).
const NAME_LEN_BYTES_MAX: usize = 15;

// linux/if_tun.h, linux/sockios.h.
const TUNSETIFF: Opcode = 0x4004_54ca;
const TUNSETOFFLOAD: Opcode = 0x4004_54d0;
const TUNSETVNETHDRSZ: Opcode = 0x4004_54d8;
const SIOCGIFHWADDR: Opcode = 0x8927;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// Checksums and segmentation of TCP over both families are left to whoever takes a frame.
const OFFLOADS: usize = 0x01 | 0x02 | 0x04;

/// `struct ifreq`.
#[repr(C)]
struct Request {
    name: [u8; NAME_LEN_BYTES_MAX + 1],
    value: [u8; 24],
}

/// One end of a TAP interface; the other is an interface of the host. Reads and writes do not block.
pub struct Tap {
    fd: OwnedFd,
    mac: [u8; 6],
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tap").field(&self.fd).finish()
    }
}

impl Tap {
    /// Takes the TAP interface of that name. It is made if there is none, for which one must be privileged; one
    /// that is there must allow the caller's user.
    ///
    /// # Errors
    /// When the name is too long, the interface is another process's or of another kind, or the host has no TAP.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut request = Request { name: [0; NAME_LEN_BYTES_MAX + 1], value: [0; 24] };
        if name.is_empty() || name.len() > NAME_LEN_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an interface's name has 1 to 15 bytes"));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        request.value[..2].copy_from_slice(&flags.to_ne_bytes());
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        // SAFETY: the command takes one `struct ifreq`, which `Request` is, to read and write.
        let attach = unsafe { Updater::<TUNSETIFF, Request>::new(&mut request) };
        // SAFETY: the argument fits the command, as said where it was made.
        unsafe { ioctl(&fd, attach) }?;
        // SAFETY: the command takes one `int` to read.
        let set_header = unsafe { Setter::<TUNSETVNETHDRSZ, i32>::new(VNET_LEN_BYTES) };
        // SAFETY: the argument fits the command, as said where it was made.
        unsafe { ioctl(&fd, set_header) }?;
        // SAFETY: the command takes a number and no pointer.
        let set_offloads = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(OFFLOADS) };
        // SAFETY: the argument fits the command, as said where it was made.
        unsafe { ioctl(&fd, set_offloads) }?;
        // SAFETY: the command takes one `struct ifreq` to write.
        let ask_mac = unsafe { Updater::<SIOCGIFHWADDR, Request>::new(&mut request) };
        // SAFETY: the argument fits the command, as said where it was made.
        unsafe { ioctl(&fd, ask_mac) }?;
        let mac = request.value[2..8].try_into().expect("six bytes were sliced");
        Ok(Self { fd, mac })
    }

    /// The Ethernet address of the host's end.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Takes the next frame that the host has sent, with its virtio-net header, into `buffer`. `None` when there
    /// is none, or it does not fit.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        rustix::io::read(&self.fd, buffer).ok().filter(|len| *len >= VNET_LEN_BYTES as usize)
    }

    /// Gives the host a frame after its virtio-net header.
    ///
    /// # Errors
    /// When the interface is down, or the header asks for something impossible.
    pub fn send(&self, header: &[u8], frame: &[u8]) -> io::Result<()> {
        rustix::io::writev(&self.fd, &[IoSlice::new(header), IoSlice::new(frame)])?;
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_names_are_refused() {
        for name in ["", "sixteen-letters-"] {
            assert_eq!(Tap::open(name).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn an_interface_of_another_kind_is_refused() {
        assert!(Tap::open("lo").is_err());
    }
}
