// SPDX-License-Identifier: Apache-2.0
//! The daemon of one hypervisor host: joins the engines and gives them threads, sockets and time.
//!
//! ```text
//!   signals -> main: ports open and close as the inventory changes
//!   watch     files settle -> main loads, compiles, publishes the next generation
//!   poll-*    all guests' frames through the switch, each core those of its ports
//!   introspect  answers the poll cores' questions       attach   understands kernels
//!   inspect   looks for threats in all guests           presence   watches who listens at services' endpoints
//!   flow-log  remembers and streams flow events         admin*   one per client
//!   export    sends flows that are over to a collector
//!   dns       asks upstreams about names outside the mesh
//!   port*     one per network card: talks vhost-user with its VMM
//! ```
//!
//! Invariants:
//! - A poll core waits for no other thread, but for its turn at the switch that they share; and nothing is decided about policy here.
//! - However the process ends, its successor finds the flow table, and guests their rings.
//!
//! Deliberately absent: rules and their meaning (`policy`), frames and their meaning (`vswitch`).
#![forbid(unsafe_code)]

mod admin;
mod clock;
mod config;
mod dns;
mod export;
mod flowlog;
mod funnel;
mod handover;
mod inspect;
mod introspect;
mod mesh;
mod otlp;
mod poll;
mod ports;
mod presence;
mod profiles;
mod ramfile;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use crossbeam_channel::{Receiver, bounded, never, select};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vswitch::{Switch, SwitchConfig};

use crate::config::{Args, Config, RamSource, Source};
use crate::dns::DnsHandle;
use crate::export::Records;
use crate::flowlog::FlowLog;
use crate::funnel::Funnel;
use crate::handover::HandOver;
use crate::introspect::{Introspection, Ram};
use crate::mesh::{Host, Mesh};
use crate::otlp::Spans;
use crate::poll::{Command, Poll, PollHandle, Wiring};
use crate::ports::Ports;
use crate::profiles::Profiles;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshvisor-hostd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(args)?;
    telemetry::start_logging(&config.log_filter, config.log_format)?;
    let (ranges, capacity) = (config.ranges.clone(), config.capacity);
    let host = Host { ranges, capacity, takes_spans: config.traces.is_some() };
    let mesh = Arc::new(match &config.source {
        Source::Manifests(dir) => Mesh::load(dir.clone(), host)?,
        Source::RamFiles(guests) => Mesh::of_guests(guests.iter().map(|guest| guest.vm.clone()))?,
    });
    if args.check {
        let resources: usize = mesh.published().resources.values().sum();
        println!("settings and {resources} resources are good");
        return Ok(());
    }
    serve(&config, &mesh)
}

