// SPDX-License-Identifier: Apache-2.0
//! Talking to a VMM through its monitor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// What the name of a monitor's socket ends in.
pub(crate) const SUFFIX: &str = "qmp";
/// Time for an answer, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Pause between two questions to a VMM.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// A VMM's monitor (QEMU machine protocol).
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to that of the VMM which keeps its files in `folder` under names that begin with `stem`.
    pub(crate) fn connect(folder: &Path, stem: &str) -> Result<Self> {
        let path = folder.join(format!("{stem}.{SUFFIX}"));
        let deadline = Instant::now() + LIMIT;
        let stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                // It has only just been started.
                Err(_) if Instant::now() < deadline => std::thread::park_timeout(ASK_AGAIN),
                Err(error) => return Err(error).with_context(|| format!("connect to {}", path.display())),
            }
        };
        stream.set_read_timeout(Some(LIMIT))?;
        let mut monitor = Self { stream: BufReader::new(stream) };
        monitor.line().context("read the monitor's greeting")?;
        monitor.call("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the VMM ended");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Has the VMM do something; returns its answer. Events on the way are passed over.
    pub(crate) fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let message = json!({"execute": command, "arguments": arguments});
        self.stream.get_mut().write_all(format!("{message}\n").as_bytes())?;
        loop {
            let mut answer = self.line().with_context(|| format!("ask the VMM for {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("the VMM refuses {command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Waits until the status that a query gives is `wanted`.
    pub(crate) fn await_status(&mut self, query: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.call(query, &json!({}))?;
            if answer["status"] == wanted {
                return Ok(());
            }
            if answer["status"] == "failed" || Instant::now() > deadline {
                bail!("{query} is not {wanted}: {answer}");
            }
            std::thread::park_timeout(ASK_AGAIN);
        }
    }
}
