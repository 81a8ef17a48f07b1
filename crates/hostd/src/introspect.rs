// SPDX-License-Identifier: Apache-2.0
//! The introspection threads: one attaches to guests, one answers the poll thread's questions.
//!
//! A machine is *waiting* until a VMM shares its memory, *attaching* while its kernel is being
//! understood (with bounded retries: firmware may drive the card before the kernel does), then
//! *attached* or *failed*. Until it is attached or failed, a frame that needs an attribution is not
//! judged: the answer is [`Outcome::NotReady`], the frame is dropped, and the guest sends it again.
//! A failed machine's ends are *unknown*, which policy knows how to treat.
//!
//! Bounds: one outstanding inquiry per port, [`ATTACH_TRIES_MAX`] tries per attach.

mod watch;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use model::{Attribution, FiveTuple, UnknownReason, VmRef};
use vhost_port::GuestMemory;
use vswitch::{Answers, Ask, How, PortId, Question};

use crate::profiles::Profiles;
use watch::{NOT_WATCHED, NotReady, Watch, lock};
pub use watch::{Ram, State};

/// Tries per attach; the pauses between them double from [`ATTACH_PAUSE`], 16 s in all.
pub const ATTACH_TRIES_MAX: u32 = 6;
const ATTACH_PAUSE: Duration = Duration::from_millis(500);

/// A question of the poll thread about a frame that it holds.
#[derive(Debug)]
pub struct Inquiry {
    /// The port whose ring is paused.
    pub port: PortId,
    /// Names the frame; echoed in the reply.
    pub ticket: u64,
    /// What is asked.
    pub question: Question,
    /// Where the frame's descriptor lies: guest-physical address of the descriptor table, head index.
    pub descriptor: (u64, u16),
}

/// The answer to an [`Inquiry`].
#[derive(Debug)]
pub struct Reply {
    /// The port whose ring is paused.
    pub port: PortId,
    /// Names the frame.
    pub ticket: u64,
    /// What was found.
    pub outcome: Outcome,
    /// How long finding it took.
    pub took: Duration,
}

/// What an inquiry came to.
#[derive(Debug)]
pub enum Outcome {
    /// Judge by these.
    Answers(Answers),
    /// The guest is still being attached to: drop the frame without a verdict.
    NotReady,
}

/// All machines' introspection, shared by the poll, introspection and admin threads.
pub struct Introspection {
    vms: Mutex<HashMap<VmRef, Arc<Watch>>>,
    ports: Mutex<HashMap<PortId, (VmRef, Arc<Watch>)>>,
    /// Nowhere when introspection is switched off.
    attach: Option<Sender<Job>>,
}

/// What the attach thread is to do.
enum Job {
    Attach(AttachJob),
    /// Let go of memory that has gone.
    Forget(Arc<Watch>),
}

struct AttachJob {
    vm: VmRef,
    watch: Arc<Watch>,
    /// The guest's RAM in every layout that it may have; mostly one.
    layouts: Vec<Ram>,
    epoch: u64,
    due: Instant,
    tries: u32,
    heartbeats: vmi::Heartbeats,
}

