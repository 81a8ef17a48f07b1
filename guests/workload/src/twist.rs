// SPDX-License-Identifier: Apache-2.0
//! Connections whose socket is not simply its maker's: who opens them has changed since the socket was made, or has
//! got it from another process.
//!
//! Each prints `twist KIND pid=P port=N OUTCOME`, where P is the process that opens the connection and alone holds
//! its socket then.

use std::fs::File;
use std::io::{Error, IoSlice, IoSliceMut, Read, Result, pipe, stderr, stdin};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketType, recvmsg, sendmsg, socket,
};
use rustix::process::Uid;
use rustix::thread::set_thread_uid;

use crate::{client, outcome};

/// Who a twisted process becomes.
const USER: u32 = 1000;

/// Every kind, `times` each; all but the thread in a process of its own.
pub fn all(to: &str, times: u32) -> bool {
    let one_of = |kind: &str| match kind {
        "thread" => {
            let to = to.to_owned();
            thread::spawn(move || tell("thread", client::open(&to))).join().expect("opening does not panic")
        }
        _ => {
            child(&["twist-as", kind, to]).and_then(|mut child| child.status()).is_ok_and(|end| end.success())
        }
    };
    let kinds = ["thread", "setuid", "exec", "setuid-exec", "inherited", "passed"];
    (0..times).flat_map(|_| kinds).map(one_of).fold(true, |all, one| all && one)
}

/// One kind, in a process that is only for it.
pub fn one(kind: &str, to: &str) -> bool {
    let done = match kind {
        "setuid" => after_setuid(to),
        "exec" => after_exec(to),
        "setuid-exec" => set_thread_uid(user()).map_err(Error::from).and_then(|()| after_exec(to)),
        "inherited" => inherited(to),
        "passed" => passed(to),
        "adopt-late" => {
            // Our standard error is a pipe that ends once our parent has closed the socket.
            let pipe = stderr().as_fd().try_clone_to_owned();
            pipe.and_then(|pipe| File::from(pipe).read(&mut [0])).and_then(|_| one_adopted("inherited", to))
        }
        "adopt" => one_adopted("exec", to),
        "receive" => receive(to),
        _ => return false,
    };
    done.unwrap_or_else(|error| {
        println!("twist {kind} failed: {error}");
        false
    })
}

/// The socket is made, then its process becomes another user.
fn after_setuid(to: &str) -> Result<bool> {
    let socket = make()?;
    set_thread_uid(user())?;
    Ok(tell("setuid", open(socket, to)))
}

/// The socket is made, then its process becomes another program (which has new credentials).
fn after_exec(to: &str) -> Result<bool> {
    let socket = make()?;
    Err(child(&["twist-as", "adopt", to])?.stdin(socket).exec())
}

/// The socket is made, given to a child, and closed by the parent.
fn inherited(to: &str) -> Result<bool> {
    let mut command = child(&["twist-as", "adopt-late", to])?;
    let (far, near) = pipe()?;
    let mut child = command.stdin(make()?).stderr(far).spawn()?;
    drop(command);
    drop(near);
    Ok(child.wait()?.success())
}

/// Our standard input is the socket.
fn one_adopted(kind: &str, to: &str) -> Result<bool> {
    stdin().as_fd().try_clone_to_owned().map(|socket| tell(kind, open(socket, to)))
}

/// The socket is made, passed to another process, and closed by its maker.
fn passed(to: &str) -> Result<bool> {
    let (near, far) = UnixStream::pair()?;
    let mut command = child(&["twist-as", "receive", to])?;
    let mut child = command.stdin(OwnedFd::from(far)).spawn()?;
    drop(command);
    let made = make()?;
    let descriptors = [made.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&near, &[IoSlice::new(b"s")], &mut ancillary, SendFlags::empty())?;
    drop(made);
    // Now that it is closed here, the other may begin.
    sendmsg(&near, &[IoSlice::new(b"g")], &mut SendAncillaryBuffer::default(), SendFlags::empty())?;
    Ok(child.wait()?.success())
}

fn receive(to: &str) -> Result<bool> {
    let near = stdin().as_fd().try_clone_to_owned()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let (mut bytes, mut got) = ([0], None);
    recvmsg(&near, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::empty())?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            got = descriptors.next();
        }
    }
    recvmsg(
        &near,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut RecvAncillaryBuffer::default(),
        RecvFlags::empty(),
    )?;
    let socket = got.ok_or_else(|| Error::other("no descriptor was passed"))?;
    Ok(tell("passed", open(socket, to)))
}

fn make() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::INET, SocketType::STREAM, None)?)
}

fn open(socket: OwnedFd, to: &str) -> Result<TcpStream> {
    let to: SocketAddr = to.parse().map_err(Error::other)?;
    rustix::net::connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

fn user() -> Uid {
    Uid::from_raw(USER)
}

/// This very program with other arguments.
fn child(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

fn tell(kind: &str, opened: Result<TcpStream>) -> bool {
    let port = opened.as_ref().ok().and_then(|stream| Some(stream.local_addr().ok()?.port())).unwrap_or(0);
    let outcome = opened.as_ref().map_or_else(outcome::word, |_| "connected".to_owned());
    println!("twist {kind} pid={} port={port} {outcome}", std::process::id());
    opened.is_ok()
}
