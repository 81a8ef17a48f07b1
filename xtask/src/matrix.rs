// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask matrix`: boots one kernel after another under the daemon as it ships, and compares what it tells with
//! the truth. Takes about half a minute for each case, and downloads some 150 MB the first time.

use std::time::Instant;

use anyhow::{Result, bail};
use e2e::Report;
use e2e::matrix::{CASES, Case, Matrix, Outcome, Score};
use serde_json::json;
use testkit::accel;

use crate::{guests, packages, repository, shell, test};

/// What to run, and how to tell it.
#[derive(clap::Args)]
pub struct Options {
    /// Only cases whose kernel's name contains this, such as `6.12` or `rt`.
    #[arg(long)]
    kernel: Option<String>,
    /// Only cases whose name contains this, such as `nokaslr`.
    #[arg(long)]
    case: Option<String>,
    /// Print an object a line instead of a table; what happens meanwhile goes to standard error.
    #[arg(long)]
    json: bool,
    /// Look for newer kernels even if some were downloaded before.
    #[arg(long)]
    renew: bool,
    /// Only list missing packages, and fail if there are any.
    #[arg(long)]
    no_install: bool,
}

/// Runs the chosen cases.
pub fn run(options: &Options) -> Result<()> {
    let fits = |filter: &Option<String>, name: &str| filter.as_ref().is_none_or(|part| name.contains(part));
    let chosen = CASES
        .iter()
        .filter(|case| fits(&options.kernel, case.kernel.name()) && fits(&options.case, case.name));
    let chosen: Vec<&Case> = chosen.collect();
    if chosen.is_empty() {
        bail!("no case fits; there are {}", CASES.map(|case| case.name).join(", "));
    }
    packages::require(&packages::GUESTS, !options.no_install)?;
    guests::build(false)?;
    for kernel in e2e::matrix::kernels(&chosen) {
        guests::build_kernel(kernel, options.renew)?;
    }
    shell::show(&mut test::shipped())?;
    shell::show(shell::cargo(&repository()).args([
        "build",
        "--quiet",
        "--release",
        "-p",
        "vmi",
        "--example",
        "ram",
    ]))?;
    let mut report = Report::new(options.json);
    let accelerator = accel::choose()?;
    report.line(&accelerator.reason);
    let mut matrix = Matrix::open(accelerator.accel)?;
    let mut rows = Vec::new();
    for (number, case) in (1..).zip(&chosen) {
        report.line(&format!("\n{number} of {}: {}", chosen.len(), case.name));
        let (started, failed) = (Instant::now(), report.failed);
        let outcome = matrix.run(case, &mut report).unwrap_or_else(|error| {
            report.check("it could go on", Err::<&str, _>(error));
            Outcome::default()
        });
        let failed = report.failed - failed;
        report.line(&format!("   {:.0} s", started.elapsed().as_secs_f64()));
        if options.json {
            println!("{}", object(case, &outcome, failed));
        }
        rows.push((case.name, outcome, failed));
    }
    if !options.json {
        print_table(&rows);
    }
    if report.failed > 0 {
        bail!("{} claims did not hold", report.failed);
    }
    Ok(())
}

fn object(case: &Case, outcome: &Outcome, failed: u32) -> serde_json::Value {
    let score = |score: &Score| {
        json!({
            "connections": score.all(), "right": score.right, "wrong": score.wrong, "unknown": score.unknown,
            "precision": score.precision(), "recall": score.recall(),
        })
    };
    json!({
        "case": case.name, "kernel": outcome.release, "failedClaims": failed, "bootS": outcome.boot_s,
        "attachMs": outcome.attach_ms, "connectionsPerS": outcome.connections_per_s,
        "forksPerS": outcome.forks_per_s, "storm": score(&outcome.storm), "changedHands": score(&outcome.twists),
    })
}

fn print_table(rows: &[(&str, Outcome, u32)]) {
    println!(
        "\n{:24} {:>7} {:>9} {:>7} {:>7} {:>6} {:>6} {:>7} {:>9} {:>6} {:>5} FAILED",
        "CASE",
        "BOOT_S",
        "ATTACH_MS",
        "CONN/S",
        "FORKS/S",
        "CONNS",
        "WRONG",
        "UNKNOWN",
        "PRECISION",
        "RECALL",
        "TWISTS"
    );
    for (name, outcome, failed) in rows {
        let (storm, twists) = (&outcome.storm, &outcome.twists);
        println!(
            "{name:24} {:>7.1} {:>9.0} {:>7.0} {:>7.0} {:>6} {:>6} {:>7} {:>9.4} {:>6.4} {:>3}/{} {failed}",
            outcome.boot_s,
            outcome.attach_ms,
            outcome.connections_per_s,
            outcome.forks_per_s,
            storm.all(),
            storm.wrong + twists.wrong,
            storm.unknown + twists.unknown,
            storm.precision(),
            storm.recall(),
            twists.right,
            twists.all(),
        );
    }
}