impl Introspection {
    /// Starts the attach thread; switched off, every guest stays unknown.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(enabled: bool, profiles: Profiles) -> std::io::Result<Arc<Self>> {
        let attach = if enabled {
            let (attach, jobs) = crossbeam_channel::unbounded();
            std::thread::Builder::new().name("attach".into()).spawn(move || attach_loop(&jobs, &profiles))?;
            Some(attach)
        } else {
            None
        };
        Ok(Arc::new(Self { vms: Mutex::default(), ports: Mutex::default(), attach }))
    }

    /// Starts the thread that answers inquiries, each through `reply`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start_answering(
        self: &Arc<Self>,
        inquiries: Receiver<Inquiry>,
        reply: impl Fn(Reply) + Send + 'static,
    ) -> std::io::Result<()> {
        let introspection = Arc::clone(self);
        std::thread::Builder::new().name("introspect".into()).spawn(move || {
            for inquiry in inquiries {
                let started = Instant::now();
                let outcome = introspection.search(&inquiry.question, inquiry.descriptor);
                let Inquiry { port, ticket, .. } = inquiry;
                reply(Reply { port, ticket, outcome, took: started.elapsed() });
            }
        })?;
        Ok(())
    }

    /// A port now belongs to this machine.
    pub fn add_port(&self, port: PortId, vm: &VmRef) {
        let watch = self.watch(vm);
        lock(&self.ports).insert(port, (vm.clone(), watch));
    }

    /// A port is gone; its machine too when no other port of it is left.
    pub fn remove_port(&self, port: PortId) {
        let mut ports = lock(&self.ports);
        let Some((vm, watch)) = ports.remove(&port) else { return };
        if !ports.values().any(|(other, _)| *other == vm) {
            lock(&self.vms).remove(&vm);
            drop(ports);
            self.forget(watch);
        }
    }

    /// A VMM shares a guest's memory and the guest drives the port: understand its kernel.
    pub fn memory_shared(&self, port: PortId, memory: Arc<GuestMemory>) {
        if let Some((vm, watch)) = self.watch_by_port(port) {
            self.understand(vm, watch, vec![Arc::new(GuestRam(memory))]);
        }
    }

    /// Looks into a guest without cards, whose RAM is at hand in one of several layouts: understand its kernel.
    pub fn inspect(&self, vm: &VmRef, layouts: Vec<Ram>) {
        self.understand(vm.clone(), self.watch(vm), layouts);
    }

    /// The guest stopped driving the port, or its VMM went away.
    pub fn memory_gone(&self, port: PortId) {
        if let Some((_, watch)) = self.watch_by_port(port) {
            self.forget(watch);
        }
    }

    fn understand(&self, vm: VmRef, watch: Arc<Watch>, layouts: Vec<Ram>) {
        let Some(attach) = &self.attach else { return };
        let epoch = watch.enter();
        let (due, heartbeats) = (Instant::now(), vmi::Heartbeats::default());
        let job = AttachJob { vm, watch, layouts, epoch, due, tries: 0, heartbeats };
        // The attach thread lives as long as the process.
        let _ = attach.send(Job::Attach(job));
    }

    fn forget(&self, watch: Arc<Watch>) {
        let Some(attach) = &self.attach else { return };
        watch.leave();
        let _ = attach.send(Job::Forget(watch));
    }

    /// The machine's introspection; made if there is none yet.
    fn watch(&self, vm: &VmRef) -> Arc<Watch> {
        let watch = || match self.attach {
            Some(_) => Arc::default(),
            None => {
                let reason = "introspection is switched off in the settings";
                Arc::new(Watch::fixed(State::Failed(reason.into())))
            }
        };
        Arc::clone(lock(&self.vms).entry(vm.clone()).or_insert_with(watch))
    }

    /// Runs `view` on the state of a machine; `None` when there is no such machine.
    pub fn with<R>(&self, vm: &VmRef, view: impl FnOnce(&mut State, Option<&Ram>) -> R) -> Option<R> {
        let watch = lock(&self.vms).get(vm).map(Arc::clone)?;
        let mut watched = watch.lock();
        let memory = watched.memory.clone();
        Some(view(&mut watched.state, memory.as_ref()))
    }

    /// All machines that have a port.
    pub fn vms(&self) -> Vec<VmRef> {
        lock(&self.vms).keys().cloned().collect()
    }

    fn watch_by_port(&self, port: PortId) -> Option<(VmRef, Arc<Watch>)> {
        lock(&self.ports).get(&port).cloned()
    }

    /// The answer, if a few microseconds suffice for it and no other thread is looking at the guest meanwhile.
    /// Never waits: this is for the poll thread.
    pub fn glance(&self, question: &Question, descriptor: (u64, u16)) -> Option<Outcome> {
        self.answer(question, |ask| {
            let watch = self.ports.try_lock().ok()?.get(&ask.port).map(|(_, watch)| Arc::clone(watch));
            let Some(watch) = watch else { return NOT_WATCHED };
            let mut watched = watch.try_lock()?;
            watched.state.attribute(|guest| guest.glance(|guest| look_up(guest, ask, descriptor)))
        })
    }

    /// The answer, however long it takes.
    fn search(&self, question: &Question, descriptor: (u64, u16)) -> Outcome {
        let found = self.answer(question, |ask| {
            let Some((_, watch)) = self.watch_by_port(ask.port) else { return NOT_WATCHED };
            watch.lock().state.attribute(|guest| Some(look_up(guest, ask, descriptor)))
        });
        found.expect("a search always comes to an end")
    }

    /// Joins the answers for both ends; `None` as soon as one is not told.
    fn answer(
        &self,
        question: &Question,
        attribute: impl Fn(&Ask) -> Option<Result<Attribution, NotReady>>,
    ) -> Option<Outcome> {
        let find = |ask: &Option<Ask>| match ask {
            Some(ask) => attribute(ask).map(|found| found.map(|found| Some(Arc::new(found)))),
            None => Some(Ok(None)),
        };
        let (initiator, responder) = (find(&question.initiator)?, find(&question.responder)?);
        Some(match (initiator, responder) {
            (Ok(initiator), Ok(responder)) => Outcome::Answers(Answers { initiator, responder }),
            _ => Outcome::NotReady,
        })
    }
}

