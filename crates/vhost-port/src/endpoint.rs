// SPDX-License-Identifier: Apache-2.0
//! The socket of a port: becoming connected, staying so, and becoming connected again.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use platform::{EventFd, Poller, Trigger};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::conversation::Conversation;
use crate::failure::SessionError;
use crate::link::{Command, Link};
use crate::session::{Session, Terms};
use crate::shared::Shared;

/// Shortest and longest pause before trying again: after a failed connect, or accept, or a session of ours that ended early.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A session that lasted this long was a good one: no pause.
const SESSION_GOOD: Duration = Duration::from_millis(100);

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

/// Where connections come from.
#[derive(Debug)]
pub(crate) enum Source {
    Listen(Listener),
    Connect(PathBuf),
}

/// A listening socket that leaves no file behind.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listener {
    /// Listens at `path`; a socket there that nobody listens on any more is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, OpenError> {
        let failed = |source: io::Error| OpenError::Bind { path: path.into(), source };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(OpenError::NotASocket { path: path.into() });
            }
            Ok(_) => match connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                _ => return Err(OpenError::InUse { path: path.into() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let socket = UnixListener::bind(path).map_err(failed)?;
        let listener = Self { socket, path: path.into() };
        listener.socket.set_nonblocking(true).map_err(failed)?;
        // The VMM may run as another user of our group.
        let permissions = std::fs::Permissions::from_mode(0o660);
        std::fs::set_permissions(path, permissions).map_err(failed)?;
        Ok(listener)
    }
}

/// Connects without ever waiting: a listener whose queue is full is an error, too.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    Closing,
    Listener,
    Connection,
    Nothing,
}

/// Waits on the few descriptors of this thread.
struct Waiter {
    poller: Poller,
}

impl Waiter {
    const CLOSING: u64 = 0;
    const LISTENER: u64 = 1;
    const CONNECTION: u64 = 2;

    fn new(closing: &EventFd, source: &Source) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(closing, Self::CLOSING, Trigger::Level)?;
        if let Source::Listen(listener) = source {
            poller.add(&listener.socket, Self::LISTENER, Trigger::Level)?;
        }
        Ok(Self { poller })
    }

    /// Waits; closing comes before anything else, a connection's messages before further connections.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Wake> {
        let mut wake = Wake::Nothing;
        for token in self.poller.wait(timeout)? {
            wake = match (token, wake) {
                (Self::CLOSING, _) | (_, Wake::Closing) => Wake::Closing,
                (Self::CONNECTION, _) | (_, Wake::Connection) => Wake::Connection,
                _ => Wake::Listener,
            };
        }
        Ok(wake)
    }
}

/// The thread of a port, until it is closed.
pub(crate) fn run(source: &Source, terms: &Arc<Terms>, link: &Arc<Link>, shared: &Arc<Shared>) {
    let mut waiter = match Waiter::new(shared.closing(), source) {
        Ok(waiter) => waiter,
        Err(error) => return shared.note_error(SessionError::Accept(error)),
    };
    let mut pause = PAUSE_MIN;
    while !shared.is_closing() {
        match next_connection(source, &mut waiter) {
            Ok(Some(stream)) => {
                let began = Instant::now();
                serve(stream, source, &mut waiter, terms, link, shared);
                // Whoever connects to us sets the pace.
                if matches!(source, Source::Listen(_)) || began.elapsed() >= SESSION_GOOD {
                    pause = PAUSE_MIN;
                    continue;
                }
            }
            Ok(None) => continue,
            Err(error) => shared.note_error(error),
        }
        rest(&mut waiter, source, pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Pauses, deaf to everything but closing.
fn rest(waiter: &mut Waiter, source: &Source, pause: Duration) {
    // A level-triggered listener would end the pause at once.
    if let Source::Listen(listener) = source {
        let _ = waiter.poller.remove(&listener.socket);
    }
    let _ = waiter.wait(Some(pause));
    if let Source::Listen(listener) = source {
        let _ = waiter.poller.add(&listener.socket, Waiter::LISTENER, Trigger::Level);
    }
}

/// The next connection; `None` if there was none after all.
fn next_connection(source: &Source, waiter: &mut Waiter) -> Result<Option<UnixStream>, SessionError> {
    match source {
        Source::Connect(path) => connect(path).map(Some).map_err(SessionError::Connect),
        Source::Listen(listener) => {
            if waiter.wait(None).map_err(SessionError::Accept)? != Wake::Listener {
                return Ok(None);
            }
            accept(listener).map_err(SessionError::Accept)
        }
    }
}

fn accept(listener: &Listener) -> io::Result<Option<UnixStream>> {
    match listener.socket.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(false)?;
            Ok(Some(stream))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::CONNABORTED.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Serves one VMM until it leaves or errs, or the port is closed.
fn serve(
    stream: UnixStream,
    source: &Source,
    waiter: &mut Waiter,
    terms: &Arc<Terms>,
    link: &Arc<Link>,
    shared: &Arc<Shared>,
) {
    if let Err(error) = shared.connected(&stream) {
        return shared.note_error(SessionError::Accept(error));
    }
    let session = Session::new(Arc::clone(link), Arc::clone(shared), Arc::clone(terms));
    let ended = Conversation::new(stream, session)
        .and_then(|conversation| {
            waiter.poller.add(conversation.stream(), Waiter::CONNECTION, Trigger::Level)?;
            Ok(conversation)
        })
        .map_err(SessionError::Accept)
        .and_then(|mut conversation| {
            let ended = converse(&mut conversation, source, waiter);
            let _ = waiter.poller.remove(conversation.stream());
            ended
        });
    let failed = ended.is_err();
    if let Err(error) = ended {
        shared.note_error(error);
    }
    // `shared` has a handle of the connection: it closes only after this, and whoever sees it closed finds its memory
    // unused.
    if let Err(stalled) = link.send(Command::Disconnect)
        && !failed
        && !shared.is_closing()
    {
        shared.note_error(stalled.into());
    }
    shared.disconnected();
}

/// Answers messages until the VMM leaves or errs, or the port is closed.
fn converse(
    conversation: &mut Conversation,
    source: &Source,
    waiter: &mut Waiter,
) -> Result<(), SessionError> {
    loop {
        match waiter.wait(None).map_err(SessionError::Accept)? {
            Wake::Closing => return Ok(()),
            Wake::Connection => {
                if !conversation.answer()? {
                    return Ok(());
                }
            }
            Wake::Listener => refuse_another(source),
            Wake::Nothing => {}
        }
    }
}

/// A port serves one VMM; another is better off knowing at once.
fn refuse_another(source: &Source) {
    if let Source::Listen(listener) = source
        && let Ok(Some(_closed_at_once)) = accept(listener)
    {
        tracing::warn!(socket = ?listener.path, "refused a second connection");
    }
}
