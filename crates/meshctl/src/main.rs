// SPDX-License-Identifier: Apache-2.0
//! `meshctl`: questions to a host's daemon, and the check of manifests before it sees them.
//!
//! Everything but `policy check` is one request over the admin socket (`api::admin`) and its rendering:
//! tables and stories for people, JSON for programs.
//!
//! Invariants:
//! - What a guest can choose (process names, paths) never reaches a terminal unescaped; all text
//!   goes through [`text`].
//! - Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
//! - Colour only on a terminal, and not there if `NO_COLOR` is set.
//!
//! Besides `api` it uses `policy` and `model`: `policy check` has to find what is wrong with a set of
//! manifests in a CI job, where no daemon runs, and must find exactly what the daemon would.
//!
//! Deliberately absent: any decision about flows, and any state.
#![forbid(unsafe_code)]

mod check;
mod cli;
mod output;
mod query;
mod render;
mod text;
mod top;
mod usage;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command, PolicyCommand};
use crate::output::Output;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.output);
    let done = match &cli.command {
        Command::Policy { command: PolicyCommand::Check { paths } } => check::run(paths, &output),
        command => query::run(command, &cli.socket(), &output),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader has had enough, as in `meshctl flow watch | head`.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", output::failure(&error));
            ExitCode::FAILURE
        }
    }
}
