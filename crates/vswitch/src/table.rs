// SPDX-License-Identifier: Apache-2.0
//! The flow table.
//!
//! Open addressing without tombstones: a key lives within [`WINDOW_SLOTS`] slots of its hash. The first of them counts the keys
//! that had to go farther, so a lookup of a key that is not there nearly always ends at once, a removal never moves anything,
//! and both directions can name each other by position. When a window is full, the flow in it that matters least is evicted: flows that
//! are over first, then unanswered ones, then those idle for [`EVICTABLE_IDLE_MS`], the longest idle of each
//! kind first. Guests choose their tuples, therefore the hash is keyed with a secret seed.
//!
//! Slots are in the caller's memory. Beside them, in private memory, lies a dense list of flows, which is what a sweep
//! walks.

use std::hash::Hasher as _;

use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;
use model::{Moment, Protocol, ServiceFlags};
use packet::{Tcp, TcpFlags};

use crate::flow::Flow;
use crate::key::FlowKey;
use crate::slot::{Displaced, SLOTS_MAX, Tally};
use crate::tcp::{BothLimits, Ends, Limits, Progress, is_steady};
use crate::{DropReason, FlowSlot, FlowSlots, FlowState};

/// Fewest slots a table can work with.
pub const SLOTS_MIN: usize = WINDOW_SLOTS;

/// How far from its hash a key may live.
const WINDOW_SLOTS: usize = 32;
/// How long an answered flow must have been idle before it may be evicted.
const EVICTABLE_IDLE_MS: u32 = 10_000;
/// Changes whenever the meaning of a slot's bytes changes, so that a successor does not adopt old ones.
const LAYOUT: u64 = 5;

/// The millisecond of a moment, low bits.
pub(crate) fn millisecond(now: Moment) -> u32 {
    (now.0 / 1_000_000) as u32
}

/// Position of the first slot in which a key may live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Home(usize);

impl Home {
    /// Some of the key's hash.
    #[inline]
    pub(crate) fn spread(self) -> u32 {
        self.0 as u32
    }

    /// Its position in the table.
    #[inline]
    pub(crate) fn position(self) -> usize {
        self.0
    }
}

/// Where a new key could go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Into this slot.
    Free(u32),
    /// Into a slot of this flow, once that is removed.
    Evict(usize),
    /// Nowhere.
    Full,
}

/// Which slots a key may live in, by its keyed hash. The same for a table's whole life.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    mask: usize,
    seed: u64,
    shared: SharedSeed,
}

impl Places {
    /// A hasher that has taken in a key.
    #[inline]
    fn hasher(&self, seed: u64, key: &FlowKey) -> FoldHasher<'_> {
        let mut hasher = FoldHasher::with_seed(seed, &self.shared);
        let [a, b, c, d, e] = key.words();
        hasher.write_u128(u128::from(a) << 64 | u128::from(b));
        hasher.write_u128(u128::from(c) << 64 | u128::from(d));
        hasher.write_u64(e);
        hasher
    }

    #[inline]
    fn hash(&self, key: &FlowKey) -> u64 {
        self.hasher(self.seed, key).finish()
    }

    /// Where the window of `key` begins.
    #[inline]
    pub(crate) fn home(&self, key: &FlowKey) -> Home {
        Home(self.hash(key) as usize & self.mask)
    }
}

pub(crate) struct FlowTable<S> {
    slots: S,
    flows: Vec<Flow>,
    pub(crate) places: Places,
}

impl<S: FlowSlots> FlowTable<S> {
    /// Takes over the flows that are intact in `slots`. Returns the table and how many occupied slots were
    /// not.
    pub(crate) fn adopt(slots: S, seed: u64) -> (Self, u64) {
        let len = slots.as_ref().len().min(SLOTS_MAX);
        assert!(len >= SLOTS_MIN, "a flow table has at least {SLOTS_MIN} slots");
        let len = 1 << len.ilog2();
        let mut flows = Vec::new();
        // For as many as two slots each leave room for, so that no frame waits while all are moved. Memory that is not
        // used is not touched; where the host promises none in advance, the list grows as it must.
        let _ = flows.try_reserve_exact(len / 2);
        let mut table = Self {
            slots,
            flows,
            places: Places { mask: len - 1, seed, shared: SharedSeed::from_u64(seed ^ LAYOUT) },
        };
        for index in 0..len {
            if let Some((partner, state)) = table.intact(index) {
                let flow = Flow {
                    initiator: index as u32,
                    responder: Some(partner as u32),
                    source: None,
                    destination: None,
                    judgement: None,
                    generation: model::Generation::default(),
                    opened: Moment::default(),
                    left_in_epoch: None,
                    served: None,
                    choice: None,
                    services: ServiceFlags::NONE,
                    attends: ServiceFlags::NONE,
                    spoken: None,
                    talk: None,
                    mirror: None,
                    names: Vec::new(),
                    meters: None,
                    trace: None,
                    told: None,
                    rtt: None,
                };
                for (member, peer) in [(index, partner), (partner, index)] {
                    let position = table.flows.len() as u32;
                    let limits = Limits::adopted(table.slot(peer).progress());
                    let slot = table.slot_mut(member);
                    slot.tally = Tally::of_flow(position);
                    slot.tally.limits = limits;
                    slot.set_state(state);
                    slot.displaced = Displaced::NONE;
                    slot.set_served(false);
                    slot.epoch = 0;
                }
                table.flows.push(flow);
            }
        }
        let discarded = table.discard_strays();
        for position in 0..table.flows.len() {
            members(&table.flows[position]).for_each(|index| table.settle(index));
        }
        (table, discarded)
    }

