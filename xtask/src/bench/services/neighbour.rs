// SPDX-License-Identifier: Apache-2.0
//! `neighbour_p99_ratio`: how much longer frames take between two guests while two others send as fast as they can.
//! `interactive_wait_us`: how long the first two wait for their turn meanwhile if they are of class `Interactive`, as
//! `meshctl status` tells it, and how long their frames take.
//!
//! All four are served by one poll core. Those that are measured are driven from here and send a frame every 5 ms; from
//! its being in the ring to its being in the other's memory is what counts, and how long 99 of 100 take at most. The
//! others are DPDK's `testpmd` with 64-byte frames of 10,000 flows, both ways, at the lowest priority: this is about the
//! switch, not about the host's scheduler. Quiet and loud take turns.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::soak::{End, Probe, Times, give_way};
use testkit::daemon::Daemon;
use testkit::scratch::Scratch;

use super::Figure;
use crate::bench::cases::{Program, stream};
use crate::bench::ours;
use crate::bench::rounds::{await_frames, median};
use crate::bench::testpmd::{Listener, Testpmd, mac};
use crate::progress;

pub const NAME: &str = "neighbour_p99_ratio";
pub const WAIT: &str = "interactive_wait_us";
const ROUNDS: usize = 5;
/// How long the guests are watched, quiet and loud, in each round: a thousand frames.
const WATCH: Duration = Duration::from_secs(5);
const FLOWS: usize = 10_000;
/// Where all guests run; the daemon has the other processor.
const GUESTS_CPU: usize = 0;

pub fn run() -> Result<Figure> {
    let mut world = World::start(Program::Track)?;
    let (mut quiet, mut loud, mut flood) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        progress::note(&format!("round {round} of {ROUNDS}"));
        quiet.push(world.probe.run_for(WATCH));
        let (times, mpps) = world.watch_loud()?;
        loud.push(times);
        flood.push(mpps);
    }
    none_lost(quiet.iter().chain(&loud))?;
    let mut ratios: Vec<f64> =
        quiet.iter().zip(&loud).map(|(quiet, loud)| loud.p99_us / quiet.p99_us).collect();
    let figures = [
        ("ratio", median(&mut ratios)),
        ("quiet_p50_us", middle(&quiet, |times| times.p50_us)),
        ("quiet_p99_us", middle(&quiet, |times| times.p99_us)),
        ("loud_p50_us", middle(&loud, |times| times.p50_us)),
        ("loud_p99_us", middle(&loud, |times| times.p99_us)),
        ("flood_mpps", median(&mut flood)),
    ];
    Ok(Figure::new(NAME, "ratio", ROUNDS, figures))
}

pub fn wait() -> Result<Figure> {
    let mut world = World::start(Program::Interactive)?;
    let (mut loud, mut flood) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        progress::note(&format!("round {round} of {ROUNDS}"));
        let (times, mpps) = world.watch_loud()?;
        loud.push(times);
        flood.push(mpps);
    }
    none_lost(loud.iter())?;
    let told = ours::status(&world.daemon)?.poll.interactive;
    ensure!(told.count > 0, "the daemon has measured no wait");
    let figures = [
        ("p50", told.p50_us as f64),
        ("p99", told.p99_us as f64),
        ("max", told.max_us as f64),
        ("frame_p50", middle(&loud, |times| times.p50_us)),
        ("frame_p99", middle(&loud, |times| times.p99_us)),
        ("flood_mpps", median(&mut flood)),
    ];
    Ok(Figure::new(WAIT, "us", ROUNDS, figures))
}

/// A daemon, two guests that are loud on demand, and two that are measured.
struct World {
    // Guests end before the daemon, and both before their files go.
    probe: Probe,
    loud: Testpmd,
    daemon: Daemon,
    _dir: Scratch,
}

impl World {
    fn start(program: Program) -> Result<Self> {
        let dir = Scratch::new("bench")?;
        let sockets: Vec<PathBuf> = (0..4).map(|number| dir.join(format!("{number}.sock"))).collect();
        let daemon = ours::start(dir.path(), &sockets, program, FLOWS)?;
        let loud = Testpmd::guests(dir.path(), &sockets[..2], Listener::Switch, stream(64, FLOWS), false)?;
        give_way(loud.pid())?;
        let end = |guest: u8| -> Result<End> {
            Ok(End { mac: mac(guest.into()).parse()?, address: Ipv4Addr::new(10, 0, 0, guest + 1) })
        };
        let probe = Probe::connect([&sockets[2], &sockets[3]], [end(2)?, end(3)?])?.on_cpu(GUESTS_CPU);
        Ok(Self { probe, loud, daemon, _dir: dir })
    }

    /// What frames take while the others are loud, and how loud they are, in millions of frames per second.
    fn watch_loud(&mut self) -> Result<(Times, f64)> {
        let before = self.loud.received()?;
        self.loud.go(None)?;
        await_frames(&mut self.loud, before + 4 * FLOWS as u64)?;
        let before = self.loud.received()?;
        let times = self.probe.run_for(WATCH);
        let mpps = (self.loud.received()? - before) as f64 / WATCH.as_secs_f64() / 1e6;
        self.loud.pause()?;
        Ok((times, mpps))
    }
}

fn none_lost<'a>(all: impl Iterator<Item = &'a Times>) -> Result<()> {
    let lost: u64 = all.map(|times| times.lost).sum();
    ensure!(lost == 0, "{lost} frames between the two were lost");
    Ok(())
}

fn middle(all: &[Times], of: fn(&Times) -> f64) -> f64 {
    median(&mut all.iter().map(of).collect::<Vec<_>>())
}
