// SPDX-License-Identifier: Apache-2.0
//! A limit as a virtual clock, shared by classes of flows.
//!
//! Every frame is given the time at which it may leave, as in Carousel (Saeed et al., SIGCOMM 2017). That time is when a
//! server that works at the limit's rate, and serves all classes that have work at once, each by its weight, would begin
//! with the frame: the virtual time of generalised processor sharing (Demers, Keshav, Shenker: *Analysis and Simulation of
//! a Fair Queueing Algorithm*, SIGCOMM 1989; Parekh, Gallager, 1993), with the start of a frame as its time (Bennett,
//! Zhang: *WF2Q*, INFOCOM 1996). A class that uses less than its part waits for nobody, and what it does not use the
//! others have, by their weights. With one class this is the virtual scheduling of the generic cell rate algorithm (ITU-T
//! I.371).
//!
//! While nobody has work the server's clock stands, but it is never further behind than the limit's burst. So in any span
//! of time no more than rate times span, a burst and one frame of each class leave.
//!
//! How soon the server comes to a frame depends on what else comes in. A frame is told to ask again when it would be its
//! turn if nothing did, or when a quarter of the time is over that it takes if all who have work go on having some: so it
//! asks some tens of times at most, and is late by less than a quarter of its wait when others fall silent.
//!
//! Limits: [`CLASSES_MAX`] classes of one meter, further ones share the first, that of flows without one. A time costs as
//! many steps as classes have work, each over all classes.

use std::sync::Arc;
use std::time::Duration;

use model::{BitRate, Limit, Moment, Part, RuleId};

use super::gauge::Gauge;
use super::{ClassRecord, MeterRecord, SECOND_NS};

/// Most classes that a meter tells apart.
pub(super) const CLASSES_MAX: usize = 32;

/// Virtual time is in bits for each unit of weight, times two to the power of this.
const VIRTUAL_BITS: u32 = 72;
/// The server's clock is in nanoseconds, and bits of work in bits, times two to the power of this.
const FRACTION_BITS: u32 = 32;
/// Weights are in bits per second, times two to the power of this.
const WEIGHT_BITS: u32 = 16;

/// A limit and where it stands.
#[derive(Debug)]
pub(crate) struct Meter {
    limit: Limit,
    /// How long the burst takes at the rate.
    burst_ns: u64,
    /// How far the server's time has come.
    clock: u128,
    /// What it has served of each class that always has work; zero while nobody has.
    virtual_time: u128,
    /// How often it has had no work any more: virtual time began anew.
    period: u64,
    /// The first is that of flows without a class.
    classes: Vec<Class>,
    gauge: Gauge,
}

/// When the server comes to a frame.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ticket {
    period: u64,
    start: u128,
}

/// Flows that share a part of the limit.
#[derive(Debug)]
struct Class {
    /// Whose part it is; cloned into each flow that knows it.
    name: Arc<RuleId>,
    part: Part,
    weight: u128,
    /// The virtual time at which its work is done.
    finish: u128,
    gauge: Gauge,
}

impl Class {
    fn new(name: Arc<RuleId>, part: Part) -> Self {
        Self { name, part, weight: 1, finish: 0, gauge: Gauge::default() }
    }
}

impl Meter {
    pub(crate) fn new(limit: Limit) -> Self {
        let rest = Class::new(Arc::new(RuleId("".into())), Part::default());
        let mut meter = Self {
            limit,
            burst_ns: 0,
            clock: 0,
            virtual_time: 0,
            period: 0,
            classes: vec![rest],
            gauge: Gauge::default(),
        };
        meter.take_limit();
        meter
    }

    /// Another limit from now on; what has been counted stays.
    pub(crate) fn set_limit(&mut self, limit: Limit) {
        if self.limit != limit {
            self.limit = limit;
            self.take_limit();
        }
    }

    fn take_limit(&mut self) {
        let rate = u128::from(self.limit.rate.bits_per_second());
        let ns = u128::from(self.limit.burst_bytes) * 8 * u128::from(SECOND_NS) / rate;
        self.burst_ns = u64::try_from(ns).unwrap_or(u64::MAX);
        self.weigh();
    }

    /// The class of this name with this part from now on, by its number, and what keeps it.
    pub(crate) fn class(&mut self, name: &RuleId, part: Part) -> (usize, Arc<RuleId>) {
        let known = self.classes.iter().skip(1).position(|class| *class.name == *name).map(|at| at + 1);
        let number = known.or_else(|| self.free_class(name, part)).unwrap_or(0);
        let class = &mut self.classes[number];
        let kept = Arc::clone(&class.name);
        if number > 0 && class.part != part {
            class.part = part;
        }
        self.weigh();
        (number, kept)
    }

