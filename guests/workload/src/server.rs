// SPDX-License-Identifier: Apache-2.0
//! Sends back what arrives, by IPv4 and IPv6.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use crate::outcome;

/// Serves `port` by TCP and UDP until killed. Prints `serving` once connections are taken.
pub fn serve(port: u16) -> bool {
    let any = (Ipv6Addr::UNSPECIFIED, port);
    let listening = TcpListener::bind(any).and_then(|listener| Ok((listener, UdpSocket::bind(any)?)));
    let (listener, datagrams) = match listening {
        Ok(sockets) => sockets,
        Err(error) => {
            println!("{}", outcome::word(&error));
            return false;
        }
    };
    println!("serving");
    thread::spawn(move || echo_datagrams(&datagrams));
    accept(&listener);
    true
}

/// Sends back what arrives on all connections until killed.
pub fn accept(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || echo_stream(stream));
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 65_535];
    loop {
        // Errors here are answers to earlier datagrams: the next one is none the worse for them.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// Sends back what arrives on one connection until its peer ends it.
pub fn echo_stream(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 65_536];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
