// SPDX-License-Identifier: Apache-2.0
//! Counting what passed, failed and was left out.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// Counts of checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u32,
    pub failed: u32,
    /// What failed, by name where one is known; never more than `failed`.
    pub failures: Vec<String>,
    /// Each with its reason.
    pub skipped: Vec<String>,
}

impl Tally {
    pub fn passed(count: u32) -> Self {
        Self { passed: count, ..Self::default() }
    }

    /// One failure.
    pub fn failed(what: impl Into<String>) -> Self {
        Self { failed: 1, failures: vec![what.into()], ..Self::default() }
    }

    pub fn skipped(reason: &str) -> Self {
        Self { skipped: vec![reason.to_owned()], ..Self::default() }
    }

    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.skipped.extend(other.skipped);
    }

    /// Takes in a line of a test program's output; true if it was its summary. A test may say in a line of its own
    /// that it is `skipped: ` and why, or what in it has `failed: `.
    fn take(&mut self, line: &str) -> bool {
        let by_test = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"));
        if let Some(what) = by_test.or_else(|| line.strip_prefix("failed: ")) {
            self.failures.push(what.to_owned());
        }
        if let Some(reason) = line.strip_prefix("skipped: ") {
            self.skipped.push(reason.to_owned());
        }
        let Some(counts) = line.strip_prefix("test result: ") else { return false };
        let count = |word: &str| {
            let before = counts.split_once(word).map(|(before, _)| before);
            before.and_then(|text| text.rsplit(' ').next()?.parse::<u32>().ok()).unwrap_or(0)
        };
        self.passed += count(" passed");
        self.failed += count(" failed");
        let ignored = count(" ignored");
        if ignored > 0 {
            self.skipped.push(format!("{ignored} tests marked as ignored"));
        }
        true
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if !self.skipped.is_empty() {
            write!(f, ", {} skipped", self.skipped.len())?;
        }
        Ok(())
    }
}

/// Runs a command that runs tests, shows its output, and counts them.
///
/// A failure that no summary accounts for, such as code that does not compile, counts as one.
pub fn of_tests(command: &mut Command) -> Result<Tally> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start the tests")?;
    let output = BufReader::new(child.stdout.take().context("the tests have an output")?);
    let mut tally = Tally::default();
    for line in output.lines() {
        let line = line.context("read the tests' output")?;
        // A program without tests has nothing to say.
        let noise =
            line.is_empty() || line == "running 0 tests" || line.contains(" 0 passed; 0 failed; 0 ignored");
        tally.take(&line);
        if !noise {
            println!("{line}");
        }
    }
    let status = child.wait().context("wait for the tests")?;
    if !status.success() && tally.failed == 0 {
        tally.add(Tally::failed(format!("{command:?}: {status}")));
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_several_programs_add_up() {
        let mut tally = Tally::default();
        assert!(tally.take(
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.2s"
        ));
        assert!(
            tally.take("test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out")
        );
        assert!(!tally.take("test some::claim ... ok"));
        assert!(!tally.take("test some::other ... FAILED"));
        assert!(!tally.take("failed: the third of them"));
        assert_eq!((tally.passed, tally.failed, tally.skipped.len()), (17, 3, 1));
        assert_eq!(tally.failures, ["some::other", "the third of them"]);
        assert_eq!(tally.to_string(), "17 passed, 3 failed, 1 skipped");
    }

    #[test]
    fn a_test_that_says_so_is_skipped_by_name() {
        let mut tally = Tally::default();
        assert!(!tally.take("skipped: it needs a wish"));
        assert!(!tally.take("test nothing_is_skipped: ... ok"));
        assert_eq!(tally, Tally::skipped("it needs a wish"));
    }

    #[test]
    fn tests_that_do_not_even_start_count_as_a_failure() {
        let tally = of_tests(&mut Command::new("false")).expect("it can be started");
        assert_eq!((tally.failed, tally.failures.len()), (1, 1));
    }
}
