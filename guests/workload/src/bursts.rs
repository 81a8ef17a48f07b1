// SPDX-License-Identifier: Apache-2.0
//! Many datagrams by one call, so that the card gets them as one super-frame if it takes that (`UDP_SEGMENT`, udp(7)).

use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};

use crate::{client, outcome};

/// Datagrams of one call; so many also fit into the buffer of a socket whose process is slow.
const BURST: u32 = 32;
/// Prime, so that the pattern never falls into step with datagrams.
const PERIOD: usize = 251;

/// Sends bursts of datagrams of `bytes` each, the last of a burst half as long, and checks that each comes back as it
/// was sent. Prints how many did.
pub fn run(to: &str, bytes: u16, times: u32) -> bool {
    outcome::tell(exchange(to, bytes, times), || format!("datagrams={}", times * BURST))
}

fn exchange(to: &str, bytes: u16, times: u32) -> Result<()> {
    let to: SocketAddr = to.parse().map_err(Error::other)?;
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(client::PATIENCE))?;
    setsockopt(&socket, sockopt::UdpGsoSegment, &i32::from(bytes))?;
    let mut buffer = [0; 65_535];
    for first in (0..times).map(|time| time * BURST) {
        let len = |number| usize::from(if number + 1 == first + BURST { bytes / 2 } else { bytes });
        let burst: Vec<_> = (first..first + BURST).map(|number| datagram(number, len(number))).collect();
        socket.send(&burst.concat())?;
        for sent in burst {
            let length = socket.recv(&mut buffer)?;
            if buffer[..length] != sent {
                return Err(ErrorKind::InvalidData.into());
            }
        }
    }
    Ok(())
}

/// No two of them are alike.
fn datagram(number: u32, len: usize) -> Vec<u8> {
    let pattern = (0..len).map(|at| ((number as usize + at) % PERIOD) as u8);
    number.to_be_bytes().into_iter().chain(pattern).take(len).collect()
}
