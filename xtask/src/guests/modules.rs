// SPDX-License-Identifier: Apache-2.0
//! Builds the kernel modules of `guests/threats` for a guest kernel, by the kernel's own headers and build
//! programs. They do in a guest what introspection has to find; nothing of them runs on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use testkit::guests::GuestKernel;

use super::debian::{read, sorted_entries};
use super::kernel::Kernel;
use super::place;
use crate::{repository, shell};

/// A module for one kernel.
#[derive(Clone)]
pub struct Module {
    /// What `uname -r` says where it can be loaded.
    pub release: String,
    /// Its file's name.
    pub name: String,
    /// The file.
    pub contents: Vec<u8>,
}

/// Builds them below `folder`, from copies of the sources: the build leaves its traces beside those.
pub fn build(unpacked: &Path, folder: &Path, kernel: GuestKernel) -> Result<Vec<Module>> {
    let place_for = folder.join("threats").join(kernel.name());
    fs::create_dir_all(&place_for).with_context(|| format!("make {}", place_for.display()))?;
    for source in sorted_entries(&repository().join("guests/threats"))? {
        let name = source.file_name().context("a listed file has a name")?;
        place(&place_for.join(name), &read(&source)?)?;
    }
    let release = Kernel::known(unpacked, kernel)?.release;
    let (flavour, common) = headers(unpacked, &release)?;
    let mut make = Command::new("make");
    // The headers' own makefile names the common one by where it would be installed.
    make.arg("-C").arg(flavour).arg("-f").arg(common.join("Makefile"));
    make.arg(format!("M={}", place_for.display()));
    // Their types are of no use without those of the kernel, which are not in the headers.
    make.args(["CONFIG_DEBUG_INFO=", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS");
    shell::output(&mut make)?;
    let built = sorted_entries(&place_for)?.into_iter();
    let modules = built.filter(|path| path.extension().is_some_and(|extension| extension == "ko"));
    modules
        .map(|path| {
            let name = path.file_name().context("a listed file has a name")?.to_string_lossy().into_owned();
            Ok(Module { release: release.clone(), name, contents: read(&path)? })
        })
        .collect()
}

/// The headers of a release, and those it shares with the other flavours.
fn headers(unpacked: &Path, release: &str) -> Result<(PathBuf, PathBuf)> {
    let sources = unpacked.join("usr/src");
    let flavour = sources.join(format!("linux-headers-{release}"));
    let version = release.strip_suffix("-cloud-amd64").context("guest kernels are of the cloud flavour")?;
    Ok((flavour, sources.join(format!("linux-headers-{version}-common"))))
}
