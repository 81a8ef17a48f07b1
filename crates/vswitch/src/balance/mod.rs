// SPDX-License-Identifier: Apache-2.0
//! Which endpoint of a service a new flow goes to.
//!
//! A choice has two steps. First the group: shares are given by a smooth weighted round robin, so that after any
//! number of flows each group is at most one flow away from its part; with affinity the client's hash chooses
//! instead. Then the endpoint within the group, by Maglev's table or by the fewest open flows.
//!
//! An endpoint is *in* when it has a port on this host, somebody listens there as far as is known and accepts, and it is
//! not *ejected*: left out for a while after failures in a row. Who has let the queue of connections to be accepted
//! become full is left out until half of it is accepted, and who fails checks until they pass. When these alone would leave a group without
//! anybody, they are ignored: a bad endpoint is better than none. An endpoint that has just come in gets its full
//! part only after the slow start. Flows that are open stay where they are, whatever happens here.
//!
//! Limits: tables are filled anew when an endpoint comes in or goes out, which takes about 40 ns for each of at
//! least 100 places for each endpoint.

mod choice;
mod crowd;
mod maglev;

use std::collections::HashMap;
use std::time::Duration;

use model::{AcceptQueue, Balancing, EndpointState, Listener, Method, Moment};

pub use choice::{Among, Choice};
use crowd::Crowd;
use maglev::Table;

/// Ejection lasts at most this many times as long as the first one.
const EJECTION_FACTOR_MAX: u32 = 16;

/// How long a call's finding counts that nobody listens at an endpoint: some looks of whoever watches endpoints.
const ABSENCE: Duration = Duration::from_millis(200);

/// How often a choice is made again because it fell on an endpoint in its slow start.
const RETRIES_MAX: u32 = 8;

/// An endpoint as the balancer is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// A stable hash of its name.
    pub name: u64,
    /// Which share it belongs to; `None`: it gets no flows.
    pub group: Option<usize>,
    /// Whether it is on the client's host.
    pub local: bool,
    /// Whether it can be reached at all.
    pub reachable: bool,
}

/// What is known of an endpoint.
#[derive(Clone, Copy, Debug)]
struct Member {
    name: u64,
    group: Option<usize>,
    local: bool,
    reachable: bool,
    listening: bool,
    /// What waits to be accepted there, and whether that was full and is not drained yet.
    queue: Option<AcceptQueue>,
    is_full: bool,
    /// Whether checks of it fail.
    is_failing: bool,
    flows: u32,
    failures: u32,
    ejections: u32,
    ejected_until: Option<Moment>,
    /// Until when a call's finding that nobody listens counts.
    absent_until: Option<Moment>,
    /// When it last came in.
    since: Moment,
}

impl Member {
    fn new(candidate: &Candidate, since: Moment) -> Self {
        Self {
            name: candidate.name,
            group: candidate.group,
            local: candidate.local,
            reachable: candidate.reachable,
            listening: true,
            queue: None,
            is_full: false,
            is_failing: false,
            flows: 0,
            failures: 0,
            ejections: 0,
            ejected_until: None,
            absent_until: None,
            since,
        }
    }

    fn is_present(&self, now: Moment) -> bool {
        self.reachable && (self.listening || self.absent_until.is_some_and(|until| until <= now))
    }

    /// Whether nothing speaks against it but perhaps that it is not there.
    fn is_sound(&self, now: Moment) -> bool {
        !self.is_full && !self.is_failing && self.ejected_until.is_none_or(|until| until <= now)
    }
}

/// A share of the flows, and who takes them now.
#[derive(Clone, Debug, Default)]
struct Group {
    /// None, while nobody is there.
    weight: u32,
    /// What the group is owed, in flows times the sum of weights.
    credit: i64,
    among: Among,
    table: Table,
    crowd: Crowd,
}

/// Spreads the flows of one service.
#[derive(Clone, Debug)]
pub struct Balancer {
    balancing: Balancing,
    members: Vec<Member>,
    /// Positions of members by name.
    positions: HashMap<u64, usize>,
    groups: Vec<Group>,
    /// The sum of the groups' weights.
    weights: u32,
    /// Whether who is in has changed since the groups were filled.
    stale: bool,
    /// When the next ejection or absence ends.
    due: Option<Moment>,
}

