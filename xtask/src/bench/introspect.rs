// SPDX-License-Identifier: Apache-2.0
//! What looking into guests costs, on real machines under the daemon as it ships.
//!
//! - *Attach*: machines of 256 MiB and 8 GiB whose RAM is made resident whole: after boot, the VMM stands still while
//!   the holes in its RAM file are filled with the guests' own programs, over and over. Then the daemon is killed and
//!   started again, time after time, and says how long each attach took.
//! - *First verdict, views*: a machine with 300 idle processes that holds 2,000 connections through the switch opens some
//!   more; from the frame being seen to its verdict, as the daemon counts. Once all from one process, once each from
//!   a new one.
//! - *Growth*: every view, while the VMM stands still and nobody else can touch the RAM.
//! - *Idle*: processor time and private memory of the daemon for two attached machines with nothing to do.
//!
//! Guests are emulated and share this machine's processors with the daemon: a busy machine shows in the upper figures.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::admin::{Latency, Request};
use serde::Serialize;
use testkit::guests::{self, GuestKernel};

use super::world::{READY_LIMIT, World};
use crate::{packages, progress, shell, test};

const PROCESSES: u32 = 300;
const CONNECTIONS: u32 = 2000;
/// Connections whose first frame is timed.
const FIRST_FRAMES: u32 = 500;
/// Processes whose first frame is timed.
const NEW_PROCESSES: u32 = 100;
/// Times that each view is asked for.
const VIEWS: u32 = 50;
/// Times that a machine is attached to.
const ATTACHES: usize = 5;
/// How long the idle daemon is watched.
const IDLE: Duration = Duration::from_secs(20);
/// Time for many connections, one after the other.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(120);
const SERVER: &str = "10.0.0.2:8080";

/// One case, in its unit. A figure that was taken once is all of its own percentiles.
#[derive(Serialize)]
struct Figure {
    case: &'static str,
    unit: &'static str,
    p50: f64,
    p99: f64,
    max: f64,
    n: u64,
}

impl Figure {
    fn of(case: &'static str, unit: &'static str, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |percent: usize| samples.get((samples.len() - 1) * percent / 100).copied().unwrap_or(0.0);
        Self { case, unit, p50: at(50), p99: at(99), max: at(100), n: samples.len() as u64 }
    }

    fn told(case: &'static str, times: &Latency) -> Self {
        let (p50, p99, max) = (times.p50_us as f64, times.p99_us as f64, times.max_us as f64);
        Self { case, unit: "us", p50, p99, max, n: times.count }
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            let Self { case, unit, p50, p99, max, n } = self;
            println!("{case:<28} {p50:>10.2} {p99:>10.2} {max:>10.2} {n:>7}  {unit}");
        }
        Ok(())
    }
}

/// Measures introspection; `json` prints an object a line instead of a table.
pub fn run(json: bool, no_install: bool) -> Result<()> {
    packages::require(&packages::GUESTS, !no_install)?;
    crate::guests::build(false)?;
    shell::show(&mut test::shipped())?;
    if !json {
        println!("{:<28} {:>10} {:>10} {:>10} {:>7}  unit", "case", "p50", "p99", "max", "n");
    }
    idle_and_busy(json)?;
    for (case, memory_mib) in [("attach_ms", 256), ("attach_8gib_ms", 8192)] {
        attach(case, memory_mib).with_context(|| format!("case {case}"))?.print(json)?;
    }
    Ok(())
}

fn idle_and_busy(json: bool) -> Result<()> {
    let mut world = World::start(&[("a", ""), ("b", "")], RULES)?;
    let alone_kib = world.daemon.private_kib()?;
    progress::note("boot two machines");
    world.boot("a", GuestKernel::V6_1, 512)?;
    world.boot("b", GuestKernel::V6_12, 512)?;
    let vms = world.vms.len() as f64;
    let kib = world.daemon.private_kib()?.saturating_sub(alone_kib) as f64 / vms;
    progress::note("watch the idle daemon");
    let (before, started) = (world.daemon.cpu_time()?, Instant::now());
    std::thread::park_timeout(IDLE);
    let used = world.daemon.cpu_time()?.saturating_sub(before);
    let percent = 100.0 * used.as_secs_f64() / started.elapsed().as_secs_f64() / vms;
    Figure::of("host_cpu_percent_idle_vm", "percent of a core", vec![percent]).print(json)?;
    Figure::of("memory_kib_per_vm", "KiB", vec![kib]).print(json)?;

    progress::note("fill the machines with processes and connections");
    let (a, b) = (&world.vms[0], &world.vms[1]);
    b.background("serve", "sh -c 'ulimit -n 8192; exec /usr/bin/orders serve 8080'")?;
    b.await_line("serve", "serving", READY_LIMIT)?;
    let crowd = format!("for i in $(seq {PROCESSES}); do sleep 100000 & done >/dev/null 2>&1");
    a.run_within(&crowd, TRAFFIC_LIMIT)?;
    let hold = format!("sh -c 'ulimit -n 8192; exec /usr/bin/storefront hold {SERVER} {CONNECTIONS}'");
    a.background("held", &hold)?;
    a.await_line("held", "holding", TRAFFIC_LIMIT)?;

    world.restart()?;
    progress::note("open connections from one process");
    connect(&world, &format!("/usr/bin/storefront connect {SERVER} {FIRST_FRAMES}"), FIRST_FRAMES)?;
    let status = world.status()?;
    Figure::told("first_syn_verdict_us", &status.attribution).print(json)?;
    Figure::told("owner_lookup_us", &status.lookup).print(json)?;
    world.restart()?;
    progress::note("open connections from new processes");
    let each = format!("for i in $(seq {NEW_PROCESSES}); do /usr/bin/storefront connect {SERVER} 1; done");
    connect(&world, &each, NEW_PROCESSES)?;
    Figure::told("first_syn_new_process_us", &world.status()?.attribution).print(json)?;
    views(&world, json)
}

