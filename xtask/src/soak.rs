// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask soak`: that nothing is found where there is nothing to find, for as long as one likes to watch.
//!
//! Two machines of different kernels do for the whole time what a kernel in use does to itself: processes,
//! connections between them, tracers, probes, static keys, packet filters made into code, modules that come and
//! go. Every finding of `meshctl vm threats` is a false one.

pub mod handover;
pub mod switch;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::admin::{Request, Response, Threats};
use e2e::Shop;
use serde::Serialize;
use testkit::accel;

use crate::{guests, packages, shell, test};

/// The machines that are watched, and what the tracer traces in each.
const MACHINES: [(&str, &str); 2] = [("acme/web", "tcp_*"), ("acme/api", "vfs_*")];
/// Time between two questions.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Time between two lines of progress.
const SHOW_AGAIN: Duration = Duration::from_secs(60);
/// Connections that the first machine makes to the second, again and again.
const CONNECT: &str = "while :; do /usr/bin/storefront connect 10.0.0.12:8080 100; sleep 1; done";

/// What one machine came to.
#[derive(Debug, Default, Serialize)]
struct Watched {
    vm: &'static str,
    kernel: String,
    /// Times all views were compared, and all pages checked.
    views: u64,
    rounds: u64,
    /// Times the machine went through everything that its kernel does to itself.
    load_rounds: u64,
    findings: BTreeSet<String>,
}

/// All of it.
#[derive(Serialize)]
struct Summary {
    minutes: f64,
    /// Of one core, for each machine.
    inspect_cpu_percent: f64,
    machines: Vec<Watched>,
}

/// Watches for `minutes`, machines that rest if they are `idle`; an error if anything is found.
pub fn threats(minutes: u32, idle: bool, no_install: bool) -> Result<()> {
    packages::require(&packages::GUESTS, !no_install)?;
    guests::build(false)?;
    shell::show(&mut test::shipped())?;
    let shop = Shop::open_with(accel::choose()?.accel, &MACHINES.map(|(id, _)| id))?;
    if !idle {
        for (id, pattern) in MACHINES {
            shop.vm(id).background("load", &format!("busy-kernel '{pattern}'"))?;
        }
        shop.vm(MACHINES[0].0).background("connect", CONNECT)?;
    }
    let (begun, before) = (Instant::now(), shop.daemon.thread_time("inspect")?);
    let mut machines = MACHINES.map(|(vm, _)| Watched { vm, ..Watched::default() });
    let mut shown = begun;
    while begun.elapsed() < Duration::from_secs(60) * minutes {
        std::thread::park_timeout(ASK_AGAIN);
        for watched in &mut machines {
            watched.look(&shop)?;
        }
        if shown.elapsed() >= SHOW_AGAIN {
            shown = Instant::now();
            let lines: Vec<String> = machines.iter().map(Watched::line).collect();
            eprintln!("{:.0} of {minutes} min: {}", begun.elapsed().as_secs_f64() / 60.0, lines.join("; "));
        }
    }
    let used = shop.daemon.thread_time("inspect")?.saturating_sub(before);
    for watched in &mut machines {
        watched.kernel = shop.vm(watched.vm).expect("uname -r")?;
        let rounds = shop.vm(watched.vm).run("grep -c round /tmp/load.log")?.stdout;
        watched.load_rounds = if idle { 0 } else { rounds.parse().context("a count")? };
    }
    let seconds = begun.elapsed().as_secs_f64();
    let inspect_cpu_percent = 100.0 * used.as_secs_f64() / seconds / MACHINES.len() as f64;
    let found = machines.iter().map(|watched| watched.findings.len()).sum::<usize>();
    let summary = Summary { minutes: seconds / 60.0, inspect_cpu_percent, machines: machines.into() };
    println!("{}", serde_json::to_string(&summary)?);
    if found > 0 {
        bail!("{found} findings where there is nothing to find\n{}", shop.reports());
    }
    Ok(())
}

impl Watched {
    fn look(&mut self, shop: &Shop) -> Result<()> {
        let Response::Threats(threats) = shop.ask(&Request::VmThreats { vm: self.vm.into() })? else {
            bail!("not a list of threats");
        };
        let Threats { findings, views, rounds, .. } = *threats;
        (self.views, self.rounds) = (views, rounds);
        for finding in findings {
            let symbol = finding.symbol.unwrap_or_default();
            let told = format!("{} {symbol}: {}", finding.kind, finding.evidence);
            if self.findings.insert(told.clone()) {
                eprintln!("{}: {told}", self.vm);
            }
        }
        Ok(())
    }

    fn line(&self) -> String {
        let Self { vm, views, rounds, findings, .. } = self;
        format!("{vm}: {} findings in {views} views and {rounds} rounds of pages", findings.len())
    }
}