    /// The partner and state of the initiator's slot at `index`, if both slots are as they were written.
    fn intact(&self, index: usize) -> Option<(usize, FlowState)> {
        let slot = self.slot(index);
        let partner = Some(slot.partner()).filter(|p| *p <= self.places.mask && *p != index)?;
        let other = self.slot(partner);
        let paired = slot.is_initiator()
            && !other.is_initiator()
            && other.partner() == index
            && other.key.ingress() == slot.output()
            && slot.key.ingress() == other.output()
            && (other.key == slot.key.mirrored(slot.output())) != slot.is_translated()
            && slot.is_translated() == other.is_translated()
            && slot.key.is_like(&other.key)
            && [index, partner].into_iter().all(|member| self.is_sound(member));
        let (a, b) = (slot.state()?, other.state()?);
        let tcp = slot.key.protocol() == Protocol::Tcp;
        let tracked = |state| match state {
            FlowState::OneWay | FlowState::TwoWay => !tcp,
            FlowState::Reset | FlowState::Refused => false,
            _ => tcp,
        };
        // Both states are written one after the other; the later one is the truth.
        (paired && tracked(a) && tracked(b)).then(|| (partner, a.max(b)))
    }

    fn is_sound(&self, index: usize) -> bool {
        let slot = self.slot(index);
        let is_found =
            || self.seek(self.places.home(&slot.key), &slot.key, WINDOW_SLOTS) == Some(index as u32);
        slot.check == self.check(slot) && slot.key.is_legal() && is_found()
    }

    /// Wipes occupied slots that belong to no flow.
    fn discard_strays(&mut self) -> u64 {
        let mut discarded = 0;
        for index in 0..=self.places.mask {
            if *self.slot(index) != FlowSlot::FREE && !self.is_owned(index) {
                discarded += u64::from(!self.slot(index).is_blank());
                *self.slot_mut(index) = FlowSlot::FREE;
            }
        }
        discarded
    }

    /// Whether a slot belongs to the flow that it names; what a predecessor left there may name any.
    fn is_owned(&self, index: usize) -> bool {
        self.flows.get(self.flow_at(index)).is_some_and(|flow| members(flow).any(|member| member == index))
    }

    /// A number that guests cannot foresee, always the same for a key.
    pub(crate) fn scatter(&self, key: &FlowKey) -> u64 {
        self.places.hasher(self.places.seed.rotate_left(32), key).finish()
    }

    fn check(&self, slot: &FlowSlot) -> u32 {
        let mut hasher = self.places.hasher(!self.places.seed, &slot.key);
        hasher.write_u64(slot.place());
        (hasher.finish() >> 32) as u32
    }

    /// How far from its hash the key in an occupied slot lives.
    fn distance(&self, index: usize) -> usize {
        index.wrapping_sub(self.places.home(&self.slot(index).key).0) & self.places.mask
    }

    /// Counts the key in an occupied slot that may live elsewhere than in its first slot.
    fn settle(&mut self, index: usize) {
        let distance = self.distance(index);
        if distance > 0 {
            self.home_of(index).displaced.add(distance);
        }
    }

    /// The first slot of the window of the key in an occupied slot.
    fn home_of(&mut self, index: usize) -> &mut FlowSlot {
        let home = self.places.home(&self.slot(index).key);
        self.slot_mut(home.0)
    }

    /// Address of the first slot.
    pub(crate) fn address(&self) -> usize {
        self.slots.as_ref().as_ptr().addr()
    }

    /// The first slots of a window.
    #[inline]
    fn window(&self, home: Home, len: usize) -> impl Iterator<Item = usize> + use<S> {
        let mask = self.places.mask;
        (0..len).map(move |step| home.0.wrapping_add(step) & mask)
    }

    /// The slot that holds `key`.
    #[inline]
    pub(crate) fn find(&self, key: &FlowKey) -> Option<u32> {
        self.find_from(self.places.home(key), key)
    }

