// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench`: figures that anyone can take again.
//!
//! `switch` runs the daemon as it ships, policy and connection tracking on, between guests of DPDK's `testpmd`
//! (virtio-user, frames looped from memory). Generator on CPU 0, poll thread on CPU 1. With `--peers`, Open vSwitch
//! does the same work in turns with it, and so do bare back ends that decide nothing: nobody can be faster.
//!
//! `introspect` boots machines and times what the daemon reads of them; `services` measures what services cost: see the
//! modules.

mod cases;
pub mod instructions;
mod introspect;
mod ours;
mod ovs;
mod pcap;
mod rounds;
pub mod services;
mod testpmd;
mod world;

use std::fs;
use std::num::NonZeroUsize;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use self::cases::{CASES, Case, Load, Peer};
pub use self::introspect::run as introspect;
use self::rounds::{Contender, Sample, measure, median, probe};
use crate::{demo, packages, shell, test};

/// Rounds that must have been steady.
const ROUNDS: usize = 5;
/// Rounds tried for that, unless said.
pub const ROUNDS_MAX: NonZeroUsize = NonZeroUsize::new(12).unwrap();
/// How much the probes before and after a round may differ.
const PROBE_RATIO_MAX: f64 = 1.3;

/// What to measure, and how.
pub struct Options {
    /// An object a line instead of a table.
    pub json: bool,
    /// Beside other switches, which are installed for it.
    pub peers: bool,
    /// Only cases with this in their name.
    pub case: Option<String>,
    /// Most rounds of a case.
    pub rounds_max: usize,
    pub may_install: bool,
}

/// What a case came to.
#[derive(Serialize)]
struct Figure {
    case: &'static str,
    /// Median over the rounds.
    ours: f64,
    peer: Option<f64>,
    /// Median of the rounds' own ratios of ours to the peer's.
    ratio: Option<f64>,
    /// Ratio of the best windows of all rounds: what each can do when the machine is at its best.
    best_ratio: Option<f64>,
    best_ours: Option<f64>,
    best_peer: Option<f64>,
    /// What bare back ends come to under the same load: as much as the generator and the rings allow.
    bare: Option<f64>,
    unit: &'static str,
    rounds: usize,
    /// Whether enough rounds were: otherwise all were taken, and other work on the machine is in the figures.
    steady: bool,
}

/// Measures the switch.
///
/// # Errors
/// When a package is missing, no case has the name, or a program does not do its part.
pub fn switch(options: &Options) -> Result<()> {
    let cases = chosen(&CASES, |case| case.name, options.case.as_deref())?;
    demo::end_with_signals()?;
    packages::require(&packages::DPDK, options.may_install)?;
    if options.peers {
        packages::require(&packages::PEERS, options.may_install)?;
    }
    shell::show(&mut test::shipped())?;
    go_ahead();
    if !options.json {
        println!(
            "{:<32} {:>12} {:>12} {:>7} {:>7} {:>12}  unit     rounds",
            "case", "ours", "peer", "ratio", "best", "bare"
        );
    }
    for case in cases {
        let figure =
            figure(case, options.peers, options.rounds_max).with_context(|| format!("case {}", case.name))?;
        if options.json {
            println!("{}", serde_json::to_string(&figure)?);
        } else {
            let Figure { case, ours, unit, rounds, steady, .. } = figure;
            let shown =
                |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
            let [peer, ratio, best, bare] =
                [figure.peer, figure.ratio, figure.best_ratio, figure.bare].map(shown);
            let unsteady = if steady { "" } else { " unsteady" };
            println!(
                "{case:<32} {ours:>12.2} {peer:>12} {ratio:>7} {best:>7} {bare:>12}  {unit:<8} {rounds}{unsteady}"
            );
        }
    }
    Ok(())
}

/// The cases with `part` in their name; all, if nothing is said.
fn chosen<'c, C>(all: &'c [C], name: impl Fn(&C) -> &str, part: Option<&str>) -> Result<Vec<&'c C>> {
    let part = part.unwrap_or_default();
    let chosen: Vec<&C> = all.iter().filter(|case| name(case).contains(part)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = all.iter().map(name).collect();
        bail!("no case has `{part}` in its name: {}", names.join(", "));
    }
    Ok(chosen)
}

/// Ahead of other groups of processes, where that is allowed: plain niceness has no effect between groups.
fn go_ahead() {
    let _ = fs::write("/proc/self/autogroup", "-20");
}

/// One round: ours, and the others' where there are some.
struct Round {
    ours: Sample,
    peer: Option<Sample>,
    bare: Option<Sample>,
    steady: bool,
}

fn figure(case: &Case, peers: bool, rounds_max: usize) -> Result<Figure> {
    let peer = match case.peer {
        Peer::Ovs(program) if peers => Some(Contender::Ovs(program)),
        Peer::Ourselves(program) => Some(Contender::Ours(program)),
        Peer::Ovs(_) | Peer::Nobody => None,
    };
    let mut rounds: Vec<Round> = Vec::new();
    let steady = |rounds: &[Round]| rounds.iter().filter(|round| round.steady).count() >= ROUNDS;
    while rounds.len() < rounds_max && !steady(&rounds) {
        eprintln!("{}: round {} of at most {rounds_max}", case.name, rounds.len() + 1);
        rounds.push(round(case, peer, peers)?);
    }
    let enough = steady(&rounds);
    if enough {
        rounds.retain(|round| round.steady);
    }
    let middle = |of: fn(&Round) -> Option<f64>| {
        let mut values: Vec<f64> = rounds.iter().filter_map(of).collect();
        (!values.is_empty()).then(|| median(&mut values))
    };
    let better = if case.is_less_better() { f64::min } else { f64::max };
    let best = |of: fn(&Round) -> Option<f64>| rounds.iter().filter_map(of).reduce(better);
    let (best_ours, best_peer) = (best(|round| Some(round.ours.best)), best(|round| Some(round.peer?.best)));
    Ok(Figure {
        case: case.name,
        ours: middle(|round| Some(round.ours.value)).unwrap_or(f64::NAN),
        peer: middle(|round| Some(round.peer?.value)),
        ratio: middle(|round| Some(round.ours.value / round.peer?.value)),
        best_ratio: best_ours.zip(best_peer).map(|(ours, peer)| ours / peer),
        best_ours,
        best_peer,
        bare: middle(|round| Some(round.bare?.value)),
        unit: case.unit,
        rounds: rounds.len(),
        steady: enough,
    })
}

fn round(case: &Case, peer: Option<Contender>, probed: bool) -> Result<Round> {
    let before = if probed { probe()? } else { 1.0 };
    let ours = measure(Contender::Ours(case.ours), case.load)?;
    let peer = peer.map(|peer| measure(peer, case.load)).transpose()?;
    let compares = matches!(case.load, Load::Stream { in_bits: false, .. });
    let bare = (probed && compares).then(|| measure(Contender::Bare, case.load)).transpose()?;
    let after = if probed { probe()? } else { 1.0 };
    let even = before.max(after) / before.min(after) <= PROBE_RATIO_MAX;
    let steady = ours.steady && even && peer.is_none_or(|sample| sample.steady);
    Ok(Round { ours, peer, bare, steady })
}
