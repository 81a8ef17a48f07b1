// SPDX-License-Identifier: Apache-2.0
//! `backend_out_ms`: from a service's process closing its listening socket, in a real guest, to the first call that is
//! not sent there any more. `backend_killed_ms`: the same from the command to kill the process.
//!
//! Two machines of different kernels serve; a third calls as fast as an emulated guest can, each call a connection of its
//! own, by several processes, so that one whose segment is lost holds up nothing. The daemon tells of each flow as it is
//! judged, and the clock stops with the first call after the last one that went to the silent process's machine: so figures
//! are no finer than the time between two calls. `last_call` is when the last one went there, where any did: the process
//! was out at some time between the two. `at_once` is how often none went there any more.
//!
//! - *Closed*: the process sends a datagram right before it closes its socket. That is a flow, too, and the clock starts when
//!   the daemon tells of it: by the same clock and the same way as of calls. The process lives on.
//! - *Killed*: the clock starts when the command to send SIGKILL is given to the guest's shell, before the signal (`p50` and
//!   so on), and once more when the shell says that it is done, after it (`from_done_p50`). The truth lies between; a guest
//!   that answers calls with its one processor takes its time for both.
//!
//! No call may be refused or left alone; those that the process had not accepted, or had accepted when it died, are reset
//! by its kernel.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use api::admin::{Client, Flow};
use testkit::guests::GuestKernel;

use super::Figure;
use crate::bench::world::{READY_LIMIT, World};
use crate::progress;

pub const CLOSED: &str = "backend_out_ms";
pub const KILLED: &str = "backend_killed_ms";
/// How often it ends.
const ENDS: usize = 50;
/// Calls in a row that go to the other machine until the silent one counts as out.
const OUT_AFTER: usize = 100;
/// Calls to a machine until it counts as in.
const IN_AFTER: usize = 5;
/// Time for either.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
const SERVICE: &str = "10.96.0.10:8080";
const SERVICE_PORT: u16 = 8080;
/// Whom the process tells that it closes its socket. Nobody listens there.
const WITNESS: &str = "10.0.0.3:9";
const WITNESS_PORT: u16 = 9;
/// What makes it close its socket.
const GO: &str = "/tmp/retire";
/// Processes that call. Where the end of the process has met a SYN of each, the next call is a second away.
const CALLERS: usize = 3;
/// Calls of each: more than are made.
const CALLS: u32 = 1_000_000;

/// What the daemon tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A call to the machine whose process ends.
    ToVictim,
    /// A call to the other machine.
    Elsewhere,
    /// The process is about to close its socket.
    Closing,
}

impl Event {
    fn of(flow: &Flow) -> Option<Self> {
        let to_victim = flow.destination.vm.as_deref() == Some("bench/b");
        match flow.destination.port {
            SERVICE_PORT if to_victim => Some(Self::ToVictim),
            SERVICE_PORT => Some(Self::Elsewhere),
            WITNESS_PORT => Some(Self::Closing),
            _ => None,
        }
    }
}

/// Events as they are told.
type Events = Mutex<Vec<(Instant, Event)>>;

/// How a process stops listening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Closes,
    IsKilled,
}

/// The socket is closed while the process lives.
pub fn closed() -> Result<Figure> {
    let times = measure(Way::Closes)?;
    let figures = [
        ("p50", at(&times.out, 50)),
        ("p99", at(&times.out, 99)),
        ("max", at(&times.out, 100)),
        ("at_once", times.last_call.iter().filter(|ms| **ms == 0.0).count() as f64),
        ("last_call_max", at(&times.last_call, 100)),
        ("call_every", at(&times.between_calls, 50)),
    ];
    Ok(Figure::new(CLOSED, "ms", ENDS, figures))
}

/// The process is killed.
pub fn killed() -> Result<Figure> {
    let times = measure(Way::IsKilled)?;
    let figures = [
        ("p50", at(&times.out, 50)),
        ("p99", at(&times.out, 99)),
        ("max", at(&times.out, 100)),
        ("from_done_p50", at(&times.from_done, 50)),
        ("from_done_p99", at(&times.from_done, 99)),
    ];
    Ok(Figure::new(KILLED, "ms", ENDS, figures))
}

fn at(times: &[f64], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0.0)
}

fn measure(way: Way) -> Result<Times> {
    crate::guests::build(false)?;
    let mut world = World::start(&[("a", "serves: s"), ("b", "serves: s"), ("c", "")], RULES)?;
    progress::note("boot three machines");
    world.boot("a", GuestKernel::V6_1, 256)?;
    world.boot("b", GuestKernel::V6_12, 256)?;
    world.boot("c", GuestKernel::V6_1, 256)?;
    serve(&world, 0, Way::IsKilled)?;
    let events = Events::default();
    let watch = Client::connect(&world.daemon.admin_socket())?.watch(None)?;
    std::thread::scope(|scope| {
        // Ends when the daemon does.
        scope.spawn(|| {
            let mut known = HashSet::new();
            for flow in watch.map_while(Result::ok) {
                // Told when it opens, and again when it ends.
                if let Some(event) = Event::of(&flow)
                    && known.insert(flow.id)
                {
                    events.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), event));
                }
            }
        });
        let times = end_again_and_again(&world, way, &events);
        world.daemon.stop().and(times)
    })
}