    /// The slot that holds `key`, of which the window begins at `home`.
    #[inline]
    pub(crate) fn find_from(&self, home: Home, key: &FlowKey) -> Option<u32> {
        // Nearly always the first, if any.
        if self.holds(home.0, key) {
            return Some(home.0 as u32);
        }
        match self.slot(home.0).displaced.farthest() {
            0 => None,
            farthest => self.seek(home, key, farthest + 1),
        }
    }

    /// The one of the first `len` slots of a window that holds `key`.
    fn seek(&self, home: Home, key: &FlowKey, len: usize) -> Option<u32> {
        Some(self.window(home, len).find(|index| self.holds(*index, key))? as u32)
    }

    #[inline]
    fn holds(&self, index: usize, key: &FlowKey) -> bool {
        let slot = self.slot(index);
        slot.key.is(key) && !slot.is_free()
    }

    #[inline]
    pub(crate) fn slot(&self, index: usize) -> &FlowSlot {
        &self.slots.as_ref()[index]
    }

    #[inline]
    pub(crate) fn slot_mut(&mut self, index: usize) -> &mut FlowSlot {
        &mut self.slots.as_mut()[index]
    }

    /// Where `key` could go, if not into `taken`.
    pub(crate) fn room(&self, key: &FlowKey, taken: Option<u32>, now_ms: u32) -> Room {
        let mut least: Option<(u8, u32, usize)> = None;
        for index in self.window(self.places.home(key), WINDOW_SLOTS) {
            if taken == Some(index as u32) {
                continue;
            }
            if self.slot(index).is_free() {
                return Room::Free(index as u32);
            }
            let flow = self.flow_at(index);
            let idle_ms = self.idle_ms(flow, now_ms);
            let importance = match self.state(flow) {
                state if state.is_over() => 0,
                state if state.is_embryonic() => 1,
                _ if idle_ms >= EVICTABLE_IDLE_MS => 2,
                _ => continue,
            };
            if least.is_none_or(|(i, idle, _)| (importance, u32::MAX - idle_ms) < (i, u32::MAX - idle)) {
                least = Some((importance, idle_ms, flow));
            }
        }
        least.map_or(Room::Full, |(_, _, flow)| Room::Evict(flow))
    }

    /// Enters a flow into free slots: the initiator's direction into the first, the answers into the second.
    /// Answers under another key than the mirrored one make it a translated flow.
    pub(crate) fn insert(
        &mut self,
        (key, answers): (FlowKey, FlowKey),
        at: (u32, Option<u32>),
        state: FlowState,
        flow: impl FnOnce(u32, Option<u32>) -> Flow,
    ) -> usize {
        let position = self.flows.len();
        let (initiator, responder) = at;
        let translated = answers != key.mirrored(answers.ingress());
        let directions = [
            Some((initiator, key, answers.ingress(), responder.unwrap_or(initiator))),
            responder.map(|responder| (responder, answers, key.ingress(), initiator)),
        ];
        for (index, key, output, partner) in directions.into_iter().flatten() {
            let mut slot = FlowSlot::new(key, output, partner, (index == initiator, translated));
            slot.set_state(state);
            slot.check = self.check(&slot);
            slot.tally = Tally::of_flow(position as u32);
            self.slot_mut(index as usize).replace(slot);
            self.settle(index as usize);
        }
        self.flows.push(flow(initiator, responder));
        position
    }

