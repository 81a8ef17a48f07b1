// SPDX-License-Identifier: Apache-2.0
//! A limit as a virtual clock.
//!
//! Every frame is given the time at which it may leave, as in Carousel (Saeed et al., SIGCOMM 2017), by the virtual
//! scheduling of the generic cell rate algorithm (ITU-T I.371): the meter's clock goes forward by the time that the frame
//! takes at the limit's rate, and is never further behind than the limit's burst. So in any span of time no more than
//! rate times span, a burst and one frame leave, whatever the order of questions.
//!
//! Nothing is lost to rounding: what a division leaves over goes into the next.

use std::time::Duration;

use model::{Limit, Moment, RuleId};

use super::MeterRecord;

const SECOND_NS: u64 = 1_000_000_000;

/// A limit and where it stands.
#[derive(Debug)]
pub(crate) struct Meter {
    limit: Limit,
    /// How long the burst takes at the rate.
    burst_ns: u64,
    /// When the next frame is due.
    due_ns: u64,
    /// What was left of the last frame's bits, in bits times nanoseconds; less than the rate.
    remainder: u128,
    /// The last second or so: when it began, and what has left in it.
    window: (u64, u64),
    /// What left in the one before, in bits per second.
    bits_per_second: u64,
    frames: u64,
    bytes: u64,
    held_frames: u64,
    held_ns: u64,
    held_max_ns: u64,
}

impl Meter {
    pub(crate) fn new(limit: Limit) -> Self {
        let mut meter = Self {
            limit,
            burst_ns: 0,
            due_ns: 0,
            remainder: 0,
            window: (0, 0),
            bits_per_second: 0,
            frames: 0,
            bytes: 0,
            held_frames: 0,
            held_ns: 0,
            held_max_ns: 0,
        };
        meter.take_burst();
        meter
    }

    /// Another limit from now on; what has been counted stays.
    pub(crate) fn set_limit(&mut self, limit: Limit) {
        if self.limit != limit {
            self.limit = limit;
            self.remainder = 0;
            self.take_burst();
        }
    }

    fn take_burst(&mut self) {
        let rate = u128::from(self.limit.rate.bits_per_second());
        let ns = u128::from(self.limit.burst_bytes) * 8 * u128::from(SECOND_NS) / rate;
        self.burst_ns = u64::try_from(ns).unwrap_or(u64::MAX);
    }

    /// When a frame may leave that comes now. It is counted as leaving then.
    pub(crate) fn departure(&mut self, now: Moment, len_bytes: usize) -> Moment {
        let rate = u128::from(self.limit.rate.bits_per_second());
        let due_ns = self.due_ns.max(now.0.saturating_sub(self.burst_ns));
        let bits = len_bytes as u128 * 8 * u128::from(SECOND_NS) + self.remainder;
        self.remainder = bits % rate;
        self.due_ns = due_ns.saturating_add(u64::try_from(bits / rate).unwrap_or(u64::MAX));
        let leaves_ns = due_ns.max(now.0);
        self.count(leaves_ns, leaves_ns - now.0, len_bytes as u64);
        Moment(leaves_ns)
    }

    fn count(&mut self, leaves_ns: u64, held_ns: u64, len_bytes: u64) {
        self.frames += 1;
        self.bytes += len_bytes;
        if held_ns > 0 {
            self.held_frames += 1;
            self.held_ns += held_ns;
            self.held_max_ns = self.held_max_ns.max(held_ns);
        }
        let (began_ns, bytes) = &mut self.window;
        let span_ns = leaves_ns.saturating_sub(*began_ns);
        if span_ns >= SECOND_NS {
            self.bits_per_second = per_second(*bytes, span_ns);
            (*began_ns, *bytes) = (leaves_ns, 0);
        }
        *bytes += len_bytes;
    }

    /// The meter in numbers.
    pub(crate) fn record(&self, name: RuleId, answers: bool, now: Moment) -> MeterRecord {
        let (began_ns, bytes) = self.window;
        let span_ns = now.0.saturating_sub(began_ns);
        let bits_per_second =
            if span_ns >= 2 * SECOND_NS { per_second(bytes, span_ns) } else { self.bits_per_second };
        MeterRecord {
            name,
            answers,
            limit: self.limit.rate,
            bits_per_second,
            frames: self.frames,
            bytes: self.bytes,
            held_frames: self.held_frames,
            held: Duration::from_nanos(self.held_ns),
            held_max: Duration::from_nanos(self.held_max_ns),
        }
    }
}

fn per_second(bytes: u64, span_ns: u64) -> u64 {
    let bits = u128::from(bytes) * 8 * u128::from(SECOND_NS) / u128::from(span_ns.max(1));
    u64::try_from(bits).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use model::BitRate;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn meter(bits_per_second: u64, burst_bytes: u64) -> Meter {
        Meter::new(Limit { rate: BitRate::new(bits_per_second).unwrap(), burst_bytes })
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
            let leaves = meter.departure(now, len_bytes);
            left.push((leaves, len_bytes as u64));
            // The next one comes a moment after the last has left.
            next[sender] = (leaves.after(Duration::from_nanos(700)), number + 1);
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
                (meter.departure(now, *len_bytes), *len_bytes as u64)
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

    #[test]
    fn nothing_is_lost_to_rounding() {
        // 64 bytes at 10 Gbit/s take 51.2 ns.
        let mut meter = meter(10_000_000_000, 0);
        let mut left = Moment(0);
        (0..=1_000_000).for_each(|_| left = meter.departure(Moment(0), 64));
        assert_eq!(left, Moment(51_200_000));
    }

    #[test]
    fn numbers_tell_who_waited_and_a_silent_meter_shows_no_rate() {
        let mut meter = meter(8000, 0);
        assert_eq!(meter.departure(Moment(0), 1000), Moment(0));
        assert_eq!(meter.departure(Moment(0), 1000), Moment(SECOND_NS));
        assert_eq!(meter.departure(Moment(0), 1000), Moment(2 * SECOND_NS));
        let record = |now_s: u64| meter.record(RuleId("r".into()), true, Moment(now_s * SECOND_NS));
        let shown = record(3);
        assert_eq!((shown.frames, shown.bytes, shown.held_frames), (3, 3000, 2));
        assert_eq!((shown.held, shown.held_max), (Duration::from_secs(3), Duration::from_secs(2)));
        assert_eq!(shown.bits_per_second, 8000);
        assert!(record(1000).bits_per_second < 10);
    }
}
