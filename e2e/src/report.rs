// SPDX-License-Identifier: Apache-2.0
//! One line for each claim, as it is checked, and the count of them.

use std::fmt::Display;

use anyhow::Result;

use crate::{Chapter, Shop};

/// What was claimed and what became of it. Prints as it goes.
#[derive(Debug, Default)]
pub struct Report {
    /// Claims that held.
    pub passed: u32,
    /// Claims that did not, and chapters that could not go on.
    pub failed: u32,
    /// Those, each with where it was claimed and why it does not hold.
    pub failures: Vec<String>,
    /// What the chapter that runs is called.
    title: &'static str,
    /// Prints to standard error, because standard output is for something else.
    is_aside: bool,
}

impl Report {
    /// Reports on standard error if standard output is for something else.
    pub fn new(is_aside: bool) -> Self {
        Self { is_aside, ..Self::default() }
    }

    /// Runs a chapter under its title. Errors count as a failed claim.
    pub fn chapter(&mut self, number: usize, chapter: &Chapter, shop: &mut Shop) {
        self.line(&format!("\n{number}. {}", chapter.title));
        self.title = chapter.title;
        if let Err(error) = (chapter.run)(shop, self) {
            self.fail("could not go on", &error);
        }
    }

    /// Takes in a failed claim.
    pub fn fail(&mut self, claim: impl Display, error: &anyhow::Error) {
        self.failed += 1;
        self.line(&format!("   ✗ {claim}: {error:#}"));
        let place = if self.title.is_empty() { "the world" } else { self.title };
        self.failures.push(format!("{place}: {claim}: {error:#}"));
    }

    /// Takes in a claim with the evidence for it, or with why it does not hold.
    pub fn check(&mut self, claim: impl Display, outcome: Result<impl Display>) {
        match outcome {
            Ok(evidence) => {
                self.passed += 1;
                let evidence = evidence.to_string();
                let evidence = if evidence.is_empty() { evidence } else { format!(" ({evidence})") };
                self.line(&format!("   ✓ {claim}{evidence}"));
            }
            Err(error) => self.fail(claim, &error),
        }
    }

    /// Takes in a claim that a condition decides; `seen` is shown either way.
    pub fn claim(&mut self, claim: impl Display, holds: bool, seen: impl Display) {
        self.check(claim, if holds { Ok(seen.to_string()) } else { Err(anyhow::anyhow!("{seen}")) });
    }

    /// Prints one line.
    pub fn line(&self, text: &str) {
        if self.is_aside { eprintln!("{text}") } else { println!("{text}") }
    }

    /// Something worth showing that claims nothing.
    pub fn show(&mut self, text: &str) {
        for line in text.lines() {
            self.line(&format!("     {line}"));
        }
    }
}