/// Milliseconds, each from the moment at which the process stopped listening.
#[derive(Default)]
struct Times {
    /// Until the first call that went elsewhere for good.
    out: Vec<f64>,
    /// Until the last call that went there.
    last_call: Vec<f64>,
    /// As `out`, from when the command was done.
    from_done: Vec<f64>,
    /// Between two calls, on average.
    between_calls: Vec<f64>,
}

fn end_again_and_again(world: &World, way: Way, events: &Events) -> Result<Times> {
    let (victim, client) = (&world.vms[1], &world.vms[2]);
    let call = format!("/usr/bin/storefront connect {SERVICE} {CALLS}");
    let callers = (0..CALLERS).map(|caller| client.background(&format!("calls-{caller}"), &call));
    let callers = callers.collect::<Result<Vec<u32>>>()?;
    let mut times = Times::default();
    for end in 1..=ENDS {
        let pid = serve(world, 1, way)?;
        let kill = format!("kill -9 {pid}");
        let command = if way == Way::Closes { format!("touch {GO}") } else { kill.clone() };
        await_events(events, |events| count(events, Event::ToVictim) >= IN_AFTER)
            .context("no calls come to the machine whose process is to end")?;
        let given = Instant::now();
        victim.expect(&command)?;
        let done = Instant::now();
        await_events(events, |events| {
            let since =
                events.iter().rev().take_while(|(at, event)| *event != Event::ToVictim && *at > given);
            let has_ended = way == Way::IsKilled || count(events, Event::Closing) > 0;
            has_ended && since.filter(|(_, event)| *event == Event::Elsewhere).count() >= OUT_AFTER
        })
        .context("calls go on to the machine whose process has ended")?;
        let seen = std::mem::take(&mut *events.lock().unwrap_or_else(PoisonError::into_inner));
        let closing = || seen.iter().find(|(_, event)| *event == Event::Closing).map(|(at, _)| *at);
        let silent = match way {
            Way::Closes => closing().context("the process has not told that it closes its socket")?,
            Way::IsKilled => given,
        };
        // The first call after the last that went there.
        let last = seen.iter().rposition(|(_, event)| *event == Event::ToVictim);
        let later = seen.iter().skip(last.map_or(0, |last| last + 1));
        let mut later = later.filter(|(at, event)| *event == Event::Elsewhere && *at > silent);
        let (first_without, _) = later.next().context("a hundred calls were seen")?;
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        times.out.push(ms(silent, *first_without));
        times.from_done.push(ms(done, *first_without));
        times.last_call.push(last.map_or(0.0, |last| ms(silent, seen[last].0)));
        let calls = count(&seen, Event::ToVictim) + count(&seen, Event::Elsewhere);
        times.between_calls.push(ms(seen[0].0, seen[seen.len() - 1].0) / calls as f64);
        if end % 10 == 0 {
            progress::note(&format!("{end} of {ENDS}"));
        }
        if way == Way::Closes {
            victim.expect(&format!("{kill}; rm {GO}"))?;
        }
    }
    for caller in callers {
        client.expect(&format!("kill {caller}"))?;
    }
    let failed = client.run("cat /tmp/calls-*.log | grep -v -e '^connected' -e '^reset'")?.stdout;
    ensure!(failed.is_empty(), "not all calls were answered: {failed}");
    Ok(times)
}

/// Starts a server in one of the machines, to end in a way; returns its process.
fn serve(world: &World, number: usize, way: Way) -> Result<u32> {
    let vm = &world.vms[number];
    let command = match way {
        Way::Closes => format!("/usr/bin/orders retire {SERVICE_PORT} {WITNESS} {GO}"),
        Way::IsKilled => format!("/usr/bin/orders serve {SERVICE_PORT}"),
    };
    let pid = vm.background("serve", &command)?;
    vm.await_line("serve", "serving", READY_LIMIT)?;
    Ok(pid)
}

fn count(events: &[(Instant, Event)], wanted: Event) -> usize {
    events.iter().filter(|(_, event)| *event == wanted).count()
}

fn await_events(events: &Events, enough: impl Fn(&[(Instant, Event)]) -> bool) -> Result<()> {
    let deadline = Instant::now() + CHANGE_LIMIT;
    while !enough(&events.lock().unwrap_or_else(PoisonError::into_inner)) {
        if Instant::now() > deadline {
            bail!("not within {CHANGE_LIMIT:?}");
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}

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
