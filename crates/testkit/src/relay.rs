// SPDX-License-Identifier: Apache-2.0
//! Stands between a VMM and a vhost-user backend: passes on whatever both say, and keeps some of the backend's features
//! from the VMM.
//!
//! QEMU's own network card knows which of a backend's features it can have, its generic card passes all of them on to
//! the guest, whose driver refuses a card that contradicts itself. One connection at a time; when either end hangs up,
//! the other is hung up on.

use std::fs;
use std::io::{Error, IoSlice, IoSliceMut, Read, Result};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Every message begins with what it is, its flags and the size of the rest, each a `u32`.
const HEADER_BYTES: usize = 12;
/// No message of this protocol is longer.
const REST_BYTES_MAX: usize = 4096;
/// Most descriptors that come with one message.
const DESCRIPTORS_MAX: usize = 8;
/// The message `VHOST_USER_GET_FEATURES`, and the flag of an answer.
const GET_FEATURES: u32 = 1;
const IS_ANSWER: u32 = 4;

/// A socket that leads to a backend's. When it is dropped, whoever is connected stays so, and nobody else can connect.
#[derive(Debug)]
pub struct Relay {
    path: PathBuf,
    is_over: Arc<AtomicBool>,
}

impl Relay {
    /// Listens at `path` for VMMs that are to reach the backend that listens at `backend`, without its features `hidden`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(path: &Path, backend: &Path, hidden: u64) -> Result<Self> {
        let listener = UnixListener::bind(path)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (backend, ends) = (backend.to_owned(), Arc::clone(&is_over));
        thread::Builder::new().name("relay".into()).spawn(move || {
            for vmm in listener.incoming().flatten() {
                if ends.load(Ordering::Acquire) {
                    break;
                }
                // A VMM whose backend is not there is hung up on.
                if let Ok(backend) = UnixStream::connect(&backend) {
                    relay(&vmm, &backend, hidden);
                }
            }
        })?;
        Ok(Self { path: path.to_owned(), is_over })
    }

    /// Where VMMs connect.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        // Has the thread look; if there is none any more, that is the aim.
        let _ = (UnixStream::connect(&self.path), fs::remove_file(&self.path));
    }
}

/// Passes on messages both ways until either end hangs up.
fn relay(vmm: &UnixStream, backend: &UnixStream, hidden: u64) {
    thread::scope(|scope| {
        scope.spawn(|| pass_on(vmm, backend, 0));
        pass_on(backend, vmm, hidden);
    });
}

fn pass_on(from: &UnixStream, to: &UnixStream, hidden: u64) {
    while let Ok(mut message) = Message::receive(from) {
        message.hide(hidden);
        if message.send(to).is_err() {
            break;
        }
    }
    // Either may be gone already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// One message with the descriptors that came with it.
struct Message {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Message {
    fn receive(mut from: &UnixStream) -> Result<Self> {
        let mut bytes = vec![0; HEADER_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::WAITALL | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
        let descriptors = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = descriptors.flatten().collect();
        let rest = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        if received.bytes < HEADER_BYTES || rest > REST_BYTES_MAX {
            return Err(Error::other("no message"));
        }
        bytes.resize(HEADER_BYTES + rest, 0);
        from.read_exact(&mut bytes[HEADER_BYTES..])?;
        Ok(Self { bytes, descriptors })
    }

    /// Takes features away, if these are the backend's.
    fn hide(&mut self, hidden: u64) {
        let Some((header, rest)) = self.bytes.split_first_chunk_mut::<HEADER_BYTES>() else { return };
        let [what, flags] = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte])));
        if let Some(features) =
            rest.first_chunk_mut().filter(|_| what == GET_FEATURES && flags & IS_ANSWER != 0)
        {
            *features = (u64::from_le_bytes(*features) & !hidden).to_le_bytes();
        }
    }

    fn send(&self, to: &UnixStream) -> Result<()> {
        let descriptors: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let sent = sendmsg(to, &[IoSlice::new(&self.bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        if sent == self.bytes.len() { Ok(()) } else { Err(Error::other("a message was cut")) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use anyhow::Context;

    use super::*;
    use crate::scratch::Scratch;

    /// A message of the kind `what` with these flags.
    fn message(what: u32, flags: u32, value: u64) -> Vec<u8> {
        [&what.to_le_bytes()[..], &flags.to_le_bytes(), &8_u32.to_le_bytes(), &value.to_le_bytes()].concat()
    }

    #[test]
    fn features_of_the_backend_are_hidden_and_everything_else_is_passed_on() -> anyhow::Result<()> {
        let scratch = Scratch::new("relay")?;
        let behind = UnixListener::bind(scratch.join("backend"))?;
        let relay = Relay::start(&scratch.join("relay"), &scratch.join("backend"), 0b110)?;
        let mut vmm = UnixStream::connect(relay.path())?;
        let (mut backend, _) = behind.accept()?;
        for (bytes, expected) in [
            (message(GET_FEATURES, IS_ANSWER, 0b1111), message(GET_FEATURES, IS_ANSWER, 0b1001)),
            (message(GET_FEATURES + 1, IS_ANSWER, 0b1111), message(GET_FEATURES + 1, IS_ANSWER, 0b1111)),
        ] {
            backend.write_all(&bytes)?;
            assert_eq!(Message::receive(&vmm)?.bytes, expected);
        }

        let said = message(5, 1, 0b1111);
        let descriptors = vec![File::open("/dev/null")?.into(), File::open("/dev/zero")?.into()];
        Message { bytes: said.clone(), descriptors }.send(&vmm)?;
        let passed_on = Message::receive(&backend)?;
        assert_eq!((passed_on.bytes, passed_on.descriptors.len()), (said, 2));
        let zeroes = passed_on.descriptors.into_iter().nth(1).context("there are two")?;
        assert_eq!(File::from(zeroes).read(&mut [1])?, 1);

        backend.shutdown(Shutdown::Both)?;
        assert_eq!(vmm.read(&mut [0])?, 0, "the other end is hung up on");
        Ok(())
    }
}
