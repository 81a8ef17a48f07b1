// SPDX-License-Identifier: Apache-2.0
//! Some frames through the switch and little else, for whoever counts instructions: `cargo xtask bench instructions`.
//!
//! ```text
//! count known-tcp 4000
//! ```
//! What is done before the frames does not depend on their number, so the difference between two runs is theirs.

mod common;

use std::hint::black_box;

use packet::TcpFlags;
use vswitch::{Frame, PortId, Verdict};

/// Connections among which segments take turns.
const CONNECTIONS: u32 = 1000;
/// Most frames: each may open a connection of its own, and few may be half open.
const FRAMES_MAX: u32 = 4000;

fn main() {
    let mut words = std::env::args().skip(1);
    let (case, frames) = (words.next().unwrap_or_default(), words.next().and_then(|text| text.parse().ok()));
    let frames: u32 = frames.filter(|frames| *frames <= FRAMES_MAX).expect("a case and at most 4,000 frames");
    let (mut switch, now) = common::switch();
    // As nearly always: nobody watches.
    switch.tell_openings(false);
    let made: Vec<Vec<u8>> = match case.as_str() {
        "known-tcp" => {
            common::connect(&mut switch, now, CONNECTIONS);
            let segment = |index| common::segment(index, true, TcpFlags::ACK, (1001, 5001));
            (0..CONNECTIONS).map(segment).collect()
        }
        "known-udp" => (0..CONNECTIONS).map(common::datagram).collect(),
        "first-tcp" => {
            let segment = |index| common::segment(index, true, TcpFlags::SYN, (1000, 0));
            (0..FRAMES_MAX).map(segment).collect()
        }
        other => panic!("no case `{other}`: known-tcp, known-udp or first-tcp"),
    };
    let mut frame = Frame::default();
    for bytes in made.iter().cycle().take(frames as usize) {
        common::load(&mut frame, bytes);
        let verdict = switch.process(now, PortId(0), &mut frame, None);
        assert_eq!(black_box(verdict), Verdict::Forward(PortId(1)));
        // Whoever drives the switch takes them each round.
        switch.events().for_each(drop);
    }
}
