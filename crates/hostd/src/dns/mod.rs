// SPDX-License-Identifier: Apache-2.0
//! The thread that asks upstreams about names outside the mesh.
//!
//! Questions come from the poll cores ([`DnsHandle`]) and answers go back to them. Each question that the [`cache`] does not
//! know is asked of one upstream after the other, from a socket of its own: its port is the kernel's random choice,
//! its number ours, and the kernel drops what is not from that upstream. Questions of one tenant that are alike are
//! asked once. An answer that does not fit UDP is asked for again over TCP, by one of [`STREAM_WORKERS`] threads.
//!
//! Bounds: [`QUEUED_MAX`] questions wait for this thread, [`IN_FLIGHT_MAX`] for upstreams, each for [`PATIENCE`] at
//! most; what is too much is answered at once that nobody has answered.

mod cache;
pub mod keeping;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use hickory_proto::op::{Message, Query, ResponseCode};
use model::{Moment, Name};
use platform::{EventFd, Poller, Trigger};
use vswitch::{DnsQuestion, DnsReply, DnsTicket};

use crate::clock::now;
use crate::config::Upstreams;
use cache::{Cache, Key};
use wire::Asked;

/// Most questions that wait for this thread.
const QUEUED_MAX: usize = 1024;
/// Most different questions that wait for upstreams.
const IN_FLIGHT_MAX: usize = 512;
/// Most askers that wait for one answer.
const WAITERS_MAX: usize = 256;
/// How long a question is asked for at most; less than the switch waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often each upstream is asked the same.
const ROUNDS: usize = 2;
/// Threads that ask over TCP.
const STREAM_WORKERS: usize = 4;
/// Time between two sweeps of the cache.
const PURGE: Duration = Duration::from_secs(60);
/// Longest datagram.
const DATAGRAM_LEN_BYTES_MAX: usize = 65_535;

const WAKE_TOKEN: u64 = u64::MAX;

/// The poll cores' end.
#[derive(Clone, Debug)]
pub struct DnsHandle {
    questions: Sender<DnsQuestion>,
    waker: Arc<EventFd>,
}

impl DnsHandle {
    /// Hands a question over.
    ///
    /// # Errors
    /// With its ticket, when there are too many already.
    pub fn ask(&self, question: DnsQuestion) -> Result<(), DnsTicket> {
        let ticket = question.ticket;
        self.questions.try_send(question).map_err(|_| ticket)?;
        self.waker.signal();
        Ok(())
    }
}

/// Starts the thread, which hands answers to `tell`. It lives as long as the process.
///
/// # Errors
/// When threads cannot be started, or the process is out of file descriptors.
pub fn start(upstreams: Upstreams, tell: impl Fn(DnsReply) + Send + 'static) -> io::Result<DnsHandle> {
    let (questions, asked) = bounded(QUEUED_MAX);
    let waker = Arc::new(EventFd::new()?);
    let poller = Poller::new()?;
    poller.add(&*waker, WAKE_TOKEN, Trigger::Level)?;
    let (jobs, results) = start_workers(&waker, upstreams.timeout)?;
    let mut resolver = Resolver {
        cache: Cache::new(upstreams.cache_entries),
        upstreams,
        tell: Box::new(tell),
        flights: (0..IN_FLIGHT_MAX).map(|_| None).collect(),
        by_key: HashMap::new(),
        preferred: 0,
        last_number: 0,
        jobs,
        poller,
        purged: now(),
    };
    let handle = DnsHandle { questions, waker: Arc::clone(&waker) };
    std::thread::Builder::new().name("dns".into()).spawn(move || resolver.run(&asked, &results, &waker))?;
    Ok(handle)
}

/// A question to be asked over TCP.
struct Job {
    place: usize,
    number: u64,
    upstream: SocketAddr,
    asked: Asked,
}

/// What came of it.
struct Outcome {
    place: usize,
    number: u64,
    answer: Option<(Message, usize)>,
}

fn start_workers(waker: &Arc<EventFd>, timeout: Duration) -> io::Result<(Sender<Job>, Receiver<Outcome>)> {
    let (jobs, taken) = bounded::<Job>(IN_FLIGHT_MAX);
    let (told, outcomes) = bounded(IN_FLIGHT_MAX);
    for _ in 0..STREAM_WORKERS {
        let (taken, told, waker) = (taken.clone(), told.clone(), Arc::clone(waker));
        std::thread::Builder::new().name("dns-stream".into()).spawn(move || {
            for Job { place, number, upstream, asked } in taken {
                let answer = asked.exchange(upstream, timeout).ok();
                if told.send(Outcome { place, number, answer }).is_err() {
                    return;
                }
                waker.signal();
            }
        })?;
    }
    Ok((jobs, outcomes))
}

