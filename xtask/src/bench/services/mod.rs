// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench services`: what services cost: their virtual addresses, names, choices and failures, and what a
//! busy machine costs its neighbour.
//!
//! Each case says in its own module what is compared. Where there are two contenders they take turns, and each figure
//! is the median over the rounds.

mod backend;
mod dns;
mod neighbour;
mod pick;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Serialize;

use super::cases::{Case, Peer, Program, mpps, stream};
use crate::{demo, packages, progress, shell, test};

/// What to measure, and how.
pub struct Options {
    /// An object a line instead of a table.
    pub json: bool,
    /// Only cases with this in their name.
    pub case: Option<String>,
    pub may_install: bool,
}

/// What a case came to.
#[derive(Serialize)]
struct Figure {
    case: &'static str,
    /// By what they are of.
    figures: BTreeMap<String, f64>,
    unit: &'static str,
    rounds: usize,
    /// Whether the programs had their processors, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    steady: Option<bool>,
}

impl Figure {
    fn new<const N: usize>(
        case: &'static str,
        unit: &'static str,
        rounds: usize,
        figures: [(&str, f64); N],
    ) -> Self {
        let figures = figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { case, figures, unit, rounds, steady: None }
    }
}

/// A case, the packages it takes beside the guests', and how it is measured.
struct Measure {
    name: &'static str,
    packages: &'static [packages::Package],
    run: fn() -> Result<Figure>,
}

/// All cases, in the order of the output.
const MEASURES: [Measure; 8] = [
    Measure { name: VIP.name, packages: &packages::DPDK, run: vip },
    Measure { name: dns::ANSWERS, packages: &packages::NAMES, run: dns::answers },
    Measure { name: dns::LATENCY, packages: &packages::NAMES, run: dns::latency },
    Measure { name: pick::NAME, packages: &[], run: pick::run },
    Measure { name: backend::CLOSED, packages: &packages::GUESTS, run: backend::closed },
    Measure { name: backend::KILLED, packages: &packages::GUESTS, run: backend::killed },
    Measure { name: neighbour::NAME, packages: &packages::DPDK, run: neighbour::run },
    Measure { name: neighbour::WAIT, packages: &packages::DPDK, run: neighbour::wait },
];

/// 10,000 flows of 64-byte frames to a service's virtual address, each redirected to the one endpoint and its answers
/// back, beside the same flows to the endpoint itself. Policy and connection tracking are on for both.
const VIP: Case =
    mpps("vip_nat_64B_mpps", stream(64, 10_000), Program::Service, Peer::Ourselves(Program::Track));

/// Measures services.
///
/// # Errors
/// When a package is missing, no case has the name, or a program does not do its part.
pub fn run(options: &Options) -> Result<()> {
    demo::end_with_signals()?;
    let chosen = super::chosen(&MEASURES, |measure| measure.name, options.case.as_deref())?;
    for measure in &chosen {
        packages::require(measure.packages, options.may_install)?;
    }
    // What takes no package takes no daemon either.
    if chosen.iter().any(|measure| !measure.packages.is_empty()) {
        shell::show(&mut test::shipped())?;
    }
    super::go_ahead();
    for measure in chosen {
        progress::note(measure.name);
        let figure = (measure.run)().with_context(|| format!("case {}", measure.name))?;
        if options.json {
            println!("{}", serde_json::to_string(&figure)?);
        } else {
            let Figure { case, figures, unit, rounds, steady } = figure;
            let unsteady = if steady == Some(false) { ", unsteady" } else { "" };
            println!("{case}, in {unit}, {rounds} rounds{unsteady}");
            for (name, value) in figures {
                println!("  {name:<20} {value:>14.2}");
            }
        }
    }
    Ok(())
}

fn vip() -> Result<Figure> {
    let figure = super::figure(&VIP, false, super::ROUNDS_MAX.get())?;
    let (plain, ratio) = (figure.peer.unwrap_or(f64::NAN), figure.ratio.unwrap_or(f64::NAN));
    let figures = [("service", figure.ours), ("plain", plain), ("ratio", ratio)];
    let steady = Some(figure.steady);
    Ok(Figure { steady, ..Figure::new(VIP.name, VIP.unit, figure.rounds, figures) })
}