fn serve(config: &Config, mesh: &Arc<Mesh>) -> anyhow::Result<()> {
    let signals = signals().context("cannot listen for signals")?;
    // Watched before anything else, so that no change goes unnoticed.
    let watch = mesh.source().map(mesh::watch).transpose().context("cannot watch the resources")?;
    let (_watcher, reloads) = watch.map_or((None, never()), |(watcher, reloads)| (Some(watcher), reloads));
    handover::make_runtime_dir(&config.runtime_dir)
        .with_context(|| format!("cannot make the runtime directory {:?}", config.runtime_dir))?;
    let (hand_over, flow_memory) = HandOver::take(&config.runtime_dir, config.flows.capacity(), random())?;

    let introspection = Introspection::start(config.introspection, Profiles(config.profiles.clone()))?;
    if config.introspection && config.threats {
        inspect::start(&introspection)?;
    }
    if let Source::RamFiles(guests) = &config.source {
        inspect_files(&introspection, guests)?;
    }
    let (events, logged) = bounded(poll::EVENTS_QUEUED_MAX);
    let events = Funnel::new(events);
    let mut records = Records::new(events.counts());
    let spans = Spans::start(config.traces.clone(), events.counts())?;
    let span_numbers = spans.numbers();
    let flow_log = FlowLog::start(logged, records.export(config.export.clone())?, spans)?;
    let cores = Poll::new(config.poll.cores)?;
    let poll = cores.handle();
    let switch_config = SwitchConfig {
        dns: config.dns.switch.clone(),
        capacity: config.capacity,
        ..config.flows.switch_config(hand_over.hash_seed())
    };
    let mut switch = Switch::new(switch_config, flow_memory);
    switch.recall(clock::now(), dns::keeping::left(&config.runtime_dir));
    let (inquiries, inquired) = bounded(handover::PORTS_MAX);
    let answer = poll.clone();
    introspection.start_answering(inquired, move |reply| answer.send(Command::Answered(reply)))?;
    let wiring = Wiring {
        inquiries,
        introspection: Arc::clone(&introspection),
        dns: dns_upstreams(config, &poll)?,
        attribution_wait: config.attribution_wait,
        watched: flow_log.watched(),
        cpus: config.poll.cpus.clone(),
    };
    cores.start(switch, events, wiring)?;

    let ports =
        Arc::new(Ports::new(config.runtime_dir.clone(), hand_over, Arc::clone(&introspection), poll.clone()));
    ports.apply(&mesh.published().snapshot);
    presence::start(mesh, &introspection, &poll)?;
    let inspected = config.introspection && config.threats;
    let desk = admin::Desk::new(
        inspected,
        Arc::clone(mesh),
        introspection,
        Arc::clone(&ports),
        poll,
        (flow_log, records, span_numbers),
    );
    let socket = config.runtime_dir.join("admin.sock");
    let _admin = admin::listen(&socket, config.admin_group, Arc::new(desk))
        .with_context(|| format!("cannot listen on {socket:?}"))?;
    tracing::info!(?socket, source = %mesh.source_name(), "meshvisor-hostd serves");
    keep_up(mesh, &ports, &reloads, &signals);
    ports.close_all();
    Ok(())
}

/// Starts asking upstreams, if there are any.
fn dns_upstreams(config: &Config, poll: &PollHandle) -> anyhow::Result<Option<DnsHandle>> {
    let dns = &config.dns;
    if dns.upstreams.addresses.is_empty() || dns.switch.is_none() {
        return Ok(None);
    }
    let poll = poll.clone();
    let found = dns::keeping::start(&config.runtime_dir, poll.clone()).context("cannot keep names")?;
    let tell = move |reply: vswitch::DnsReply| {
        let is_answer = reply.message.is_some();
        poll.send(Command::DnsReply(reply));
        if is_answer {
            // Full when it was rung already.
            let _ = found.try_send(());
        }
    };
    dns::start(dns.upstreams.clone(), tell).map(Some).context("cannot ask upstreams for names")
}

/// Opens the files of guests that are only looked into.
fn inspect_files(introspection: &Introspection, guests: &[RamSource]) -> anyhow::Result<()> {
    for RamSource { vm, path } in guests {
        let layouts = ramfile::open(path).with_context(|| format!("RAM file {path:?} of {vm}"))?;
        let layouts = layouts.into_iter().map(|layout| Arc::new(layout) as Ram);
        introspection.inspect(vm, layouts.collect());
    }
    Ok(())
}

/// Publishes what changes until asked to stop.
fn keep_up(mesh: &Mesh, ports: &Ports, reloads: &Receiver<()>, signals: &Receiver<i32>) {
    loop {
        select! {
            recv(reloads) -> _ => {}
            recv(signals) -> signal => match signal {
                Ok(SIGHUP) => {}
                Ok(_) | Err(_) => return,
            }
        }
        if mesh.reload() {
            ports.apply(&mesh.published().snapshot);
        }
    }
}

/// SIGHUP means "load again", SIGINT and SIGTERM "stop".
fn signals() -> std::io::Result<Receiver<i32>> {
    let mut source = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let (sender, receiver) = bounded(8);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in source.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// A number that no guest can guess: the key that the standard library draws for its own hash maps.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
