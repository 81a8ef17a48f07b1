// SPDX-License-Identifier: Apache-2.0
//! What RAM tells of processes, processors and sockets, against the guest's own `/proc`.
//!
//! The guest is asked before and after the daemon: what it says both times held in between.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use api::admin::{Direction, Request, Response, ToldBy};

use crate::shop::{API, START_LIMIT};
use crate::{Report, Shop};

/// What both sides tell of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    command: String,
    threads: String,
    namespaces: BTreeMap<String, String>,
}

type Processes = BTreeMap<u32, Seen>;

/// Prints a section for each view of every process; a namespace of its own for one of them.
const LOOK: &str = "\
cd /proc; ls -l [0-9]*/ns/pid [0-9]*/ns/net [0-9]*/ns/mnt [0-9]*/ns/user 2>/dev/null; \
grep -H ^Threads [0-9]*/status; \
for file in [0-9]*/cmdline; do printf '%s=' $file; cat $file | tr '\\000' ' '; echo; done";

/// Processes, processor time, a connection, and who talks to whom.
pub(super) fn run(shop: &mut Shop, report: &mut Report) -> Result<()> {
    shop.vm("acme/web").background("apart", "unshare -n -m -p -f sleep 60")?;
    for id in ["acme/web", "acme/api"] {
        let claim = format!("{id}: command lines, namespaces and thread counts are equal");
        report.check(claim, processes(shop, id));
    }
    shop.vm("acme/web").expect("killall sleep")?;
    report.check("processor time lies between the guest's own figures", processor_time(shop));
    report.check("a connection has a round-trip time, and both its ends a process", connection(shop));
    Ok(())
}

/// Command lines, namespaces and thread counts of one machine.
pub(crate) fn processes(shop: &Shop, id: &str) -> Result<String> {
    let before = from_guest(shop, id)?;
    let seen = from_ram(shop, id)?;
    let after = from_guest(shop, id)?;
    let mut equal = 0;
    for (pid, own) in before.iter().filter(|(pid, own)| after.get(pid) == Some(own)) {
        if seen.get(pid) != Some(own) {
            bail!("process {pid}: {own:?} in the guest, {:?} in RAM", seen.get(pid));
        }
        equal += 1;
    }
    let spaces = seen.values().filter_map(|seen| seen.namespaces.get("net"));
    let spaces: std::collections::BTreeSet<&String> = spaces.collect();
    Ok(format!("{equal} processes, {} network namespaces", spaces.len()))
}

fn from_ram(shop: &Shop, id: &str) -> Result<Processes> {
    let Response::ProcessDetails(details) = shop.ask(&Request::VmProcessDetails { vm: id.into() })? else {
        bail!("not a list of processes");
    };
    let seen = details.into_iter().map(|detail| {
        let spaces = detail.namespaces;
        let spaces = [("pid", spaces.pid), ("net", spaces.net), ("mnt", spaces.mnt), ("user", spaces.user)];
        let seen = Seen {
            command: detail.command.unwrap_or_default().join(" "),
            threads: detail.threads.map_or(String::new(), |count| count.to_string()),
            namespaces: spaces
                .into_iter()
                .filter_map(|(kind, inode)| Some((kind.to_owned(), inode?.to_string())))
                .collect(),
        };
        (detail.process.pid, seen)
    });
    Ok(seen.collect())
}

fn from_guest(shop: &Shop, id: &str) -> Result<Processes> {
    let mut processes = Processes::new();
    for line in shop.vm(id).run(LOOK)?.stdout.lines() {
        if let Some((link, inode)) = line.split_once(" -> ") {
            let path = link.rsplit(' ').next().unwrap_or_default();
            let (pid, kind) = path.split_once("/ns/").context("a link names a namespace")?;
            let inode = inode.trim_matches(|c: char| !c.is_ascii_digit());
            let seen = processes.entry(pid.parse()?).or_default();
            seen.namespaces.insert(kind.to_owned(), inode.to_owned());
        } else if let Some((pid, count)) = line.split_once("/status:Threads:") {
            processes.entry(pid.parse()?).or_default().threads = count.trim().to_owned();
        } else if let Some((pid, command)) = line.split_once("/cmdline=") {
            processes.entry(pid.parse()?).or_default().command = command.trim_end().to_owned();
        }
    }
    if processes.get(&1).is_none_or(|init| init.namespaces.len() != 4) {
        bail!("the guest does not show its first process");
    }
    Ok(processes)
}

fn processor_time(shop: &Shop) -> Result<String> {
    let web = shop.vm("acme/web");
    let pid = web.background("busy", "sh -c 'while :; do :; done'")?;
    let own = || -> Result<u64> {
        let said = web.expect(&format!("cat /proc/{pid}/schedstat"))?;
        Ok(said.split(' ').next().context("schedstat starts with a time")?.parse()?)
    };
    let before = own()?;
    let Response::Cpu(sample) = shop.ask(&Request::VmCpu { vm: "acme/web".into() })? else {
        bail!("not processor times");
    };
    let after = own()?;
    web.expect(&format!("kill {pid}"))?;
    let busy = sample.processes.iter().find(|process| process.pid == pid).context("it is there")?;
    if !(before..=after).contains(&busy.runtime_ns) {
        bail!("{} ns, not between {before} and {after}", busy.runtime_ns);
    }
    let cpu = sample.cpus.first().context("a processor is told")?;
    let ms = |ns: u64| ns / 1_000_000;
    let runs = format!("{} runs, {} runnable", cpu.name, cpu.runnable);
    Ok(format!("{} ms within {} to {} ms; {runs}", ms(busy.runtime_ns), ms(before), ms(after)))
}

fn connection(shop: &Shop) -> Result<String> {
    let web = shop.vm("acme/web");
    let pid = web.background("held", &format!("/usr/bin/storefront hold {API}"))?;
    web.await_line("held", "connected", START_LIMIT)?;
    let Response::SocketDetails(sockets) = shop.ask(&Request::VmSocketDetails { vm: "acme/web".into() })?
    else {
        bail!("not a list of sockets");
    };
    let Response::DataFlow(flow) = shop.ask(&Request::VmFlows { vm: "acme/api".into() })? else {
        bail!("not a data flow");
    };
    web.expect(&format!("kill {pid}"))?;
    let held = sockets.iter().find(|detail| {
        detail.socket.remote == API && detail.socket.owners.iter().any(|owner| owner.pid == pid)
    });
    let rtt_us = held.and_then(|detail| detail.tcp).context("the connection is told")?.rtt_us;
    if rtt_us == 0 {
        bail!("no round-trip time");
    }
    let talk = flow.conversations.iter().find(|talk| {
        talk.direction == Direction::Inbound && talk.port == 8080 && talk.told_by >= ToldBy::Listener
    });
    let talk = talk.with_context(|| format!("no conversation with a process: {flow:?}"))?;
    let server = talk.process.as_ref().map_or("", |process| &process.name);
    if server != "orders" || talk.peer_vm.as_deref() != Some("acme/web") {
        bail!("{talk:?}");
    }
    let peer = talk.peer_vm.as_deref().unwrap_or_default();
    Ok(format!("{rtt_us} us; {peer} talks to {server}, {} bytes received", talk.received_bytes))
}