impl Balancer {
    /// A balancer for these endpoints, numbered by their positions. All count as listening, and none is in its
    /// slow start.
    #[must_use]
    pub fn new(balancing: Balancing, candidates: &[Candidate]) -> Self {
        let mut balancer = Self {
            balancing: balancing.clone(),
            members: Vec::new(),
            positions: HashMap::new(),
            groups: Vec::new(),
            weights: 0,
            stale: true,
            due: None,
        };
        balancer.update(Moment(0), balancing, candidates);
        balancer
    }

    /// Takes other endpoints and settings; what is known of an endpoint stays with its name.
    pub fn update(&mut self, now: Moment, balancing: Balancing, candidates: &[Candidate]) {
        let member = |candidate: &Candidate| match self.positions.get(&candidate.name) {
            Some(position) => {
                let known = &self.members[*position];
                let Candidate { group, local, reachable, .. } = *candidate;
                let since = if known.is_present(now) { known.since } else { now };
                Member { group, local, reachable, since, ..*known }
            }
            None => Member::new(candidate, now),
        };
        self.members = candidates.iter().map(member).collect();
        self.positions = (0..).zip(candidates).map(|(position, one)| (one.name, position)).collect();
        let weights = |balancing: &Balancing| balancing.shares.iter().map(|s| s.weight).collect::<Vec<_>>();
        if weights(&self.balancing) != weights(&balancing) {
            self.groups.clear();
        }
        self.balancing = balancing;
        self.stale = true;
    }

    /// Chooses an endpoint for a new flow and leaves no trace of it but the turn of its group.
    pub fn pick(&mut self, now: Moment, flow: u64, client: u64) -> Option<usize> {
        self.choose(now, flow, client).map(|(endpoint, _)| endpoint)
    }

    /// As [`Balancer::pick`], and says why.
    pub fn choose(&mut self, now: Moment, flow: u64, client: u64) -> Option<(usize, Choice)> {
        self.refill(now);
        let Balancing { affinity, method, .. } = self.balancing;
        let hash = if affinity { client } else { flow };
        let (group, share) = self.choose_group(mixed(hash))?;
        let mut choice =
            Choice { share, among: self.groups[group].among, method, affinity, ..Choice::default() };
        for attempt in 0..RETRIES_MAX {
            let hash = mixed(hash.wrapping_add(u64::from(attempt) << 32));
            let group = &mut self.groups[group];
            let chosen = match method {
                Method::Maglev => group.table.at(hash),
                Method::LeastOutstanding => group.crowd.least(hash),
            }?;
            if attempt + 1 == RETRIES_MAX || self.takes_full_part(now, chosen as usize, hash) {
                return Some((chosen as usize, choice));
            }
            choice.passed_over += 1;
        }
        None
    }

    /// A flow was opened to an endpoint.
    pub fn opened(&mut self, endpoint: usize) {
        self.count(endpoint, |flows| flows.saturating_add(1));
    }

    /// A flow to an endpoint is over.
    pub fn closed(&mut self, endpoint: usize) {
        self.count(endpoint, |flows| flows.saturating_sub(1));
    }

    /// Flows that an endpoint has.
    #[must_use]
    pub fn flows(&self, endpoint: usize) -> u32 {
        self.members.get(endpoint).map_or(0, |member| member.flows)
    }

    /// Position of the endpoint of that name.
    #[must_use]
    pub fn position(&self, name: u64) -> Option<usize> {
        self.positions.get(&name).copied()
    }

    /// Name of the endpoint at a position.
    #[must_use]
    pub fn name(&self, endpoint: usize) -> Option<u64> {
        Some(self.members.get(endpoint)?.name)
    }

    /// Whether a call that this endpoint has refused may go to another: one that is in, or would be but for what waits
    /// there to be accepted. If it is the call's first refusal, also to one that failed: that is not known for certain.
    #[must_use]
    pub fn may_go_elsewhere(&self, now: Moment, endpoint: usize, is_first: bool) -> bool {
        let takes = |member: &Member| member.group.is_some_and(|group| self.weight(group) > 0);
        let is_left = |member: &Member| {
            member.is_present(now) && (is_first || Member { is_full: false, ..*member }.is_sound(now))
        };
        let mut others = self.members.iter().enumerate().filter(|(other, _)| *other != endpoint);
        !self.is_in(now, endpoint) && others.any(|(_, member)| takes(member) && is_left(member))
    }

    fn weight(&self, group: usize) -> u32 {
        self.balancing.shares.get(group).map_or(1, |share| share.weight)
    }

    /// Whether an endpoint is in.
    #[must_use]
    pub fn is_in(&self, now: Moment, endpoint: usize) -> bool {
        self.members.get(endpoint).is_some_and(|member| member.is_present(now) && member.is_sound(now))
    }

