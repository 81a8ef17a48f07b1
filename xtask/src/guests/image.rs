// SPDX-License-Identifier: Apache-2.0
//! Puts the guests' root file system together: the files of `guests/root`, busybox and a link for each of its
//! tools, the workload under its several names, other programs with the libraries they load, network card drivers,
//! modules for containers, and the modules that tests have to find.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::WORKLOADS;
use super::cpio::Archive;
use super::debian::{read, sorted_entries};
use super::kernel::Kernel;
use super::modules::Module;
use crate::{repository, shell};

/// Drivers from first to last: each needs symbols of those before it. A kernel may have some built in.
const DRIVERS: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];
/// Modules for a container behind translated addresses, from first to last.
const TRANSLATION: [&str; 10] = [
    "veth",
    "libcrc32c",
    "nfnetlink",
    "nf_defrag_ipv4",
    "nf_defrag_ipv6",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
];
/// Where Debian keeps libraries and where the guest's dynamic loader looks for them.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
/// The dynamic loader's path, as programs name it.
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
/// redis's server, in the package that has it under the name of one of its other roles, and its client; what sets up
/// the translation of addresses; and what tells a card to use its features.
const PROGRAMS: [(&str, &str); 4] = [
    ("usr/bin/redis-check-rdb", "usr/bin/redis-server"),
    ("usr/bin/redis-cli", "usr/bin/redis-cli"),
    ("usr/sbin/nft", "usr/sbin/nft"),
    ("sbin/ethtool", "usr/sbin/ethtool"),
];

/// What asks for names or tries a network out, and a database, where Debian has it: a server of many processes, what makes
/// its files, its client.
const CLIENTS: [&str; 10] = [
    "usr/bin/dig",
    "usr/bin/curl",
    "usr/bin/getent",
    "usr/bin/iperf3",
    "usr/bin/redis-benchmark",
    "usr/bin/tcpdump",
    "sbin/tc",
    "usr/lib/postgresql/15/bin/postgres",
    "usr/lib/postgresql/15/bin/initdb",
    "usr/lib/postgresql/15/bin/psql",
];
/// Loses, delays and reorders what a card sends.
const DISTURBANCE: [&str; 1] = ["sch_netem"];
/// What the database makes its files from, and what it loads for that.
const DATABASE: [&str; 14] = [
    "usr/lib/postgresql/15/lib/dict_snowball.so",
    "usr/lib/postgresql/15/lib/plpgsql.so",
    "usr/share/postgresql/15/extension/plpgsql--1.0.sql",
    "usr/share/postgresql/15/extension/plpgsql.control",
    "usr/share/postgresql/15/information_schema.sql",
    "usr/share/postgresql/15/pg_hba.conf.sample",
    "usr/share/postgresql/15/pg_ident.conf.sample",
    "usr/share/postgresql/15/postgres.bki",
    "usr/share/postgresql/15/postgresql.conf.sample",
    "usr/share/postgresql/15/snowball_create.sql",
    "usr/share/postgresql/15/sql_features.txt",
    "usr/share/postgresql/15/system_constraints.sql",
    "usr/share/postgresql/15/system_functions.sql",
    "usr/share/postgresql/15/system_views.sql",
];
/// Folders of the same.
const DATABASE_FOLDERS: [&str; 2] =
    ["usr/share/postgresql/15/timezonesets", "usr/share/postgresql/15/tsearch_data"];

/// A root file system under construction; makes missing parents by itself.
#[derive(Default)]
struct Root {
    archive: Archive,
    made: BTreeSet<String>,
}

impl Root {
    fn directory(&mut self, path: &str) {
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            if self.made.insert(path[..at].to_owned()) {
                self.archive.directory(&path[..at]);
            }
        }
    }

    fn file(&mut self, path: &str, executable: bool, contents: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.archive.file(path, executable, contents);
    }
}

/// The whole archive.
pub fn build(unpacked: &Path, kernels: &[Kernel], workload: &[u8], threats: &[Module]) -> Result<Vec<u8>> {
    let mut root = Root::default();
    for folder in ["dev", "proc", "sys", "run", "tmp", "root", "var"] {
        root.directory(folder);
    }
    // The kernel opens this before anything is mounted; without it /init would have no output.
    root.archive.character_device("dev/console", (5, 1));
    add_tree(&mut root, &repository().join("guests/root"), "")?;
    add_busybox(&mut root, unpacked)?;
    for name in WORKLOADS {
        root.file(&format!("usr/bin/{name}"), true, workload);
    }
    add_programs(&mut root, unpacked, &PROGRAMS)?;
    for kernel in kernels {
        add_modules(&mut root, &busybox(unpacked), kernel, &DRIVERS, "order")?;
        add_modules(&mut root, &busybox(unpacked), kernel, &TRANSLATION, "translation")?;
        add_modules(&mut root, &busybox(unpacked), kernel, &DISTURBANCE, "disturbance")?;
    }
    for Module { release, name, contents } in threats {
        root.file(&format!("lib/threats/{release}/{name}"), false, contents);
    }
    Ok(root.archive.finish())
}

