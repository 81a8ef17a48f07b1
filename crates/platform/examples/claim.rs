// SPDX-License-Identifier: Apache-2.0
//! What it takes to fill buffers that another processor has looked at, or written to, since they were filled last: with
//! nothing done before, with a prefetch some time before, and with a store.
//!
//! `cargo run --release -p platform --example claim`, on two processors that do nothing else.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use platform::{pin_current_thread, prefetch_to_write};

/// A cache line.
#[derive(Default)]
#[repr(align(64))]
struct Line([AtomicU64; 8]);

/// Buffers, one after the other, of which each round fills the next few.
const BUFFERS: usize = 512;
const BUFFER_LINES: usize = 36;
const FILLED: usize = 32;
const ROUNDS: usize = 1000;
/// How long before it is filled a buffer is prepared.
const AHEAD: Duration = Duration::from_micros(4);

/// What is done ahead.
#[derive(Clone, Copy, Debug)]
enum Ahead {
    Nothing,
    Prefetch,
    Store,
}

struct Arena {
    lines: Vec<Line>,
    /// Rounds begun: odd while the other processor is at work.
    turn: AtomicU64,
    writes: bool,
}

impl Arena {
    /// The lines that are filled in a round: two of each buffer.
    fn lines(&self, round: usize) -> impl Iterator<Item = &[AtomicU64; 8]> {
        let buffers = round * FILLED..(round + 1) * FILLED;
        let firsts = buffers.map(|number| number % BUFFERS * BUFFER_LINES);
        firsts.flat_map(|first| &self.lines[first..first + 2]).map(|Line(words)| words)
    }

    /// Looks at buffers, or writes to them, when it is told to.
    fn use_buffers(&self) {
        for round in 0..ROUNDS {
            while self.turn.load(Ordering::Acquire) != 2 * round as u64 + 1 {
                spin_loop();
            }
            for line in self.lines(round) {
                if self.writes {
                    line[0].store(1, Ordering::Relaxed);
                } else {
                    black_box(line[0].load(Ordering::Relaxed));
                }
            }
            self.turn.store(2 * round as u64 + 2, Ordering::Release);
        }
    }

    /// Nanoseconds that filling a buffer takes, the median of all rounds.
    fn fill(&self, ahead: Ahead) -> f64 {
        let mut times: Vec<Duration> = (0..ROUNDS).map(|round| self.fill_once(round, ahead)).collect();
        times.sort_unstable();
        times[ROUNDS / 2].as_nanos() as f64 / FILLED as f64
    }

    fn fill_once(&self, round: usize, ahead: Ahead) -> Duration {
        self.turn.store(2 * round as u64 + 1, Ordering::Release);
        while self.turn.load(Ordering::Acquire) != 2 * round as u64 + 2 {
            spin_loop();
        }
        for line in self.lines(round) {
            match ahead {
                Ahead::Nothing => {}
                Ahead::Prefetch => prefetch_to_write(&line[0]),
                Ahead::Store => line[0].store(0, Ordering::Relaxed),
            }
        }
        let prepared = Instant::now();
        while prepared.elapsed() < AHEAD {
            spin_loop();
        }
        fence(Ordering::SeqCst);
        let start = Instant::now();
        self.lines(round).flatten().for_each(|word| word.store(round as u64, Ordering::Relaxed));
        fence(Ordering::SeqCst);
        start.elapsed()
    }
}

fn main() -> std::io::Result<()> {
    pin_current_thread(0)?;
    println!("{:<24} {:>10} {:>10} {:>10}", "ns to fill a buffer", "unprepared", "prefetch", "store");
    for writes in [false, true] {
        let times = [Ahead::Nothing, Ahead::Prefetch, Ahead::Store].map(|ahead| {
            let lines = (0..BUFFERS * BUFFER_LINES).map(|_| Line::default()).collect();
            let arena = Arena { lines, turn: AtomicU64::new(0), writes };
            thread::scope(|scope| {
                scope.spawn(|| {
                    pin_current_thread(1).expect("there is a second processor");
                    arena.use_buffers();
                });
                arena.fill(ahead)
            })
        });
        let [nothing, prefetch, store] = times;
        let used = if writes { "the other wrote to it" } else { "the other looked at it" };
        println!("{used:<24} {nothing:>10.1} {prefetch:>10.1} {store:>10.1}");
    }
    Ok(())
}