/// A question on its way to upstreams and back.
struct Flight {
    /// Names the question at its place.
    number: u64,
    tenant: Name,
    key: Key,
    query: Query,
    waiters: Vec<DnsTicket>,
    asked: Asked,
    /// None while it is asked over TCP.
    socket: Option<UdpSocket>,
    upstream: usize,
    tries: usize,
    /// When the upstream is late.
    late: Moment,
    /// When nobody is asked any more.
    end: Moment,
    /// What an upstream has said that could not help; better than nothing.
    fallback: Option<Message>,
}

struct Resolver {
    upstreams: Upstreams,
    /// Whom answers go to.
    tell: Box<dyn Fn(DnsReply) + Send>,
    cache: Cache,
    flights: Vec<Option<Flight>>,
    by_key: HashMap<(Name, Key), usize>,
    /// The upstream that answered last.
    preferred: usize,
    last_number: u64,
    jobs: Sender<Job>,
    poller: Poller,
    purged: Moment,
}

impl Resolver {
    fn run(&mut self, asked: &Receiver<DnsQuestion>, outcomes: &Receiver<Outcome>, waker: &EventFd) {
        let mut datagram = vec![0; DATAGRAM_LEN_BYTES_MAX];
        loop {
            let timeout = self.next_deadline(now());
            let woken: Vec<u64> = match self.poller.wait(timeout) {
                Ok(woken) => woken.collect(),
                Err(error) => {
                    tracing::error!(%error, "cannot wait for upstreams");
                    return;
                }
            };
            if woken.contains(&WAKE_TOKEN) {
                waker.drain();
            }
            let now = now();
            // Each at most as often as there are places, so that no one of the three starves the others.
            asked.try_iter().take(IN_FLIGHT_MAX).for_each(|question| self.take(now, question));
            if !asked.is_empty() {
                waker.signal();
            }
            for outcome in outcomes.try_iter().take(IN_FLIGHT_MAX) {
                self.streamed(now, outcome);
            }
            for token in woken.into_iter().filter(|token| *token != WAKE_TOKEN) {
                self.receive(now, token as usize, &mut datagram);
            }
            self.give_up_late(now);
            if now.since(self.purged) > PURGE {
                self.purged = now;
                self.cache.purge(now);
            }
        }
    }

    /// How long to sleep at most; for ever when nothing is asked.
    fn next_deadline(&self, now: Moment) -> Option<Duration> {
        self.flights.iter().flatten().map(|flight| flight.late.since(now)).min()
    }

    fn take(&mut self, now: Moment, question: DnsQuestion) {
        let DnsQuestion { ticket, tenant, query, dnssec_ok, checking_disabled } = question;
        let key = Key { name: query.name().clone(), kind: query.query_type(), dnssec_ok, checking_disabled };
        if let Some(message) = self.cache.find(now, &tenant, &key) {
            return self.tell(ticket, Some(message));
        }
        let alike = (tenant, key);
        if let Some(flight) = self.by_key.get(&alike).and_then(|place| self.flights[*place].as_mut()) {
            if flight.waiters.len() < WAITERS_MAX {
                flight.waiters.push(ticket);
                return;
            }
            return self.tell(ticket, None);
        }
        let (tenant, key) = alike;
        self.last_number += 1;
        let asked = Asked::new(random_id(), &query, dnssec_ok, checking_disabled);
        let free = self.flights.iter().position(Option::is_none);
        let (Some(asked), Some(place)) = (asked, free) else { return self.tell(ticket, None) };
        self.by_key.insert((tenant.clone(), key.clone()), place);
        self.flights[place] = Some(Flight {
            number: self.last_number,
            tenant,
            key,
            query,
            waiters: vec![ticket],
            asked,
            socket: None,
            upstream: self.preferred,
            tries: 0,
            late: now,
            end: now.after(PATIENCE),
            fallback: None,
        });
        self.send(now, place);
    }

