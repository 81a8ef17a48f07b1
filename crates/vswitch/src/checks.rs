// SPDX-License-Identifier: Apache-2.0
//! Active checks: the switch itself tries whether endpoints of services take connections.
//!
//! An attempt is a SYN from the gateway's address. A SYN/ACK is an answer, which a reset takes back before the process
//! ever hears of it; a reset, or nothing within the time-out, is a failure. As many failures in a row as the service
//! says, and the endpoint gets no new flows until as many answers in a row; as with what is seen of flows, that is
//! ignored where nobody else is left. All TCP ports of a service are tried, of a range the first; an endpoint is as
//! good as its worst. What was found out of an endpoint outlives a snapshot; attempts under way do not, they are made
//! again.
//!
//! Limits: [`TARGETS_MAX`] ports are tried, others count as good. [`UNDER_WAY_MAX`] attempts are under way at a time
//! and [`PER_SECOND_MAX`] begin in a second; the others wait for their turn, earliest first. An endpoint whose link has
//! no gateway of its family is not tried.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use model::{HealthCheck, Moment, Offer, PortMatch, PortRange, Protocol, RuleId, Snapshot};
use packet::emit::{Segment, Stream};
use packet::{Addresses, Tcp, TcpFlags};

use crate::PortId;
use crate::balance::mixed;
use crate::ports::Ports;
use crate::services::endpoint_name;

/// Most ports of endpoints that are tried.
const TARGETS_MAX: usize = 16_384;
/// Most attempts under way.
const UNDER_WAY_MAX: usize = 256;
/// Most attempts that begin in a second.
const PER_SECOND_MAX: u32 = 1000;
/// How many of them may begin at once after a pause: what a tenth of a second holds, since the switch may be looked
/// after no more often.
const AT_ONCE_MAX: u32 = PER_SECOND_MAX / 10;
/// Time between two beginnings.
const SPACING: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND_MAX as u64);
/// Attempts come from this port or one above it.
const PORT_MIN: u16 = 32_768;

/// What the SYN offers: enough that no stack thinks it odd.
pub(crate) const STREAM: Stream = Stream { window: 1024, segment_len_bytes_max: Some(1460) };

/// An endpoint: its service and its name as balancers know it.
pub(crate) type Whose = (RuleId, u64);

/// A port of an endpoint that is tried.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) whose: Whose,
    pub(crate) l4_port: u16,
    /// Where it is, and whom it is tried from.
    pub(crate) ingress: PortId,
    pub(crate) addresses: Addresses,
    check: HealthCheck,
    /// Whether it is good.
    pub(crate) sound: bool,
    /// How many outcomes in a row have said the opposite.
    contrary: u32,
    /// When it is tried next.
    due: Moment,
    attempt: Option<Attempt>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    began: Moment,
    until: Moment,
    source_port: u16,
    sequence: u32,
}

/// All checks.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) targets: Vec<Target>,
    /// When who is tried next, unless an attempt is under way.
    queue: BinaryHeap<Reverse<(Moment, usize)>>,
    /// Until when whose attempt may stay unanswered; those that are over are skipped.
    deadlines: BinaryHeap<Reverse<(Moment, usize)>>,
    /// Whose attempt comes from which port.
    under_way: HashMap<u16, usize>,
    /// Attempts so far.
    begun: u64,
    /// When the next attempt may begin.
    next_start: Moment,
}

impl Checks {
    /// Takes the services of another snapshot.
    pub(crate) fn update(&mut self, now: Moment, snapshot: &Snapshot, ports: &Ports) {
        let key = |target: &Target| (target.whose.clone(), target.l4_port);
        let mut known: HashMap<_, _> =
            std::mem::take(&mut self.targets).into_iter().map(|target| (key(&target), target)).collect();
        let offers = snapshot.services.offers().iter();
        let targets = offers.flat_map(|offer| targets(now, snapshot, offer, ports)).take(TARGETS_MAX);
        self.targets = targets
            .map(|new| match known.remove(&key(&new)) {
                Some(old) => {
                    let due =
                        if old.attempt.is_some() { now } else { old.due.min(now.after(new.check.interval)) };
                    Target { sound: old.sound, contrary: old.contrary, due, ..new }
                }
                None => new,
            })
            .collect();
        self.under_way.clear();
        self.deadlines.clear();
        self.queue =
            self.targets.iter().zip(0..).map(|(target, index)| Reverse((target.due, index))).collect();
    }

    /// Endpoints of which a port is not good.
    pub(crate) fn failing(&self) -> HashSet<&Whose> {
        self.targets.iter().filter(|target| !target.sound).map(|target| &target.whose).collect()
    }

    /// Whose attempt has not been answered in time.
    pub(crate) fn overdue(&mut self, now: Moment) -> Option<usize> {
        while let Some(Reverse((until, index))) = self.deadlines.peek().copied() {
            // Those that were answered are not so any more.
            let is_so = self.targets[index].attempt.is_some_and(|attempt| attempt.until == until);
            if is_so && until > now {
                return None;
            }
            self.deadlines.pop();
            if is_so {
                return Some(index);
            }
        }
        None
    }

