// SPDX-License-Identifier: Apache-2.0
//! Messages of one connection: read, handed to the session, answered.
//!
//! All but one go through the `vhost` crate. It refuses `SET_VRING_ENABLE` before `SET_FEATURES`, but QEMU sends it so for
//! network cards (`vhost_net_start` enables the rings first) and never again; so that one is read here.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::{
    BackendReqHandler, Error as ProtocolError, Result as ProtocolResult, VhostUserBackendReqHandlerMut,
};

use crate::failure::SessionError;
use crate::session::Session;

/// Message header: request, flags, size of the body; 32 bits each, in the host's order.
const HEADER_BYTES: usize = 12;
/// Body of `SET_VRING_ENABLE`: ring and state, 32 bits each.
const ENABLE_BODY_BYTES: usize = 8;
const SET_VRING_ENABLE: u32 = 18;
/// Flags: protocol version 1, and nothing but perhaps the wish for an answer.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

pub(crate) struct Conversation {
    stream: UnixStream,
    session: Arc<Mutex<Session>>,
    handler: BackendReqHandler<Mutex<Session>>,
}

impl Conversation {
    pub(crate) fn new(stream: UnixStream, session: Session) -> io::Result<Self> {
        let session = Arc::new(Mutex::new(session));
        let handler = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&session));
        Ok(Self { stream, session, handler })
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads and answers one message; waits for the rest of one that came in part. `false` when the VMM has left.
    pub(crate) fn answer(&mut self) -> Result<bool, SessionError> {
        match self.answer_one() {
            Ok(()) => Ok(true),
            Err(ProtocolError::Disconnected) => Ok(false),
            Err(error) => Err(self.session().take_refusal().unwrap_or(SessionError::Protocol(error))),
        }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        // Nobody else has it; the `vhost` crate wants it shared all the same.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer_one(&mut self) -> ProtocolResult<()> {
        match self.peek().map_err(ProtocolError::SocketError)? {
            Some([SET_VRING_ENABLE, flags, size]) if size as usize == ENABLE_BODY_BYTES => {
                self.set_enable(flags)
            }
            _ => self.handler.handle_request(),
        }
    }

    /// The next message's header, if all of it is there.
    fn peek(&self) -> io::Result<Option<[u32; 3]>> {
        let mut header = [0; HEADER_BYTES];
        match recv(&self.stream, &mut header, RecvFlags::PEEK) {
            Ok((HEADER_BYTES, _)) => {}
            Ok(_) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        let word = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        Ok(Some([word(0), word(4), word(8)]))
    }

    fn set_enable(&mut self, flags: u32) -> ProtocolResult<()> {
        if flags & !NEED_REPLY != VERSION {
            return Err(ProtocolError::InvalidMessage);
        }
        let mut message = [0; HEADER_BYTES + ENABLE_BODY_BYTES];
        self.stream.read_exact(&mut message).map_err(ProtocolError::SocketError)?;
        let word = |at: usize| message[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let ring = word(HEADER_BYTES);
        let enable = match word(HEADER_BYTES + 4) {
            0 => false,
            1 => true,
            _ => return Err(ProtocolError::InvalidParam),
        };
        let mut session = self.session();
        let done = session.set_vring_enable(ring, enable);
        if flags & NEED_REPLY != 0 && session.replies() {
            let words = [SET_VRING_ENABLE, VERSION | REPLY, 8, u32::from(done.is_err()), 0];
            let reply: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            (&self.stream).write_all(&reply).map_err(ProtocolError::SocketError)?;
        }
        done
    }
}
