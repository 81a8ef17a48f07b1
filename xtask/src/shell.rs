// SPDX-License-Identifier: Apache-2.0
//! Running other programs: quiet when they succeed, with their own words when they fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started, or ends with a failure: then the error holds what it wrote to standard error.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let line = line(command);
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("start `{line}`"))?;
    if !done.status.success() {
        let words = String::from_utf8_lossy(&done.stderr);
        bail!("`{line}` ended with {}\n{}", done.status, words.trim_end());
    }
    Ok(done.stdout)
}

/// As [`output`], as lines of text.
pub fn lines(command: &mut Command) -> Result<Vec<String>> {
    Ok(String::from_utf8_lossy(&output(command)?).lines().map(str::to_owned).collect())
}

/// Runs `command` with its output shown to the user.
pub fn show(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command.status().with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// The command as a person would type it, without quoting.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(std::ffi::OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Where `program` is, looking also in the folders that only root has on its path.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Makes sure that the toolchain has `component`, adding it through rustup if it is missing.
pub fn require_component(component: &str) -> Result<()> {
    let program = if component == "clippy" { "cargo-clippy" } else { component };
    if Command::new(program).arg("--version").output().is_ok_and(|done| done.status.success()) {
        return Ok(());
    }
    println!("Adding {component} to the toolchain: rustup component add {component}");
    show(Command::new("rustup").args(["component", "add", component]))
}

/// The cargo that runs us, ready for a sub-command inside `folder`.
pub fn cargo(folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(folder);
    command
}
