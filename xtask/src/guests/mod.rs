// SPDX-License-Identifier: Apache-2.0
//! Makes the guests: two Debian kernels, the modules of `guests/threats` for each, and one initial root file system
//! for both, below `target/guests`, the kernels of other Debian suites for the matrix, and a newer QEMU.
//!
//! Downloads and unpacked packages are kept; the image itself is put together anew each time, which takes less
//! time than finding out whether it is needed.

mod cpio;
mod debian;
mod image;
mod kernel;
mod modules;
mod suites;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use testkit::guests::{GUEST_KERNELS, GuestKernel, clients_initramfs, initramfs};

use self::kernel::Kernel;
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
    let recipe = debian::recipe();
    if is_new || !fs::read_to_string(unpacked.join("recipe")).is_ok_and(|done| done == recipe) {
        replace(&unpacked, |partial| {
            debian::unpack(&debs, partial)?;
            Ok(fs::write(partial.join("recipe"), &recipe)?)
        })?;
    }
    let workload = progress::step("build the guest workload", || build_workload(&folder))?;
    let modules = progress::step("build the modules that tests have to find", || {
        GUEST_KERNELS
            .iter()
            .map(|kernel| modules::build(&unpacked, &folder, *kernel))
            .collect::<Result<Vec<_>>>()
    })?;
    progress::step("put the guest image together", || {
        let found = GUEST_KERNELS.map(|kernel| Kernel::known(&unpacked, kernel));
        let found = found.into_iter().collect::<Result<Vec<Kernel>>>()?;
        let mut archive = image::build(&unpacked, &found, &workload, &modules.concat())?;
        place(&initramfs(), &archive)?;
        archive.extend(image::clients(&unpacked)?);
        place(&clients_initramfs(), &archive)?;
        for (kernel, found) in GUEST_KERNELS.iter().zip(&found) {
            place(&kernel.image(), &fs::read(&found.image)?)?;
        }
        Ok(())
    })
}

/// Builds what one kernel of the matrix boots from; the guests themselves are built already.
///
/// With `renew`, looks for a newer release even if one was downloaded before.
pub fn build_kernel(kernel: GuestKernel, renew: bool) -> Result<()> {
    let folder = testkit::guests::folder();
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("wait for another build of the guests")?;

    let own = folder.join("matrix").join(kernel.name());
    let unpacked = own.join("unpacked");
    if renew || !unpacked.is_dir() {
        let debs = suites::download(kernel, &own)?;
        replace(&unpacked, |partial| debian::unpack(&debs, partial))?;
    }
    let found = Kernel::find(&unpacked, "")?;
    // The kernel unpacks archives that follow each other one after the other.
    let mut archive = fs::read(initramfs()).context("read the guest image")?;
    archive.extend(image::drivers(&found, &image::busybox(&folder.join("unpacked")))?);
    place(&kernel.initramfs(), &archive)?;
    place(&kernel.image(), &fs::read(&found.image)?)
}

/// Gets a newer QEMU than this machine's, if it can be had; what needs it says so when it is not there.
///
/// With `renew`, looks for a newer release even if one was downloaded before.
pub fn get_newer_vmm(renew: bool) {
    if let Err(error) = build_vmm(renew) {
        println!("There is no newer QEMU: {error:#}");
    }
}

fn build_vmm(renew: bool) -> Result<()> {
    let folder = testkit::guests::folder();
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("wait for another build of the guests")?;

    let unpacked = testkit::guests::newer_vmm();
    if !renew && unpacked.is_dir() {
        return Ok(());
    }
    let debs = suites::download_vmm(&folder.join("vmm"))?;
    replace(&unpacked, |partial| debian::unpack_vmm(&debs, partial))
}

/// Has `unpack` fill a folder anew, whole or not at all.
fn replace(folder: &Path, unpack: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = folder.with_extension("partial");
    debian::recreate(&partial)?;
    progress::step("unpack what was downloaded", || unpack(&partial))?;
    if folder.is_dir() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(&partial, folder).with_context(|| format!("replace {}", folder.display()))
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
    debian::read(&target.join("release/workload"))
}
