// SPDX-License-Identifier: Apache-2.0
//! `neighbour_p99_ratio`: how much longer frames take between two guests while two others send as fast as they can.
//!
//! All four are served by one poll core. Those that are measured are driven from here and send a frame every 5 ms; from
//! its being in the ring to its being in the other's memory is what counts, and how long 99 of 100 take at most. The
//! others are DPDK's `testpmd` with 64-byte frames of 10,000 flows, both ways, at the lowest priority: this is about the
//! switch, not about the host's scheduler. Quiet and loud take turns.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::soak::{End, Probe, Times, give_way};
use testkit::scratch::Scratch;

use super::Figure;
use crate::bench::cases::{Program, stream};
use crate::bench::rounds::median;
use crate::bench::testpmd::{Listener, Testpmd, mac};
use crate::bench::{ours, rounds};
use crate::progress;

pub const NAME: &str = "neighbour_p99_ratio";
const ROUNDS: usize = 5;
/// How long the guests are watched, quiet and loud, in each round: a thousand frames.
const WATCH: Duration = Duration::from_secs(5);
const FLOWS: usize = 10_000;

pub fn run() -> Result<Figure> {
    let dir = Scratch::new("bench")?;
    let sockets: Vec<PathBuf> = (0..4).map(|number| dir.join(format!("{number}.sock"))).collect();
    let _daemon = ours::start(dir.path(), &sockets, Program::Track, FLOWS)?;
    let mut loud_guests =
        Testpmd::guests(dir.path(), &sockets[..2], Listener::Switch, stream(64, FLOWS), false)?;
    give_way(loud_guests.pid())?;
    let end = |guest: usize| -> Result<End> {
        Ok(End { mac: mac(guest).parse()?, address: std::net::Ipv4Addr::new(10, 0, 0, guest as u8 + 1) })
    };
    let mut probe = Probe::connect([&sockets[2], &sockets[3]], [end(2)?, end(3)?])?;
    let (mut quiet, mut loud): (Vec<Times>, Vec<Times>) = (Vec::new(), Vec::new());
    let mut flood = Vec::new();
    for round in 1..=ROUNDS {
        progress::note(&format!("round {round} of {ROUNDS}"));
        quiet.push(probe.run_for(WATCH));
        let before = loud_guests.received()?;
        loud_guests.go(None)?;
        rounds::await_frames(&mut loud_guests, before + 4 * FLOWS as u64)?;
        let before = loud_guests.received()?;
        loud.push(probe.run_for(WATCH));
        flood.push((loud_guests.received()? - before) as f64 / WATCH.as_secs_f64() / 1e6);
        loud_guests.pause()?;
    }
    let lost: u64 = quiet.iter().chain(&loud).map(|times| times.lost).sum();
    ensure!(lost == 0, "{lost} frames between the two were lost");
    let middle =
        |times: &[Times], of: fn(&Times) -> f64| median(&mut times.iter().map(of).collect::<Vec<_>>());
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
