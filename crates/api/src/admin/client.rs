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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead, Write};
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use super::super::{Status, Verdict};
    use super::*;

    /// A daemon that reads one line and answers with fixed bytes, then closes.
    struct Daemon {
        directory: PathBuf,
        thread: Option<JoinHandle<String>>,
    }

    impl Daemon {
        fn new(name: &str, answer: Vec<u8>) -> Self {
            let directory =
                std::env::temp_dir().join(format!("meshvisor-admin-{}-{name}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            let listener = UnixListener::bind(directory.join("admin.sock")).unwrap();
            let thread = thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                let mut stream = BufReader::new(stream);
                let mut asked = String::new();
                stream.read_line(&mut asked).unwrap();
                // The client may close early, as it does on an endless line.
                let _ = stream.get_mut().write_all(&answer);
                asked
            });
            Self { directory, thread: Some(thread) }
        }

        fn client(&self) -> Client {
            Client::connect(&self.directory.join("admin.sock")).unwrap()
        }

        fn asked(mut self) -> String {
            self.thread.take().expect("asked once").join().unwrap()
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }

    fn line(response: &Response) -> Vec<u8> {
        let mut bytes = Vec::new();
        wire::write(&mut bytes, response).unwrap();
        bytes
    }

    fn flow(id: u64) -> Flow {
        let party = |vm: &model::VmRef| super::super::Party::new(Some(vm), [10, 0, 0, 1].into(), 80, None);
        Flow {
            id,
            protocol: "tcp".into(),
            speaks: None,
            source: party(&"acme/web".parse().unwrap()),
            destination: party(&"acme/api".parse().unwrap()),
            verdict: Verdict::Allow,
            decided_by: "acme/default".into(),
            because: None,
            matched: vec![],
            audited: vec![],
            services: vec![],
            generation: 1,
            state: "new".into(),
            packets: 1,
            bytes: 60,
            first_seen_ms: 0,
            last_seen_ms: 0,
            reason: None,
        }
    }

    #[test]
    fn answer_comes_back_typed() {
        let status = Status { version: "1.2.3".into(), ..Status::default() };
        let daemon = Daemon::new("answer", line(&Response::Status(Box::new(status.clone()))));
        let answer = daemon.client().call(&Request::Status).unwrap();
        assert_eq!(answer, Response::Status(Box::new(status)));
        assert_eq!(daemon.asked(), "{\"request\":\"status\"}\n");
    }

    #[test]
    fn refusal_keeps_its_help() {
        let refusal = Refusal { reason: "no such machine".into(), help: "see vm list".into() };
        let daemon = Daemon::new("refusal", line(&Response::Error(refusal)));
        let error = daemon.client().call(&Request::VmProcesses { vm: "a/b".into() }).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.help().as_deref()),
            ("no such machine", Some("see vm list"))
        );
    }

    #[test]
    fn broken_answers_are_told_apart() {
        type Expected = fn(&ClientError) -> bool;
        let cases: [(&str, Vec<u8>, Expected); 4] = [
            ("closed", vec![], |error| matches!(error, ClientError::Closed)),
            ("half", b"{\"response\"".to_vec(), |error| matches!(error, ClientError::Closed)),
            ("strange", b"{\"response\":\"tea\"}\n".to_vec(), |error| {
                matches!(error, ClientError::Wire(WireError::Malformed(_))) && error.help().is_some()
            }),
            ("endless", vec![b' '; LINE_BYTES_MAX + 1], |error| {
                matches!(error, ClientError::Wire(WireError::TooLong { .. }))
            }),
        ];
        for (name, bytes, expected) in cases {
            let daemon = Daemon::new(name, bytes);
            let error = daemon.client().call(&Request::Status).unwrap_err();
            assert!(expected(&error), "{name}: {error:?}");
        }
    }

    #[test]
    fn watch_yields_flows_until_the_daemon_closes() {
        let flows = [flow(1), flow(2)];
        let bytes = flows.iter().flat_map(|flow| line(&Response::Flow(Box::new(flow.clone())))).collect();
        let daemon = Daemon::new("watch", bytes);
        let watch = daemon.client().watch(Some("acme/web".into())).unwrap();
        assert_eq!(watch.map(Result::unwrap).collect::<Vec<_>>(), flows);
        assert_eq!(daemon.asked(), "{\"request\":\"flow-watch\",\"vm\":\"acme/web\"}\n");
    }

    #[test]
    fn watch_ends_after_an_error() {
        let daemon = Daemon::new("watch-error", line(&Response::Vms(vec![])));
        let mut watch = daemon.client().watch(None).unwrap();
        assert!(matches!(watch.next(), Some(Err(ClientError::Unexpected { .. }))));
        assert!(watch.next().is_none());
    }

    #[test]
    fn absent_daemon_and_wrong_path_are_told_apart() {
        let error = Client::connect(Path::new("/nonexistent/admin.sock")).unwrap_err();
        assert!(matches!(error, ClientError::NotRunning { .. }) && error.help().is_some());
        let long = "x".repeat(200);
        assert!(matches!(Client::connect(Path::new(&long)), Err(ClientError::Connect { .. })));
    }
}
