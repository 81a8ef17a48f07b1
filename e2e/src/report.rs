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
    /// Prints to standard error, because standard output is for something else.
    pub is_aside: bool,
}

impl Report {
    /// Runs a chapter under its title. Errors count as a failed claim.
    pub fn chapter(&mut self, number: usize, chapter: &Chapter, shop: &mut Shop) {
        self.line(&format!("\n{number}. {}", chapter.title));
        if let Err(error) = (chapter.run)(shop, self) {
            self.failed += 1;
            self.line(&format!("   ✗ could not go on: {error:#}"));
        }
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
            Err(error) => {
                self.failed += 1;
                self.line(&format!("   ✗ {claim}: {error:#}"));
            }
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
