// SPDX-License-Identifier: Apache-2.0
//! `lb_pick_ns`: choosing an endpoint for a new flow, with 10, 1,000 and 100,000 endpoints of one service: the median of
//! the example's rounds, in nanoseconds. Alone, without what a new flow costs beside, and by Maglev's table, the usual
//! method.

use std::process::Command;

use anyhow::{Context, Result};

use super::Figure;
use crate::bench::instructions;
use crate::{progress, shell};

pub const NAME: &str = "lb_pick_ns";
/// Times that the example is run: each has rounds of its own.
const RUNS: usize = 3;
const ENDPOINTS: [&str; 3] = ["10", "1000", "100000"];

pub fn run() -> Result<Figure> {
    let program = progress::step("build the example `pick`", || instructions::build("pick"))?;
    let mut picks = ENDPOINTS.map(|_| Vec::new());
    for _ in 0..RUNS {
        for (line, picks) in shell::lines(Command::new(&program).args(ENDPOINTS))?.iter().zip(&mut picks) {
            let median = line.split(' ').nth(1).and_then(|word| word.parse::<f64>().ok());
            picks.push(median.with_context(|| format!("the example says `{line}`"))?);
        }
    }
    let [ten, thousand, most] = picks.map(|mut picks| crate::bench::rounds::median(&mut picks));
    let figures = [("endpoints_10", ten), ("endpoints_1000", thousand), ("endpoints_100000", most)];
    Ok(Figure::new(NAME, "ns", RUNS, figures))
}
