// SPDX-License-Identifier: Apache-2.0
//! Many connections as fast as they go, and processes as fast as they come.

use std::io::{Result, Write, stdout};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::client;

/// Threads that open connections.
const THREADS: u32 = 2;

/// Opens `times` connections on two threads and closes each at once. Prints how many it opened, in what time, and
/// the own port of each.
pub fn connections(to: &str, times: u32) -> bool {
    let started = Instant::now();
    let threads = (0..THREADS).map(|number| {
        let to = to.to_owned();
        let share = times / THREADS + u32::from(number < times % THREADS);
        thread::spawn(move || {
            (0..share).filter_map(|_| port_of(client::open(&to)).ok()).collect::<Vec<u16>>()
        })
    });
    let threads: Vec<_> = threads.collect();
    let ports: Vec<u16> =
        threads.into_iter().flat_map(|thread| thread.join().expect("opening does not panic")).collect();
    let took_ms = started.elapsed().as_millis();
    let mut line =
        format!("storm pid={} opened={} took_ms={took_ms} ports=", std::process::id(), ports.len());
    for port in &ports {
        line += &format!("{port},");
    }
    line.push('\n');
    stdout().write_all(line.as_bytes()).is_ok() && ports.len() == times as usize
}

/// Starts processes that end at once, one after the other, until `stop` exists; prints how many, and in what time.
pub fn processes(stop: &Path) -> bool {
    let started = Instant::now();
    let mut count = 0_u32;
    while !stop.exists() {
        let child = Command::new("/bin/true").stdout(Stdio::null()).status();
        count += u32::from(child.is_ok_and(|status| status.success()));
    }
    println!("forked count={count} took_ms={}", started.elapsed().as_millis());
    count > 0
}

fn port_of(stream: Result<TcpStream>) -> Result<u16> {
    Ok(stream?.local_addr()?.port())
}
