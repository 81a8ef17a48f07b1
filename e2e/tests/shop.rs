// SPDX-License-Identifier: Apache-2.0
//! Runs the story and every scenario in one world, since booting it is what costs time.
//!
//! `cargo test -p e2e --test shop [NAME]...` runs those whose names contain one of the words. Needs the guests
//! (`cargo xtask guests`) and the shipped programs (`cargo build --release -p hostd -p meshctl`).

use std::process::ExitCode;

use anyhow::{Result, bail};
use e2e::scenarios::SCENARIOS;
use e2e::story::STORY;
use e2e::{Chapter, Report, Shop};
use testkit::accel;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut report = Report::default();
    if let Err(error) = run(&words, &mut report) {
        report.fail("could not begin", &error);
    }
    println!();
    for failure in &report.failures {
        println!("failed: {}", failure.replace('\n', " "));
    }
    let verdict = if report.failed == 0 { "ok" } else { "FAILED" };
    // In the words of other test programs, so that they can be counted alike.
    println!("test result: {verdict}. {} passed; {} failed; 0 ignored", report.passed, report.failed);
    if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(words: &[String], report: &mut Report) -> Result<()> {
    let chosen: Vec<_> = chapters().filter(|(_, chapter)| chosen_by(words, chapter)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = chapters().map(|(_, chapter)| chapter.name).collect();
        bail!("no story or scenario is named {}; there are\n  {}", words.join(" or "), names.join("\n  "));
    }
    let choice = accel::choose()?;
    println!("{}", choice.reason);
    let mut shop = Shop::open(choice.accel)?;
    for (index, chapter) in chosen {
        let failed = report.failed;
        report.chapter(index + 1, chapter, &mut shop);
        if report.failed > failed {
            println!("{}", shop.reports());
        }
    }
    Ok(())
}

fn chapters() -> impl Iterator<Item = (usize, &'static Chapter)> {
    STORY.iter().chain(SCENARIOS).enumerate()
}

fn chosen_by(words: &[String], chapter: &Chapter) -> bool {
    words.is_empty() || words.iter().any(|word| chapter.name.contains(word.as_str()))
}
