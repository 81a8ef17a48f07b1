// SPDX-License-Identifier: Apache-2.0
//! What a frame of a known flow costs: 10,000 TCP connections, 64-byte frames, in random order.
//!
//! ```text
//! cargo run --release -p vswitch --example hit
//! ```
//! Prints the best and the median of a number of rounds, in nanoseconds per frame, of the switch's work, of what of it
//! needs no switch (the preview), and of the copy of the frame into the scratch head alone. Rings are not part of it.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock; the switch does not")]

mod common;

use std::hint::black_box;
use std::time::Instant;

use packet::TcpFlags;
use vswitch::{Frame, PortId, Preview, Verdict};

const FLOWS: u32 = 10_000;
const ROUNDS: usize = 200;
const FRAMES_PER_ROUND: usize = 20_000;

fn main() {
    let (mut switch, now) = common::switch();
    let opened = Instant::now();
    common::connect(&mut switch, now, FLOWS);
    println!(
        "opening a connection (3 frames, made here): {} ns",
        opened.elapsed().as_nanos() / u128::from(FLOWS)
    );

    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let frames: Vec<(u16, Vec<u8>)> = (0..FRAMES_PER_ROUND)
        .map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let outbound = random & 1 == 0;
            let numbers = if outbound { (1001, 5001) } else { (5001, 1001) };
            let bytes = common::segment((random >> 8) as u32 % FLOWS, outbound, TcpFlags::ACK, numbers);
            (u16::from(!outbound), bytes)
        })
        .collect();
    let copied_ns = measure(&frames, |_, frame| _ = black_box(frame));
    let (previewer, mut preview) = (switch.previewer(), Preview::default());
    let previewed_ns = measure(&frames, |port, frame| {
        previewer.preview(port, frame, &mut preview);
        black_box(&preview);
    });
    let switched_ns = measure(&frames, |port, frame| {
        let forwarded = matches!(switch.process(now, port, frame, None), Verdict::Forward(_));
        assert!(black_box(forwarded));
    });
    for (what, (best, median)) in
        [("copy alone", copied_ns), ("copy and preview", previewed_ns), ("copy and switch", switched_ns)]
    {
        println!("{what}: best {best:.1} ns, median {median:.1} ns");
    }
}

/// Nanoseconds per frame in the best and the median round of offering all frames.
fn measure(frames: &[(u16, Vec<u8>)], mut work: impl FnMut(PortId, &mut Frame)) -> (f64, f64) {
    let mut frame = Frame::default();
    let mut rounds_ns = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for (port, bytes) in frames {
            common::load(&mut frame, bytes);
            work(PortId(*port), &mut frame);
        }
        rounds_ns.push(start.elapsed().as_nanos() as f64 / frames.len() as f64);
    }
    rounds_ns.sort_by(f64::total_cmp);
    (rounds_ns[0], rounds_ns[ROUNDS / 2])
}
