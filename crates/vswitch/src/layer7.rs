// SPDX-License-Identifier: Apache-2.0
//! Which application protocol a connection speaks, by the first bytes of whichever end speaks first.
//!
//! | Protocol | Who speaks first | Its first bytes | By |
//! |---|---|---|---|
//! | http | caller | a method, a space, and ` HTTP/1.` before the line or the prefix ends | RFC 9112 section 3 |
//! | http2 | caller | `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n` | RFC 9113 section 3.4 |
//! | tls | caller | a record of type 22, version 3.x, not longer than 2^14 bytes, that begins with a ClientHello | RFC 8446 sections 4 and 5.1 |
//! | ssh | either | `SSH-2.0-` or `SSH-1.99-` | RFC 4253 sections 4.2 and 5.1 |
//! | redis | caller | `*`, a number of up to seven digits that does not begin with 0, `\r\n$` | Redis serialization protocol, "Sending commands" |
//! | postgres | caller | length and code of StartupMessage 3.x, SSLRequest, GSSENCRequest or CancelRequest | PostgreSQL 17 section 53.7 |
//! | mysql | called | length up to 1,279, number 0, version 10, and a digit of the server's version | MySQL, `Protocol::HandshakeV10` |
//!
//! The bytes are the guests' and may say anything; whoever imitates a protocol for so long speaks it as far as this can tell.
//! What comes after the first [`PREFIX_LEN_BYTES_MAX`] bytes is not looked at.

use model::{AppProtocol, AppProtocols, Spoken};

/// Most bytes that are looked at. By then every protocol is told or ruled out.
pub const PREFIX_LEN_BYTES_MAX: usize = 64;

/// What is known of what a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// What it speaks.
    Told(Spoken),
    /// It can still be each of these.
    Open(AppProtocols),
}

/// Whether bytes begin as a protocol does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Yes,
    No,
    /// So far they do.
    More,
}

/// Tells the protocol by the first bytes of the end that spoke first: the caller's, or those of whom it called. The answer
/// for some bytes is the answer for all that begin with them, once it is [`Detection::Told`].
#[must_use]
pub fn detect(by_caller: bool, bytes: &[u8]) -> Detection {
    let prefix = &bytes[..bytes.len().min(PREFIX_LEN_BYTES_MAX)];
    let mut open = Vec::with_capacity(AppProtocol::ALL.len());
    for (protocol, _) in AppProtocol::ALL {
        match fit(protocol, by_caller, prefix) {
            Fit::Yes => return Detection::Told(Spoken::Known(protocol)),
            Fit::More => open.push(protocol),
            Fit::No => {}
        }
    }
    let open: AppProtocols = open.into_iter().collect();
    if open.is_empty() || prefix.len() == PREFIX_LEN_BYTES_MAX {
        Detection::Told(Spoken::Other)
    } else {
        Detection::Open(open)
    }
}

