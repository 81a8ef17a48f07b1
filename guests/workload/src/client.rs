// SPDX-License-Identifier: Apache-2.0
//! Short conversations.

use std::io::{BufRead, BufReader, Error, ErrorKind, Result, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use crate::outcome;

/// After this, a peer that says nothing counts as silent.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Opens `times` connections and closes each; prints how each ended and how long the call took.
pub fn connect(to: &str, times: u32) -> bool {
    (0..times).map(|_| told(to).is_some()).fold(true, |all, one| all && one)
}

/// Opens `times` connections and keeps them until this process is killed or the peer ends the first. Prints
/// `holding` once all are open.
pub fn hold(to: &str, times: u32) -> bool {
    let held: Option<Vec<TcpStream>> = (0..times).map(|_| told(to)).collect();
    let Some(first) = held.as_deref().and_then(<[_]>::first) else { return false };
    println!("holding");
    let mut line = String::new();
    let ended = match BufReader::new(first).read_line(&mut line) {
        Ok(0) => "closed".into(),
        Ok(_) => "answered".into(),
        Err(error) => outcome::word(&error),
    };
    println!("{ended}");
    ended == "closed"
}

/// Sends a line and prints the first line that comes back.
pub fn ask(to: &str, text: &str) -> bool {
    report(ask_once(to, text))
}

/// Sends a datagram and prints what comes back.
pub fn datagram(to: &str, text: &str) -> bool {
    report(datagram_once(to, text))
}

/// One connection attempt, with its outcome printed.
fn told(to: &str) -> Option<TcpStream> {
    let started = Instant::now();
    let outcome = open(to);
    let after_us = started.elapsed().as_micros();
    match outcome {
        Ok(stream) => {
            let local = stream.local_addr().map(|local| local.to_string()).unwrap_or_default();
            println!("connected after_us={after_us} local={local}");
            Some(stream)
        }
        Err(error) => {
            println!("{} after_us={after_us}", outcome::word(&error));
            None
        }
    }
}

fn report(outcome: Result<String>) -> bool {
    match &outcome {
        Ok(answer) => println!("answer {}", answer.trim_end()),
        Err(error) => println!("{}", outcome::word(error)),
    }
    outcome.is_ok()
}

fn ask_once(to: &str, text: &str) -> Result<String> {
    let mut stream = open(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{text}\r\n").as_bytes())?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

fn datagram_once(to: &str, text: &str) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // Connected, so that an ICMP error is reported to us.
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(text.as_bytes())?;
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Opens a connection within [`PATIENCE`].
pub fn open(to: &str) -> Result<TcpStream> {
    let address: SocketAddr =
        to.to_socket_addrs()?.next().ok_or_else(|| Error::from(ErrorKind::AddrNotAvailable))?;
    TcpStream::connect_timeout(&address, PATIENCE)
}
