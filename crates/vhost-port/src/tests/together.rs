// SPDX-License-Identifier: Apache-2.0
//! Frames that are sent together arrive as they would one by one, whatever the buffers, and whatever was looked at ahead.

use proptest::prelude::*;

use super::driver::{BUFFERS, Bench, Guest, WRITE, frame, linux, without};
use super::packed_driver::{Chain as Buffers, PackedGuest};
use crate::batch::Batch;
use crate::fault::SendError;
use crate::features::{Features, VNET_HEADER_BYTES};
use crate::outgoing::Outgoing;
use crate::port::Port;

const RING: u16 = 64;

/// A frame to be sent.
#[derive(Clone, Debug)]
struct Letter {
    len: usize,
    /// Of `len`, how much lies in another guest's memory.
    rest: usize,
    /// Whether its checksum is to be completed.
    partial: bool,
}

fn letter() -> impl Strategy<Value = Letter> {
    let len = prop_oneof![6 => 26..200_usize, 3 => 200..3000_usize, 1 => 3000..8000_usize];
    (len, any::<prop::sample::Index>(), prop::bool::weighted(0.1)).prop_map(|(len, rest, partial)| {
        let rest = if len > 300 { rest.index(len - VNET_HEADER_BYTES) } else { 0 };
        Letter { len, rest, partial }
    })
}

/// A receive buffer: its length, or one that the device may not write.
fn buffer() -> impl Strategy<Value = Option<u32>> {
    prop::option::weighted(0.93, prop_oneof![6 => Just(2048_u32), 2 => 26..300_u32, 1 => 300..8000_u32])
}

/// What came of each frame.
type Outcomes = Vec<Result<(), SendError>>;

/// The frames as they are handed to a port: what is not in private memory lies in `batch`, a frame each.
fn outgoing<'a>(
    letters: &'a [Letter],
    frames: &'a [Vec<u8>],
    batch: &'a Batch,
    number: usize,
) -> Outgoing<'a> {
    let (letter, frame) = (&letters[number], &frames[number]);
    let private = letter.len - letter.rest;
    let head = &frame[VNET_HEADER_BYTES..private];
    let rest = (letter.rest > 0).then(|| (batch.chain(number), private));
    Outgoing { spread: 0, header: u128::from(letter.partial), head, rest }
}

fn together(
    port: &mut Port,
    letters: &[Letter],
    frames: &[Vec<u8>],
    batch: &Batch,
    aheads: &[u8],
) -> Outcomes {
    let mut outcomes = Vec::new();
    let mut aheads = aheads.iter().cycle();
    while outcomes.len() < letters.len() {
        port.expect_to_send(0, usize::from(*aheads.next().unwrap()));
        let first = outcomes.len();
        let sent =
            port.send_all(letters.len() - first, |number| outgoing(letters, frames, batch, first + number));
        match sent {
            Ok(()) => outcomes.resize(letters.len(), Ok(())),
            Err((number, error)) => {
                outcomes.resize(first + number, Ok(()));
                outcomes.push(Err(error));
            }
        }
    }
    outcomes
}