/// Copies a folder with its files' execute bits.
fn add_tree(root: &mut Root, folder: &Path, below: &str) -> Result<()> {
    for entry in sorted_entries(folder)? {
        let name = entry.file_name().context("a listed file has a name")?.to_string_lossy().into_owned();
        let inside = if below.is_empty() { name } else { format!("{below}/{name}") };
        if entry.is_dir() {
            add_tree(root, &entry, &inside)?;
        } else {
            let executable = fs::metadata(&entry)?.permissions().mode() & 0o111 != 0;
            root.file(&inside, executable, &read(&entry)?);
        }
    }
    Ok(())
}

/// The guests' shell and tools in one program, which runs on this machine too.
pub fn busybox(unpacked: &Path) -> PathBuf {
    unpacked.join("bin/busybox")
}

fn add_busybox(root: &mut Root, unpacked: &Path) -> Result<()> {
    let busybox = busybox(unpacked);
    root.file("bin/busybox", true, &read(&busybox)?);
    for tool in shell::lines(Command::new(&busybox).arg("--list"))? {
        if tool != "busybox" {
            root.archive.symlink(&format!("bin/{tool}"), "busybox");
        }
    }
    Ok(())
}

/// Asks the unpacked dynamic loader itself which libraries the programs need, and copies just those.
fn add_programs(root: &mut Root, unpacked: &Path, programs: &[(&str, &str)]) -> Result<()> {
    let loader = fs::canonicalize(unpacked.join(LOADER)).or_else(|_| find_loader(unpacked))?;
    let path = LIBRARIES.map(|folder| unpacked.join(folder).display().to_string()).join(":");
    let mut libraries = BTreeSet::new();
    for (from, to) in programs {
        let program = unpacked.join(from);
        let mut list = Command::new(&loader);
        list.arg("--library-path").arg(&path).arg("--list").arg(&program);
        for line in shell::lines(&mut list)? {
            // The loader lists itself too, by the path of this machine's own.
            if let Some((name, found)) = line.split_once(" => ")
                && !name.contains("/ld-linux")
            {
                libraries.insert(PathBuf::from(found.split(' ').next().unwrap_or(found)));
            }
        }
        root.file(to, true, &read(&program)?);
    }
    for library in libraries {
        let name = library.file_name().context("a library has a name")?.to_string_lossy().into_owned();
        if !library.starts_with(unpacked) {
            bail!("{name} is in none of the downloaded packages");
        }
        root.file(&format!("lib/x86_64-linux-gnu/{name}"), true, &read(&library)?);
    }
    root.file(LOADER, true, &read(&loader)?);
    Ok(())
}

/// The loader's usual name is an absolute link, which leads nowhere inside the unpacked tree.
fn find_loader(unpacked: &Path) -> Result<PathBuf> {
    let name = Path::new(LOADER).file_name().unwrap_or_default();
    let found = LIBRARIES.iter().map(|folder| unpacked.join(folder).join(name)).find(|file| file.is_file());
    found.context("no dynamic loader in the downloaded packages")
}

/// Programs that ask for names, and the database, as an archive that may follow the whole one.
pub fn clients(unpacked: &Path) -> Result<Vec<u8>> {
    let mut root = Root::default();
    add_programs(&mut root, unpacked, &CLIENTS.map(|path| (path, path)))?;
    for file in DATABASE {
        root.file(file, false, &read(&unpacked.join(file))?);
    }
    for folder in DATABASE_FOLDERS {
        add_tree(&mut root, &unpacked.join(folder), folder)?;
    }
    Ok(root.archive.finish())
}

/// The drivers of one kernel alone, as an archive that may follow another.
pub fn drivers(kernel: &Kernel, busybox: &Path) -> Result<Vec<u8>> {
    let mut root = Root::default();
    add_modules(&mut root, busybox, kernel, &DRIVERS, "order")?;
    Ok(root.archive.finish())
}

/// Those of `modules` that a kernel does not have built in, and their order in a file `list` beside them. The last
/// one must be there.
fn add_modules(root: &mut Root, busybox: &Path, kernel: &Kernel, modules: &[&str], list: &str) -> Result<()> {
    let release = &kernel.release;
    let mut order = String::new();
    for module in modules {
        let Some(found) = find_module(&kernel.modules, module)? else {
            if modules.last() == Some(module) {
                bail!("kernel {release} has no module {module}");
            }
            continue;
        };
        let contents = if found.extension().is_some_and(|extension| extension == "xz") {
            shell::output(Command::new(busybox).arg("xzcat").arg(&found))?
        } else {
            read(&found)?
        };
        root.file(&format!("lib/modules/{release}/{module}.ko"), false, &contents);
        order.push_str(module);
        order.push('\n');
    }
    root.file(&format!("lib/modules/{release}/{list}"), false, order.as_bytes());
    Ok(())
}

/// Looks for a driver, plain or compressed, anywhere below `folder`.
fn find_module(folder: &Path, module: &str) -> Result<Option<PathBuf>> {
    let names = [format!("{module}.ko"), format!("{module}.ko.xz")];
    let mut front = vec![folder.to_owned()];
    while let Some(folder) = front.pop() {
        for entry in sorted_entries(&folder)? {
            if entry.is_dir() {
                front.push(entry);
            } else if entry.file_name().is_some_and(|name| names.iter().any(|wanted| name == wanted.as_str()))
            {
                return Ok(Some(entry));
            }
        }
    }
    Ok(None)
}
