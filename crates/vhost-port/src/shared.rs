// SPDX-License-Identifier: Apache-2.0
//! What a port's two threads and its owner share.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use platform::EventFd;

use crate::failure::SessionError;
use crate::features::Features;

/// What a port's connection is up to.
#[derive(Clone, Debug, Default)]
pub struct PortStatus {
    /// A VMM is connected.
    pub connected: bool,
    /// Frames flow.
    pub running: bool,
    /// What VMM and driver agreed to when frames last flowed.
    pub features: Features,
    /// The guest's memory, in bytes; zero when no VMM is connected.
    pub memory_bytes: u64,
    /// Nobody can shrink the memory under us. If not, whoever owns its file could kill this process.
    pub memory_sealed: bool,
    /// Connections so far.
    pub sessions: u64,
    /// What went wrong last, if anything did.
    pub last_error: Option<Arc<SessionError>>,
}

/// What the port's two threads and its owner share.
#[derive(Debug)]
pub(crate) struct Shared {
    name: String,
    closing: AtomicBool,
    wake: EventFd,
    status: Mutex<PortStatus>,
    /// A second handle of the connection, to end it from outside.
    connection: Mutex<Option<UnixStream>>,
}

/// A panic elsewhere does not make these values wrong.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(name: String) -> io::Result<Self> {
        Ok(Self {
            name,
            closing: AtomicBool::new(false),
            wake: EventFd::new()?,
            status: Mutex::default(),
            connection: Mutex::default(),
        })
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Readable from when the port is closed.
    pub(crate) fn closing(&self) -> &EventFd {
        &self.wake
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut PortStatus)) {
        change(&mut lock(&self.status));
    }

    pub(crate) fn note_error(&self, error: SessionError) {
        let mut status = lock(&self.status);
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        // Waiting for a VMM that does not listen yet is what connecting ports do.
        if matches!(error, SessionError::Connect(_)) {
            tracing::debug!(port = %self.name, %error, cause, "vhost-user");
        } else {
            tracing::warn!(port = %self.name, %error, cause, "vhost-user");
        }
        status.last_error = Some(Arc::new(error));
    }

    pub(crate) fn connected(&self, stream: &UnixStream) -> io::Result<()> {
        *lock(&self.connection) = Some(stream.try_clone()?);
        if self.is_closing() {
            self.hang_up();
        }
        tracing::info!(port = %self.name, "VMM connected");
        self.update(|status| {
            status.connected = true;
            status.sessions += 1;
            // Now it could.
            status.last_error.take_if(|error| matches!(**error, SessionError::Connect(_)));
        });
        Ok(())
    }

    pub(crate) fn disconnected(&self) {
        *lock(&self.connection) = None;
        tracing::info!(port = %self.name, "VMM disconnected");
        self.update(|status| {
            status.connected = false;
            status.running = false;
            status.memory_bytes = 0;
            status.memory_sealed = false;
        });
    }

    pub(crate) fn status(&self) -> PortStatus {
        lock(&self.status).clone()
    }

    /// The port is to be closed; whoever waits for its connection is woken.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake.signal();
        self.hang_up();
    }

    /// Ends the connection; whoever reads from it or writes to it is woken.
    fn hang_up(&self) {
        if let Some(connection) = &*lock(&self.connection) {
            // Ended already is as good.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}
