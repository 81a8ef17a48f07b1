// SPDX-License-Identifier: Apache-2.0
//! Instructions per frame on the switch's own path, counted by callgrind: the same on any machine at any load.
//!
//! The counts are compared with a baseline in the tree. One that has grown by more than [`GROWTH_MAX`] fails; when
//! that is meant, or the toolchain is another, `cargo xtask bench instructions --update` takes new ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{repository, shell};

/// What a count may grow by, as a part of it.
const GROWTH_MAX: f64 = 0.05;
/// Frames of the shorter of two runs, whose difference is counted.
const FRAMES: u64 = 2000;
/// Cases of the example.
const CASES: [&str; 3] = ["first-tcp", "known-tcp", "known-udp"];

/// Counts, and compares or takes new baselines. Returns how many were compared.
///
/// # Errors
/// When a count has grown, or something cannot be run.
pub fn check(update: bool) -> Result<u32> {
    let program = build("count")?;
    let mut counts = BTreeMap::new();
    for case in CASES {
        let frames = count(&program, case, 2 * FRAMES)? - count(&program, case, FRAMES)?;
        counts.insert(case, frames / FRAMES);
    }
    let toolchain = shell::lines(Command::new("rustc").arg("--version"))?.concat();
    let path = repository().join("crates/vswitch/benches/instructions.txt");
    if update {
        let lines: String = counts.iter().map(|(case, count)| format!("{case} {count}\n")).collect();
        let text = format!(
            "# Instructions per frame, by `cargo xtask bench instructions --update`.\n# {toolchain}\n{lines}"
        );
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let baseline = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut grown = Vec::new();
    for (case, count) in &counts {
        let before = baseline.lines().find_map(|line| line.strip_prefix(case)?.trim().parse::<u64>().ok());
        let before = before.with_context(|| format!("no {case} in {}", path.display()))?;
        println!("{case:<12} {count:>6} instructions a frame, {before} in the baseline");
        if *count as f64 > before as f64 * (1.0 + GROWTH_MAX) {
            grown.push(*case);
        }
    }
    if !grown.is_empty() {
        let other = if baseline.contains(&toolchain) { "" } else { " (it is of another toolchain)" };
        bail!(
            "{} take more than {:.0} % more instructions than the baseline{other}; \
             if that is meant: cargo xtask bench instructions --update",
            grown.join(", "),
            GROWTH_MAX * 100.0
        );
    }
    Ok(counts.len() as u32)
}

/// Builds one of the switch's examples as the daemon is built.
///
/// # Errors
/// When it does not compile.
pub fn build(example: &str) -> Result<PathBuf> {
    let mut cargo = shell::cargo(&repository());
    cargo.args(["build", "--locked", "--release", "--package", "vswitch", "--example", example]);
    cargo.arg("--message-format=json-render-diagnostics").stderr(std::process::Stdio::inherit());
    let messages = shell::output(&mut cargo)?;
    let executable =
        cargo_metadata::Message::parse_stream(messages.as_slice()).find_map(|message| match message {
            Ok(cargo_metadata::Message::CompilerArtifact(artifact)) => artifact.executable,
            _ => None,
        });
    Ok(executable.context("cargo names the program it built")?.into())
}

/// Instructions of one run.
fn count(program: &std::path::Path, case: &str, frames: u64) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    let done = valgrind.arg(case).arg(frames.to_string()).output().context("start valgrind")?;
    let words = String::from_utf8_lossy(&done.stderr);
    let collected = words.split("Collected : ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let collected = collected.and_then(|number| number.parse().ok()).filter(|_| done.status.success());
    collected.with_context(|| format!("valgrind did not count {case}:\n{words}"))
}