    /// Asks the flight's upstream over UDP; if that cannot be, the next.
    fn send(&mut self, now: Moment, place: usize) {
        let tries_max = self.upstreams.addresses.len() * ROUNDS;
        while let Some(flight) = &mut self.flights[place] {
            if flight.tries >= tries_max || now >= flight.end {
                let fallback = flight.fallback.take();
                return self.land(place, fallback);
            }
            flight.tries += 1;
            // Another number for every try: what comes late is no answer to this one.
            let Key { dnssec_ok, checking_disabled, .. } = flight.key;
            if let Some(asked) = Asked::new(random_id(), &flight.query, dnssec_ok, checking_disabled) {
                flight.asked = asked;
            }
            let upstream = self.upstreams.addresses[flight.upstream];
            match open(upstream, &flight.asked.bytes) {
                Ok(socket) => {
                    if let Err(error) = self.poller.add(&socket, place as u64, Trigger::Level) {
                        tracing::warn!(%upstream, %error, "cannot wait for an upstream");
                    }
                    flight.socket = Some(socket);
                    flight.late = now.after(self.upstreams.timeout).min(flight.end);
                    return;
                }
                Err(error) => {
                    tracing::debug!(%upstream, %error, "upstream not reached");
                    flight.upstream = (flight.upstream + 1) % self.upstreams.addresses.len();
                }
            }
        }
    }

    /// Gives the flight to the next upstream.
    fn go_on(&mut self, now: Moment, place: usize) {
        if let Some(flight) = &mut self.flights[place] {
            // Closing it removes it from the poller.
            flight.socket = None;
            flight.upstream = (flight.upstream + 1) % self.upstreams.addresses.len();
            self.send(now, place);
        }
    }

    fn receive(&mut self, now: Moment, place: usize, datagram: &mut [u8]) {
        let Some(flight) = self.flights.get_mut(place).and_then(Option::as_mut) else { return };
        let Some(socket) = &flight.socket else { return };
        let received = match socket.recv(datagram) {
            Ok(len) => flight.asked.answer(&datagram[..len]).map(|message| (message, len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // Refused by ICMP, mostly.
            Err(_) => return self.go_on(now, place),
        };
        match received {
            // Not what was asked: the answer may still come.
            None => {}
            Some((message, _)) if message.metadata.truncation => {
                flight.socket = None;
                // A worker takes up to three times as long.
                flight.late = now.after(self.upstreams.timeout * 4).min(flight.end);
                let upstream = self.upstreams.addresses[flight.upstream];
                let job = Job { place, number: flight.number, upstream, asked: flight.asked.clone() };
                if self.jobs.try_send(job).is_err() {
                    self.go_on(now, place);
                }
            }
            Some((message, len)) => self.answered(now, place, message, len),
        }
    }

    fn streamed(&mut self, now: Moment, outcome: Outcome) {
        let Outcome { place, number, answer } = outcome;
        if self.flights[place].as_ref().is_none_or(|flight| flight.number != number) {
            return;
        }
        match answer {
            Some((message, len)) => self.answered(now, place, message, len),
            None => self.go_on(now, place),
        }
    }

    fn answered(&mut self, now: Moment, place: usize, message: Message, len: usize) {
        let Some(flight) = &mut self.flights[place] else { return };
        if !matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
            flight.fallback = Some(message);
            return self.go_on(now, place);
        }
        self.preferred = flight.upstream;
        self.cache.keep(now, &flight.tenant, flight.key.clone(), &message, len);
        self.land(place, Some(message));
    }

    fn give_up_late(&mut self, now: Moment) {
        for place in 0..self.flights.len() {
            if self.flights[place].as_ref().is_some_and(|flight| flight.late <= now) {
                self.go_on(now, place);
            }
        }
    }

    /// Tells all who wait.
    fn land(&mut self, place: usize, message: Option<Message>) {
        let Some(flight) = self.flights[place].take() else { return };
        self.by_key.remove(&(flight.tenant, flight.key));
        for ticket in flight.waiters {
            self.tell(ticket, message.clone());
        }
    }

    fn tell(&self, ticket: DnsTicket, message: Option<Message>) {
        (self.tell)(DnsReply { ticket, message });
    }
}

/// A socket that has asked an upstream, and hears nobody else.
fn open(upstream: SocketAddr, question: &[u8]) -> io::Result<UdpSocket> {
    let any = if upstream.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(upstream)?;
    socket.set_nonblocking(true)?;
    socket.send(question)?;
    Ok(socket)
}

/// A number that nobody who does not see the question can guess.
fn random_id() -> u16 {
    crate::random() as u16
}
