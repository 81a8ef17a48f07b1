// SPDX-License-Identifier: Apache-2.0
//! The option of TCP that is read, among all that may surround it.

use packet::emit::{self, Link};
use packet::{Addresses, Head, Network, Packet, ParseError, tcp};

#[track_caller]
fn check(options: &[u8], expected: Option<u8>) {
    let mut options = options.to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    let mut segment = vec![0; 20];
    segment[12] = ((20 + options.len()) as u8 / 4) << 4;
    segment[13] = 2;
    segment.extend_from_slice(&options);
    segment.extend_from_slice(&[3, 3, 9, 0]);
    let mac = model::MacAddr([2, 0, 0, 0, 0, 1]);
    let addresses = Addresses::V4 { source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into() };
    let frame =
        emit::ip(Link { source: mac, destination: mac }, addresses, model::Protocol::Tcp, 64, &segment);
    let Network::Ip(ip) = Packet::parse(Head::whole(&frame)).unwrap().network else { panic!("not IP") };
    assert_eq!(tcp::window_scale(Head::whole(&frame), &ip), Ok(expected), "{options:?}");
    if !options.is_empty() {
        let short = Head::new(&frame[..54], frame.len());
        let need_bytes = 54 + options.len();
        assert_eq!(tcp::window_scale(short, &ip), Err(ParseError::NeedMore { need_bytes }));
    }
}

#[test]
fn the_window_scale_is_found_among_other_options() {
    check(&[], None);
    check(&[3, 3, 7], Some(7));
    check(&[2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 14], Some(14));
    check(&[1, 1, 1, 3, 3, 255], Some(255));
    check(&[2, 4, 5, 180], None);
}

#[test]
fn malformed_options_end_the_search() {
    for options in [
        &[0, 3, 3, 7][..],
        &[3, 2, 7, 0],
        &[3, 4, 7, 0],
        &[8, 0, 3, 3, 7],
        &[8, 1, 3, 3, 7],
        &[8, 200],
        &[1, 1, 1, 3],
    ] {
        check(options, None);
    }
}