fn look_up(guest: &mut vmi::Guest, ask: &Ask, (ring, head): (u64, u16)) -> Attribution {
    let (local, remote) = ends(&ask.tuple);
    match ask.how {
        How::Frame => {
            let found = guest.frame_owner(ring, head);
            // Frames that the guest's driver detached from their socket (`napi_tx=0`), or that it routes
            // without an account of their connection, are found through its own tables.
            if found.unknown == Some(UnknownReason::NoSocket) && found.inner.is_none() {
                guest.connection_owner(local, remote, ask.tuple.protocol)
            } else {
                found
            }
        }
        How::Connection => guest.connection_owner(local, remote, ask.tuple.protocol),
        How::Listener => guest.listener_owner(local, Some(remote), ask.tuple.protocol),
    }
}

fn ends(tuple: &FiveTuple) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(tuple.source, tuple.source_port),
        SocketAddr::new(tuple.destination, tuple.destination_port),
    )
}

/// Works through attach jobs one by one, each when it is due.
fn attach_loop(jobs: &Receiver<Job>, profiles: &Profiles) {
    let mut waiting: Vec<AttachJob> = Vec::new();
    loop {
        let next_due = waiting.iter().map(|job| job.due).min();
        let received = match next_due {
            Some(due) => jobs.recv_deadline(due),
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(Job::Attach(job)) => waiting.push(job),
            Ok(Job::Forget(watch)) => drop(watch.lock()),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        let (due, later) = waiting.into_iter().partition::<Vec<_>, _>(|job| job.due <= now);
        waiting = later;
        waiting.extend(due.into_iter().filter_map(|job| attach(job, profiles)));
    }
}

/// Tries once; gives the job back when it is to be tried again.
fn attach(mut job: AttachJob, profiles: &Profiles) -> Option<AttachJob> {
    let mut watched = job.watch.lock();
    if watched.epoch != job.epoch {
        return None;
    }
    watched.memory = job.layouts.first().cloned();
    drop(watched);
    let started = Instant::now();
    let heartbeats = AssertUnwindSafe(&mut job.heartbeats);
    let (layouts, profiles) = (AssertUnwindSafe(&job.layouts), AssertUnwindSafe(profiles));
    let result = catch_unwind(|| find_kernel(&layouts, { heartbeats }.0, &profiles));
    let took = started.elapsed();
    let mut watched = job.watch.lock();
    if watched.epoch != job.epoch {
        return None;
    }
    let result = match result {
        Ok(result) => result.map_err(|error| telemetry::Chain(&error).to_string()),
        Err(_) => Err("introspection panicked".into()),
    };
    match result {
        Ok((guest, memory)) => {
            watched.memory = Some(memory);
            tracing::info!(vm = %job.vm, kernel = guest.kernel().release, ?took, "attached to guest");
            watched.state = State::Attached { guest: Box::new(guest), took };
            None
        }
        Err(error) => {
            job.tries += 1;
            if job.tries == ATTACH_TRIES_MAX {
                tracing::warn!(vm = %job.vm, error, "guest not understood, its processes stay unknown");
                watched.state = State::Failed(error);
                return None;
            }
            tracing::debug!(vm = %job.vm, error, tries = job.tries, "guest not understood yet");
            job.due = Instant::now() + ATTACH_PAUSE * 2_u32.pow(job.tries - 1);
            drop(watched);
            Some(job)
        }
    }
}

/// Finds the kernel, and the layout in which it is whole: in a wrong one its processes cannot be listed.
fn find_kernel(
    layouts: &[Ram],
    heartbeats: &mut vmi::Heartbeats,
    profiles: &Profiles,
) -> Result<(vmi::Guest, Ram), vmi::AttachError> {
    let mut problem = vmi::AttachError::NoSymbols;
    for memory in layouts {
        let types_of = |release: &str| profiles.types_of(release);
        match vmi::Guest::attach_with(Arc::clone(memory), heartbeats, &types_of) {
            Ok(guest) if layouts.len() == 1 || guest.processes().is_ok() => {
                return Ok((guest, Arc::clone(memory)));
            }
            Ok(_) => problem = vmi::AttachError::Unexpected("task list"),
            Err(error) => problem = error,
        }
    }
    Err(problem)
}

/// Lets the introspection engine read what the vhost-user port has mapped.
#[derive(Debug)]
struct GuestRam(Arc<GuestMemory>);

impl vmi::PhysicalMemory for GuestRam {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), vmi::Unmapped> {
        self.0.read(gpa, out).map_err(|_| vmi::Unmapped)
    }

    fn read_once(&self, gpa: u64, out: &mut [u8]) -> Result<(), vmi::Unmapped> {
        self.0.read_once(gpa, out).map_err(|_| vmi::Unmapped)
    }

    fn extents(&self) -> Vec<std::ops::Range<u64>> {
        self.0.extents()
    }
}
