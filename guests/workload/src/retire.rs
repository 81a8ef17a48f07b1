// SPDX-License-Identifier: Apache-2.0
//! A server that stops listening and lives on.

use std::io::Result;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::{outcome, server};

/// Time between two looks at who calls, and whether it is to stop.
const PAUSE: Duration = Duration::from_millis(5);

/// Listens on `port` by TCP, prints `serving` and sends back what arrives until `go` exists. Then sends a datagram to
/// `witness`, which is on its way before the next step, closes the listening socket, prints `retired`, and stays.
pub fn run(port: u16, witness: &str, go: &Path) -> bool {
    let listener = match listen(port) {
        Ok(listener) => listener,
        Err(error) => {
            println!("{}", outcome::word(&error));
            return false;
        }
    };
    println!("serving");
    while !go.exists() {
        while let Ok((stream, _)) = listener.accept() {
            // What is accepted from a listener that does not block blocks all the same.
            thread::spawn(move || server::echo_stream(stream));
        }
        thread::sleep(PAUSE);
    }
    let told =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| socket.send_to(b"retired", witness));
    drop(listener);
    match told {
        Ok(_) => println!("retired"),
        Err(error) => println!("{}", outcome::word(&error)),
    }
    loop {
        thread::park();
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
