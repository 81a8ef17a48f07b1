// SPDX-License-Identifier: Apache-2.0
//! What the daemons say of themselves: structured logs on standard error, and errors with their causes.
//!
//! Deliberately absent: domain types. Spans of flows are `hostd`'s.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured only on a terminal.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// The filter is not one that the log understands.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{filter}` is not a log filter: write a level (error, warn, info, debug, trace) or target=level,..."
)]
pub struct LogFilterError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Sends all log lines that pass `filter` to standard error, from now on.
///
/// # Errors
/// When the filter cannot be read.
///
/// # Panics
/// When called twice in one process: a bug.
pub fn start_logging(filter: &str, format: LogFormat) -> Result<(), LogFilterError> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|source| LogFilterError { filter: filter.chars().take(80).collect(), source })?;
    let lines = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).finish().init(),
        LogFormat::Json => lines.json().finish().init(),
    }
    Ok(())
}

/// Shows an error followed by each of its causes, separated by colons, on one line.
///
/// Our errors never repeat their source's text, so the chain is printed once, here, at the edge.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn chain_shows_every_cause_once() {
        let error = Outer("x".parse::<u8>().unwrap_err());
        assert_eq!(Chain(&error).to_string(), "outer: invalid digit found in string");
    }

    #[test]
    fn unreadable_filter_is_refused_with_its_text() {
        let error = start_logging("hostd=loud", LogFormat::Text).unwrap_err();
        assert!(error.to_string().contains("`hostd=loud`"), "{error}");
    }
}
