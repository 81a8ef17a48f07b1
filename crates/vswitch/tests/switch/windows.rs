// SPDX-License-Identifier: Apache-2.0
//! The tracker against recorded exchanges, written down as `tcpdump` and `packetdrill` do.
//!
//! One segment a line: `>` from the initiator or `<` from the responder, flags (`S`, `F`, `R`, `P`, `.` for ACK,
//! `-` for none), sequence number, `:` and length if there is data, then `ack N`, `win N` (65535 if not said), `wscale N`,
//! `sack A:B`. After `!` comes why it is dropped, after `=` the state of the connection; `restart` makes a
//! successor take over.

use std::time::Duration;

use model::Protocol;
use packet::{TcpFlags, emit};
use vswitch::{DropReason, FlowSlot, SwitchConfig, Verdict};

use crate::world::*;

/// A segment of the connection from [`WEB`] to port 80 of [`API`].
fn frame(outbound: bool, words: &[&str]) -> Vec<u8> {
    let flags = words[0].chars().fold(TcpFlags(0), |flags, letter| {
        let flag = match letter {
            'S' => SYN,
            'F' => FIN,
            'R' => RST,
            'P' => TcpFlags::PSH,
            '.' => ACK,
            '-' => TcpFlags(0),
            _ => panic!("no flag {letter:?}"),
        };
        flags | flag
    });
    let number = |text: &str| text.parse::<u32>().unwrap();
    let (sequence, len) = words[1].split_once(':').unwrap_or((words[1], "0"));
    let (mut ack, mut window, mut options) = (0, 65_535, Vec::new());
    for pair in words[2..].chunks(2) {
        match pair[0] {
            "ack" => ack = number(pair[1]),
            "win" => window = number(pair[1]),
            "wscale" => options.extend([2, 4, 5, 180, 1, 3, 3, number(pair[1]) as u8]),
            "sack" => {
                let (from, to) = pair[1].split_once(':').unwrap();
                options.extend([1, 1, 5, 10]);
                options.extend([number(from), number(to)].into_iter().flat_map(u32::to_be_bytes));
            }
            other => panic!("no word {other:?}"),
        }
    }
    let (from, to, ports) = if outbound { (WEB, API, [40_000, 80]) } else { (API, WEB, [80, 40_000_u16]) };
    let mut segment: Vec<u8> = ports.into_iter().flat_map(u16::to_be_bytes).collect();
    segment.extend([number(sequence), ack].into_iter().flat_map(u32::to_be_bytes));
    segment.extend([((20 + options.len()) as u8 / 4) << 4, flags.0]);
    segment.extend((window as u16).to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(options);
    segment.resize(segment.len() + number(len) as usize, b'x');
    emit::ip(link(from, to), between(v4(from), v4(to)), Protocol::Tcp, 64, &segment)
}

/// Plays an exchange line by line.
#[track_caller]
fn check(trace: &str) {
    let mut memory = memory(64);
    let mut rest = trace;
    while !rest.is_empty() {
        let (part, after) = rest.split_once("restart").unwrap_or((rest, ""));
        play(&mut memory, part);
        rest = after;
    }
}

#[track_caller]
fn play(memory: &mut [FlowSlot], trace: &str) {
    let mut world = World::new(memory, allow());
    for line in trace.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (line, state) = line.split_once('=').unwrap_or((line, ""));
        let (line, reason) = line.split_once('!').unwrap_or((line, ""));
        let words: Vec<_> = line.split_whitespace().collect();
        let outbound = words[0] == ">";
        let verdict = world.offer(if outbound { WEB } else { API }, &frame(outbound, &words[1..]));
        let expected = match DropReason::ALL.iter().find(|known| known.as_str() == reason.trim()) {
            Some(reason) => Verdict::Drop(*reason),
            None => Verdict::Forward(if outbound { API } else { WEB }),
        };
        assert_eq!(verdict, expected, "{line}");
        if !state.is_empty() {
            assert_eq!(world.flow().state.as_str(), state.trim(), "{line}");
        }
    }
}

