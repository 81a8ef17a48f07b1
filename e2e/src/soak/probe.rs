// SPDX-License-Identifier: Apache-2.0
//! How long frames take from one guest to another, and whether all arrive. Both guests are driven from here, so that
//! nothing but the daemon is in the figures.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use model::MacAddr;
use packet::emit::{self, Link};
use packet::{Addresses, VnetHeader};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;
use vhost_port::testing::ConnectedGuest;

/// Time between two frames.
const PACE: Duration = Duration::from_millis(5);
/// A frame that has not arrived after this long is lost.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// Frames of one flow; the next has a new one.
const FLOW_FRAMES: u64 = 50;

/// What frames took, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Times {
    /// Frames that arrived.
    pub count: usize,
    /// Frames that did not.
    pub lost: u64,
    /// Half of them took at most this long.
    pub p50_us: f64,
    /// 99 of 100 took at most this long.
    pub p99_us: f64,
    /// All of them took at most this long.
    pub max_us: f64,
}

impl Times {
    pub(super) fn of(mut took: Vec<Duration>, lost: u64) -> Self {
        took.sort_unstable();
        let at = |percent: usize| {
            let index = took.len().saturating_sub(1) * percent / 100;
            took.get(index).map_or(0.0, |took| took.as_secs_f64() * 1e6)
        };
        Self { count: took.len(), lost, p50_us: at(50), p99_us: at(99), max_us: at(100) }
    }
}

/// One end of a way.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Its card's.
    pub mac: MacAddr,
    /// Its own.
    pub address: std::net::Ipv4Addr,
}

/// Two guests of which one sends to the other.
pub struct Probe {
    sender: ConnectedGuest,
    receiver: ConnectedGuest,
    link: Link,
    addresses: Addresses,
    sent: u64,
    cpu: Option<usize>,
}

impl Probe {
    /// Connects both guests to a daemon's sockets.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(sockets: [&Path; 2], [from, to]: [End; 2]) -> Result<Self> {
        let connect = |socket: &Path| {
            ConnectedGuest::connect(socket).with_context(|| format!("connect to {}", socket.display()))
        };
        Ok(Self {
            sender: connect(sockets[0])?,
            receiver: connect(sockets[1])?,
            link: Link { source: from.mac, destination: to.mac },
            addresses: Addresses::V4 { source: from.address, destination: to.address },
            sent: 0,
            cpu: None,
        })
    }

    /// Has it run on this processor only, so that it does not take the daemon's while it waits for a frame.
    #[must_use]
    pub fn on_cpu(self, cpu: usize) -> Self {
        Self { cpu: Some(cpu), ..self }
    }

    /// Sends one frame after the other for that long.
    ///
    /// # Panics
    /// When the system has no thread left.
    pub fn run_for(&mut self, how_long: Duration) -> Times {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watched = scope.spawn(|| self.run(&stop));
            std::thread::sleep(how_long);
            stop.store(true, Ordering::Release);
            watched.join().expect("a probe does not panic")
        })
    }

    /// Sends one frame after the other until `stop`.
    pub(super) fn run(&mut self, stop: &AtomicBool) -> Times {
        if let Some(cpu) = self.cpu {
            let mut only = CpuSet::new();
            only.set(cpu);
            sched_setaffinity(None, &only).expect("a bench names processors that there are");
        }
        let (mut took, mut lost, mut next) = (Vec::new(), 0, Instant::now());
        while !stop.load(Ordering::Acquire) {
            match self.send() {
                Some(time) => took.push(time),
                None => lost += 1,
            }
            next = (next + PACE).max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Times::of(took, lost)
    }

    /// How long one frame took; `None` if it was lost.
    fn send(&mut self) -> Option<Duration> {
        self.sent += 1;
        let mark = self.sent.to_be_bytes();
        let port = 1024 + (self.sent / FLOW_FRAMES % 50_000) as u16;
        let mut frame = VnetHeader::default().to_bytes().to_vec();
        frame.extend(emit::udp(self.link, self.addresses, (port, 7), &mark));
        let sent = Instant::now();
        self.sender.send(&frame);
        let arrived = loop {
            let came = self.receiver.received().iter().any(|frame| frame.ends_with(&mark));
            if came || sent.elapsed() > LOST_AFTER {
                break came.then(|| sent.elapsed());
            }
            std::hint::spin_loop();
        };
        self.sender.completed();
        arrived
    }
}
