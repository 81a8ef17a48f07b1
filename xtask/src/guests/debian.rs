// SPDX-License-Identifier: Apache-2.0
//! Debian packages as files: which ones the guests are made of, downloading them, unpacking them.
//!
//! Nothing here installs anything or needs root. When the machine's own package lists are missing or old, a
//! private copy of them is fetched beside the downloads.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{progress, shell};

/// Meta packages that depend on the newest cloud kernel of a line, with the prefix of what they lead to.
const KERNELS: [(&str, &str); 2] =
    [("linux-image-cloud-amd64", "linux-image-6.1."), ("linux-image-6.12-cloud-amd64", "linux-image-6.12.")];
/// What a kernel package's name begins with, and that of the headers to build modules for it.
const IMAGE: &str = "linux-image-";
const HEADERS: &str = "linux-headers-";
/// The programs that build modules, which headers depend on.
const KBUILD: &str = "linux-kbuild-";
/// Programs that go into the guests: the shell and tools, a real server with its client, what has the guest translate
/// addresses, and what tells a card to use its features.
const PROGRAMS: [&str; 4] = ["busybox-static", "redis-tools", "nftables", "ethtool"];
/// Programs of the guests that ask for names or try a network out, and what they need that is not called a library.
const CLIENTS: [&str; 8] =
    ["bind9-dnsutils", "bind9-libs", "curl", "iperf3", "iproute2", "libc-bin", "tcpdump", "zlib1g"];
/// A database whose server is many processes, with its client.
const DATABASE: [&str; 2] = ["postgresql-15", "postgresql-client-15"];
/// What no guest needs of what its programs depend on: the database compiles its queries only where this is there.
const LEFT_OUT: &str = "libllvm";
/// What is unpacked of a kernel: its image, and the modules that any guest can load.
const KERNEL_FILES: [&str; 15] = [
    "./boot/vmlinuz-*",
    "*/vmlinuz",
    "*/virtio*.ko*",
    "*/failover.ko*",
    "*/net_failover.ko*",
    "*/veth.ko*",
    "*/libcrc32c.ko*",
    "*/nfnetlink.ko*",
    "*/nf_defrag_ipv*.ko*",
    "*/nf_conntrack.ko*",
    "*/nf_nat.ko*",
    "*/nf_tables.ko*",
    "*/nft_chain_nat.ko*",
    "*/nft_masq.ko*",
    "*/sch_netem.ko*",
];
/// What is unpacked of headers and the programs that build modules with them.
const HEADER_FILES: [&str; 2] = ["./usr/src/*", "./usr/lib/linux-kbuild-*"];
/// What is unpacked of a newer QEMU and its libraries: the emulator with what its boards start by.
const VMM_FILES: [&str; 6] = [
    "./usr/bin/qemu-system-x86_64",
    "./usr/lib/x86_64-linux-gnu/lib*.so*",
    "*/ld-linux-x86-64.so.2",
    "./usr/share/qemu/kvmvapic.bin",
    "./usr/share/qemu/linuxboot_dma.bin",
    "./usr/share/seabios/bios-256k.bin",
];
/// What is unpacked of other packages.
const PROGRAM_FILES: [&str; 6] =
    ["*/bin/*", "*/sbin/nft", "*/sbin/tc", "*/sbin/ethtool", "*.so*", "./usr/share/postgresql/*"];
/// Libraries can need libraries; a chain longer than this is a mistake.
const LIBRARY_DEPTH_MAX: usize = 8;

/// A view of the package archive: the machine's own lists, or private ones.
pub(super) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// The machine's own lists.
    pub(super) fn system() -> Self {
        // As root, apt would hand the download to the user `_apt`, who may not write to our folder.
        Self { options: vec!["-oAPT::Sandbox::User=root".into()] }
    }

    /// Fresh lists from the machine's sources, or from those in the file `sources` alone, kept in `folder`.
    pub(super) fn private(folder: &Path, sources: Option<&Path>) -> Result<Self> {
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        let mut apt = Self::system();
        apt.options.extend([
            format!("-oDir::State={}", folder.join("state").display()),
            "-oDir::State::status=/var/lib/dpkg/status".into(),
            format!("-oDir::Cache={}", folder.join("cache").display()),
        ]);
        if let Some(sources) = sources {
            let list = format!("-oDir::Etc::SourceList={}", sources.display());
            apt.options.extend([list, "-oDir::Etc::SourceParts=/dev/null".into()]);
        }
        // A source that holds nothing for us may fail; whether something is missing shows when it is looked up.
        if let Err(error) = shell::output(&mut apt.command("apt-get", &["update", "--quiet=2"])) {
            println!("  {error:#}");
        }
        Ok(apt)
    }

    pub(super) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).args(arguments).env("LC_ALL", "C");
        command
    }

    /// The packages that any of `packages` depends on directly.
    pub(super) fn depends(&self, packages: &[String]) -> Result<Vec<String>> {
        let mut arguments = vec!["depends", "--important"];
        arguments.extend(packages.iter().map(String::as_str));
        let lines = shell::lines(&mut self.command("apt-cache", &arguments))?;
        Ok(lines.iter().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned).collect())
    }

    /// The newest kernel package that the meta package leads to.
    fn kernel(&self, meta: &str, prefix: &str) -> Result<String> {
        let found = self.depends(&[meta.to_owned()])?;
        found.into_iter().find(|name| name.starts_with(prefix)).with_context(|| {
            format!("apt knows no {prefix}* through {meta}: Debian 12 with its security source is needed")
        })
    }

    /// The packages, and those with the libraries that they load.
    pub(super) fn with_libraries(&self, packages: &[&str]) -> Result<BTreeSet<String>> {
        let mut all: BTreeSet<String> = packages.iter().copied().map(str::to_owned).collect();
        let mut front: Vec<String> = all.iter().cloned().collect();
        for _ in 0..LIBRARY_DEPTH_MAX {
            let depended = self.depends(&front)?.into_iter();
            let libraries = depended.filter(|name| name.starts_with("lib") && !name.starts_with(LEFT_OUT));
            front = libraries.filter(|name| all.insert(name.clone())).collect();
            if front.is_empty() {
                break;
            }
        }
        Ok(all)
    }

    /// All packages that the guests are made of.
    fn resolve(&self) -> Result<BTreeSet<String>> {
        let mut all = self.with_libraries(&[&PROGRAMS[..], &CLIENTS, &DATABASE].concat())?;
        for (meta, prefix) in KERNELS {
            let kernel = self.kernel(meta, prefix)?;
            let headers = kernel.replacen(IMAGE, HEADERS, 1);
            let parts = self.depends(std::slice::from_ref(&headers))?.into_iter();
            all.extend(parts.filter(|name| name.starts_with(HEADERS) || name.starts_with(KBUILD)));
            all.extend([kernel, headers]);
        }
        Ok(all)
    }

    pub(super) fn download(&self, packages: &BTreeSet<String>, folder: &Path) -> Result<()> {
        let mut arguments = vec!["download", "--quiet=2"];
        arguments.extend(packages.iter().map(String::as_str));
        shell::output(self.command("apt-get", &arguments).current_dir(folder)).map(drop)
    }
}

