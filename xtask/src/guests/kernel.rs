// SPDX-License-Identifier: Apache-2.0
//! Guest kernels among unpacked packages.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use testkit::guests::GuestKernel;

use super::debian::sorted_entries;

/// A kernel among unpacked packages.
pub struct Kernel {
    /// What `uname -r` says in a guest that runs it.
    pub release: String,
    /// Its image.
    pub image: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// One that demo and tests boot.
    pub fn known(unpacked: &Path, kernel: GuestKernel) -> Result<Self> {
        Self::find(unpacked, &format!("{}.", kernel.name()))
    }

    /// The first kernel whose release begins with `prefix`.
    pub fn find(unpacked: &Path, prefix: &str) -> Result<Self> {
        // Until 2025 packages had the image in /boot, and modules below a folder that is a link by now.
        let boot = sorted_entries(&unpacked.join("boot")).unwrap_or_default();
        for image in boot {
            let name = image.file_name().unwrap_or_default().to_string_lossy();
            if let Some(release) = name.strip_prefix("vmlinuz-").filter(|name| name.starts_with(prefix)) {
                let modules = unpacked.join("lib/modules").join(release);
                return Ok(Self { release: release.to_owned(), image, modules });
            }
        }
        for modules in sorted_entries(&unpacked.join("usr/lib/modules")).unwrap_or_default() {
            let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let image = modules.join("vmlinuz");
            if release.starts_with(prefix) && image.is_file() {
                return Ok(Self { release, image, modules });
            }
        }
        bail!("no kernel {prefix}* in the downloaded packages")
    }
}
