// SPDX-License-Identifier: Apache-2.0
//! A guest that the daemon serves no card of: its RAM is a file, shared by the running VMM or copied from it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use api::admin::{IntrospectionState, Request, Response};
use testkit::daemon::Daemon;
use testkit::guests::{GuestKernel, shipped};
use testkit::vm::{Cpu, Vm, VmSpec};

use crate::shop::NOTICE_LIMIT;
use crate::story::processes::{Processes, compare, compare_dump, from_guest};
use crate::story::why::meshctl;
use crate::{Report, Shop};

/// Enough for RAM in two pieces, with the kernel's structures in the upper one.
const MEMORY_MIB: u32 = 3072;
const LIVE: &str = "lab/live";
const DUMP: &str = "lab/dump";
const CORE: &str = "lab/core";

/// The live file against the guest itself, then a copy of it and what its VMM writes as a core.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let folder = shop.scratch.join("detached");
    fs::create_dir_all(folder.join("run"))?;
    let (live, dump) = (folder.join("live.ram"), folder.join("dump.ram"));
    let spec = VmSpec {
        kernel: GuestKernel::V6_12,
        cpu: Cpu::Max,
        memory_mib: MEMORY_MIB,
        ram: Some(live.clone()),
        ..VmSpec::new("detached", shop.accel)
    };
    let vm = Vm::boot(spec, &folder)?;
    let before = from_guest(&vm)?;
    vm.while_frozen(|| copy(&live, &dump))?;
    let core = folder.join("core");
    vm.dump(&core)?;
    let after = from_guest(&vm)?;
    let web = shop.vm("acme/web").ram_path()?;
    let guests =
        [(LIVE, live.as_path()), (DUMP, dump.as_path()), (CORE, core.as_path()), ("acme/web", web.as_path())];
    let daemon = Daemon::inspect(&shipped("meshvisor-hostd"), &guests, &folder.join("run"))?;
    for (id, _) in guests {
        understood(shop, &daemon, id).with_context(|| daemon.report())?;
    }
    report.check("a running guest's file of two regions shows its processes", compare(&vm, &daemon, LIVE));
    let web = compare(shop.vm("acme/web"), &daemon, "acme/web");
    report.check("so does the memory of another VMM, by its descriptor", web);
    report.check("a dump shows what ran when it was taken", of_dump(&daemon, &dump, &before, &after));
    let core_shows = compare_dump(&before, &after, &daemon, CORE);
    report.check("so does an ELF core, as the VMM itself writes it", core_shows);
    report.check("the files are opened for reading only", read_only(&daemon, &[&live, &dump, &core]));
    Ok(())
}

/// A copy in which holes stay holes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("--sparse=always").arg(from).arg(to).status();
    ensure!(copied.context("start cp")?.success(), "the RAM cannot be copied");
    Ok(())
}

fn understood(shop: &Shop, daemon: &Daemon, id: &str) -> Result<()> {
    shop.until(NOTICE_LIMIT, || {
        let Response::Vms(vms) = daemon.ask(&Request::VmList)? else { bail!("not a list of machines") };
        let vm = vms.into_iter().find(|vm| format!("{}/{}", vm.tenant, vm.name) == id);
        let introspection = vm.with_context(|| format!("the daemon knows no {id}"))?.introspection;
        if introspection.state == IntrospectionState::Failed {
            bail!("{id} is not understood: {introspection:?}");
        }
        Ok((introspection.state == IntrospectionState::Attached).then_some(()))
    })
}

fn of_dump(daemon: &Daemon, path: &Path, before: &Processes, after: &Processes) -> Result<String> {
    let blocks = || Ok::<_, std::io::Error>(path.metadata()?.blocks());
    let (taken, seen) = (blocks()?, compare_dump(before, after, daemon, DUMP)?);
    let sockets = meshctl(daemon, &["vm", "ss", DUMP])?;
    let top = meshctl(daemon, &["vm", "top", DUMP, "--once"])?;
    ensure!(top.contains("dump of its RAM"), "`vm top` does not say why it has no shares: {top}");
    let live = meshctl(daemon, &["vm", "top", LIVE, "--once"])?;
    ensure!(!live.contains("dump of its RAM"), "a running guest is taken for a dump: {live}");
    ensure!(blocks()? == taken, "the dump takes more space than before");
    Ok(format!("{seen}, {} lines of sockets; `vm top` says that nothing runs", sockets.lines().count()))
}

/// As the system sees it: the access mode is the last digit of a descriptor's flags.
fn read_only(daemon: &Daemon, files: &[&Path]) -> Result<String> {
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{}/fd", daemon.pid()))? {
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        if files.iter().any(|file| target == **file) {
            let info = Path::new(&format!("/proc/{}/fdinfo", daemon.pid())).join(entry.file_name());
            let info = fs::read_to_string(info)?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).context("it has flags")?;
            ensure!(flags.ends_with('0'), "{} is open with flags {flags}", target.display());
            count += 1;
        }
    }
    ensure!(count >= files.len(), "only {count} are open");
    Ok(format!("{count} descriptors"))
}
