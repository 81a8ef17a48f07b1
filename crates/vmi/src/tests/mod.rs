// SPDX-License-Identifier: Apache-2.0
//! The library against a kernel made up in memory: what it tells, and what it survives.

mod hostile;
mod kernel;
mod symbols;
mod truth;

use std::net::SocketAddr;
use std::sync::Arc;

use model::{Attribution, Protocol};

use crate::Guest;
use crate::memory::fixture::Ram;
use kernel::Kernel;
use symbols::SymbolOrder;

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
