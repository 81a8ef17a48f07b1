// SPDX-License-Identifier: Apache-2.0
//! Makes the guests: two Debian kernels, the modules of `guests/threats` for each, and one initial root file system
//! for both, below `target/guests`.
//!
//! Downloads and unpacked packages are kept; the image itself is put together anew each time, which takes less
//! time than finding out whether it is needed.

mod cpio;
mod debian;
mod image;
mod modules;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use testkit::guests::{GUEST_KERNELS, initramfs};

use crate::{progress, repository, shell};

/// The programs in the guest that are the workload under another name, so that policy can tell them apart.
pub const WORKLOADS: [&str; 3] = ["storefront", "orders", "intruder"];

/// Builds everything below the guests' folder.
///
/// With `renew`, looks for newer packages even if a complete set was downloaded before.
pub fn build(renew: bool) -> Result<()> {
    let folder = testkit::guests::folder();
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("wait for another build of the guests")?;

    let (debs, is_new) = debian::download(&folder, renew)?;
    let unpacked = folder.join("unpacked");
    if is_new || !unpacked.is_dir() {
        let partial = folder.join("unpacked.partial");
        debian::recreate(&partial)?;
        progress::step("unpack them", || debian::unpack(&debs, &partial))?;
        if unpacked.is_dir() {
            fs::remove_dir_all(&unpacked)?;
        }
        fs::rename(&partial, &unpacked)?;
    }
    let workload = progress::step("build the guest workload", || build_workload(&folder))?;
    let modules = progress::step("build the modules that tests have to find", || {
        GUEST_KERNELS
            .iter()
            .map(|kernel| modules::build(&unpacked, &folder, *kernel))
            .collect::<Result<Vec<_>>>()
    })?;
    progress::step("put the guest image together", || {
        place(&initramfs(), &image::build(&unpacked, &workload, &modules.concat())?)?;
        for kernel in GUEST_KERNELS {
            let found = image::find_kernel(&unpacked, kernel)?;
            place(&kernel.image(), &fs::read(found)?)?;
        }
        Ok(())
    })
}

/// Writes a file whole or not at all, and leaves an equal one alone: a guest may be running from it.
fn place(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(());
    }
    let partial = path.with_extension("partial");
    fs::write(&partial, contents).with_context(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("replace {}", path.display()))
}

/// Compiles `guests/workload`, statically linked: the guest has no C library of its own.
fn build_workload(folder: &Path) -> Result<Vec<u8>> {
    let target = folder.join("workload");
    let mut cargo: Command = shell::cargo(&repository().join("guests/workload"));
    cargo.args(["build", "--release", "--locked", "--target-dir"]).arg(&target);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    shell::output(&mut cargo)?;
    let program = target.join("release/workload");
    fs::read(&program).with_context(|| format!("read {}", program.display()))
}
