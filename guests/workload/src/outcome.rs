// SPDX-License-Identifier: Apache-2.0
//! The word for what a network call met.

use std::io::{Error, ErrorKind};

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