    /// Whether an endpoint gets new flows, and why not.
    #[must_use]
    pub fn state(&self, now: Moment, endpoint: usize) -> EndpointState {
        let Some(member) = self.members.get(endpoint) else { return EndpointState::NoPort };
        match member.ejected_until {
            _ if !member.reachable => EndpointState::NoPort,
            _ if member.group.is_none_or(|group| self.weight(group) == 0) => EndpointState::Drained,
            _ if !member.is_present(now) => EndpointState::NotListening,
            _ if member.is_full => EndpointState::QueueFull,
            _ if member.is_failing => EndpointState::CheckFailing,
            Some(until) if until > now => EndpointState::Ejected { left: until.since(now) },
            _ if now.since(member.since) < self.balancing.slow_start => EndpointState::SlowStart,
            _ => EndpointState::In,
        }
    }

    /// What waits to be accepted at an endpoint, as far as is known.
    #[must_use]
    pub fn queue(&self, endpoint: usize) -> Option<AcceptQueue> {
        self.members.get(endpoint)?.queue
    }

    /// Who listens at an endpoint, as was found in its memory.
    pub fn listens(&mut self, now: Moment, endpoint: usize, listener: Listener) {
        let Some(member) = self.members.get_mut(endpoint) else { return };
        let (listening, queue) = match listener {
            Listener::Absent => (false, None),
            Listener::Present { queue } => (true, queue),
        };
        let is_full = queue.is_some_and(|queue| queue.is_full() || member.is_full && !queue.is_drained());
        if member.listening != listening {
            member.failures = 0;
        }
        if (member.listening, member.is_full) != (listening, is_full) {
            member.since = now;
            self.stale = true;
        }
        (member.listening, member.queue, member.is_full) = (listening, queue, is_full);
        member.absent_until = None;
    }

    /// Nobody listens at an endpoint, as a call has found that would have gone there. Who watches endpoints may never see
    /// it: the next process may be there before the next look. So this counts for a while only, or until it is told who
    /// listens.
    pub fn nobody_listens(&mut self, now: Moment, endpoint: usize) {
        if !self.members.get(endpoint).is_some_and(|member| member.is_present(now)) {
            return;
        }
        self.listens(now, endpoint, Listener::Absent);
        let member = &mut self.members[endpoint];
        let until = now.after(ABSENCE);
        member.absent_until = Some(until);
        self.due = Some(self.due.map_or(until, |due| due.min(until)));
    }

    /// Whether checks of an endpoint pass. That ends an ejection, too: it was tried.
    pub fn checked(&mut self, now: Moment, endpoint: usize, passes: bool) {
        let Some(member) = self.members.get_mut(endpoint) else { return };
        if member.is_failing == passes {
            member.is_failing = !passes;
            (member.failures, member.ejected_until, member.since) = (0, None, now);
            self.stale = true;
        }
    }

    /// An endpoint has answered.
    pub fn succeeded(&mut self, endpoint: usize) {
        if let Some(member) = self.members.get_mut(endpoint) {
            member.failures = 0;
            member.ejections = 0;
        }
    }

    /// An endpoint has let a flow time out.
    pub fn failed(&mut self, now: Moment, endpoint: usize) {
        self.fail(now, endpoint, 1);
    }

    /// An endpoint has refused a flow: nobody listens there, so that more tries would only fail, too.
    pub fn refused(&mut self, now: Moment, endpoint: usize) {
        self.fail(now, endpoint, self.balancing.ejection_failures);
    }

    fn fail(&mut self, now: Moment, endpoint: usize, failures: u32) {
        let Some(member) = self.members.get_mut(endpoint) else { return };
        member.failures = member.failures.saturating_add(failures);
        if self.balancing.ejection_failures == 0 || member.failures < self.balancing.ejection_failures {
            return;
        }
        let factor = 2_u32.saturating_pow(member.ejections).min(EJECTION_FACTOR_MAX);
        let until = now.after(self.balancing.ejection_time * factor);
        member.failures = 0;
        member.ejections += 1;
        member.ejected_until = Some(until);
        self.due = Some(self.due.map_or(until, |due| due.min(until)));
        self.stale = true;
    }

    fn count(&mut self, endpoint: usize, change: impl FnOnce(u32) -> u32) {
        let Some(member) = self.members.get_mut(endpoint) else { return };
        member.flows = change(member.flows);
        if let Some(group) = member.group.and_then(|group| self.groups.get_mut(group)) {
            group.crowd.count(endpoint as u32, member.flows);
        }
    }