    /// A place for a new class: a new one, or that of one that no flow knows and that has no work.
    fn free_class(&mut self, name: &RuleId, part: Part) -> Option<usize> {
        let new = Class::new(Arc::new(name.clone()), part);
        if self.classes.len() < CLASSES_MAX {
            self.classes.push(new);
            return Some(self.classes.len() - 1);
        }
        let virtual_time = self.virtual_time;
        let is_free = |class: &Class| Arc::strong_count(&class.name) == 1 && class.finish <= virtual_time;
        let place = self.classes.iter().skip(1).position(is_free)? + 1;
        self.classes[place] = new;
        Some(place)
    }

    /// Weighs the classes anew: what each has reserved of the limit, and its share of what nobody has. Where more is
    /// reserved than there is, each reservation counts for as much less.
    fn weigh(&mut self) {
        let rate = self.limit.rate.bits_per_second();
        let reserved = |class: &Class| class.part.reservation.map_or(0, BitRate::bits_per_second);
        let reserved_all: u64 = self.classes.iter().map(reserved).sum();
        let free = u128::from(rate.saturating_sub(reserved_all)) << WEIGHT_BITS;
        let shares_all: u128 = self.classes.iter().map(|class| u128::from(class.part.shares)).sum();
        for class in &mut self.classes {
            let share = free * u128::from(class.part.shares) / shares_all.max(1);
            class.weight = ((u128::from(reserved(class)) << WEIGHT_BITS) + share).max(1);
        }
    }

    /// A frame of a class comes in, behind all that have.
    pub(super) fn enter(&mut self, now: Moment, class: usize, len_bytes: usize) -> Ticket {
        self.advance(now);
        let own = &mut self.classes[class];
        let start = self.virtual_time.max(own.finish);
        own.finish = start.saturating_add(((len_bytes as u128 * 8) << VIRTUAL_BITS) / own.weight);
        Ticket { period: self.period, start }
    }

    /// When a frame may leave, if that is now, or is to ask again.
    pub(super) fn due(&mut self, now: Moment, ticket: Ticket) -> Moment {
        self.advance(now);
        if ticket.period != self.period {
            return now;
        }
        let earliest = self.when(ticket.start);
        let Some((weight, _)) = self.at_work(self.virtual_time).filter(|_| earliest > now.0) else {
            return now;
        };
        let left = self.time_for(ticket.start.saturating_sub(self.virtual_time), weight) >> FRACTION_BITS;
        let quarter_ns = u64::try_from(left / 4).unwrap_or(u64::MAX);
        Moment(earliest.max(now.0.saturating_add(quarter_ns)))
    }

    /// Counts a frame of a class that leaves at a time, for which it was held so long.
    pub(super) fn count(&mut self, class: usize, leaves: Moment, held: Duration, len_bytes: usize) {
        for gauge in [&mut self.gauge, &mut self.classes[class].gauge] {
            gauge.count(leaves, held, len_bytes as u64);
        }
    }

    /// The weight of all classes that have work at a virtual time, and when the first of them has none.
    fn at_work(&self, virtual_time: u128) -> Option<(u128, u128)> {
        let working = self.classes.iter().filter(|class| class.finish > virtual_time);
        let (weight, first) = working
            .fold((0, u128::MAX), |(weight, first), class| (weight + class.weight, first.min(class.finish)));
        (weight > 0).then_some((weight, first))
    }

    /// Has the server work until now, or until there is no work.
    fn advance(&mut self, now: Moment) {
        let until = u128::from(now.0) << FRACTION_BITS;
        while let Some((weight, first)) = self.at_work(self.virtual_time) {
            let done = self.clock.saturating_add(self.time_for(first - self.virtual_time, weight));
            if done > until {
                let span = until.saturating_sub(self.clock);
                self.virtual_time += self.work_in(span, weight);
                self.clock = self.clock.max(until);
                return;
            }
            (self.clock, self.virtual_time) = (done, first);
        }
        self.virtual_time = 0;
        self.period += 1;
        self.classes.iter_mut().for_each(|class| class.finish = 0);
        let earliest = u128::from(now.0.saturating_sub(self.burst_ns)) << FRACTION_BITS;
        self.clock = self.clock.max(earliest);
    }