/// What is downloaded and unpacked, to tell whether that has been done already.
pub fn recipe() -> String {
    [&PROGRAMS[..], &CLIENTS, &DATABASE, &KERNEL_FILES, &HEADER_FILES, &PROGRAM_FILES].concat().join(" ")
}

/// Downloads every package that the guests are made of into `folder/debs`, and says whether it did; if all kinds
/// are there already, only with `renew`.
pub fn download(folder: &Path, renew: bool) -> Result<(PathBuf, bool)> {
    let debs = folder.join("debs");
    if !renew && debs.is_dir() && is_complete(&debs)? {
        return Ok((debs, false));
    }
    let partial = folder.join("debs.partial");
    recreate(&partial)?;
    progress::step("download guest kernels and programs (about 160 MB)", || {
        let system = Apt::system();
        let first = system.resolve().and_then(|packages| system.download(&packages, &partial));
        let Err(first) = first else { return Ok(()) };
        println!("  the machine's package lists do not do ({first:#}); fetching fresh ones");
        let fresh = Apt::private(&folder.join("apt"), None)?;
        recreate(&partial)?;
        fresh.download(&fresh.resolve()?, &partial)
    })?;
    if debs.is_dir() {
        fs::remove_dir_all(&debs)?;
    }
    fs::rename(&partial, &debs)?;
    Ok((debs, true))
}

/// Whether kernels, their headers and all programs are among the downloads.
fn is_complete(debs: &Path) -> Result<bool> {
    let entries = sorted_entries(debs)?;
    let names = || entries.iter().filter_map(|deb| deb.file_name()?.to_str());
    let kinds = [IMAGE, HEADERS, KBUILD].into_iter().chain(PROGRAMS).chain(CLIENTS).chain(DATABASE);
    Ok(kinds.into_iter().all(|kind| names().any(|name| name.starts_with(kind))))
}

/// Unpacks what the guests need of each package below `folder`, all into one tree.
pub fn unpack(debs: &Path, folder: &Path) -> Result<()> {
    for deb in sorted_entries(debs)? {
        let name = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted: &[&str] = if name.starts_with(HEADERS) || name.starts_with(KBUILD) {
            &HEADER_FILES
        } else if name.starts_with("linux-") {
            &KERNEL_FILES
        } else {
            &PROGRAM_FILES
        };
        unpack_some(&deb, wanted, folder).with_context(|| format!("unpack {name}"))?;
    }
    Ok(())
}

/// Unpacks a QEMU and what it needs below `folder`, all into one tree.
pub fn unpack_vmm(debs: &Path, folder: &Path) -> Result<()> {
    sorted_entries(debs)?.iter().try_for_each(|deb| {
        unpack_some(deb, &VMM_FILES, folder).with_context(|| format!("unpack {}", deb.display()))
    })
}

/// Pipes one package's file system through tar, keeping the files that match.
fn unpack_some(deb: &Path, wanted: &[&str], folder: &Path) -> Result<()> {
    let mut archive =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn()?;
    let stream = archive.stdout.take().context("dpkg-deb has an output")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--wildcards", "--directory"]).arg(folder).args(wanted);
    let unpacked = tar.stdin(stream).stderr(Stdio::null()).status()?;
    // tar fails when one of several patterns matches nothing, which is usual; a damaged package fails here.
    let read = archive.wait()?;
    if !read.success() || unpacked.code().is_none() {
        bail!("dpkg-deb ended with {read}, tar with {unpacked}");
    }
    Ok(())
}

/// Empties and makes `folder`.
pub fn recreate(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}

/// What a file holds.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Everything directly in `folder`, by name.
pub fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut entries = read.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}
