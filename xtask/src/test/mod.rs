// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask test`: everything that must hold before a change goes in.
//!
//! Every step runs, whatever became of those before it. The last line says how many checks passed and failed; a
//! step that runs tests counts each of them, any other step counts as one.

mod edges;
mod fuzz;
mod hygiene;
mod tally;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{bench, collector, guests, packages, repository, shell};
use tally::Tally;

/// Crates outside the workspace, each with a lock file of its own.
const APART: [&str; 2] = ["guests/workload", "fuzz"];

/// What to leave out.
#[derive(Clone, Copy)]
pub struct Options {
    /// Neither fuzzing nor virtual machines.
    pub quick: bool,
    /// Do not install what is missing.
    pub no_install: bool,
}

/// One step: what to call it, and what it does.
type Step = (&'static str, fn(Options) -> Result<Tally>);

/// What must hold before a push: seconds to a minute.
const CHEAP: [Step; 6] = [
    ("format", |_| format()),
    ("lock files", |_| locks()),
    ("crate graph", |_| edges::check()),
    ("hygiene", |_| hygiene::check()),
    ("lints", |_| lints()),
    ("unit and property tests", units),
];
/// What `--quick` leaves out.
const THOROUGH: [Step; 5] = [
    ("documentation", |_| documentation()),
    ("instructions per frame", instructions),
    ("dependencies", |_| dependencies()),
    ("fuzzing", fuzz::run),
    ("real virtual machines", machines),
];

/// Runs every step, or the cheap ones.
pub fn run(options: Options) -> Result<()> {
    let thorough = if options.quick { &[][..] } else { &THOROUGH };
    let mut total = perform(&CHEAP, options);
    total.add(perform(thorough, options));
    if options.quick {
        total.skipped.extend(THOROUGH.iter().map(|(name, _)| format!("{name}: left out by --quick")));
    }
    conclude(&total)
}

/// Searches for inputs that break a target.
pub fn fuzz(target: Option<&str>, seconds: u32) -> Result<()> {
    conclude(&fuzz::run_for(seconds, target, false)?)
}

/// Runs the cheap steps only.
pub fn prepush() -> Result<()> {
    conclude(&perform(&CHEAP, Options { quick: true, no_install: true }))
}

fn perform(steps: &[Step], options: Options) -> Tally {
    let mut total = Tally::default();
    for (name, step) in steps {
        println!("=== {name}");
        let started = Instant::now();
        let tally = step(options).unwrap_or_else(|error| {
            println!("{error:#}");
            Tally::failed(format!("{name}: {error:#}"))
        });
        let verdict = if tally.failed == 0 { "ok" } else { "FAILED" };
        println!("--- {name}: {verdict}, {} in {:.1} s\n", tally, started.elapsed().as_secs_f64());
        total.add(tally);
    }
    total
}

fn conclude(total: &Tally) -> Result<()> {
    for reason in &total.skipped {
        println!("skipped: {reason}");
    }
    for what in &total.failures {
        println!("failed: {what}");
    }
    println!("{total}");
    if total.failed > 0 {
        bail!("{} checks failed", total.failed);
    }
    Ok(())
}

fn format() -> Result<Tally> {
    shell::require_component("rustfmt")?;
    shell::show(shell::cargo(&repository()).args(["fmt", "--all", "--check"]))?;
    for folder in APART {
        shell::show(shell::cargo(&repository().join(folder)).args(["fmt", "--check"]))?;
    }
    Ok(Tally::passed(1))
}

/// A dependency that was added to a crate also changes the locks of the crates apart that use it.
fn locks() -> Result<Tally> {
    for folder in ["."].into_iter().chain(APART) {
        let folder = repository().join(folder);
        let mut cargo = shell::cargo(&folder);
        cargo.args(["metadata", "--locked", "--format-version", "1"]);
        let help = format!("run `cargo update --workspace` in {}", folder.display());
        shell::output(&mut cargo).context(help)?;
    }
    Ok(Tally::passed(1))
}

fn lints() -> Result<Tally> {
    shell::require_component("clippy")?;
    let clippy = ["clippy", "--locked", "--all-targets"];
    let deny = ["--", "--deny", "warnings"];
    shell::show(shell::cargo(&repository()).args(clippy).arg("--workspace").args(deny))?;
    Ok(Tally::passed(1))
}

/// Every test that needs neither root nor a virtual machine.
fn units(options: Options) -> Result<Tally> {
    // Whoever only looks, as before a push, may go without; the tests themselves say what they leave out.
    let needed = packages::require(&[packages::COLLECTOR], !options.no_install);
    for lack in [needed, collector::require(!options.no_install)].into_iter().filter_map(Result::err) {
        eprintln!("{lack:#}");
    }
    let mut cargo = shell::cargo(&repository());
    cargo.args(["test", "--locked", "--workspace", "--exclude", "e2e", "--no-fail-fast"]);
    cargo.args(["--lib", "--bins", "--tests", "--examples"]);
    tally::of_tests(&mut cargo)
}

/// Instructions per frame have not grown.
fn instructions(options: Options) -> Result<Tally> {
    if packages::require(&[packages::VALGRIND], !options.no_install).is_err() {
        return Ok(Tally::skipped("instructions per frame: valgrind is not installed"));
    }
    Ok(Tally::passed(bench::instructions::check(false)?))
}

/// Examples in the documentation run, and its links lead somewhere.
fn documentation() -> Result<Tally> {
    let mut examples = shell::cargo(&repository());
    examples.args(["test", "--locked", "--workspace", "--doc", "--no-fail-fast"]);
    let mut tally = tally::of_tests(&mut examples)?;
    let mut cargo = shell::cargo(&repository());
    cargo.args(["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"]);
    // Private items are documented too, so links to them lead somewhere.
    let flags = "--deny warnings --allow rustdoc::private_intra_doc_links";
    shell::show(cargo.env("RUSTDOCFLAGS", flags))?;
    tally.add(Tally::passed(1));
    Ok(tally)
}

/// Licences, sources and duplicates of dependencies, where cargo-deny is installed.
fn dependencies() -> Result<Tally> {
    if Command::new("cargo-deny").arg("--version").output().is_err() {
        return Ok(Tally::skipped("dependencies: cargo-deny is not installed (cargo install cargo-deny)"));
    }
    let mut cargo = shell::cargo(&repository());
    shell::show(cargo.args(["deny", "--offline", "check", "bans", "licenses", "sources"]))?;
    Ok(Tally::passed(1))
}

/// Scenarios on real virtual machines, against the daemon as it ships.
fn machines(options: Options) -> Result<Tally> {
    packages::require(&packages::GUESTS, !options.no_install)?;
    // The scenarios that need them say so when they are not there.
    let _ = collector::require(!options.no_install);
    let _ = packages::require(&[packages::ANALYSER], !options.no_install);
    let _ = packages::require(&packages::DPDK, !options.no_install);
    guests::build(false)?;
    guests::get_newer_vmm(false);
    shell::show(&mut shipped())?;
    tally::of_tests(shell::cargo(&repository()).args([
        "test",
        "--locked",
        "--package",
        "e2e",
        "--no-fail-fast",
    ]))
}

/// Builds the shipped programs as they ship.
pub fn shipped() -> Command {
    let mut cargo = shell::cargo(&repository());
    cargo.args(["build", "--locked", "--release", "--package", "hostd", "--package", "meshctl"]);
    cargo
}
