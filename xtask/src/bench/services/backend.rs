// SPDX-License-Identifier: Apache-2.0
//! `backend_out_ms`: from the SIGKILL of a service's process in a real guest to the first call that is not sent there any
//! more.
//!
//! Two machines of different kernels serve; a third calls as fast as an emulated guest can, each call a connection of its
//! own, by several processes, so that one whose segment is lost holds up nothing. The daemon tells of each flow as it is
//! judged, and the clock stops with the first call after the last one that went to the dead process's machine: so figures
//! are no finer than the time between two calls. It starts when the command to kill is given to the guest's shell, before
//! the signal (`p50` and so on), and once more when the shell says that it is done, after it (`from_done_p50`): the truth
//! lies between. No call may be refused or left alone; those that the process had taken when it died are reset by its kernel.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use api::admin::Client;
use testkit::guests::GuestKernel;

use super::Figure;
use crate::bench::introspect::{READY_LIMIT, World};
use crate::progress;

pub const NAME: &str = "backend_out_ms";
const KILLS: usize = 50;
/// Calls in a row that go to the other machine until the dead one counts as out.
const OUT_AFTER: usize = 100;
/// Calls to a machine until it counts as in.
const IN_AFTER: usize = 5;
/// Time for either.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
const SERVICE: &str = "10.96.0.10:8080";
/// Processes that call.
const CALLERS: usize = 3;
/// Calls of each: more than are made.
const CALLS: u32 = 1_000_000;

/// Calls as they are judged: when, and whether they went to the machine that is killed.
type Calls = Mutex<Vec<(Instant, bool)>>;

pub fn run() -> Result<Figure> {
    crate::guests::build(false)?;
    let mut world = World::start(MACHINES, RULES)?;
    progress::note("boot three machines");
    world.boot("a", 1, GuestKernel::V6_1, 256)?;
    world.boot("b", 2, GuestKernel::V6_12, 256)?;
    world.boot("c", 3, GuestKernel::V6_1, 256)?;
    serve(&world, 0)?;
    let mut victim = serve(&world, 1)?;
    let calls = Calls::default();
    let watch = Client::connect(&world.daemon.admin_socket())?.watch(Some("bench/c".to_owned()))?;
    let mut took = Took::default();
    std::thread::scope(|scope| {
        // Ends when the daemon does.
        scope.spawn(|| {
            let mut known = HashSet::new();
            for flow in watch.map_while(Result::ok) {
                // Told when it opens, and again when it ends.
                if flow.destination.port == 8080 && known.insert(flow.id) {
                    let is_victim = flow.destination.vm.as_deref() == Some("bench/b");
                    calls.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), is_victim));
                }
            }
        });
        let outcome = kill_again_and_again(&world, &calls, &mut victim, &mut took);
        world.daemon.stop().and(outcome)
    })?;
    let at = |times: &mut Vec<f64>, percent: usize| {
        times.sort_by(f64::total_cmp);
        times[(times.len() - 1) * percent / 100]
    };
    let Took { from_command, from_done } = &mut took;
    let figures = [
        ("p50", at(from_command, 50)),
        ("p99", at(from_command, 99)),
        ("max", at(from_command, 100)),
        ("from_done_p50", at(from_done, 50)),
        ("from_done_p99", at(from_done, 99)),
    ];
    Ok(Figure::new(NAME, "ms", KILLS, figures))
}

/// Milliseconds until the first call without the dead process.
#[derive(Default)]
struct Took {
    from_command: Vec<f64>,
    from_done: Vec<f64>,
}

fn kill_again_and_again(world: &World, calls: &Calls, victim: &mut u32, took: &mut Took) -> Result<()> {
    let client = &world.vms[2];
    let call = format!("/usr/bin/storefront connect {SERVICE} {CALLS}");
    let callers = (0..CALLERS).map(|caller| client.background(&format!("calls-{caller}"), &call));
    let callers = callers.collect::<Result<Vec<u32>>>()?;
    for kill in 1..=KILLS {
        await_calls(calls, |calls| calls.iter().filter(|(_, is_victim)| *is_victim).count() >= IN_AFTER)
            .context("no calls come to the machine that is to be killed")?;
        let killed = Instant::now();
        world.vms[1].expect(&format!("kill -9 {victim}"))?;
        let done = Instant::now();
        await_calls(calls, |calls| {
            let since = calls.iter().rev().take_while(|(at, is_victim)| !is_victim && *at > killed);
            since.count() >= OUT_AFTER
        })
        .context("calls go on to the machine whose process was killed")?;
        let seen = std::mem::take(&mut *calls.lock().unwrap_or_else(PoisonError::into_inner));
        // The first call after the last that went there.
        let last = seen.iter().rposition(|(_, is_victim)| *is_victim).map_or(0, |last| last + 1);
        let first_without = seen.iter().skip(last).find(|(at, _)| *at > killed);
        let (at, _) = first_without.context("a hundred calls were seen")?;
        took.from_command.push((*at - killed).as_secs_f64() * 1e3);
        took.from_done.push(at.saturating_duration_since(done).as_secs_f64() * 1e3);
        if kill % 10 == 0 {
            progress::note(&format!("{kill} of {KILLS} kills"));
        }
        *victim = serve(world, 1)?;
    }
    for caller in callers {
        client.expect(&format!("kill {caller}"))?;
    }
    let failed = client.run("cat /tmp/calls-*.log | grep -v -e '^connected' -e '^reset'")?.stdout;
    ensure!(failed.is_empty(), "not all calls were answered: {failed}");
    Ok(())
}

/// Starts a server in one of the machines; returns its process.
fn serve(world: &World, number: usize) -> Result<u32> {
    let vm = &world.vms[number];
    let pid = vm.background("serve", "/usr/bin/orders serve 8080")?;
    vm.await_line("serve", "serving", READY_LIMIT)?;
    Ok(pid)
}

fn await_calls(calls: &Calls, enough: impl Fn(&[(Instant, bool)]) -> bool) -> Result<()> {
    let deadline = Instant::now() + CHANGE_LIMIT;
    while !enough(&calls.lock().unwrap_or_else(PoisonError::into_inner)) {
        if Instant::now() > deadline {
            bail!("not within {CHANGE_LIMIT:?}");
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}

/// A client and two machines that may serve it.
const MACHINES: &str = "\
apiVersion: meshvisor.dev/v1alpha1
kind: Tenant
metadata: {name: bench}
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: a, tenant: bench, labels: {serves: s}}
spec:
  nics: [{name: net0, socket: a.sock, mac: '02:00:00:00:00:01', addresses: [10.0.0.1/24]}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: b, tenant: bench, labels: {serves: s}}
spec:
  nics: [{name: net0, socket: b.sock, mac: '02:00:00:00:00:02', addresses: [10.0.0.2/24]}]
---
apiVersion: meshvisor.dev/v1alpha1
kind: VirtualMachine
metadata: {name: c, tenant: bench}
spec:
  nics: [{name: net0, socket: c.sock, mac: '02:00:00:00:00:03', addresses: [10.0.0.3/24]}]
";

/// Whoever runs the program serves, and everybody may call him.
const RULES: &str = "\
apiVersion: meshvisor.dev/v1alpha1
kind: Service
metadata: {name: s, tenant: bench}
spec:
  selector: {vm: {labels: {serves: s}}, process: {exe: /usr/bin/orders}}
  ports: [{port: 8080}]
  addresses: [10.96.0.10]
---
apiVersion: meshvisor.dev/v1alpha1
kind: AccessPolicy
metadata: {name: all-call-s, tenant: bench}
spec:
  action: Allow
  to: [{service: s}]
";
