// SPDX-License-Identifier: Apache-2.0
//! Opening a port, and the half of it that stays with whoever did.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use model::SocketMode;
use platform::EventFd;

use crate::endpoint::{self, Listener, Source};
use crate::features::Features;
use crate::link::Link;
use crate::port::Port;
use crate::session::{SessionError, Terms};

/// How to open a port.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Names the port in logs and its thread.
    pub name: String,
    /// The vhost-user socket. Relative paths are the process's.
    pub socket: PathBuf,
    /// Who listens on it.
    pub mode: SocketMode,
    /// Whether guests may leave checksums and segmentation to whoever receives, in both directions.
    pub offloads: bool,
    /// Stem of the files that say where packed rings stand, so that they can be resumed after this process died; its folder
    /// must exist. Without, they can be resumed only by their VMM's word.
    pub journal: Option<PathBuf>,
}

/// Why a port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody listens on the socket.
    #[error("socket {path:?} is in use")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is in the socket's place.
    #[error("{path:?} exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {path:?}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No thread or descriptor is to be had.
    #[error("cannot start the port's thread")]
    Thread(#[source] io::Error),
}

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

    /// Ends the connection; whoever reads from it or writes to it is woken.
    fn hang_up(&self) {
        if let Some(connection) = &*lock(&self.connection) {
            // Ended already is as good.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// Keeps a port open; dropping it ends the connection, removes the socket and waits for the thread.
#[derive(Debug)]
pub struct PortControl {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl PortControl {
    /// What the connection is up to.
    #[must_use]
    pub fn status(&self) -> PortStatus {
        lock(&self.shared.status).clone()
    }
}

impl Drop for PortControl {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake.signal();
        self.shared.hang_up();
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was reported there.
            let _ = thread.join();
        }
    }
}

/// Opens a port: its socket exists when this returns, if it is ours to make.
///
/// `waker` is signalled whenever [`Port::service`] has something to do. The poll thread has one second for that, or the
/// VMM is disconnected.
///
/// # Errors
/// When the socket or the thread cannot be made.
pub fn open(config: PortConfig, waker: Arc<EventFd>) -> Result<(Port, PortControl), OpenError> {
    let shared = Arc::new(Shared::new(config.name.clone()).map_err(OpenError::Thread)?);
    let source = match config.mode {
        SocketMode::Listen => Source::Listen(Listener::bind(&config.socket)?),
        SocketMode::Connect => Source::Connect(config.socket),
    };
    let (link, inbox) = Link::new(waker, Arc::clone(&shared));
    let port = Port::new(inbox, Arc::clone(&shared));
    let terms = Arc::new(Terms { offered: Features::offered(config.offloads), journal: config.journal });
    let link = Arc::new(link);
    let theirs = Arc::clone(&shared);
    let thread = std::thread::Builder::new()
        .name(format!("vhost-{}", config.name))
        .spawn(move || endpoint::run(&source, &terms, &link, &theirs))
        .map_err(OpenError::Thread)?;
    Ok((port, PortControl { shared, thread: Some(thread) }))
}
