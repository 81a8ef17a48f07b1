// SPDX-License-Identifier: Apache-2.0
//! Whose turn it is: deficit round robin over ports.
//!
//! In each round a port may have frames taken up until its quantum is spent; what the last frame took too much is missing
//! in the next round, and what is left over is gone (Shreedhar, Varghese: *Efficient Fair Queueing Using Deficit Round
//! Robin*, SIGCOMM 1995, with the last frame's surplus instead of a deficit). So however much one machine sends, another
//! waits for no more than one quantum and one frame of each. A frame costs its bytes, but at least
//! [`FRAME_COST_BYTES`], because short ones take time, too.
//!
//! A machine's weight is what it has reserved, as a part of the host's capacity, and its shares of what nobody has
//! reserved. The port with the greatest weight has [`QUANTUM_BYTES`], the others as much less as theirs is.

use model::{BitRate, LatencyClass, Qos};

/// The greatest quantum, in bytes: two super-frames, or 32 short frames.
pub const QUANTUM_BYTES: u32 = 128 * 1024;

/// What a frame costs at least, in bytes.
pub const FRAME_COST_BYTES: u32 = 4096;

/// What a port may do when it is its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Bytes that may be taken up, from [`FRAME_COST_BYTES`] to [`QUANTUM_BYTES`].
    pub quantum_bytes: u32,
    /// Whether it is looked after between all other turns.
    pub interactive: bool,
}

impl Default for Turn {
    fn default() -> Self {
        Self { quantum_bytes: QUANTUM_BYTES, interactive: false }
    }
}

/// The turns of ports whose machines get so much of a host with this capacity. Where more is reserved than there is,
/// each reservation is cut alike.
pub(crate) fn turns(qos: &[Qos], capacity: BitRate) -> Vec<Turn> {
    let reserved = |qos: &Qos| qos.reservation.map_or(0.0, |rate| rate.bits_per_second() as f64);
    let reserved_all: f64 = qos.iter().map(reserved).sum();
    let whole = reserved_all.max(capacity.bits_per_second() as f64);
    let shares_all: f64 = qos.iter().map(|qos| f64::from(qos.shares)).sum();
    let weight = |qos: &Qos| {
        let free = (whole - reserved_all) / whole;
        reserved(qos) / whole + free * f64::from(qos.shares) / shares_all.max(1.0)
    };
    let greatest = qos.iter().map(weight).fold(f64::MIN_POSITIVE, f64::max);
    let turn = |qos: &Qos| Turn {
        quantum_bytes: ((f64::from(QUANTUM_BYTES) * weight(qos) / greatest) as u32).max(FRAME_COST_BYTES),
        interactive: qos.class == LatencyClass::Interactive,
    };
    qos.iter().map(turn).collect()
}

/// What a port may still have taken up in this round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credit {
    /// Below zero: what the last round took too much, at most one frame.
    left_bytes: i64,
}

impl Credit {
    /// Begins a round.
    pub fn begin(&mut self, turn: Turn) {
        self.left_bytes = self.left_bytes.min(0) + i64::from(turn.quantum_bytes);
    }

    /// Whether another frame may be taken up.
    #[must_use]
    #[inline]
    pub fn is_left(&self) -> bool {
        self.left_bytes > 0
    }

    /// A frame of that many bytes was taken up.
    #[inline]
    pub fn spend(&mut self, len_bytes: usize) {
        self.left_bytes -= (len_bytes as i64).max(i64::from(FRAME_COST_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn rate(bits: u64) -> BitRate {
        BitRate::new(bits).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn backlogged_ports_get_what_they_have_reserved_and_their_share_of_the_rest(
            given in vec((10..200_u32, option::of(1..150_u64)), 1..6),
            lens in vec(vec(60..65_550_usize, 1..30), 6),
        ) {
            let capacity = rate(1_000_000_000);
            let qos: Vec<Qos> = given.iter().map(|(shares, reserved)| Qos {
                shares: *shares,
                reservation: reserved.map(|megabits| rate(megabits * 1_000_000)),
                ..Qos::default()
            }).collect();
            let turns = turns(&qos, capacity);
            let (mut credits, mut taken) = (vec![Credit::default(); qos.len()], vec![0_u64; qos.len()]);
            let mut next = vec![0; qos.len()];
            for _ in 0..4000 {
                for port in 0..qos.len() {
                    credits[port].begin(turns[port]);
                    let mut once = 0;
                    while credits[port].is_left() {
                        let len = lens[port][next[port] % lens[port].len()];
                        next[port] += 1;
                        credits[port].spend(len);
                        once += len.max(FRAME_COST_BYTES as usize) as u64;
                    }
                    prop_assert!(once <= u64::from(turns[port].quantum_bytes) + 65_550);
                    taken[port] += once;
                }
            }
            let all: u64 = taken.iter().sum();
            let shares: f64 = qos.iter().map(|qos| f64::from(qos.shares)).sum();
            let reserved: f64 = qos.iter().map(|qos| qos.reservation.map_or(0.0, |r| r.bits_per_second() as f64)).sum();
            for (qos, taken) in qos.iter().zip(&taken) {
                let own = qos.reservation.map_or(0.0, |r| r.bits_per_second() as f64);
                let wanted = (own + (1e9 - reserved) * f64::from(qos.shares) / shares) / 1e9;
                let part = *taken as f64 / all as f64;
                prop_assert!((part - wanted).abs() <= 0.02 * wanted + 1e-4, "{part} instead of {wanted}");
            }
        }
    }

    #[test]
    fn a_port_that_was_idle_has_saved_nothing() {
        let mut credit = Credit::default();
        (0..100).for_each(|_| credit.begin(Turn::default()));
        (0..32).for_each(|_| credit.spend(60));
        assert!(!credit.is_left());
    }

    #[test]
    fn more_than_there_is_can_be_reserved_by_nobody() {
        let greedy = Qos { reservation: Some(rate(2_000_000)), ..Qos::default() };
        let turns = turns(&[greedy, greedy, Qos::default()], rate(1_000_000));
        assert_eq!(turns[0].quantum_bytes, QUANTUM_BYTES);
        assert_eq!(turns[0], turns[1]);
        assert_eq!(turns[2].quantum_bytes, FRAME_COST_BYTES);
    }
}
