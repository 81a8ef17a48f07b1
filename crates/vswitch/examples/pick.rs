// SPDX-License-Identifier: Apache-2.0
//! What choosing an endpoint for a new flow costs, by the number of endpoints.
//!
//! ```text
//! cargo run --release -p vswitch --example pick -- 10 1000 100000
//! ```
//! For each number prints the number, the median and the best of a number of rounds in nanoseconds a pick, and what
//! filling the tables took in milliseconds. Flows are random, so with many endpoints nearly every look into the table
//! is a cache miss, as with new flows of a busy host.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock; the switch does not")]

use std::hint::black_box;
use std::time::Instant;

use model::{Balancing, Moment};
use vswitch::{Balancer, Candidate};

const ROUNDS: usize = 50;
const PICKS_PER_ROUND: u32 = 20_000;
const SECOND: Moment = Moment(1_000_000_000);

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    assert!(!numbers.is_empty(), "numbers of endpoints are needed, such as: 10 1000 100000");
    for endpoints in numbers {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = move || {
            // Marsaglia, Xorshift RNGs, 2003.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let candidate = |name| Candidate { name, group: Some(0), local: true, reachable: true };
        let candidates: Vec<Candidate> = (0..endpoints).map(|_| candidate(next())).collect();
        let mut balancer = Balancer::new(Balancing::default(), &candidates);
        let filled = Instant::now();
        assert!(balancer.pick(SECOND, 0, 0).is_some(), "the first pick fills the tables");
        let filled_ms = filled.elapsed().as_secs_f64() * 1e3;
        let mut rounds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let started = Instant::now();
                for _ in 0..PICKS_PER_ROUND {
                    let flow = next();
                    assert!(black_box(balancer.pick(SECOND, flow, flow)).is_some());
                }
                started.elapsed().as_nanos() as f64 / f64::from(PICKS_PER_ROUND)
            })
            .collect();
        rounds.sort_by(f64::total_cmp);
        println!("{endpoints} {:.1} {:.1} {filled_ms:.3}", rounds[ROUNDS / 2], rounds[0]);
    }
}
