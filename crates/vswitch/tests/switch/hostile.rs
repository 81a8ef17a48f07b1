// SPDX-License-Identifier: Apache-2.0
//! Frames that lie, and frames of random bytes.

use model::Protocol;
use packet::emit;
use proptest::prelude::*;
use vswitch::{DropReason, Frame, Verdict};

use crate::world::*;

#[test]
fn cut_off_frames_are_malformed_at_every_length() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let whole = Dialogue::new(WEB, API, 1, 80).out(SYN, 1, 0, 0);
    for len in 0..whole.len() {
        world.drops(WEB, &whole[..len], DropReason::Malformed);
    }
    world.forwards(WEB, &whole, API);
}

#[test]
fn a_short_head_asks_for_more_and_changes_nothing() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let whole = Dialogue::new(WEB, API, 1, 80).out(SYN, 1, 0, 0);
    for len in 0..whole.len() {
        let mut frame = Frame::copy_of(&whole);
        frame.head_len_bytes = len;
        assert_eq!(world.switch.process(world.now, WEB, &mut frame, None), Verdict::NeedMore, "{len}");
    }
    assert_eq!(world.switch.flows().count(), 0);
    assert_eq!(world.switch.counters().need_more, whole.len() as u64);
}

#[test]
fn impossible_sizes_are_refused() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let mut frame = Frame::copy_of(&udp(WEB, API, (1, 2)));
    frame.total_len_bytes = 70_000;
    let verdict = world.switch.process(world.now, WEB, &mut frame, None);
    assert_eq!(verdict, Verdict::Drop(DropReason::TooLong));
    frame.total_len_bytes = 60;
    frame.head_len_bytes = usize::MAX;
    let _ = world.switch.process(world.now, WEB, &mut frame, None);
}

#[test]
fn routing_headers_are_dropped() {
    let mut memory = memory(64);
    let mut world = World::new(&mut memory, allow());
    let routing = [17, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0, 0];
    let frame = emit::ip(link(WEB, API), between(v6(WEB), v6(API)), Protocol::Other(43), 64, &routing);
    world.drops(WEB, &frame, DropReason::Malformed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Frames that start well and go wrong somewhere: never a panic, and nothing to another tenant.
    #[test]
    fn damaged_frames_stay_within_the_tenant(
        damage in prop::collection::vec((12..200_usize, any::<u8>()), 0..8),
        kind in 0..5_usize,
        head_len in 0..300_usize,
        longer in 0..4000_usize,
    ) {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        world.connect(WEB, API, 80);
        let mut bytes = match kind {
            0 => Dialogue::new(WEB, API, 40_000, 80).out(ACK, 1001, 5001, 100),
            1 => udp(WEB, API, (68, 67)),
            2 => echo(WEB, API, 8, 1),
            3 => tcp(link(WEB, API), between(v6(WEB), v6(API)), (1, 2), SYN, (1, 0), 80),
            _ => icmp(WEB, API, &udp(WEB, API, (1, 2))),
        };
        for (at, byte) in damage {
            if let Some(field) = bytes.get_mut(at) {
                *field = byte;
            }
        }
        let mut frame = Frame::copy_of(&bytes);
        frame.head_len_bytes = frame.head_len_bytes.min(head_len);
        frame.total_len_bytes += longer;
        let verdict = world.switch.process(world.now, WEB, &mut frame, None);
        if let Verdict::Forward(port) = verdict {
            prop_assert!(port == API || port == DB);
        }
        for emission in world.switch.emissions() {
            prop_assert_eq!(emission.port, WEB);
        }
        world.tick();
    }

    #[test]
    fn random_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..400), own in any::<bool>()) {
        let mut memory = memory(64);
        let mut world = World::new(&mut memory, allow());
        if own && bytes.len() >= 14 {
            bytes[6..12].copy_from_slice(&mac(WEB).0);
        }
        let verdict = world.offer(WEB, &bytes);
        prop_assert!(!matches!(verdict, Verdict::NeedMore));
    }
}