fn one_by_one(port: &mut Port, letters: &[Letter], frames: &[Vec<u8>], batch: &Batch) -> Outcomes {
    (0..letters.len()).map(|number| port.send_one(outgoing(letters, frames, batch, number))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_sent_together_arrive_as_one_by_one(
        rounds in prop::collection::vec(
            (prop::collection::vec(letter(), 1..32), prop::collection::vec(buffer(), 0..40)), 1..5),
        aheads in prop::collection::vec(0..40_u8, 1..4),
        mergeable in any::<bool>(),
        checksums in any::<bool>(),
    ) {
        let mut features = linux();
        for (kept, feature) in [(mergeable, Features::MRG_RXBUF), (checksums, Features::GUEST_CSUM)] {
            features = if kept { features } else { without(features, feature) };
        }
        let mut guests = [Guest::new(RING, features), Guest::new(RING, features)];
        let mut benches = [Bench::serving(&guests[0]), Bench::serving(&guests[1])];
        let (mut posted, mut given) = (0_u16, 0_u16);
        for (number, (letters, buffers)) in rounds.into_iter().enumerate() {
            for len in buffers {
                if posted.wrapping_sub(given) == RING {
                    break;
                }
                for guest in &mut guests {
                    let index = posted % RING;
                    guest.post(index, len.unwrap_or(2048));
                    if len.is_none() {
                        let address = BUFFERS + 0x40_0000;
                        guest.describe(guest.receive.addresses.descriptors, index, address, 2048, 0, 0);
                    }
                }
                posted = posted.wrapping_add(1);
            }
            // A sender, which has every frame whole.
            let frames: Vec<Vec<u8>> =
                letters.iter().enumerate().map(|(at, letter)| frame(letter.len, 100 * number + at)).collect();
            let mut sender = Guest::new(RING, linux());
            frames.iter().enumerate().for_each(|(at, whole)| sender.transmit(at as u16 * 2, &[whole]));
            let mut source = Bench::serving(&sender);
            let mut batch = Batch::new();
            prop_assert_eq!(source.port.receive(0, &mut batch).unwrap(), letters.len());

            let [one, other] = &mut benches;
            let outcomes = together(&mut one.port, &letters, &frames, &batch, &aheads);
            prop_assert_eq!(&outcomes, &one_by_one(&mut other.port, &letters, &frames, &batch));
            Port::flush_all(&mut benches, |bench| Some(&mut bench.port));
            let [used, expected] = guests.each_mut().map(|guest| guest.collect(false));
            prop_assert_eq!(&used, &expected);
            given = given.wrapping_add(used.len() as u16);
            // Malformed ones come back empty, between frames.
            let [received, expected] = guests.each_ref().map(|guest| guest.frames_in(&used));
            prop_assert_eq!(&received, &expected);
            let arrived = frames.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
            let bodies: Vec<&[u8]> = arrived.map(|(frame, _)| &frame[VNET_HEADER_BYTES..]).collect();
            prop_assert_eq!(received.iter().map(|frame| &frame[VNET_HEADER_BYTES..]).collect::<Vec<_>>(), bodies);
        }
        let [one, other] = &benches;
        prop_assert_eq!(one.port.counters(), other.port.counters());
    }

    #[test]
    fn frames_sent_together_into_a_packed_ring_arrive_as_one_by_one(
        rounds in prop::collection::vec((prop::collection::vec(26..900_usize, 1..32), 0..32_usize), 1..6),
        ahead in 0..40_usize,
    ) {
        let mut guests = [PackedGuest::new(RING, linux()), PackedGuest::new(RING, linux())];
        let mut benches = [guests[0].serving(), guests[1].serving()];
        let mut number = 0;
        for (lens, buffers) in rounds {
            for _ in 0..buffers {
                for guest in &mut guests {
                    let buffers = vec![(BUFFERS + 0x40_0000 + number * 0x400, 500)];
                    let chain = Buffers { buffers, writable: true, table: None };
                    if guest.receive.has_room_for(&chain) {
                        guest.receive.offer(&guest.guest, &chain);
                    }
                }
                number += 1;
            }
            let letters: Vec<Letter> =
                lens.iter().map(|len| Letter { len: *len, rest: 0, partial: false }).collect();
            let frames: Vec<Vec<u8>> = lens.iter().enumerate().map(|(at, len)| frame(*len, at)).collect();
            let batch = Batch::new();
            let outcomes = together(&mut benches[0].port, &letters, &frames, &batch, &[ahead as u8]);
            prop_assert_eq!(&outcomes, &one_by_one(&mut benches[1].port, &letters, &frames, &batch));
            Port::flush_all(&mut benches, |bench| Some(&mut bench.port));
            let [used, expected] = guests.each_mut().map(|guest| guest.receive.collect(&guest.guest));
            prop_assert_eq!(used, expected);
            // Nothing is filled twice: what a hint writes into waiting buffers is no other than what was there.
            let all = number as usize * 0x400;
            let [bytes, expected] = guests.each_ref().map(|guest| guest.guest.read(BUFFERS + 0x40_0000, all));
            prop_assert!(bytes == expected, "the same bytes in the same places");
        }
    }
}

#[test]
fn looking_ahead_writes_nothing_but_into_waiting_buffers() {
    const AREA: u64 = BUFFERS + 0x40_0000;
    let mut guest = Guest::new(RING, linux());
    let mut bench = Bench::serving(&guest);
    // Buffers and what is between them are 128 bytes each.
    let lens = [26, 63, 64, 65, 66, 127, 128];
    guest.write(AREA, &[0xa5; 2048]);
    for (index, len) in (0..).zip(lens) {
        let address = AREA + u64::from(index) * 256;
        guest.describe(guest.receive.addresses.descriptors, index, address, len, WRITE, 0);
        guest.offer(false, index);
    }
    bench.port.expect_to_send(0, Batch::FRAMES_MAX);
    for (place, len) in guest.read(AREA, 2048).chunks(256).zip(lens) {
        let changed: Vec<usize> = (0..256).filter(|at| place[*at] != 0xa5).collect();
        assert_eq!(changed, if len > 64 { vec![0, 64] } else { vec![0] }, "a buffer of {len} bytes");
    }
    assert_eq!(guest.collect(false), []);
}
