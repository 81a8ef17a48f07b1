// SPDX-License-Identifier: Apache-2.0
//! What a record says, and under which elements.

use std::net::IpAddr;

use model::FiveTuple;

/// Longest text in a record, in bytes; longer ones are cut. Up to here its length takes one byte (RFC 7011
/// section 7).
pub const TEXT_BYTES_MAX: usize = 254;

/// The enterprise number of reverse elements (RFC 5103 section 6.1).
const REVERSE: u32 = 29_305;

/// Numbers of the elements of our own. Texts are UTF-8, numbers unsigned.
pub mod own {
    /// Machine of the initiator, `tenant/vm`: text.
    pub const SOURCE_VM: u16 = 1;
    /// Machine of the responder: text.
    pub const DESTINATION_VM: u16 = 2;
    /// Executable of the initiator's process, else its name; empty when unknown: text.
    pub const SOURCE_PROCESS: u16 = 3;
    /// The same of the responder: text.
    pub const DESTINATION_PROCESS: u16 = 4;
    /// User id at the initiator; 4,294,967,295 when unknown: 4 bytes.
    pub const SOURCE_UID: u16 = 5;
    /// The same at the responder: 4 bytes.
    pub const DESTINATION_UID: u16 = 6;
    /// Whether the flow was allowed (1) or denied (2), or not judged by this process (0): 1 byte.
    pub const VERDICT: u16 = 7;
    /// The rule that decided, `tenant/name`: text.
    pub const RULE: u16 = 8;
    /// All rules that matched, with commas between them, those in audit mode in parentheses: text.
    pub const RULES: u16 = 9;
    /// The generation of policy that judged: 8 bytes.
    pub const GENERATION: u16 = 10;
    /// Round-trip time of the TCP handshake, in microseconds; zero when not measured: 4 bytes.
    pub const HANDSHAKE_US: u16 = 11;
    /// How many flows the record tells of: 8 bytes.
    pub const FLOWS: u16 = 12;
}

/// What one end has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    /// Frames; a super-frame counts once.
    pub packets: u64,
    /// Bytes, Ethernet headers included.
    pub bytes: u64,
    /// All TCP flags seen.
    pub tcp_flags: u8,
}

/// Who is at one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End<'a> {
    /// Number of its switch port.
    pub interface: u32,
    /// Its machine.
    pub vm: &'a str,
    /// Its process.
    pub process: &'a str,
    /// Its user.
    pub uid: Option<u32>,
}

/// What happened (`firewallEvent`, IANA element 233).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// The flow has ended.
    Deleted = 2,
    /// The flow was denied.
    Denied = 3,
    /// The flow goes on.
    Updated = 5,
}

/// Why a flow has ended (`flowEndReason`, IANA element 136).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EndReason {
    /// It fell idle.
    Idle = 1,
    /// It has not ended; it has gone on for so long that it is told of.
    Active = 2,
    /// Its ends closed it.
    EndOfFlow = 3,
    /// Policy or the loss of a card ended it.
    Forced = 4,
}

/// A flow that is over, or what it has done since it was told of last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// As the initiator's packets name it.
    pub tuple: FiveTuple,
    /// Its first frame, in milliseconds since 1970.
    pub start_ms: u64,
    /// Its last frame.
    pub end_ms: u64,
    /// What the initiator sent.
    pub sent: Direction,
    /// What the responder sent.
    pub answered: Direction,
    /// What happened.
    pub event: Event,
    /// Why it ended.
    pub reason: EndReason,
    /// Who opened it.
    pub source: End<'a>,
    /// Whom it was for.
    pub destination: End<'a>,
    /// See [`own::VERDICT`].
    pub verdict: u8,
    /// See [`own::RULE`].
    pub rule: &'a str,
    /// See [`own::RULES`].
    pub rules: &'a str,
    /// See [`own::GENERATION`].
    pub generation: u64,
    /// See [`own::HANDSHAKE_US`].
    pub handshake_us: u32,
    /// See [`own::FLOWS`].
    pub flows: u64,
    /// What is spoken in it (`applicationName`, IANA element 96); empty when not told.
    pub application: &'a str,
}

/// An information element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// Of IANA's registry.
    Iana(u16),
    /// The other direction's.
    Reverse(u16),
    /// Of our own.
    Own(u16),
}

