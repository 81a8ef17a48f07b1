// SPDX-License-Identifier: Apache-2.0
//! A guest that asks for names, one question after the other. It is driven from here, so that nothing but the daemon is
//! in the figures.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use model::MacAddr;
use packet::emit::{self, Link};
use packet::{Addresses, VnetHeader};
use testkit::names::{is_answered, question};
use vhost_port::testing::ConnectedGuest;

use super::probe::{End, Times};

/// A question without an answer after this long has got none.
const PATIENCE: Duration = Duration::from_millis(500);
/// Headers before a message: Ethernet, IPv4, UDP.
const HEADERS_LEN_BYTES: usize = 14 + 20 + 8;
/// Ports that questions come from in turn.
const PORTS: u64 = 50_000;

/// The guest.
pub struct Asker {
    guest: ConnectedGuest,
    link: Link,
    addresses: Addresses,
    asked: u64,
}

impl Asker {
    /// Connects a guest to a daemon's socket; it asks `resolver` behind `gateway`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(socket: &Path, from: End, gateway: MacAddr, resolver: Ipv4Addr) -> Result<Self> {
        let guest = ConnectedGuest::connect(socket);
        Ok(Self {
            guest: guest.with_context(|| format!("connect to {}", socket.display()))?,
            link: Link { source: from.mac, destination: gateway },
            addresses: Addresses::V4 { source: from.address, destination: resolver },
            asked: 0,
        })
    }

    /// Asks for names in turn, each as soon as the one before is answered, so many times.
    pub fn run<'a>(&mut self, names: impl Iterator<Item = &'a str> + Clone, times: usize) -> Times {
        let (mut took, mut lost) = (Vec::with_capacity(times), 0);
        for name in names.cycle().take(times) {
            match self.ask(name) {
                Some(time) => took.push(time),
                None => lost += 1,
            }
        }
        Times::of(took, lost)
    }

    /// How long an answer took; `None` if there was none.
    fn ask(&mut self, name: &str) -> Option<Duration> {
        self.asked += 1;
        let number = self.asked as u16;
        let port = 1024 + (self.asked % PORTS) as u16;
        let mut frame = VnetHeader::default().to_bytes().to_vec();
        let before = frame.len() + HEADERS_LEN_BYTES;
        frame.extend(emit::udp(self.link, self.addresses, (port, 53), &question(number, name)));
        let asked = Instant::now();
        self.guest.send(&frame);
        let answered = loop {
            let frames = self.guest.received();
            let came = frames.iter().filter_map(|frame| frame.get(before..)).any(|m| is_answered(m, number));
            if came || asked.elapsed() > PATIENCE {
                break came.then(|| asked.elapsed());
            }
            std::hint::spin_loop();
        };
        self.guest.completed();
        answered
    }
}