    /// Who is to be tried now.
    pub(crate) fn next(&mut self, now: Moment) -> Option<usize> {
        let Reverse((due, index)) = self.queue.peek().copied()?;
        let may_begin = self.under_way.len() < UNDER_WAY_MAX && self.next_start <= now;
        if due > now || !may_begin {
            return None;
        }
        self.queue.pop();
        Some(index)
    }

    /// Begins an attempt; the SYN.
    pub(crate) fn begin(&mut self, now: Moment, index: usize, seed: u64) -> Segment {
        self.begun += 1;
        let earliest = Moment(now.0.saturating_sub((SPACING * AT_ONCE_MAX).as_nanos() as u64));
        self.next_start = self.next_start.max(earliest).after(SPACING);
        let random = mixed(seed ^ mixed(self.begun ^ now.0.rotate_left(32)));
        let mut ports = (0..=u16::MAX - PORT_MIN).map(|step| PORT_MIN | (random as u16).wrapping_add(step));
        // Fewer are under way than there are ports.
        let source_port = ports.find(|port| !self.under_way.contains_key(port)).unwrap_or(PORT_MIN);
        self.under_way.insert(source_port, index);
        let until = now.after(self.targets[index].check.timeout);
        self.deadlines.push(Reverse((until, index)));
        let attempt = Attempt { began: now, until, source_port, sequence: (random >> 32) as u32 };
        let target = &mut self.targets[index];
        target.attempt = Some(attempt);
        Segment {
            source_port,
            destination_port: target.l4_port,
            sequence: attempt.sequence,
            acknowledgment: 0,
            flags: TcpFlags::SYN,
        }
    }

    /// An attempt is over; tells whether that has changed what is thought of the endpoint's port.
    pub(crate) fn conclude(&mut self, now: Moment, index: usize, is_answered: bool) -> bool {
        let target = &mut self.targets[index];
        let Some(attempt) = target.attempt.take() else { return false };
        self.under_way.remove(&attempt.source_port);
        target.due = attempt.began.after(target.check.interval).max(now);
        self.queue.push(Reverse((target.due, index)));
        if is_answered == target.sound {
            target.contrary = 0;
            return false;
        }
        target.contrary += 1;
        let needed = if is_answered { target.check.healthy } else { target.check.unhealthy };
        let has_changed = target.contrary >= needed;
        if has_changed {
            (target.sound, target.contrary) = (is_answered, 0);
        }
        has_changed
    }

    /// Whose attempt this segment is about, and whether it is the answer to it; `None` if to none.
    pub(crate) fn find(&self, ingress: PortId, addresses: Addresses, tcp: &Tcp) -> Option<(usize, bool)> {
        let index = *self.under_way.get(&tcp.destination_port)?;
        let target = &self.targets[index];
        let attempt = target.attempt?;
        let is_from_there = (target.ingress, target.l4_port) == (ingress, tcp.source_port)
            && target.addresses.reversed() == addresses;
        let acknowledges =
            tcp.flags.has(TcpFlags::ACK) && tcp.acknowledgment == attempt.sequence.wrapping_add(1);
        let is_answer = tcp.flags.has(TcpFlags::SYN);
        (is_from_there && acknowledges && (is_answer || tcp.flags.has(TcpFlags::RST)))
            .then_some((index, is_answer && !tcp.flags.has(TcpFlags::RST)))
    }
}

/// What is to be tried of a service.
fn targets<'a>(
    now: Moment,
    snapshot: &'a Snapshot,
    offer: &'a Offer,
    ports: &'a Ports,
) -> impl Iterator<Item = Target> + 'a {
    let tcp = |port: &PortMatch| port.ports.filter(|_| port.protocol == Protocol::Tcp).map(PortRange::first);
    offer.health.iter().flat_map(move |check| {
        offer.endpoints.iter().flat_map(move |endpoint| {
            let vm = &snapshot.inventory.vm(endpoint.vm).id;
            let place = [endpoint.v4.map(IpAddr::V4), endpoint.v6.map(IpAddr::V6)]
                .into_iter()
                .flatten()
                .find_map(|address| place(offer.tenant, address, ports));
            place.into_iter().flat_map(move |(ingress, addresses)| {
                let whose = (offer.id.clone(), endpoint_name(vm));
                offer.ports.iter().filter_map(tcp).map(move |l4_port| Target {
                    whose: whose.clone(),
                    l4_port,
                    ingress,
                    addresses,
                    check: *check,
                    sound: true,
                    contrary: 0,
                    due: now,
                    attempt: None,
                })
            })
        })
    })
}

/// Behind which port an address is, and the addresses of what the gateway there sends to it.
fn place(tenant: usize, address: IpAddr, ports: &Ports) -> Option<(PortId, Addresses)> {
    let id = ports.endpoint(tenant, address)?;
    let addresses = match (ports.port(id)?.gateway_towards(address)?, address) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Addresses::V4 { source, destination },
        (IpAddr::V6(source), IpAddr::V6(destination)) => Addresses::V6 { source, destination },
        _ => return None,
    };
    Some((id, addresses))
}
