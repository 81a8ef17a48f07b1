// SPDX-License-Identifier: Apache-2.0
//! Kernels from other suites of Debian than this machine's, and a newer QEMU.
//!
//! Each suite has an apt of its own beside the downloads, with its own sources and lists; the machine's are only
//! asked where its archives are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use testkit::guests::GuestKernel;

use super::debian::{Apt, recreate};
use crate::{progress, shell};

/// What signs every suite, older and newer ones than this machine's too.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Packages that a kernel is in; newer suites have its image and modules apart.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
/// Steps from a meta package to the last part of its kernel.
const STEPS_MAX: usize = 4;
/// For each kernel of the matrix: the suite, and the meta package that leads to its newest release there.
const KERNELS: [(&str, &str, &str); 6] = [
    ("5.10-cloud", "bullseye-security", "linux-image-cloud-amd64"),
    ("6.1-cloud", "bookworm-security", "linux-image-cloud-amd64"),
    ("6.12-cloud", "bookworm-security", "linux-image-6.12-cloud-amd64"),
    ("6.12-generic", "bookworm-security", "linux-image-6.12-amd64"),
    ("6.12-rt", "bookworm-security", "linux-image-6.12-rt-amd64"),
    ("newest-cloud", "sid", "linux-image-cloud-amd64"),
];

/// The suite of a newer QEMU, and the packages that it takes beside its libraries.
const VMM: (&str, [&str; 3]) = ("forky", ["qemu-system-x86", "qemu-system-data", "seabios"]);

/// Downloads a kernel's newest release into `folder/debs`.
pub fn download(kernel: GuestKernel, folder: &Path) -> Result<PathBuf> {
    let known = KERNELS.into_iter().find(|(name, ..)| *name == kernel.name());
    let (name, suite, meta) = known.with_context(|| format!("no suite has a kernel {}", kernel.name()))?;
    let debs = folder.join("debs");
    recreate(&debs)?;
    progress::step(&format!("download kernel {name} of {suite}"), || {
        let apt = apt_of(suite, &folder.join("apt"))?;
        let packages = parts(&apt, meta)?;
        apt.download(&packages, &debs)
    })?;
    Ok(debs)
}

/// Downloads a newer QEMU with everything down to its C library into `folder/debs`.
pub fn download_vmm(folder: &Path) -> Result<PathBuf> {
    let (suite, packages) = VMM;
    let debs = folder.join("debs");
    recreate(&debs)?;
    progress::step(&format!("download the QEMU of {suite} (about 30 MB)"), || {
        let apt = apt_of(suite, &folder.join("apt"))?;
        apt.download(&apt.with_libraries(&packages)?, &debs)
    })?;
    Ok(debs)
}

/// An apt that knows nothing but `suite`.
fn apt_of(suite: &str, folder: &Path) -> Result<Apt> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let archive = archive_of(suite)?;
    let sources = folder.join("sources.list");
    let line = format!("deb [signed-by={KEYRING}] {archive} {suite} main\n");
    fs::write(&sources, line).with_context(|| format!("write {}", sources.display()))?;
    Apt::private(folder, Some(&sources))
}

/// Where this machine gets its own packages of that kind from: security updates have an archive of their own.
fn archive_of(suite: &str) -> Result<String> {
    let is_security = |suite: &str| suite.ends_with("-security");
    let mut list = Apt::system()
        .command("apt-get", &["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Component: main"]);
    for line in shell::lines(&mut list)? {
        if let Some((archive, known)) = line.split_once(' ')
            && archive.contains("debian")
            && is_security(known) == is_security(suite)
        {
            return Ok(archive.to_owned());
        }
    }
    bail!("this machine has no package source to take {suite} from beside")
}

/// Every package of the newest kernel that the meta package leads to.
fn parts(apt: &Apt, meta: &str) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    let mut front = vec![meta.to_owned()];
    for _ in 0..STEPS_MAX {
        let next = apt.depends(&front)?.into_iter();
        let next = next.filter(|name| PARTS.iter().any(|part| name.starts_with(part)));
        front = next.filter(|name| all.insert(name.clone())).collect();
        if front.is_empty() {
            break;
        }
    }
    if all.is_empty() {
        bail!("{meta} leads to no kernel");
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use testkit::guests::MATRIX_KERNELS;

    use super::KERNELS;

    #[test]
    fn every_kernel_of_the_matrix_has_a_suite() {
        assert!(KERNELS.iter().map(|(name, ..)| *name).eq(MATRIX_KERNELS.iter().map(|kernel| kernel.name())));
    }
}
