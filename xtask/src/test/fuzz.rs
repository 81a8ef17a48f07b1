// SPDX-License-Identifier: Apache-2.0
//! Short runs of the fuzz targets, with nothing but the stable compiler.
//!
//! libFuzzer needs the code to count which branches it takes. The compiler can add those counters through a pass of
//! LLVM; the flags are those that cargo-fuzz passes, without the sanitizers that only the nightly compiler has. They
//! go to the code for the machine named as target, so build scripts stay without them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Options;
use super::tally::Tally;
use crate::{packages, progress, repository, shell};

/// How long each target runs, in seconds, when everything is tested.
const SECONDS: u32 = 10;
/// Longest input, in bytes; a RAM image is made of a much shorter description.
const INPUT_BYTES_MAX: u32 = 4096;
/// One input may take this long, in seconds; all of them should take microseconds.
const INPUT_SECONDS_MAX: u32 = 5;
/// Memory that a target may use, in MiB.
const MEMORY_MIB_MAX: u32 = 1024;
/// The machine that targets are built for: ours, but named.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What makes the compiler count.
const FLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Runs each target for a short while.
pub fn run(options: Options) -> Result<Tally> {
    run_for(SECONDS, None, options.no_install)
}

/// Runs all targets, or the one named, for `seconds` each.
pub fn run_for(seconds: u32, only: Option<&str>, no_install: bool) -> Result<Tally> {
    packages::require(&[packages::COMPILER], !no_install)?;
    let folder = repository().join("fuzz");
    let out = testkit::guests::folder().with_file_name("fuzz");
    progress::step("build the fuzz targets", || build(&folder, &out))?;
    let mut tally = Tally::default();
    for target in targets(&folder)? {
        if only.is_some_and(|only| only != target) {
            continue;
        }
        let outcome = fuzz(&folder, &out, &target, seconds);
        match outcome {
            Ok(summary) => {
                println!("  {target}: {summary}");
                tally.add(Tally::passed(1));
            }
            Err(error) => {
                println!("  {target}: {error:#}");
                tally.add(Tally::failed(format!("fuzz target {target}")));
            }
        }
    }
    if tally == Tally::default() {
        bail!("no fuzz target was run");
    }
    Ok(tally)
}

/// Builds every target, with debug assertions on: an overflow is a finding too.
fn build(folder: &Path, out: &Path) -> Result<()> {
    let mut cargo = shell::cargo(folder);
    cargo.args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"]).arg(out);
    cargo.env("RUSTFLAGS", FLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    shell::output(&mut cargo).map(drop)
}

/// The targets' names: one file each.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.join("targets")).context("list the fuzz targets")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// Replays the inputs that were kept, then searches from them; returns libFuzzer's last count.
fn fuzz(folder: &Path, out: &Path, target: &str, seconds: u32) -> Result<String> {
    let program = out.join(TARGET).join("release").join(target);
    let (corpus, artifacts) = (out.join("corpus").join(target), out.join("artifacts").join(target));
    let mut command = Command::new(&program);
    for made in [&corpus, &artifacts] {
        fs::create_dir_all(made).with_context(|| format!("make {}", made.display()))?;
    }
    // New inputs go to the first folder; those under version control are only read.
    command.arg(&corpus);
    let kept = folder.join("inputs").join(target);
    if kept.is_dir() {
        command.arg(kept);
    }
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={INPUT_BYTES_MAX}"),
        format!("-timeout={INPUT_SECONDS_MAX}"),
        format!("-rss_limit_mb={MEMORY_MIB_MAX}"),
        format!("-artifact_prefix={}/", artifacts.display()),
        "-print_final_stats=1".into(),
    ]);
    let done = command.output().with_context(|| format!("start {}", program.display()))?;
    let words = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() {
        let tail: Vec<&str> = words.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("found something; keep the input in fuzz/inputs/{target}\n{}", tail.join("\n"));
    }
    summary(&words)
}

/// What a run reached: branches covered and inputs tried. A run that covered nothing counted nothing.
fn summary(words: &str) -> Result<String> {
    let covered = words.lines().rev().find_map(|line| {
        let (_, after) = line.split_once(" cov: ")?;
        after.split(' ').next()?.parse::<u32>().ok()
    });
    let covered = covered.filter(|count| *count > 0).context("the branches taken were not counted")?;
    let runs = words.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    Ok(format!("{covered} branches covered in {} runs", runs.unwrap_or("?").trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_coverage_does_not_pass() {
        let good = "#9 DONE cov: 41 ft: 90 corp: 3/9b\nstat::number_of_executed_units: 9\n";
        assert_eq!(summary(good).expect("counted"), "41 branches covered in 9 runs");
        assert!(summary("#9 DONE cov: 0 ft: 0 corp: 1/1b").is_err());
        assert!(summary("").is_err());
    }
}