#[test]
fn a_download_stays_in_its_windows() {
    check(
        "> S   1000             win 64240 wscale 7      = syn-sent
         < S.  5000  ack 1001   win 65160 wscale 7      = syn-received
         > .   1001  ack 5001   win 502                 = established
         > P.  1001:100 ack 5001 win 502
         < .   5001:1448 ack 1101 win 509
         < .   6449:60000 ack 1101 win 509
         > .   1101  ack 6449   win 501
         > .   1101  ack 66449  win 1000
         < FP. 66449:10 ack 1101 win 509                = responder-closed
         > .   1101  ack 66460  win 1000
         > F.  1101  ack 66460  win 1000                = closed
         < .   66460 ack 1102   win 509                 = closed",
    );
}

#[test]
fn segments_beyond_a_window_are_dropped() {
    check(
        "> S  1000 win 1000
         < S. 5000 ack 1001 win 2000
         > .  1001 ack 5001 win 1000                    = established
         > .  3001:1 ack 5001 win 1000
         > .  3002:1 ack 5001 win 1000                  ! out-of-window
         < .  6001:1 ack 1001 win 2000
         < .  6002:1 ack 1001 win 2000                  ! out-of-window
         < .  4000000000:1 ack 1001 win 2000            ! out-of-window
         < .  5001 ack 3003 win 2000                    ! out-of-window
         < .  5001 ack 4294900000 win 2000              ! out-of-window
         < .  5001 ack 3002 win 2000
         > .  5002:1 ack 5001 win 1000
         < F. 99999 ack 3002                            ! out-of-window
         < .  6002 ack 3002                             = established",
    );
}

#[test]
fn windows_are_scaled_only_if_both_ends_offer_it() {
    for (out, back, edge, beyond) in [
        ("wscale 4", "wscale 7", 1001 + (100 << 7), 1002 + (100 << 7)),
        ("wscale 4", "wscale 15", 1001 + (100 << 14), 1002 + (100 << 14)),
        ("", "wscale 7", 1101, 1102),
        ("wscale 4", "", 1101, 1102),
    ] {
        check(&format!(
            "> S  1000 {out}
             < S. 5000 ack 1001 win 100 {back}
             > .  1001 ack 5001
             < .  5001 ack 1001 win 100
             > .  {edge}:1 ack 5001
             > .  {beyond}:1 ack 5001                   ! out-of-window"
        ));
    }
}

#[test]
fn the_window_of_a_syn_is_never_scaled() {
    check(
        "> S  1000 win 100 wscale 7
         < S. 5000 ack 1001 win 100 wscale 7
         > .  1101:1 ack 5001 win 1
         > .  1102:1 ack 5001 win 1                     ! out-of-window",
    );
}

#[test]
fn sequence_numbers_wrap() {
    check(
        "> S  4294967290
         < S. 4294967295 ack 4294967291
         > .  4294967291 ack 0                          = established
         > .  4294967291:100 ack 0
         < .  0:100 ack 95
         > .  95:10 ack 100
         < .  100 ack 105
         < .  101000 ack 105                            ! out-of-window
         > R  105                                       = closed",
    );
}

#[test]
fn a_zero_window_is_probed_and_opens_again() {
    check(
        "> S  1000
         < S. 5000 ack 1001 win 100
         > .  1001 ack 5001
         > .  1001:100 ack 5001
         < .  5001 ack 1101 win 0
         > .  1101:1 ack 5001
         < .  5001 ack 1101 win 0
         > .  1100 ack 5001
         > .  1102 ack 5001
         > .  1102:1 ack 5001                           ! out-of-window
         < .  5001 ack 1102 win 50
         > .  1102:50 ack 5001                          = established",
    );
}

#[test]
fn keepalives_pass() {
    check(
        "> S  1000
         < S. 5000 ack 1001
         > .  1001 ack 5001
         > .  1000 ack 5001
         < .  5001 ack 1001
         > .  1000:1 ack 5001
         < .  4999:1 ack 1001
         > .  1001 ack 5001                             = established",
    );
}

