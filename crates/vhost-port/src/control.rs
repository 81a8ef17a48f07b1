// SPDX-License-Identifier: Apache-2.0
//! Opening a port, and the half of it that stays with whoever did.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use model::SocketMode;
use platform::EventFd;

use crate::endpoint::{self, Listener, OpenError, Source};
use crate::features::Features;
use crate::link::Link;
use crate::port::Port;
use crate::session::Terms;
use crate::shared::{PortStatus, Shared};

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
        self.shared.status()
    }
}

impl Drop for PortControl {
    fn drop(&mut self) {
        self.shared.close();
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