/// Runs what opens connections, all of which must succeed.
fn connect(world: &World, command: &str, count: u32) -> Result<()> {
    let printed = world.vms[0].run_within(command, TRAFFIC_LIMIT)?.stdout;
    let connected = printed.lines().filter(|line| line.starts_with("connected ")).count();
    anyhow::ensure!(connected == count as usize, "{connected} of {count} connections: {printed}");
    Ok(())
}

fn views(world: &World, json: bool) -> Result<()> {
    let (vm, ram) = (&world.vms[0], world.vms[0].ram()?);
    let resident_kib = || Ok::<_, std::io::Error>(ram.metadata()?.blocks() / 2);
    let name = || "bench/a".to_owned();
    progress::note("ask for views while the machine stands still");
    let (before, after) = vm.while_frozen(|| {
        let before = resident_kib()?;
        for _ in 0..VIEWS {
            world.daemon.ask(&Request::VmProcesses { vm: name() })?;
            world.daemon.ask(&Request::VmSockets { vm: name() })?;
        }
        world.daemon.ask(&Request::VmProcessDetails { vm: name() })?;
        world.daemon.ask(&Request::VmSocketDetails { vm: name() })?;
        world.daemon.ask(&Request::VmCpu { vm: name() })?;
        Ok((before, resident_kib()?))
    })?;
    let times = world.status()?.views;
    let time = |view: &str| times.get(view).cloned().unwrap_or_default();
    Figure::told("ps_us", &time("processes")).print(json)?;
    Figure::told("sockets_us", &time("sockets")).print(json)?;
    Figure::of("resident_growth_kib", "KiB", vec![after as f64 - before as f64]).print(json)
}

fn attach(case: &'static str, memory_mib: u32) -> Result<Figure> {
    let mut world = World::start(&[("a", ""), ("b", "")], RULES)?;
    progress::note("boot a machine and make its RAM resident");
    world.boot("a", GuestKernel::V6_12, memory_mib)?;
    let vm = &world.vms[0];
    let path = vm.ram_path()?;
    vm.while_frozen(|| fill(&path))?;
    let resident = vm.ram()?.metadata()?.blocks() / 2048;
    anyhow::ensure!(resident >= u64::from(memory_mib) * 99 / 100, "only {resident} MiB are resident");
    let mut took = Vec::new();
    for _ in 0..ATTACHES {
        world.restart()?;
        took.push(world.attached("a")?);
    }
    Ok(Figure::of(case, "ms", took))
}

/// Writes programs into the holes of a guest's RAM: what it has not touched yet may hold anything.
fn fill(ram: &Path) -> Result<()> {
    let programs = fs::read(guests::initramfs()).context("read the guests' programs")?;
    let file = File::options().read(true).write(true).open(ram)?;
    let mut holes = Vec::new();
    let (mut end, len) = (0, file.metadata()?.len());
    while end < len {
        use rustix::fs::{SeekFrom, seek};
        let Ok(hole) = seek(&file, SeekFrom::Hole(end)) else { break };
        let data = seek(&file, SeekFrom::Data(hole)).unwrap_or(len);
        holes.push(hole..data);
        end = data;
    }
    let mut from = 0;
    for hole in holes {
        let mut at = hole.start;
        while at < hole.end {
            let left = usize::try_from(hole.end - at)?.min(programs.len() - from);
            file.write_all_at(&programs[from..from + left], at)?;
            at += left as u64;
            from = (from + left) % programs.len();
        }
    }
    Ok(())
}

/// Connections are allowed to one program only, so that the first frame of each is attributed.
const RULES: &str = "\
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: storefront-to-b, tenant: bench}
spec:
  action: Allow
  from: [{process: {exe: /usr/bin/storefront}}]
  to: [{vm: {name: b}}]
";
