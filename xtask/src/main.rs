// SPDX-License-Identifier: Apache-2.0
//! The project's own tasks: `cargo xtask <task>`.
//!
//! Invariants: a task installs or names what it lacks, shows what it waits for, and leaves nothing behind but
//! files below the target folder.
//!
//! Deliberately absent: anything the shipped programs need; they never depend on this crate.
#![forbid(unsafe_code)]

mod bench;
mod collector;
mod demo;
mod guests;
mod matrix;
mod packages;
mod progress;
mod shell;
mod soak;
mod test;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Tasks of the project.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Show the mesh on four real virtual machines, checking every line of the story.
    Demo {
        /// Tear everything down afterwards instead of staying up.
        #[arg(long)]
        once: bool,
        /// Only list missing packages, and fail if there are any.
        #[arg(long)]
        no_install: bool,
    },
    /// Make the guest kernels and image that demo and tests boot, and get a newer QEMU for tests.
    Guests {
        /// Only list missing packages, and fail if there are any.
        #[arg(long)]
        no_install: bool,
        /// Look for newer kernels and programs even if a complete set is there.
        #[arg(long)]
        renew: bool,
    },
    /// Run every check and test; installs what that needs.
    Test {
        /// Leave out documentation, fuzzing and virtual machines.
        #[arg(long)]
        quick: bool,
        /// Only list missing packages, and fail if there are any.
        #[arg(long)]
        no_install: bool,
    },
    /// What must hold before a push: format, lints, unit tests.
    Prepush,
    /// Take figures.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        what: Bench,
        /// Print an object a line instead of a table.
        #[arg(long, global = true)]
        json: bool,
        /// Only list missing packages, and fail if there are any.
        #[arg(long, global = true)]
        no_install: bool,
    },
    /// Watch for a long time what must never happen.
    Soak {
        /// What to watch.
        #[command(subcommand)]
        what: Soak,
        /// Only list missing packages, and fail if there are any.
        #[arg(long, global = true)]
        no_install: bool,
    },
    /// Compare what is read from RAM with the truth, on every kernel from the oldest supported to the newest packaged.
    Matrix(matrix::Options),
    /// Search for inputs that break a parser.
    Fuzz {
        /// The target; all of them if absent.
        target: Option<String>,
        /// How long to search, per target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// The daemon between guests of dpdk-testpmd.
    Switch {
        /// Take turns with Open vSwitch, which is installed for it.
        #[arg(long)]
        peers: bool,
        /// Only cases with this in their name.
        #[arg(long)]
        case: Option<String>,
        /// Most rounds of a case; fewer if five were steady.
        #[arg(long, default_value_t = bench::ROUNDS_MAX)]
        rounds: NonZeroUsize,
    },
    /// What services cost: virtual addresses, names, choices, failures, neighbours.
    #[command(after_help = SERVICES_EXAMPLES)]
    Services {
        /// Only cases with this in their name.
        #[arg(long)]
        case: Option<String>,
    },
    /// What looking into guests costs: attaching, first verdicts, views, memory; on real machines, in some minutes.
    Introspect,
    /// Instructions per frame, compared with the baseline in the tree.
    Instructions {
        /// Take these as the new baseline.
        #[arg(long)]
        update: bool,
    },
}

const SERVICES_EXAMPLES: &str = "\
Cases: vip_nat_64B_mpps, dns_answers_per_s, dns_latency_us, lb_pick_ns, backend_out_ms, backend_killed_ms,
neighbour_p99_ratio, interactive_wait_us.
Each takes up to two minutes, and two processors that do nothing else.

Examples:
  cargo xtask bench services --json               all cases, an object a line
  cargo xtask bench services --case dns           what names cost, beside dnsmasq
  cargo xtask bench services --case lb_pick_ns    no packages, no guests";

#[derive(Subcommand)]
enum Soak {
    /// End and start the daemon under open connections, some two seconds a time; ends with a JSON object.
    Handover {
        /// How often by SIGKILL.
        #[arg(long, default_value_t = 100)]
        kills: u32,
        /// How often in order, as an upgrade does.
        #[arg(long, default_value_t = 20)]
        upgrades: u32,
    },
    /// That nobody notices machines that start over, policies that change every second, and a guest that sends and does
    /// whatever it likes; prints a JSON object, fails on loss, delay or growth.
    Switch {
        /// How long to make noise.
        #[arg(long, default_value_t = 10)]
        minutes: u32,
    },
    /// That no threat is found in busy guests of every kernel; prints a JSON object, fails on any finding.
    Threats {
        /// How long to watch.
        #[arg(long, default_value_t = 60)]
        minutes: u32,
        /// Leave the guests idle, to see what inspection costs.
        #[arg(long)]
        idle: bool,
    },
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Demo { once, no_install } => demo::run(once, no_install),
        Task::Guests { no_install, renew } => {
            packages::require(&packages::GUESTS, !no_install)?;
            guests::build(renew)?;
            guests::get_newer_vmm(renew);
            println!("The guests are in {}", testkit::guests::folder().display());
            Ok(())
        }
        Task::Test { quick, no_install } => test::run(test::Options { quick, no_install }),
        Task::Prepush => test::prepush(),
        Task::Bench { what: Bench::Switch { peers, case, rounds }, json, no_install } => {
            let options =
                bench::Options { json, peers, case, rounds_max: rounds.get(), may_install: !no_install };
            bench::switch(&options)
        }
        Task::Soak { what: Soak::Handover { kills, upgrades }, no_install } => {
            soak::handover::run(kills, upgrades, no_install)
        }
        Task::Soak { what: Soak::Switch { minutes }, no_install } => soak::switch::run(minutes, no_install),
        Task::Soak { what: Soak::Threats { minutes, idle }, no_install } => {
            soak::threats(minutes, idle, no_install)
        }
        Task::Bench { what: Bench::Services { case }, json, no_install } => {
            bench::services::run(&bench::services::Options { json, case, may_install: !no_install })
        }
        Task::Bench { what: Bench::Introspect, json, no_install } => bench::introspect(json, no_install),
        Task::Bench { what: Bench::Instructions { update }, no_install, .. } => {
            packages::require(&[packages::VALGRIND], !no_install)?;
            bench::instructions::check(update).map(drop)
        }
        Task::Matrix(options) => matrix::run(&options),
        Task::Fuzz { target, seconds } => test::fuzz(target.as_deref(), seconds),
    }
}

/// The root of the checkout.
pub fn repository() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or_else(|| own.clone(), PathBuf::from)
}
