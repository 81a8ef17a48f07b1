// SPDX-License-Identifier: Apache-2.0
//! Moving a running machine to another VMM, and so to another backend.
//!
//! The memory is copied slowly at first, so that what the machine does meanwhile happens to pages that were copied
//! already. The new VMM waits before it lets the guest go on, and both memories are compared: a page that a backend wrote
//! without marking it differs.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::vm::{Vm, launch, ram_of};

/// Bytes per second while something is to happen meanwhile, and afterwards.
const SLOW: u64 = 16 << 20;
const FAST: u64 = 4 << 30;
/// Longest pause of the guest, in milliseconds, that QEMU may plan for.
const DOWNTIME_MS: u64 = 500;
/// Time for all of it after that, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Pause between two questions to a VMM.
const ASK_AGAIN: Duration = Duration::from_millis(20);
const PAGE_BYTES: usize = 4096;

/// A VMM's monitor (QEMU machine protocol).
struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        let stream = loop {
            match UnixStream::connect(path) {
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
    fn call(&mut self, command: &str, arguments: &Value) -> Result<Value> {
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

    fn set_bandwidth(&mut self, bytes_per_second: u64) -> Result<()> {
        let wish = json!({"max-bandwidth": bytes_per_second, "downtime-limit": DOWNTIME_MS});
        self.call("migrate-set-parameters", &wish).map(drop)
    }

    /// Waits until the status that a query gives is `wanted`.
    fn await_status(&mut self, query: &str, wanted: &str) -> Result<()> {
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

impl Vm {
    /// Moves the machine to a new VMM whose card is at `socket`, while it goes on. `meanwhile` happens while its memory
    /// is being copied. Returns how many pages of the two memories differ when the guest has stopped here and not yet
    /// gone on there.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn migrate(&mut self, socket: &Path, meanwhile: impl FnOnce(&Self) -> Result<()>) -> Result<usize> {
        let mut spec = self.spec.clone();
        if spec.ram.is_some() {
            bail!("{} has its RAM in a file, which two VMMs would share", spec.name);
        }
        spec.nic.as_mut().context("it has no card")?.socket = socket.to_owned();
        let stem = format!("{}-{}", spec.name, self.moves + 1);
        let uri = format!("unix:{}", self.folder.join(format!("{stem}.moving")).display());
        let (process, shell) = launch(&spec, &self.folder, &stem, Some(&uri))?;
        let monitor = |stem: &str| Monitor::connect(&self.folder.join(format!("{stem}.qmp")));
        let (mut here, mut there) = (monitor(&self.stem)?, monitor(&stem)?);
        here.set_bandwidth(SLOW)?;
        here.call("migrate", &json!({"uri": uri}))?;
        meanwhile(self)?;
        here.set_bandwidth(FAST)?;
        here.await_status("query-migrate", "completed").with_context(|| self.report())?;
        there.await_status("query-status", "paused")?;
        let differing = differing_pages(&self.ram()?, &File::open(ram_of(process.pid())?)?)?;
        there.call("cont", &json!({}))?;
        (self.spec, self.stem, self.process, self.shell) = (spec, stem, process, Mutex::new(shell));
        self.moves += 1;
        Ok(differing)
    }
}

/// Pages of two memories that are not the same.
fn differing_pages(one: &File, two: &File) -> Result<usize> {
    let len = one.metadata()?.size();
    let mut buffers = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let mut differing = 0;
    for at in (0..len).step_by(1 << 20) {
        let [a, b] = &mut buffers;
        one.read_exact_at(a, at)?;
        two.read_exact_at(b, at)?;
        differing += a.chunks(PAGE_BYTES).zip(b.chunks(PAGE_BYTES)).filter(|(a, b)| a != b).count();
    }
    Ok(differing)
}
