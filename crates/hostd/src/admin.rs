// SPDX-License-Identifier: Apache-2.0
//! The admin socket: who may open it is the file system's business, what is asked is [`Desk`]'s.
//!
//! One thread per connection, at most [`CONNECTIONS_MAX`]; a connection is closed after
//! [`IDLE_MAX`] without a request.

mod dataflow;
mod desk;
mod inside;
mod threats;
mod times;
mod view;
mod why;

use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, io};

use crate::clock;
use api::admin::wire::{self, WireError};
use api::admin::{Refusal, Request, Response};
pub use desk::Desk;

/// Connections served at a time; more are refused with an error.
pub const CONNECTIONS_MAX: usize = 64;
/// Longest silence of a client.
pub const IDLE_MAX: Duration = Duration::from_secs(300);

/// The listening socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Someone else may have removed it already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at `path`, for the owner, root and `group` only, and serves in threads of its own.
///
/// # Errors
/// When a daemon is already listening there, or the socket cannot be made.
pub fn listen(path: &Path, group: Option<u32>, desk: Arc<Desk>) -> io::Result<AdminSocket> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another meshvisor-hostd is listening there"));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The directory keeps others out until this is done.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    if group.is_some() {
        std::os::unix::fs::chown(path, None, group)?;
    }
    std::thread::Builder::new().name("admin".into()).spawn(move || accept(&listener, &desk))?;
    Ok(AdminSocket { path: path.to_owned() })
}

fn accept(listener: &UnixListener, desk: &Arc<Desk>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            let reason = format!("{CONNECTIONS_MAX} clients are connected already");
            let refusal = Refusal { reason, help: "close one and try again".into() };
            // A client that does not listen learns nothing.
            let _ = wire::write(&mut stream, &Response::Error(refusal));
            continue;
        }
        let (desk, count) = (Arc::clone(desk), Arc::clone(&open));
        let served = std::thread::Builder::new().name("admin-client".into()).spawn(move || {
            if let Err(error) = serve(&stream, &desk) {
                tracing::debug!(error = %telemetry::Chain(&error), "admin client gone");
            }
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if served.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(stream: &UnixStream, desk: &Desk) -> Result<(), WireError> {
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        match wire::read(&mut reader, wire::REQUEST_BYTES_MAX) {
            Ok(None) => return Ok(()),
            Ok(Some(Request::FlowWatch { vm })) => return watch(stream, desk, vm.as_deref()),
            Ok(Some(request)) => wire::write(&mut writer, &desk.answer(&request))?,
            Err(WireError::Malformed(error)) => {
                let refusal = Refusal {
                    reason: format!("the request is not understood: {error}"),
                    help: "client and daemon may be of different versions".into(),
                };
                wire::write(&mut writer, &Response::Error(refusal))?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Streams events until the client goes.
fn watch(mut stream: &UnixStream, desk: &Desk, vm: Option<&str>) -> Result<(), WireError> {
    let (vm, events) = match desk.watch(vm) {
        Ok(watch) => watch,
        Err(refusal) => return wire::write(&mut stream, &Response::Error(refusal)),
    };
    loop {
        // The pause bounds how long a client that has left goes unnoticed.
        match events.recv_timeout(Duration::from_secs(1)) {
            Ok(event) if view::concerns(&event.record, vm.as_ref()) => {
                wire::write(&mut stream, &Response::Flow(Box::new(view::flow(&event.record, clock::now()))))?;
            }
            Ok(_) => {}
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => {
                if hung_up(stream)? {
                    return Ok(());
                }
            }
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Whether the client has closed its end. A watcher has nothing more to say, so reading cannot lose a request.
fn hung_up(mut stream: &UnixStream) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let read = io::Read::read(&mut stream, &mut [0; 64]);
    stream.set_nonblocking(false)?;
    match read {
        Ok(len) => Ok(len == 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}