#[test]
fn loss_and_reordering_are_survived() {
    // 2001 is lost, later segments arrive, the receiver selects, the sender fills the hole twice.
    check(
        "> S  1000 wscale 2
         < S. 5000 ack 1001 wscale 2
         > .  1001 ack 5001
         > .  1001:1000 ack 5001
         > .  3001:1000 ack 5001
         > .  4001:1000 ack 5001
         < .  5001 ack 2001
         < .  5001 ack 2001 sack 3001:4001
         < .  5001 ack 2001 sack 3001:5001
         > .  2001:1000 ack 5001
         > .  2001:1000 ack 5001
         < .  5001 ack 5001
         < .  5001 ack 2001 sack 3001:4001
         > .  1001:1000 ack 5001                        = established",
    );
}

#[test]
fn lost_handshakes_are_repeated() {
    check(
        "> S  1000
         > S  1000                                      = syn-sent
         < S. 5000 ack 1001
         > S  1000
         < S. 5000 ack 1001                             = syn-received
         > .  1001:10 ack 5001                          = established
         < S. 5000 ack 1001                             = established
         > .  1011 ack 5001                             = established",
    );
    // The responder has forgotten the first handshake and starts anew.
    check(
        "> S  1000
         < S. 5000 ack 1001
         < S. 900000 ack 1001                           = syn-received
         > .  1001 ack 5001                             ! out-of-window
         > .  1001 ack 900001                           = established",
    );
}

#[test]
fn data_in_a_syn_may_be_taken_or_not() {
    for acknowledged in [1001, 1101] {
        check(&format!(
            "> S  1000:100
             < S. 5000 ack {acknowledged}
             > .  {acknowledged}:10 ack 5001            = established"
        ));
    }
    check(
        "> S  1000:100
         > S  1000
         < S. 5000 ack 1102                             = syn-sent",
    );
}

#[test]
fn both_ends_may_open_at_once() {
    check(
        "> S  1000 wscale 3
         < S  5000 wscale 3                             = syn-sent
         > S. 1000 ack 5001                             = syn-received
         < S. 5000 ack 1001                             = established
         > .  1001:100 ack 5001
         < .  5001:100 ack 1101                         = established",
    );
    // The responder's SYN is not an entrance: a listener would answer it with a number of its own.
    check(
        "> S  1000
         < S  5000
         > S. 3000 ack 5001                             ! out-of-window
         > .  1001 ack 5001                             ! out-of-window
         < .  5001:10 ack 3001                          = syn-sent",
    );
}

#[test]
fn a_half_open_connection_is_found_out() {
    // The initiator has rebooted: its SYN meets the old connection, and a reset clears the way.
    check(
        "> S  1000
         < S. 5000 ack 1001
         > .  1001 ack 5001                             = established
         > S  800000                                    = syn-sent
         < .  5001 ack 1001                             = syn-sent
         > R  1002                                      ! bad-reset
         > R  1001                                      = closed
         > S  800000                                    = syn-sent
         < S. 9000 ack 800001                           = syn-received
         > .  800001 ack 9001                           = established",
    );
}

#[test]
fn resets_are_honoured_exactly_passed_in_the_window_and_dropped_beyond() {
    check(
        "> S  1000
         < S. 5000 ack 1001
         > .  1001 ack 5001
         < R  5000000                                   ! bad-reset
         < R  3000000000                                ! bad-reset
         < R  5002                                      = established
         > .  1001 ack 5001                             = established
         < R  5001                                      = closed",
    );
    // The data before it was lost: it is what the receiver expects, not what the sender has come to.
    check(
        "> S  1000
         < S. 5000 ack 1001
         > .  1001 ack 5001
         < .  5001:100 ack 1001
         < R. 5001 ack 1001                             = closed",
    );
    check("> S 1000\n < R. 0 ack 1002 ! bad-reset\n < R. 0 ack 1001 = closed");
    // Who has refused a connection has nothing to send in it.
    check("> S 1000\n < R. 0 ack 1001 = closed\n < . 5001:10 ack 1001 ! out-of-window");
    check("> S 1000\n > R 77 ! bad-reset\n > R 1001 = closed");
}

