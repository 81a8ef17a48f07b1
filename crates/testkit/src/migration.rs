// SPDX-License-Identifier: Apache-2.0
//! Moving a running machine to another VMM, and so to another backend.
//!
//! The memory is copied slowly at first, so that what the machine does meanwhile happens to pages that were copied
//! already. The new VMM waits before it lets the guest go on, and both memories are compared: a page that a backend wrote
//! without marking it differs.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::monitor::Monitor;
use crate::vm::{Vm, launch, ram_of};

/// Bytes per second while something is to happen meanwhile, and afterwards.
const SLOW: u64 = 16 << 20;
const FAST: u64 = 4 << 30;
/// Longest pause of the guest, in milliseconds, that QEMU may plan for.
const DOWNTIME_MS: u64 = 500;
const PAGE_BYTES: usize = 4096;

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
        let mut here = Monitor::connect(&self.folder, &self.stem)?;
        let mut there = Monitor::connect(&self.folder, &stem)?;
        set_bandwidth(&mut here, SLOW)?;
        here.call("migrate", &json!({"uri": uri}))?;
        meanwhile(self)?;
        set_bandwidth(&mut here, FAST)?;
        here.await_status("query-migrate", "completed").with_context(|| self.report())?;
        there.await_status("query-status", "paused")?;
        let differing = differing_pages(&self.ram()?, &File::open(ram_of(process.pid())?)?)?;
        there.call("cont", &json!({}))?;
        (self.spec, self.stem, self.process, self.shell) = (spec, stem, process, Mutex::new(shell));
        self.moves += 1;
        Ok(differing)
    }
}

/// How fast memory may be copied from now on.
fn set_bandwidth(monitor: &mut Monitor, bytes_per_second: u64) -> Result<()> {
    let wish = json!({"max-bandwidth": bytes_per_second, "downtime-limit": DOWNTIME_MS});
    monitor.call("migrate-set-parameters", &wish).map(drop)
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
