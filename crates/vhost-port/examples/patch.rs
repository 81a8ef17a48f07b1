// SPDX-License-Identifier: Apache-2.0
//! A patch cable between two network cards: what leaves one guest arrives at the other, and nothing is looked at.
//!
//! `patch [--connect] [--cpu N] A.sock B.sock` serves both sockets until it is killed, polling while there are frames and
//! sleeping otherwise. It shows how a poll loop uses ports, and is the upper bound of what a switch on
//! them can do. Once a second it prints what it carried, if anything.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use model::SocketMode;
use platform::{EventFd, Poller, Trigger, monotonic_ns};
use vhost_port::{Batch, Outgoing, Port, PortConfig, PortControl, PortEvent, VNET_HEADER_BYTES};

/// Bytes of a frame that a switch would copy out to decide on.
const HEAD_BYTES: usize = 128;
/// The virtio-net header within a number of 16 bytes.
const HEADER_MASK: u128 = (1 << (8 * VNET_HEADER_BYTES)) - 1;
/// Rounds without a frame before sleeping: about 50 microseconds.
const IDLE_ROUNDS_MAX: u32 = 1000;
/// Tokens of the poller; ports' kicks are 0 and 1.
const WAKER: u64 = 2;
const REPORT_NS: u64 = 1_000_000_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patch: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut mode = SocketMode::Listen;
    let mut sockets = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--connect" => mode = SocketMode::Connect,
            "--cpu" => {
                platform::pin_current_thread(arguments.next().ok_or("--cpu needs a number")?.parse()?)?
            }
            _ => sockets.push(argument),
        }
    }
    let [a, b] =
        <[String; 2]>::try_from(sockets).map_err(|_| "usage: patch [--connect] [--cpu N] A.sock B.sock")?;
    let waker = Arc::new(EventFd::new()?);
    let open = |socket: String| {
        let config =
            PortConfig { name: socket.clone(), socket: socket.into(), mode, offloads: true, journal: None };
        vhost_port::open(config, Arc::clone(&waker))
    };
    let (a, control_a) = open(a)?;
    let (b, control_b) = open(b)?;
    let mut cable = Cable {
        ends: [a, b],
        controls: [control_a, control_b],
        batch: Batch::new(),
        heads: [[0; HEAD_BYTES]; Batch::FRAMES_MAX],
        refused: 0,
    };
    cable.carry(&waker)
}

struct Cable {
    ends: [Port; 2],
    controls: [PortControl; 2],
    batch: Batch,
    heads: [[u8; HEAD_BYTES]; Batch::FRAMES_MAX],
    /// Frames that the other end did not take.
    refused: u64,
}

impl Cable {
    fn carry(&mut self, waker: &EventFd) -> Result<(), Box<dyn std::error::Error>> {
        let mut poller = Poller::new()?;
        poller.add(waker, WAKER, Trigger::Level)?;
        let mut idle_rounds = 0;
        let mut report = Report::new();
        loop {
            let mut frames = 0;
            for from in 0..2 {
                self.service(from, &poller)?;
                frames += self.cross(from);
            }
            idle_rounds = if frames > 0 { 0 } else { idle_rounds + 1 };
            if idle_rounds >= IDLE_ROUNDS_MAX {
                self.sleep(&mut poller, waker)?;
                idle_rounds = 0;
            }
            report.print(self);
        }
    }

    fn service(&mut self, end: usize, poller: &Poller) -> std::io::Result<()> {
        while let Some(event) = self.ends[end].service() {
            match event {
                PortEvent::Started { memory, features, .. } => {
                    println!("end {end}: {} MiB, features {:#x}", memory.size_bytes() >> 20, features.0);
                    if let Some(kick) = self.ends[end].kick_fd(0) {
                        poller.add(kick, end as u64, Trigger::Edge)?;
                    }
                }
                PortEvent::Stopped { .. } | PortEvent::Disconnected => {
                    println!("end {end}: {event:?}, {:?}", self.controls[end].status().last_error);
                    if let Some(kick) = self.ends[end].kick_fd(0) {
                        // Not there if it could not be waited for.
                        let _ = poller.remove(kick);
                    }
                }
            }
        }
        Ok(())
    }

    /// Carries a batch from one end to the other.
    fn cross(&mut self, from: usize) -> usize {
        let Self { ends: [a, b], batch, heads, refused, .. } = self;
        let (from, to) = if from == 0 { (a, b) } else { (b, a) };
        // A ring that makes no sense stops its port, which is told as an event.
        let count = from.receive(0, batch).unwrap_or(0);
        if count == 0 {
            return 0;
        }
        // All heads first, as a switch does: their bytes arrive while others are copied.
        for (chain, head) in batch.iter().zip(heads.iter_mut()) {
            chain.copy_out(0, head);
        }
        let frame = |number: usize| {
            let (chain, head) = (batch.chain(number), &heads[number]);
            let header = head.first_chunk().map_or(0, |header| u128::from_le_bytes(*header)) & HEADER_MASK;
            let len = chain.len_bytes().min(HEAD_BYTES);
            Outgoing { spread: 0, header, head: &head[VNET_HEADER_BYTES..len], rest: Some((chain, len)) }
        };
        let mut first = 0;
        while let Err((number, _)) = to.send_all(count - first, |number| frame(first + number)) {
            *refused += 1;
            first += number + 1;
        }
        to.expect_to_send(0, count);
        from.complete(0, count);
        to.flush();
        from.flush();
        count
    }

    fn sleep(&mut self, poller: &mut Poller, waker: &EventFd) -> std::io::Result<()> {
        let waiting = self.ends.iter_mut().fold(false, |waiting, end| end.arm_kicks(0) | waiting);
        if !waiting {
            let woken = poller.wait(Some(Duration::from_secs(1)))?.any(|token| token == WAKER);
            if woken {
                waker.drain();
            }
        }
        self.ends.iter_mut().for_each(Port::suppress_kicks);
        Ok(())
    }
}

struct Report {
    at_ns: u64,
    rounds: u32,
    frames: u64,
}

impl Report {
    fn new() -> Self {
        Self { at_ns: monotonic_ns(), rounds: 0, frames: 0 }
    }

    fn print(&mut self, cable: &Cable) {
        self.rounds += 1;
        if !self.rounds.is_multiple_of(4096) {
            return;
        }
        let now_ns = monotonic_ns();
        let passed_ns = now_ns - self.at_ns;
        if passed_ns < REPORT_NS {
            return;
        }
        let frames = cable.ends.iter().map(|end| end.counters().sent_frames).sum::<u64>();
        if frames != self.frames {
            let rate = (frames - self.frames) as f64 * 1e3 / passed_ns as f64;
            println!("{rate:.2} Mpps, {} refused", cable.refused);
        }
        self.at_ns = now_ns;
        self.frames = frames;
    }
}