#[test]
fn senseless_flags_are_dropped() {
    check(
        "> S  1000
         < -  5000                                      ! tcp-flags
         < SF. 5000 ack 1001                            ! tcp-flags
         < SR. 5000 ack 1001                            ! tcp-flags
         < S. 5000 ack 1001
         > .  1001 ack 5001
         > -  1001:10                                   ! tcp-flags
         > F  1001                                      ! tcp-flags
         > F. 1001 ack 5001                             = initiator-closed",
    );
}

#[test]
fn a_successor_holds_nobody_to_windows_that_it_has_not_seen() {
    check(
        "> S  1000 wscale 7
         < S. 5000 ack 1001 wscale 7
         > .  1001 ack 5001 win 1000
         restart
         > .  900001:1000 ack 5001 win 1000             = established
         < .  5001 ack 901002 win 1000                  ! out-of-window
         < .  5001 ack 901001 win 1000
         > .  1029001:1 ack 5001 win 1000
         > .  1029002:1 ack 5001 win 1000               ! out-of-window
         < .  133001:1 ack 901001 win 1000
         < .  133002:1 ack 901001 win 1000              ! out-of-window",
    );
}

#[test]
fn half_open_connections_are_bounded_per_sender_and_per_receiver() {
    let config = SwitchConfig { half_open_per_port_max: 3, half_open_per_target_max: 5, ..config() };
    let mut memory = memory(1024);
    let mut world = World::with_config(&mut memory, config, allow());
    let syn = |from, port| Dialogue::new(from, API, port, 80).out(SYN, 1000, 0, 0);
    for port in 0..3 {
        world.forwards(WEB, &syn(WEB, port), API);
    }
    world.drops(WEB, &syn(WEB, 3), DropReason::HalfOpenQuota);
    world.forwards(WEB, &syn(WEB, 0), API);
    let another = Dialogue::new(WEB, API, 0, 80).out(SYN, 2000, 0, 0);
    world.forwards(WEB, &another, API);
    world.forwards(WEB, &udp(WEB, API, (1, 2)), API);
    for port in 0..2 {
        world.forwards(DB, &syn(DB, port), API);
    }
    world.drops(DB, &syn(DB, 2), DropReason::HalfOpenTarget);
    let elsewhere = Dialogue::new(DB, WEB, 2, 80).out(SYN, 1000, 0, 0);
    world.forwards(DB, &elsewhere, WEB);
    world.drops(DB, &syn(DB, 2), DropReason::HalfOpenQuota);

    // A complete handshake, a refused one and a forgotten one make room.
    let dialogue = Dialogue::new(WEB, API, 1, 80);
    world.forwards(API, &dialogue.back(SYN | ACK, 5000, 1001, 0), WEB);
    world.drops(WEB, &syn(WEB, 3), DropReason::HalfOpenQuota);
    world.forwards(WEB, &dialogue.out(ACK, 1001, 5001, 0), API);
    world.forwards(WEB, &syn(WEB, 3), API);
    world.forwards(API, &Dialogue::new(WEB, API, 2, 80).back(RST | ACK, 0, 1001, 0), WEB);
    world.forwards(WEB, &syn(WEB, 4), API);
    world.drops(WEB, &syn(WEB, 5), DropReason::HalfOpenQuota);
    world.pass_time(Duration::from_secs(61));
    world.tick();
    for port in 5..8 {
        world.forwards(WEB, &syn(WEB, port), API);
    }
    world.install(deny());
    world.tick();
    world.install(allow());
    for port in 8..11 {
        world.forwards(WEB, &syn(WEB, port), API);
    }
}
