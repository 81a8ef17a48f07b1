// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench`: figures that anyone can take again.
//!
//! `switch` runs the daemon as it ships, policy and connection tracking on, between two ports of DPDK's `testpmd`
//! (virtio-user, frames looped from memory). Generator on CPU 0, poll thread on CPU 1. A figure is the median of
//! windows of half a second; a machine that does other work at the same time shows in their spread.
//!
//! `introspect` boots machines and times what the daemon reads of them: see the module.

mod introspect;
mod pcap;
mod testpmd;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::admin::{Request, Response, Status};
use serde::Serialize;
use testkit::daemon::Daemon;
use testkit::guests::shipped;
use testkit::scratch::Scratch;

pub use introspect::run as introspect;

use crate::{packages, shell, test};

/// Windows per case.
const WINDOWS: usize = 10;
/// Length of a window.
const WINDOW: Duration = Duration::from_millis(500);
/// A generator that has not moved a frame by then never will.
const START_LIMIT: Duration = Duration::from_secs(30);

/// One case of the switch.
struct Case {
    name: &'static str,
    frame_bytes: usize,
    flows: usize,
    /// Properties of the guests' cards.
    card: &'static str,
}

const CASES: [Case; 5] = [
    Case { name: "conntrack_64B_1_flow", frame_bytes: 64, flows: 1, card: "" },
    Case { name: "conntrack_64B_10k_flows", frame_bytes: 64, flows: 10_000, card: "" },
    Case { name: "conntrack_64B_10k_flows_packed", frame_bytes: 64, flows: 10_000, card: "packed_vq=1" },
    Case { name: "conntrack_64B_100k_flows", frame_bytes: 64, flows: 100_000, card: "" },
    Case { name: "conntrack_1500B_10k_flows", frame_bytes: 1500, flows: 10_000, card: "" },
];

/// What a case came to.
#[derive(Serialize)]
struct Figure {
    case: &'static str,
    /// Median over the windows.
    ours: f64,
    min: f64,
    max: f64,
    unit: &'static str,
    rounds: usize,
    /// Frames that the switch delivered and the generator did not count, in percent of all.
    lost_percent: f64,
}

/// Measures the switch; `json` prints an object a line instead of a table.
pub fn switch(json: bool, no_install: bool) -> Result<()> {
    packages::require(&packages::DPDK, !no_install)?;
    shell::show(&mut test::shipped())?;
    if !json {
        println!("{:<30} {:>8} {:>8} {:>8}  unit   lost", "case", "median", "min", "max");
    }
    for case in &CASES {
        let figure = measure(case).with_context(|| format!("case {}", case.name))?;
        if json {
            println!("{}", serde_json::to_string(&figure)?);
        } else {
            let Figure { case, ours, min, max, unit, lost_percent, .. } = figure;
            println!("{case:<30} {ours:>8.2} {min:>8.2} {max:>8.2}  {unit}  {lost_percent:.2} %");
        }
    }
    Ok(())
}

fn measure(case: &Case) -> Result<Figure> {
    let dir = Scratch::new("bench")?;
    let daemon = start(&dir)?;
    for (name, reversed) in [("a.pcap", false), ("b.pcap", true)] {
        pcap::write(&dir.join(name), case.flows, case.frame_bytes, reversed)?;
    }
    let generator = testpmd::Generator::start(&dir, case.flows, case.card)?;
    await_frames(&daemon)?;
    let mut rates = Vec::with_capacity(WINDOWS);
    let mut before = (Instant::now(), delivered(&status(&daemon)?));
    for _ in 0..WINDOWS {
        std::thread::park_timeout(WINDOW);
        let after = (Instant::now(), delivered(&status(&daemon)?));
        rates.push((after.1 - before.1) as f64 / (after.0 - before.0).as_secs_f64() / 1e6);
        before = after;
    }
    let received = generator.stop()?;
    let sent = delivered(&status(&daemon)?);
    rates.sort_by(f64::total_cmp);
    Ok(Figure {
        case: case.name,
        ours: rates[WINDOWS / 2],
        min: rates[0],
        max: rates[WINDOWS - 1],
        unit: "Mpps",
        rounds: WINDOWS,
        lost_percent: 100.0 * sent.saturating_sub(received) as f64 / sent.max(1) as f64,
    })
}

/// Frames that the guests have been given.
fn delivered(status: &Status) -> u64 {
    status.ports.iter().map(|port| port.inbound_frames).sum()
}

fn await_frames(daemon: &Daemon) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    // Enough for every flow to have been opened, so that the windows see an even load.
    while delivered(&status(daemon)?) < 1_000_000 {
        if Instant::now() > deadline {
            bail!("the generator's frames do not arrive; the daemon says {:?}", status(daemon)?.drops);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Ok(())
}

/// The daemon under load.
fn start(dir: &Scratch) -> Result<Daemon> {
    let (mesh, settings) = (dir.join("mesh"), dir.join("hostd.toml"));
    fs::create_dir(&mesh)?;
    fs::write(mesh.join("machines.yaml"), MACHINES)?;
    fs::write(mesh.join("rules.yaml"), RULES)?;
    fs::write(&settings, SETTINGS)?;
    Daemon::start_with(&shipped("meshvisor-hostd"), &mesh, dir.path(), Some(&settings))
}

fn status(daemon: &Daemon) -> Result<Status> {
    match daemon.ask(&Request::Status)? {
        Response::Status(status) => Ok(*status),
        other => bail!("the daemon answers {other:?}"),
    }
}

/// The sockets' names, for the generator.
fn sockets(dir: &Path) -> [std::path::PathBuf; 2] {
    [dir.join("a.sock"), dir.join("b.sock")]
}

const SETTINGS: &str = "\
[introspection]
enabled = false
[poll]
cpu = 1
[log]
filter = 'warn'
[flows]
capacity = 1048576
per_port_max = 400000
";

/// Two machines.
const MACHINES: &str = "\
apiVersion: meshvisor.dev/v1alpha1
kind: Tenant
metadata: {name: bench}
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: a, tenant: bench}
spec:
  nics: [{name: net0, socket: a.sock, mac: '02:00:00:00:00:01', addresses: [10.0.0.1/24]}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: b, tenant: bench}
spec:
  nics: [{name: net0, socket: b.sock, mac: '02:00:00:00:00:02', addresses: [10.0.0.2/24]}]
";

/// Whatever `a` opens to `b` is allowed by a rule, and the answers belong to it.
const RULES: &str = "\
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: a-to-b, tenant: bench}
spec:
  action: Allow
  from: [{vm: {name: a}}]
  to: [{vm: {name: b}}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: b-to-a, tenant: bench}
spec:
  action: Allow
  from: [{vm: {name: b}}]
  to: [{vm: {name: a}}]
";
