// SPDX-License-Identifier: Apache-2.0
//! Processes from RAM against the guest's own `ps` and `/proc`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};
use api::admin::{Request, Response};
use testkit::daemon::Daemon;
use testkit::vm::Vm;

use crate::agreement::{self, plain_name};
use crate::{Report, Shop};

/// What both sides tell of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    parent: u32,
    name: String,
    exe: Option<String>,
    uid: u32,
    cgroup: String,
}

pub(crate) type Processes = BTreeMap<u32, Seen>;

/// Every machine's list equals its own.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    let names: Vec<String> = shop.names().map(str::to_owned).collect();
    for id in &names {
        let outcome = compare(shop.vm(id), &shop.daemon, id);
        report.check(format!("{id}: names, parents, executables, users and units are equal"), outcome);
    }
    let id = "acme/web";
    let grown = grown_kib(shop.vm(id), &shop.daemon, id);
    report.check(format!("{id}: looking at everything makes none of its RAM resident"), grown);
    Ok(())
}

/// Asks for every view while the guest stands still, so that nobody else can touch its RAM.
fn grown_kib(vm: &Vm, daemon: &Daemon, id: &str) -> Result<String> {
    let ram = vm.ram()?;
    let resident_kib = || Ok::<_, std::io::Error>(ram.metadata()?.blocks() / 2);
    let vm_name = || id.to_owned();
    let (before, after) = vm.while_frozen(|| {
        let before = resident_kib()?;
        daemon.ask(&Request::VmProcessDetails { vm: vm_name() })?;
        daemon.ask(&Request::VmSocketDetails { vm: vm_name() })?;
        daemon.ask(&Request::VmCpu { vm: vm_name() })?;
        daemon.ask(&Request::VmFlows { vm: vm_name() })?;
        Ok((before, resident_kib()?))
    })?;
    anyhow::ensure!(before == after, "{before} KiB became {after} KiB");
    Ok(format!("{after} KiB before and after"))
}

/// Compares a guest's processes with what a daemon says of them.
pub(crate) fn compare(vm: &Vm, daemon: &Daemon, id: &str) -> Result<String> {
    let count = agreement::compare(|| from_guest(vm), || from_ram(daemon, id))?;
    Ok(format!("{count} processes"))
}

/// Compares a dump with what the guest was before and after it was taken.
pub(crate) fn compare_dump(
    before: &Processes,
    after: &Processes,
    daemon: &Daemon,
    id: &str,
) -> Result<String> {
    let count = agreement::included(before, after, &from_ram(daemon, id)?)?;
    Ok(format!("{count} processes"))
}

fn from_ram(daemon: &Daemon, id: &str) -> Result<Processes> {
    let Response::Processes(processes) = daemon.ask(&Request::VmProcesses { vm: id.into() })? else {
        bail!("not a list of processes");
    };
    let processes = processes.into_iter().map(|process| {
        let seen = Seen {
            parent: process.parent_pid,
            name: plain_name(&process.name),
            exe: process.exe,
            uid: process.uid.unwrap_or(u32::MAX),
            cgroup: process.cgroup.unwrap_or_default(),
        };
        (process.pid, seen)
    });
    Ok(processes.collect())
}

/// Asks the guest's own tools; whoever is not in all their answers came or went meanwhile.
pub(crate) fn from_guest(vm: &Vm) -> Result<Processes> {
    let names = vm.expect("ps -o pid,ppid,comm")?;
    let files = vm.run("cd /proc; stat -c '%n %u' [0-9]*; grep -H . [0-9]*/cgroup; ls -l [0-9]*/exe")?.stdout;
    let (mut uids, mut cgroups, mut exes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for line in files.lines() {
        if let Some((pid, cgroup)) = line.split_once("/cgroup:0::") {
            cgroups.insert(pid.parse::<u32>()?, cgroup.to_owned());
        } else if let Some((before, exe)) = line.split_once("/exe -> ") {
            let pid = before.rsplit(' ').next().unwrap_or_default();
            exes.insert(pid.parse::<u32>()?, exe.to_owned());
        } else if let Some((pid, uid)) = line.split_once(' ')
            && let (Ok(pid), Ok(uid)) = (pid.parse::<u32>(), uid.parse::<u32>())
        {
            uids.insert(pid, uid);
        }
    }
    let mut processes = Processes::new();
    for line in names.lines().skip(1) {
        let mut words = line.split_whitespace();
        let pid: u32 = words.next().context("a line of ps starts with a number")?.parse()?;
        let parent = words.next().context("a line of ps has a parent")?.parse()?;
        let name = plain_name(&words.collect::<Vec<_>>().join(" "));
        if let (Some(uid), Some(cgroup)) = (uids.get(&pid), cgroups.get(&pid)) {
            let exe = exes.get(&pid).cloned();
            processes.insert(pid, Seen { parent, name, exe, uid: *uid, cgroup: cgroup.clone() });
        }
    }
    if !processes.contains_key(&1) {
        bail!("the guest does not show its first process: {names}");
    }
    Ok(processes)
}
