// SPDX-License-Identifier: Apache-2.0
//! The library against a kernel made up in memory: what it tells, and what it survives.

#[cfg(test)]
mod containers;
mod decoration;
#[cfg(test)]
mod gaps;
#[cfg(test)]
mod hostile;
pub(crate) mod kernel;
#[cfg(test)]
mod origin;
#[cfg(test)]
mod profile;
#[cfg(test)]
mod rings;
pub(crate) mod symbols;
#[cfg(test)]
mod threats;
#[cfg(test)]
mod truth;
#[cfg(test)]
mod users;
#[cfg(test)]
mod views;

use std::net::SocketAddr;
use std::sync::Arc;

use model::{Attribution, Protocol};

use crate::Guest;
use crate::memory::fixture::Ram;
use kernel::Kernel;
use symbols::SymbolOrder;

/// Asks everything there is to ask.
pub(crate) fn ask_everything(guest: &mut Guest, ring_gpa: u64) {
    let _ = guest.processes();
    let _ = guest.sockets();
    let _ = guest.process_details();
    let _ = guest.cpu_sample();
    let _ = guest.socket_details();
    for head in [0, 1, u16::MAX] {
        let _ = guest.frame_owner(ring_gpa, head);
    }
    let _ = connection(guest);
    let _ = guest.connection_owner(end("[fd00::1]:1235"), end("[fd00::2]:80"), Protocol::Tcp);
    let _ = guest.connection_owner(end("10.0.0.1:53"), end("10.0.0.9:9"), Protocol::Udp);
    let _ = guest.connection_owner(end("10.0.0.1:61000"), end("10.0.0.2:80"), Protocol::Tcp);
    let _ = guest.listener_owner(end("10.0.0.1:80"), Some(end("10.0.0.9:5000")), Protocol::Tcp);
    for seconds in 0..4 {
        let _ = guest.inspect(std::time::Duration::from_secs(seconds));
    }
    let _ = (guest.threats(), guest.coverage());
}

/// A kernel in one of the known forms; the form matters to few tests.
fn kernel() -> Kernel {
    Kernel::new(4, SymbolOrder::OffsetsFirst)
}

fn attach(ram: &Ram) -> Guest {
    Guest::attach(Arc::new(ram.clone())).unwrap()
}

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The owner of the fixture's only connection over IPv4.
fn connection(guest: &mut Guest) -> Attribution {
    guest.connection_owner(end("10.0.0.1:1234"), end("10.0.0.2:80"), Protocol::Tcp)
}