impl Element {
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Iana(number) | Self::Reverse(number) | Self::Own(number) => number,
        }
    }

    pub(crate) fn enterprise(self, own: u32) -> Option<u32> {
        match self {
            Self::Iana(_) => None,
            Self::Reverse(_) => Some(REVERSE),
            Self::Own(_) => Some(own),
        }
    }
}

/// An element's value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    Address(IpAddr),
    Text(&'a str),
}

impl Value<'_> {
    /// Its length as a template states it.
    pub(crate) fn template_len(&self) -> u16 {
        match self {
            Self::Text(_) => u16::MAX,
            other => other.encoded_len() as u16,
        }
    }

    pub(crate) fn encoded_len(&self) -> usize {
        match self {
            Self::U8(_) => 1,
            Self::U16(_) => 2,
            Self::U32(_) | Self::Address(IpAddr::V4(_)) => 4,
            Self::U64(_) => 8,
            Self::Address(IpAddr::V6(_)) => 16,
            Self::Text(text) => 1 + cut(text).len(),
        }
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(number) => out.push(*number),
            Self::U16(number) => out.extend_from_slice(&number.to_be_bytes()),
            Self::U32(number) => out.extend_from_slice(&number.to_be_bytes()),
            Self::U64(number) => out.extend_from_slice(&number.to_be_bytes()),
            Self::Address(IpAddr::V4(address)) => out.extend_from_slice(&address.octets()),
            Self::Address(IpAddr::V6(address)) => out.extend_from_slice(&address.octets()),
            Self::Text(text) => {
                let text = cut(text);
                out.push(text.len() as u8);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

/// As much of a text as a record takes, whole characters only.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

impl Record<'_> {
    /// All elements with their values, in the order of the template. Only the addresses' length depends on the
    /// record.
    pub(crate) fn fields(&self) -> [(Element, Value<'_>); 31] {
        use Element::{Iana, Own, Reverse};
        use Value::{Address, Text, U8, U16, U32, U64};
        let v6 = self.tuple.source.is_ipv6();
        let (source_address, destination_address) = if v6 { (27, 28) } else { (8, 12) };
        let (sent, answered) = (&self.sent, &self.answered);
        let (source, destination) = (&self.source, &self.destination);
        [
            (Iana(152), U64(self.start_ms)),
            (Iana(153), U64(self.end_ms)),
            (Iana(source_address), Address(self.tuple.source)),
            (Iana(destination_address), Address(self.tuple.destination)),
            (Iana(7), U16(self.tuple.source_port)),
            (Iana(11), U16(self.tuple.destination_port)),
            (Iana(4), U8(self.tuple.protocol.number())),
            (Iana(6), U16(sent.tcp_flags.into())),
            (Reverse(6), U16(answered.tcp_flags.into())),
            (Iana(2), U64(sent.packets)),
            (Iana(1), U64(sent.bytes)),
            (Reverse(2), U64(answered.packets)),
            (Reverse(1), U64(answered.bytes)),
            (Iana(10), U32(source.interface)),
            (Iana(14), U32(destination.interface)),
            (Iana(233), U8(self.event as u8)),
            (Iana(136), U8(self.reason as u8)),
            // Who the initiator is: `biflowDirection` 1 (RFC 5103 section 6.3).
            (Iana(239), U8(1)),
            (Own(own::SOURCE_VM), Text(source.vm)),
            (Own(own::DESTINATION_VM), Text(destination.vm)),
            (Own(own::SOURCE_PROCESS), Text(source.process)),
            (Own(own::DESTINATION_PROCESS), Text(destination.process)),
            (Own(own::SOURCE_UID), U32(source.uid.unwrap_or(u32::MAX))),
            (Own(own::DESTINATION_UID), U32(destination.uid.unwrap_or(u32::MAX))),
            (Own(own::VERDICT), U8(self.verdict)),
            (Own(own::RULE), Text(self.rule)),
            (Own(own::RULES), Text(self.rules)),
            (Own(own::GENERATION), U64(self.generation)),
            (Own(own::HANDSHAKE_US), U32(self.handshake_us)),
            (Own(own::FLOWS), U64(self.flows)),
            (Iana(96), Text(self.application)),
        ]
    }
}