    /// Whether an endpoint gets this flow, given how long it has been in.
    fn takes_full_part(&self, now: Moment, endpoint: usize, hash: u64) -> bool {
        let slow_start = self.balancing.slow_start;
        let member = &self.members[endpoint];
        let age = now.since(member.since);
        if slow_start == Duration::ZERO || age >= slow_start {
            return true;
        }
        let part = age.as_secs_f64() / slow_start.as_secs_f64();
        (mixed(hash) >> 11) as f64 / ((1_u64 << 53) as f64) < part.max(0.01)
    }

    /// The group whose turn it is, and its part of all weights if there are several.
    fn choose_group(&mut self, hash: u64) -> Option<(usize, Option<(u32, u32)>)> {
        let chosen = self.whose_turn(hash)?;
        let parts = !self.balancing.shares.is_empty();
        Some((chosen, parts.then_some((self.groups[chosen].weight, self.weights))))
    }

    fn whose_turn(&mut self, hash: u64) -> Option<usize> {
        if self.balancing.affinity {
            let mut place = (u128::from(hash) * u128::from(self.weights)) >> 64;
            return self.groups.iter().position(|group| {
                let is_before = place < u128::from(group.weight);
                place = place.saturating_sub(group.weight.into());
                is_before
            });
        }
        for group in &mut self.groups {
            group.credit += i64::from(group.weight);
        }
        let open = self.groups.iter().enumerate().filter(|(_, group)| group.weight > 0);
        let (chosen, _) = open.max_by_key(|(index, group)| (group.credit, std::cmp::Reverse(*index)))?;
        self.groups[chosen].credit -= i64::from(self.weights);
        Some(chosen)
    }

    /// Fills the groups anew if who is in has changed.
    fn refill(&mut self, now: Moment) {
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            for member in &mut self.members {
                match member.ejected_until {
                    Some(until) if until <= now => {
                        member.ejected_until = None;
                        member.since = now;
                    }
                    Some(until) => self.due = Some(self.due.map_or(until, |due| due.min(until))),
                    None => {}
                }
                match member.absent_until {
                    Some(until) if until <= now => {
                        member.absent_until = None;
                        member.listening = true;
                        member.since = now;
                    }
                    Some(until) => self.due = Some(self.due.map_or(until, |due| due.min(until))),
                    None => {}
                }
            }
            self.stale = true;
        }
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let shares = &self.balancing.shares;
        self.groups.resize_with(shares.len().max(1), Group::default);
        for (number, group) in self.groups.iter_mut().enumerate() {
            let (active, among) = active(&self.members, now, number, self.balancing.local_first);
            group.weight = shares.get(number).map_or(1, |share| share.weight);
            group.among = among;
            (group.table, group.crowd) = (Table::default(), Crowd::default());
            if active.is_empty() {
                // What it was owed while nobody was there is not made up for.
                (group.weight, group.credit) = (0, 0);
            }
            match self.balancing.method {
                Method::Maglev => {
                    let name = |member: &u32| (*member, self.members[*member as usize].name);
                    group.table = Table::new(&active.iter().map(name).collect::<Vec<_>>());
                }
                Method::LeastOutstanding => {
                    let flows = |member: &u32| (*member, self.members[*member as usize].flows);
                    group.crowd = Crowd::new(active.iter().map(flows));
                }
            }
        }
        self.weights = self.groups.iter().map(|group| group.weight).sum();
    }
}

/// Who takes the flows of a group: those that are in, the local ones of them if they come first, and those that
/// are ejected or full if there is nobody else.
fn active(members: &[Member], now: Moment, group: usize, local_first: bool) -> (Vec<u32>, Among) {
    let of = |wanted: &dyn Fn(&Member) -> bool| -> Vec<u32> {
        let members = members
            .iter()
            .zip(0..)
            .filter(|(member, _)| member.group == Some(group) && member.is_present(now) && wanted(member));
        members.map(|(_, number)| number).collect()
    };
    let is_sound = |member: &Member| member.is_sound(now);
    if local_first {
        let local = of(&|member| member.local && is_sound(member));
        if !local.is_empty() {
            return (local, Among::Local);
        }
    }
    let sound = of(&is_sound);
    if sound.is_empty() { (of(&|_| true), Among::Unsound) } else { (sound, Among::In) }
}

/// Spreads a number over all 64 bits (the finaliser of splitmix64).
pub(crate) fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
