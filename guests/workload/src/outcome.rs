// SPDX-License-Identifier: Apache-2.0
//! The word for what a network call met.

use std::io::{Error, ErrorKind, Result};

/// One word for `error`; those the harness knows, else the system's number.
pub fn word(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".into(),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => "reset".into(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timed-out".into(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable".into(),
        ErrorKind::UnexpectedEof => "closed".into(),
        _ => error.raw_os_error().map_or_else(|| "failed".into(), |number| format!("errno-{number}")),
    }
}

/// Prints how an exchange ended, and `whole` beside it if all came back as it was sent; tells whether it did.
pub fn tell(exchanged: Result<()>, whole: impl FnOnce() -> String) -> bool {
    match &exchanged {
        Ok(()) => println!("whole {}", whole()),
        Err(error) if error.kind() == ErrorKind::InvalidData => println!("garbled"),
        Err(error) => println!("{}", word(error)),
    }
    exchanged.is_ok()
}
