// SPDX-License-Identifier: Apache-2.0
//! What was found under which names, left to the next daemon.
//!
//! Rules that name domains let connections through by it, and those must outlive the daemon. It lies in a small JSON file in
//! the runtime directory, replaced atomically [`SETTLE`] after an upstream has answered, or a little later when answers follow
//! each other; what was found just before a SIGKILL must be asked for again. Times are those of the wall clock, so that the file may outlive the system, too.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use model::Moment;
use serde::{Deserialize, Serialize};
use vswitch::Found;

use crate::clock::{self, now};
use crate::handover::replace;
use crate::poll::{Command, PollHandle};

/// Time for an answer to reach the switch, which is asked what to write.
const SETTLE: Duration = Duration::from_millis(10);
/// Shortest time between two writes, in which answers come together.
const GATHER: Duration = Duration::from_millis(100);
/// Of its time the thread writes at most one part in so many.
const RESTS: u32 = 20;

const FILE: &str = "names.json";

/// A name as it lies in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    tenant: String,
    address: IpAddr,
    name: String,
    expires_unix_ms: u64,
}

/// What a predecessor has left in `dir`; nothing if its file is missing or damaged.
pub fn left(dir: &Path) -> Vec<Found> {
    let Ok(text) = std::fs::read_to_string(dir.join(FILE)) else { return Vec::new() };
    let kept: Vec<Kept> = serde_json::from_str(&text).unwrap_or_else(|error| {
        tracing::warn!(%error, "names that were found are forgotten: their file is damaged");
        Vec::new()
    });
    let (now, unix_ms) = (now(), unix_ms());
    let found = kept.into_iter().filter_map(|kept| {
        let left_ms = kept.expires_unix_ms.saturating_sub(unix_ms);
        let expires = now.after(Duration::from_millis(left_ms));
        Some(Found {
            tenant: kept.tenant.parse().ok()?,
            address: kept.address,
            name: kept.name.into(),
            expires,
        })
    });
    found.collect()
}

/// Starts the thread that writes the file whenever the returned bell was rung. It lives as long as the process.
///
/// # Errors
/// When it cannot be started.
pub fn start(dir: &Path, poll: PollHandle) -> io::Result<Sender<()>> {
    // One ring is as good as many.
    let (bell, rung) = bounded(1);
    let path = dir.join(FILE);
    std::thread::Builder::new().name("names".into()).spawn(move || {
        while rung.recv().is_ok() {
            std::thread::sleep(SETTLE);
            let started = Instant::now();
            match poll.ask(Command::Found).map(|found| write(&path, &found)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, ?path, "cannot leave names to the next daemon"),
                Err(error) => tracing::warn!(%error, "cannot leave names to the next daemon"),
            }
            std::thread::sleep(GATHER.max(started.elapsed() * RESTS));
        }
    })?;
    Ok(bell)
}

fn write(path: &Path, found: &[Found]) -> io::Result<()> {
    let (now, unix_ms) = (now(), unix_ms());
    let expires_unix_ms =
        |expires: Moment| unix_ms + u64::try_from(expires.since(now).as_millis()).unwrap_or(u64::MAX / 2);
    let kept: Vec<Kept> = found
        .iter()
        .map(|found| Kept {
            tenant: found.tenant.to_string(),
            address: found.address,
            name: found.name.to_string(),
            expires_unix_ms: expires_unix_ms(found.expires),
        })
        .collect();
    replace(path, &serde_json::to_vec(&kept)?)
}

fn unix_ms() -> u64 {
    u64::try_from(clock::unix().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use testkit::scratch::Scratch;

    use super::*;

    #[test]
    fn the_next_daemon_finds_what_was_found_and_for_how_long() {
        let dir = Scratch::new("names").unwrap();
        assert!(left(dir.path()).is_empty());
        let found = |address: &str, seconds| Found {
            tenant: "acme".parse().unwrap(),
            address: address.parse().unwrap(),
            name: "api.example.com".into(),
            expires: now().after(Duration::from_secs(seconds)),
        };
        let written = [found("192.0.2.1", 100), found("2001:db8::1", 5000)];
        write(&dir.join(FILE), &written).unwrap();
        for (left, written) in left(dir.path()).iter().zip(&written) {
            let late = written.expires.since(left.expires).max(left.expires.since(written.expires));
            assert!(late < Duration::from_secs(5), "{late:?}");
            assert_eq!(Found { expires: written.expires, ..left.clone() }, *written);
        }
        assert_eq!(left(dir.path()).len(), 2);
        std::fs::write(dir.join(FILE), "[{").unwrap();
        assert!(left(dir.path()).is_empty());
    }
}
