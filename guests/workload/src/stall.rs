// SPDX-License-Identifier: Apache-2.0
//! A server that is there and does not keep up.

use std::io::Result;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, listen, socket};

use crate::{outcome, server};

/// Time between two looks at whether it is to go on.
const PAUSE: Duration = Duration::from_millis(10);

/// Listens on `port` by TCP with a small backlog and prints `stalling`, accepts nothing until `go` exists, and then
/// prints `serving` and sends back what arrives.
pub fn run(port: u16, backlog: i32, go: &Path) -> bool {
    let listener = match listener(port, backlog) {
        Ok(listener) => listener,
        Err(error) => {
            println!("{}", outcome::word(&error));
            return false;
        }
    };
    println!("stalling");
    while !go.exists() {
        thread::sleep(PAUSE);
    }
    println!("serving");
    server::accept(&listener);
    true
}

fn listener(port: u16, backlog: i32) -> Result<TcpListener> {
    let socket = socket(AddressFamily::INET6, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    listen(&socket, backlog)?;
    Ok(socket.into())
}
