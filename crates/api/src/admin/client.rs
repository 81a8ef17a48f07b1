// SPDX-License-Identifier: Apache-2.0
//! A small blocking client for the admin socket.

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::message::{Flow, Refusal, Request, Response};
use super::wire::{self, LINE_BYTES_MAX, WireError};

/// Longest wait for an answer. The slowest answer, a full process list of a large guest, takes
/// well under a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no daemon answers on {path:?}")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket's permissions forbid it.
    #[error("permission denied on {path:?}")]
    PermissionDenied {
        /// The socket.
        path: PathBuf,
    },
    /// The socket could not be opened for any other reason.
    #[error("cannot connect to {path:?}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon did not answer in time.
    #[error("the daemon did not answer within {} seconds", ANSWER_TIMEOUT.as_secs())]
    TimedOut,
    /// The daemon closed the connection instead of answering.
    #[error("the daemon closed the connection without an answer")]
    Closed,
    /// The answer could not be read.
    #[error(transparent)]
    Wire(WireError),
    /// The daemon refused the request.
    #[error("{}", .0.reason)]
    Refused(Refusal),
    /// The daemon answered something else.
    #[error("the daemon answered with something other than {expected}")]
    Unexpected {
        /// What was asked for.
        expected: &'static str,
    },
}

impl ClientError {
    /// What to do about it, if there is something.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::NotRunning { .. } => {
                "start meshvisor-hostd, or name its socket with --socket or MESHVISOR_SOCKET".into()
            }
            Self::PermissionDenied { path } => format!(
                "run as root, as the daemon's user, or as a member of the group that owns {}",
                path.display()
            ),
            Self::Connect { .. } => "check that the path names the daemon's admin socket".into(),
            Self::TimedOut => "look into the daemon's log; it may be overloaded or stopped".into(),
            Self::Closed | Self::Unexpected { .. } | Self::Wire(WireError::Malformed(_)) => {
                "check that client and daemon are of the same version".into()
            }
            Self::Refused(refusal) if !refusal.help.is_empty() => refusal.help.clone(),
            Self::Refused(_) | Self::Wire(_) => return None,
        })
    }
}

impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Io(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Self::TimedOut
            }
            WireError::Io(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Self::Closed
            }
            WireError::Truncated => Self::Closed,
            other => Self::Wire(other),
        }
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Opens the daemon's admin socket.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`], [`ClientError::PermissionDenied`] or [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let failed = |source: io::Error| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NotRunning { path }
                }
                io::ErrorKind::PermissionDenied => ClientError::PermissionDenied { path },
                _ => ClientError::Connect { path, source },
            }
        };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks one question and waits for its answer, at most ten seconds.
    ///
    /// # Errors
    /// Any but those of [`Client::connect`]; [`Response::Error`] comes back as [`ClientError::Refused`].
    pub fn call(&mut self, request: &Request) -> Result<Response, ClientError> {
        wire::write(self.stream.get_mut(), request)?;
        self.answer()?.ok_or(ClientError::Closed)
    }

    /// Asks for flows as they are judged. The iterator waits for each, without limit, and ends when
    /// the daemon closes.
    ///
    /// # Errors
    /// When the request cannot be sent.
    pub fn watch(mut self, vm: Option<String>) -> Result<Watch, ClientError> {
        wire::write(self.stream.get_mut(), &Request::FlowWatch { vm })?;
        self.stream.get_ref().set_read_timeout(None).map_err(WireError::Io)?;
        Ok(Watch { client: Some(self) })
    }

    fn answer(&mut self) -> Result<Option<Response>, ClientError> {
        match wire::read(&mut self.stream, LINE_BYTES_MAX)? {
            Some(Response::Error(refusal)) => Err(ClientError::Refused(refusal)),
            answer => Ok(answer),
        }
    }
}

/// Flows as they are judged; see [`Client::watch`].
#[derive(Debug)]
pub struct Watch {
    /// Absent once the stream has ended or failed.
    client: Option<Client>,
}

impl Iterator for Watch {
    type Item = Result<Flow, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let error = match self.client.as_mut()?.answer() {
            Ok(Some(Response::Flow(flow))) => return Some(Ok(*flow)),
            Ok(Some(_)) => Some(ClientError::Unexpected { expected: "a flow" }),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        self.client = None;
        error.map(Err)
    }
}
