// SPDX-License-Identifier: Apache-2.0
//! Where answers go: standard output, as tables or as JSON.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use api::admin::ClientError;
use serde::Serialize;

use crate::cli::Format;
use crate::render::Style;
use crate::text;

/// How answers are printed.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    style: Style,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        let plain = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = terminal && !plain("NO_COLOR") && !dumb;
        Self { format, style: Style { terminal, colour } }
    }

    /// Whether answers are for programs.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// What the output can show.
    pub(crate) fn style(&self) -> Style {
        self.style
    }

    /// Prints an answer: for people as `render` says, for programs as one document.
    pub(crate) fn print<T: Serialize + ?Sized>(
        &self,
        value: &T,
        render: impl FnOnce(&T, Style) -> String,
    ) -> anyhow::Result<()> {
        self.write(value, render, serde_json::to_string_pretty)
    }

    /// Prints one of a stream of answers: for programs as one line.
    pub(crate) fn print_next<T: Serialize + ?Sized>(
        &self,
        value: &T,
        render: impl FnOnce(&T, Style) -> String,
    ) -> anyhow::Result<()> {
        self.write(value, render, serde_json::to_string)
    }

    fn write<T: ?Sized>(
        &self,
        value: &T,
        render: impl FnOnce(&T, Style) -> String,
        encode: impl FnOnce(&T) -> serde_json::Result<String>,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Table => write_out(&render(value, self.style)),
            Format::Json => {
                let document = encode(value).context("cannot write JSON")?;
                write_out(&(text::visible_json(&document) + "\n"))
            }
        }
    }
}

fn write_out(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Whether standard output was closed by its reader.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// What to say about a failure: what failed, why, and what to do.
pub(crate) fn failure(error: &anyhow::Error) -> String {
    let mut said = String::from("error");
    for cause in error.chain() {
        said.push_str(": ");
        said.push_str(&text::visible_sentence(&cause.to_string()));
    }
    said.push('\n');
    if let Some(help) = error.downcast_ref::<ClientError>().and_then(ClientError::help) {
        said.push_str("help: ");
        said.push_str(&text::visible_sentence(&help));
        said.push('\n');
    }
    said
}

#[cfg(test)]
mod tests {
    use api::admin::Refusal;

    use super::*;

    #[test]
    fn failures_say_what_why_and_what_to_do() {
        let refusal =
            Refusal { reason: "no machine `a/\u{1b}b`".into(), help: "see `meshctl vm list`".into() };
        assert_eq!(
            failure(&ClientError::Refused(refusal).into()),
            "error: no machine `a/\\x1bb`\nhelp: see `meshctl vm list`\n"
        );
        let path = "/run/meshvisor/admin.sock".into();
        let said = failure(&ClientError::NotRunning { path }.into());
        assert!(said.contains("no daemon answers") && said.contains("help: start meshvisor-hostd"), "{said}");
    }

    #[test]
    fn closed_reader_is_no_failure() {
        assert!(is_broken_pipe(&io::Error::from(io::ErrorKind::BrokenPipe).into()));
        assert!(!is_broken_pipe(&ClientError::Closed.into()));
    }
}