    /// Forgets a flow. The last flow of the list takes its position.
    pub(crate) fn remove(&mut self, position: usize) {
        let flow = self.flows.swap_remove(position);
        for index in members(&flow) {
            if self.distance(index) > 0 {
                self.home_of(index).displaced.remove();
            }
            self.slot_mut(index).replace(FlowSlot::FREE);
        }
        if let Some(moved) = self.flows.get(position) {
            for index in members(moved) {
                self.slots.as_mut()[index].tally.move_to(position as u32);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn flow(&self, position: usize) -> &Flow {
        &self.flows[position]
    }

    pub(crate) fn flow_mut(&mut self, position: usize) -> &mut Flow {
        &mut self.flows[position]
    }

    /// Position of the flow that owns an occupied slot.
    #[inline]
    pub(crate) fn flow_at(&self, index: usize) -> usize {
        self.slot(index).tally.flow() as usize
    }

    /// The keys of both directions, the initiator's first. A refused flow answers as if it were not translated.
    pub(crate) fn keys(&self, position: usize) -> (FlowKey, FlowKey) {
        let flow = &self.flows[position];
        let slot = self.slot(flow.initiator as usize);
        let answers = flow.responder.map(|index| self.slot(index as usize).key);
        (slot.key, answers.unwrap_or_else(|| slot.key.mirrored(slot.output())))
    }

    /// The flow's state, as its initiator's slot has it.
    pub(crate) fn state(&self, position: usize) -> FlowState {
        let slot = self.slot(self.flows[position].initiator as usize);
        slot.state().expect("slots of a flow are occupied and were validated")
    }

    /// Sets the state in both slots.
    pub(crate) fn set_state(&mut self, position: usize, state: FlowState) {
        for index in members(&self.flows[position]) {
            self.slots.as_mut()[index].set_state(state);
        }
    }

    /// Marks both slots as judged in `epoch`.
    pub(crate) fn set_epoch(&mut self, position: usize, epoch: u8) {
        self.flows[position].left_in_epoch = None;
        for index in members(&self.flows[position]) {
            self.slots.as_mut()[index].epoch = epoch;
        }
    }

    /// Sets the flow's services, and the stages that its frames go through.
    pub(crate) fn set_services(&mut self, position: usize, services: ServiceFlags, attends: ServiceFlags) {
        let flow = &mut self.flows[position];
        (flow.services, flow.attends) = (services, attends);
        for index in members(flow) {
            self.slots.as_mut()[index].set_served(attends != ServiceFlags::NONE);
        }
    }

    /// Lets the flow's frames pass by the stages of `services` from now on.
    pub(crate) fn release_frames(&mut self, position: usize, services: ServiceFlags) {
        let flow = &self.flows[position];
        self.set_services(position, flow.services, flow.attends.without(services));
    }

    /// Marks both slots as seen now.
    pub(crate) fn touch(&mut self, position: usize, now_ms: u32) {
        for index in members(&self.flows[position]) {
            self.slots.as_mut()[index].last_seen_ms = now_ms;
        }
    }

    /// Time since the last frame in either direction.
    pub(crate) fn idle_ms(&self, position: usize, now_ms: u32) -> u32 {
        let idle = |index: usize| self.slot(index).idle_ms(now_ms);
        members(&self.flows[position]).map(idle).min().unwrap_or(0)
    }

    /// What both ends have sent.
    pub(crate) fn progress(&self, position: usize) -> (Progress, Progress) {
        let flow = &self.flows[position];
        let of = |index: u32| self.slot(index as usize).progress();
        (of(flow.initiator), flow.responder.map_or(Progress::default(), of))
    }

    /// Takes a segment that came through the slot at `index` into account, if the connection admits it, and
    /// tells the state after it. `scale` is what a SYN offers.
    #[inline]
    pub(crate) fn track(
        &mut self,
        index: usize,
        state: FlowState,
        tcp: &Tcp,
        scale: Option<u8>,
    ) -> Result<FlowState, DropReason> {
        let partner = self.slot(index).partner();
        let both = self.slots.as_mut().get_disjoint_mut([index, partner]);
        let [slot, partner] = both.expect("a connection has two slots");
        let (own, peer, from_initiator) = (slot.progress(), partner.progress(), slot.is_initiator());
        let limits = BothLimits(&mut slot.tally.limits, &mut partner.tally.limits);
        if is_steady(state, tcp) {
            let own = own.advance(tcp, limits)?;
            slot.set_progress(own);
            return Ok(state);
        }
        let ends = Ends { own, peer, from_initiator };
        let (after, own, peer) = ends.follow(state, tcp, scale, limits)?;
        slot.set_progress(own);
        partner.set_progress(peer);
        Ok(after)
    }

    /// Notes that a later piece of a segment, which came through the slot at `index`, reaches up to `end`.
    pub(crate) fn extend(&mut self, index: usize, end: u32) {
        let (own, partner) = (self.slot(index).progress(), self.slot(index).partner());
        let progress = own.extended(end, &mut self.slot_mut(partner).tally.limits);
        self.slot_mut(index).set_progress(progress);
    }

    /// Whether the packet of which an ICMP error quotes this sequence number may have come through the slot at
    /// `index` lately (RFC 5927 section 4.1).
    pub(crate) fn may_have_sent(&self, index: usize, sequence: u32) -> bool {
        self.slot(index).tally.limits.covers(self.slot(index).progress(), sequence)
    }

    /// Counts a frame that came through a slot.
    #[inline]
    pub(crate) fn count(&mut self, index: usize, len_bytes: usize, flags: TcpFlags) {
        self.slot_mut(index).tally.count(len_bytes, flags);
    }

    /// Frames and bytes that came through a slot, with all their TCP flags.
    pub(crate) fn counted(&self, index: u32) -> (u64, u64, TcpFlags) {
        self.slot(index as usize).tally.counted()
    }
}

/// The positions of a flow's slots.
fn members(flow: &Flow) -> impl Iterator<Item = usize> + use<> {
    [Some(flow.initiator), flow.responder].into_iter().flatten().map(|index| index as usize)
}
