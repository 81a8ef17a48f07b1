// SPDX-License-Identifier: Apache-2.0
//! Choosing how guests run: in hardware where that works, else emulated.
//!
//! A KVM device can exist, open, and still never get a guest anywhere, so the only proof that counts is a guest
//! that boots. The answer is kept until the machine restarts.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guests;
use crate::scratch::Scratch;
pub use crate::vm::Accel;
use crate::vm::{Vm, VmSpec};

/// The device that KVM is reached through.
const DEVICE: &str = "/dev/kvm";
/// A guest in hardware boots in about a second; one that needs longer gains nothing.
const PROBE_LIMIT: Duration = Duration::from_secs(8);

/// What was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The accelerator to use.
    pub accel: Accel,
    /// One line for the user.
    pub reason: String,
}

/// Finds out whether KVM works here, by booting a guest under it if the device can be opened.
///
/// # Errors
/// When the probe cannot be set up; a guest that fails to boot is an answer, not an error.
pub fn choose() -> Result<Choice> {
    if let Err(error) = File::options().read(true).write(true).open(DEVICE) {
        let reason = format!("guests are emulated (TCG): {DEVICE} cannot be used ({error})");
        return Ok(Choice { accel: Accel::Tcg, reason });
    }
    let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    if let Some(known) = recall(&host_boot) {
        return Ok(known);
    }
    let choice = probe()?;
    let line = format!("{} {} {}\n", host_boot.trim(), choice.accel.as_str(), choice.reason);
    fs::write(memory(), line).context("keep the answer about KVM")?;
    Ok(choice)
}

/// Boots a guest under KVM.
fn probe() -> Result<Choice> {
    let scratch = Scratch::new("probe")?;
    let mut vm = Vm::start(VmSpec::new("probe", Accel::Kvm), scratch.path())?;
    Ok(match vm.ready(PROBE_LIMIT) {
        Ok(()) => Choice { accel: Accel::Kvm, reason: "guests run under KVM: a probe guest booted".into() },
        Err(_) => Choice {
            accel: Accel::Tcg,
            reason: format!(
                "guests are emulated (TCG): {DEVICE} exists, but a probe guest did not boot under it in {} s",
                PROBE_LIMIT.as_secs()
            ),
        },
    })
}

/// The answer found since the machine was started, if any.
fn recall(host_boot: &str) -> Option<Choice> {
    let line = fs::read_to_string(memory()).ok()?;
    let mut words = line.trim_end().splitn(3, ' ');
    if words.next()? != host_boot.trim() {
        return None;
    }
    let accel = match words.next()? {
        "kvm" => Accel::Kvm,
        "tcg" => Accel::Tcg,
        _ => return None,
    };
    Some(Choice { accel, reason: words.next()?.to_owned() })
}

/// Where the answer is kept.
fn memory() -> PathBuf {
    guests::folder().join("accelerator")
}