fn fit(protocol: AppProtocol, by_caller: bool, bytes: &[u8]) -> Fit {
    match (protocol, by_caller) {
        (AppProtocol::Http, true) => http(bytes),
        (AppProtocol::Http2, true) => literal(bytes, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (AppProtocol::Tls, true) => tls(bytes),
        (AppProtocol::Ssh, _) => either(literal(bytes, b"SSH-2.0-"), literal(bytes, b"SSH-1.99-")),
        (AppProtocol::Redis, true) => redis(bytes),
        (AppProtocol::Postgres, true) => postgres(bytes),
        (AppProtocol::Mysql, false) => mysql(bytes),
        _ => Fit::No,
    }
}

fn literal(bytes: &[u8], wanted: &[u8]) -> Fit {
    let len = bytes.len().min(wanted.len());
    match bytes[..len] == wanted[..len] {
        false => Fit::No,
        true if len == wanted.len() => Fit::Yes,
        true => Fit::More,
    }
}

fn either(one: Fit, other: Fit) -> Fit {
    match (one, other) {
        (Fit::Yes, _) | (_, Fit::Yes) => Fit::Yes,
        (Fit::No, Fit::No) => Fit::No,
        _ => Fit::More,
    }
}

/// Whether each byte that is there passes the test of its place.
fn places<const N: usize>(bytes: &[u8], tests: [fn(u8) -> bool; N]) -> Fit {
    let fits = bytes.iter().zip(tests).all(|(byte, test)| test(*byte));
    match fits {
        false => Fit::No,
        true if bytes.len() >= N => Fit::Yes,
        true => Fit::More,
    }
}

/// Methods of RFC 9110 section 9.3 and RFC 5789.
const METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH "];

fn http(bytes: &[u8]) -> Fit {
    const VERSION: &[u8] = b" HTTP/1.";
    let begins = METHODS.into_iter().map(|method| literal(bytes, method)).fold(Fit::No, either);
    if begins != Fit::Yes {
        return begins;
    }
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    if line.windows(VERSION.len()).any(|window| window == VERSION) {
        Fit::Yes
    } else if line.len() < bytes.len() || bytes.len() >= PREFIX_LEN_BYTES_MAX {
        Fit::No
    } else {
        Fit::More
    }
}

fn tls(bytes: &[u8]) -> Fit {
    const RECORD_LEN_BYTES_MAX: u16 = 1 << 14;
    let begins = places(
        bytes,
        [|kind| kind == 22, |major| major == 3, |minor| minor <= 4, |_| true, |_| true, |m| m == 1],
    );
    match bytes {
        [_, _, _, high, low, ..] => {
            let len = u16::from_be_bytes([*high, *low]);
            if (4..=RECORD_LEN_BYTES_MAX).contains(&len) { begins } else { Fit::No }
        }
        _ => begins,
    }
}

fn redis(bytes: &[u8]) -> Fit {
    const DIGITS_MAX: usize = 7;
    let Some((b'*', rest)) = bytes.split_first() else { return literal(bytes, b"*") };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > DIGITS_MAX || rest.first() == Some(&b'0') {
        return Fit::No;
    }
    match &rest[digits..] {
        [] => Fit::More,
        _ if digits == 0 => Fit::No,
        end => literal(end, b"\r\n$"),
    }
}

fn postgres(bytes: &[u8]) -> Fit {
    /// As the server itself bounds it (`MAX_STARTUP_PACKET_LENGTH`).
    const LEN_BYTES_MAX: u32 = 10_000;
    const CODES: [(u32, std::ops::RangeInclusive<u32>); 4] = [
        // CancelRequest, whose key has any length from protocol 3.2 on; SSLRequest; GSSENCRequest.
        (80_877_102, 16..=268),
        (80_877_103, 8..=8),
        (80_877_104, 8..=8),
        // StartupMessage: the major version in the upper half.
        (3 << 16, 9..=LEN_BYTES_MAX),
    ];
    let mut header = [0; 8];
    let len = bytes.len().min(header.len());
    header[..len].copy_from_slice(&bytes[..len]);
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    // What is still to come could be anything: between all zeros and all ones.
    let greatest =
        |at: usize| number(at) | u32::MAX.checked_shr(8 * len.saturating_sub(at) as u32).unwrap_or(0);
    let could_be = |(code, lens): &(u32, std::ops::RangeInclusive<u32>)| {
        let last = if *code == 3 << 16 { code | 0xff } else { *code };
        number(0) <= *lens.end() && greatest(0) >= *lens.start() && number(4) <= last && greatest(4) >= *code
    };
    match CODES.iter().any(could_be) {
        false => Fit::No,
        true if len == header.len() => Fit::Yes,
        true => Fit::More,
    }
}

fn mysql(bytes: &[u8]) -> Fit {
    // Three bytes of length, the least first; number; version of the protocol; the server's version.
    places(
        bytes,
        [
            |_| true,
            |high| high <= 4,
            |top| top == 0,
            |n| n == 0,
            |version| version == 10,
            |b| b.is_ascii_digit(),
        ],
    )
}