    /// When the server comes to a virtual time if nothing else comes in, in whole nanoseconds.
    fn when(&self, target: u128) -> u64 {
        let (mut clock, mut virtual_time) = (self.clock, self.virtual_time);
        while virtual_time < target
            && let Some((weight, first)) = self.at_work(virtual_time)
        {
            let stop = first.min(target);
            clock = clock.saturating_add(self.time_for(stop - virtual_time, weight));
            virtual_time = stop;
        }
        u64::try_from((clock + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS).unwrap_or(u64::MAX)
    }

    /// How long so much virtual time takes while classes of this weight have work.
    fn time_for(&self, virtual_time: u128, weight: u128) -> u128 {
        let bits = virtual_time.saturating_mul(weight) >> (VIRTUAL_BITS - FRACTION_BITS);
        bits.saturating_mul(u128::from(SECOND_NS)) / u128::from(self.limit.rate.bits_per_second())
    }

    /// How much virtual time passes meanwhile.
    fn work_in(&self, span: u128, weight: u128) -> u128 {
        let bits = span.saturating_mul(u128::from(self.limit.rate.bits_per_second())) / u128::from(SECOND_NS);
        (bits << (VIRTUAL_BITS - FRACTION_BITS)) / weight
    }

    /// The meter in numbers.
    pub(crate) fn record(&self, name: RuleId, answers: bool, now: Moment) -> MeterRecord {
        let [held, held_max] = self.gauge.held();
        let classes = self.classes.iter().map(|class| ClassRecord {
            name: RuleId::clone(&class.name),
            part: class.part,
            bits_per_second: class.gauge.bits_per_second(now),
            bytes: class.gauge.bytes,
            held_frames: class.gauge.held_frames,
        });
        MeterRecord {
            name,
            answers,
            limit: self.limit.rate,
            bits_per_second: self.gauge.bits_per_second(now),
            frames: self.gauge.frames,
            bytes: self.gauge.bytes,
            held_frames: self.gauge.held_frames,
            held,
            held_max,
            // One class is the meter itself.
            classes: if self.classes.len() > 1 { classes.collect() } else { Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn meter(bits_per_second: u64, burst_bytes: u64) -> Meter {
        Meter::new(Limit { rate: BitRate::new(bits_per_second).unwrap(), burst_bytes })
    }

    impl Meter {
        /// When a frame leaves if nothing else comes in.
        fn departure(&mut self, now: Moment, class: usize, len_bytes: usize) -> Moment {
            let ticket = self.enter(now, class, len_bytes);
            let leaves = Moment(now.0.max(self.when(ticket.start)));
            self.count(class, leaves, leaves.since(now), len_bytes);
            leaves
        }
    }

    /// Frames of senders that each wait for one frame before they offer the next, for so long. Returns what left when.
    fn backlog(
        meter: &mut Meter,
        senders: &[Vec<usize>],
        start: Moment,
        span: Duration,
    ) -> Vec<(Moment, u64)> {
        let end = start.after(span);
        let mut next: Vec<(Moment, usize)> = senders.iter().map(|_| (start, 0)).collect();
        let mut left = Vec::new();
        loop {
            let sender = (0..next.len()).min_by_key(|sender| next[*sender].0).unwrap();
            let (now, number) = next[sender];
            if now >= end {
                return left;
            }
            let len_bytes = senders[sender][number % senders[sender].len()];
            let leaves = meter.departure(now, 0, len_bytes);
            left.push((leaves, len_bytes as u64));
            // The next one comes a moment after the last has left: before the shortest would be through at the highest rate.
            next[sender] = (leaves.after(Duration::from_nanos(200)), number + 1);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_leaves_in_ten_seconds_is_within_two_per_cent_of_the_rate(
            megabits in 1..2000_u64,
            // Super-frames only where ten seconds hold many of them.
            senders in vec(vec(60..1515_usize, 1..20), 1..5),
            large in any::<bool>(),
            started_s in 0..1_000_000_u64,
        ) {
            let rate = megabits * 1_000_000;
            let scale = if large && megabits >= 100 { 40 } else { 1 };
            let senders: Vec<Vec<usize>> =
                senders.iter().map(|lens| lens.iter().map(|len| len * scale).collect()).collect();
            let limit = Limit::new(BitRate::new(rate).unwrap());
            let (start, span) = (Moment(started_s * SECOND_NS), Duration::from_secs(10));
            // The longest few: as many frames as that would take too long to simulate at a terabit.
            let (span, burst) = if megabits > 200 { (span / 10, limit.burst_bytes / 10) } else { (span, limit.burst_bytes) };
            let mut meter = Meter::new(Limit { burst_bytes: burst, ..limit });
            let left = backlog(&mut meter, &senders, start, span);
            let end = start.after(span);
            let bytes: u64 = left.iter().filter(|(at, _)| *at < end).map(|(_, bytes)| bytes).sum();
            let wanted = meter.limit.rate.bytes_in(span);
            prop_assert!(bytes.abs_diff(wanted) * 50 <= wanted, "{} of {}", bytes, wanted);
            let record = meter.record(RuleId("x".into()), false, end);
            let shown = record.bits_per_second;
            prop_assert!(megabits > 200 || shown.abs_diff(rate) * 20 <= rate, "{} of {}", shown, rate);
        }

        #[test]
        fn no_span_of_time_sees_more_than_the_rate_a_burst_and_a_frame(
            (kilobits, burst_bytes) in (1..1_000_000_u64, 0..100_000_u64),
            frames in vec((0..40_000_000_u64, 60..65_550_usize), 1..60),
        ) {
            let mut meter = meter(kilobits * 1000, burst_bytes);
            let mut now = Moment(SECOND_NS);
            let left: Vec<(Moment, u64)> = frames.iter().map(|(pause_ns, len_bytes)| {
                now = now.after(Duration::from_nanos(*pause_ns));
                (meter.departure(now, 0, *len_bytes), *len_bytes as u64)
            }).collect();
            for (index, (from, _)) in left.iter().enumerate() {
                let mut bytes = 0;
                for (until, len_bytes) in &left[index..] {
                    bytes += len_bytes;
                    let most = meter.limit.rate.bytes_in(until.since(*from)) + burst_bytes + len_bytes;
                    prop_assert!(bytes <= most + 1, "{} bytes from {:?} to {:?}, at most {}", bytes, from, until, most);
                }
            }
            // Nobody overtakes.
            prop_assert!(left.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        }
    }

    /// Senders that always have more, each of a class; and one of a further class that sends now and then.
    #[derive(Clone, Debug)]
    struct Crowd {
        senders: Vec<(usize, Vec<usize>)>,
        pauses: Option<Duration>,
    }

    /// What leaves of each class in the span after a second has passed, in bytes.
    fn shared_out(meter: &mut Meter, crowd: &Crowd, classes: usize, span: Duration) -> Vec<u64> {
        let (begin, end) = (Moment(2 * SECOND_NS), Moment(2 * SECOND_NS).after(span));
        // The one that sends now and then is the last.
        let mut senders = crowd.senders.clone();
        senders.extend(crowd.pauses.map(|_| (classes, vec![1500])));
        let mut next: Vec<(Moment, usize, Option<Ticket>)> =
            senders.iter().map(|_| (Moment(SECOND_NS), 0, None)).collect();
        let mut left = vec![0; classes + 1];
        loop {
            let sender = (0..next.len()).min_by_key(|sender| next[*sender].0).unwrap();
            let (now, number, waits) = next[sender];
            if now >= end {
                return left;
            }
            let (class, lens) = &senders[sender];
            let len_bytes = lens[number % lens.len()];
            let ticket = waits.unwrap_or_else(|| meter.enter(now, *class, len_bytes));
            let due = meter.due(now, ticket);
            if due > now {
                next[sender] = (due, number, Some(ticket));
                continue;
            }
            left[*class] += if now >= begin { len_bytes as u64 } else { 0 };
            let pause =
                if *class == classes { crowd.pauses.unwrap_or_default() } else { Duration::from_nanos(700) };
            next[sender] = (now.after(pause), number + 1, None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

        /// However many flows each class has, and however long its frames are.
        #[test]
        fn classes_that_have_work_share_the_rate_by_their_weights(
            megabits in 10..60_u64,
            parts in vec((1..20_u32, 0..3_u64), 1..5),
            flows in vec((0..5_usize, vec(60..1515_usize, 1..10)), 5..20),
            pauses in proptest::option::of(5_000_000..50_000_000_u64),
        ) {
            let rate = megabits * 1_000_000;
            let mut meter = meter(rate, 0);
            let mut weights = vec![100.0_f64];
            let reserved: u64 = parts.iter().map(|(_, megabits)| megabits * 1_000_000).sum();
            for (number, (shares, megabits)) in parts.iter().enumerate() {
                let reservation = BitRate::new(megabits * 1_000_000);
                let part = Part { shares: shares * 50, reservation };
                prop_assert_eq!(meter.class(&RuleId(number.to_string().into()), part).0, number + 1);
                weights.push(f64::from(shares * 50));
            }
            // With the one that sends now and then, whose share is one.
            let all = weights.iter().sum::<f64>() + 1.0;
            let free = rate.saturating_sub(reserved) as f64;
            for (weight, megabits) in weights.iter_mut().zip([0].iter().chain(parts.iter().map(|(_, m)| m))) {
                *weight = *weight / all * free + *megabits as f64 * 1e6;
            }
            // Each class has a flow at least but for one that sends now and then.
            let classes = weights.len();
            let (rare, _) = meter.class(&RuleId("rare".into()), Part { shares: 1, reservation: None });
            prop_assert_eq!(rare, classes);
            let mut senders: Vec<(usize, Vec<usize>)> = (0..classes).map(|class| (class, vec![1000])).collect();
            senders.extend(flows.iter().map(|(class, lens)| (class % classes, lens.clone())));
            let span = Duration::from_secs(10);
            let pauses = pauses.map(Duration::from_nanos);
            let left = shared_out(&mut meter, &Crowd { senders, pauses }, classes, span);
            let whole: u64 = left.iter().sum();
            let wanted = meter.limit.rate.bytes_in(span);
            prop_assert!(whole.abs_diff(wanted) * 50 <= wanted, "{} of {}", whole, wanted);
            let busy = (whole - left[classes]) as f64;
            let sum: f64 = weights.iter().sum();
            for (class, weight) in weights.iter().enumerate() {
                let due = busy * weight / sum;
                let off = (left[class] as f64 - due).abs();
                prop_assert!(off * 50.0 <= due.max(wanted as f64 / 50.0), "class {}: {} of {}", class, left[class], due);
            }
        }
    }

    #[test]
    fn whoever_uses_less_than_its_part_waits_for_nobody_and_the_others_have_the_rest() {
        // 8 Mbit/s: a byte takes a microsecond.
        let mut meter = meter(8_000_000, 0);
        let (small, _) = meter.class(&RuleId("small".into()), Part { shares: 100, reservation: None });
        let mut bulk = Moment(0);
        let mut sent = 0;
        for number in 0..1000_u64 {
            let now = Moment(number * 10_000_000);
            while bulk <= now {
                bulk = meter.departure(bulk, 0, 1000).max(Moment(bulk.0 + 1));
                sent += 1000;
            }
            assert_eq!(
                meter.departure(now, small, 1000),
                now,
                "it has a tenth of the rate, and may have half"
            );
        }
        let (all, wanted): (u64, u64) = (sent + 1_000_000, 10_000_000);
        assert!(all.abs_diff(wanted) * 100 < wanted, "{all}");
    }

    #[test]
    fn classes_are_bounded_and_forgotten_when_no_flow_knows_them() {
        let mut meter = meter(8_000_000, 0);
        let class = |meter: &mut Meter, number: usize| {
            meter.class(&RuleId(number.to_string().into()), Part::default())
        };
        let kept: Vec<_> = (1..CLASSES_MAX).map(|number| class(&mut meter, number)).collect();
        assert_eq!(class(&mut meter, 99).0, 0, "further ones share the first");
        assert_eq!(class(&mut meter, 5).0, 5);
        drop(kept);
        assert_eq!(class(&mut meter, 99).0, 1);
        assert_eq!(meter.classes.len(), CLASSES_MAX);
    }

    #[test]
    fn nothing_is_lost_to_rounding() {
        // 64 bytes at 10 Gbit/s take 51.2 ns.
        let mut meter = meter(10_000_000_000, 0);
        let mut left = Moment(0);
        (0..=1_000_000).for_each(|_| left = meter.departure(Moment(0), 0, 64));
        assert_eq!(left, Moment(51_200_000));
    }

    #[test]
    fn numbers_tell_who_waited_and_a_silent_meter_shows_no_rate() {
        let mut meter = meter(8000, 0);
        assert_eq!(meter.departure(Moment(0), 0, 1000), Moment(0));
        assert_eq!(meter.departure(Moment(0), 0, 1000), Moment(SECOND_NS));
        assert_eq!(meter.departure(Moment(0), 0, 1000), Moment(2 * SECOND_NS));
        let record = |now_s: u64| meter.record(RuleId("r".into()), true, Moment(now_s * SECOND_NS));
        let shown = record(3);
        assert_eq!((shown.frames, shown.bytes, shown.held_frames), (3, 3000, 2));
        assert_eq!((shown.held, shown.held_max), (Duration::from_secs(3), Duration::from_secs(2)));
        assert_eq!(shown.bits_per_second, 8000);
        assert!(record(1000).bits_per_second < 10);
    }
}
