// SPDX-License-Identifier: Apache-2.0
//! Flow records as IPFIX messages (RFC 7011), for any collector.
//!
//! Records are biflows (RFC 5103): one record for both directions, what the responder sent as the *reverse*
//! of what the initiator sent. Who the ends are and why the flow was allowed has no standard elements; those
//! are of an enterprise's own, listed in [`own`]. The project has no number assigned: it uses the one for
//! documentation (RFC 5612) unless told another.
//!
//! Invariants:
//! - A message holds whole records only, and is never longer than the limit given.
//! - Templates precede their records, and are repeated when [`Encoder::expire_templates`] says so.
//! - Sequence numbers count the data records before a message, modulo 2^32 (RFC 7011 section 3.1).
//!
//! Deliberately absent: sockets and clocks (the caller's), options templates, and reading messages.
#![forbid(unsafe_code)]

mod record;

pub use record::{Direction, End, EndReason, Event, Record, own};

use record::Value;

/// The enterprise number for documentation (RFC 5612).
pub const DOCUMENTATION_ENTERPRISE: u32 = 32_473;
/// A limit with which a record of texts of usual lengths still crosses any link in one piece.
pub const DATAGRAM_BYTES: usize = 1400;

const VERSION: u16 = 10;
const HEADER_BYTES: usize = 16;
const SET_HEADER_BYTES: usize = 4;
const TEMPLATE_SET: u16 = 2;
/// The template of flows between IPv4 addresses; that of IPv6 follows.
const FIRST_TEMPLATE: u16 = 256;

/// Fills messages.
#[derive(Debug)]
pub struct Encoder {
    domain: u32,
    enterprise: u32,
    message_bytes_soft: usize,
    /// Data records in all messages that were taken.
    sequence: u32,
    /// Whether the collector has been sent each template lately.
    introduced: [bool; 2],
    message: Vec<u8>,
    /// Where the set at hand begins, and its number.
    set: Option<(usize, u16)>,
    records: u32,
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The message.
    pub bytes: Vec<u8>,
    /// How many data records are in it.
    pub records: u32,
}

impl Encoder {
    /// An encoder for one observation domain and one transport session. A message is closed once it is as long
    /// as `message_bytes`; a record that is longer than that by itself still gets a message.
    #[must_use]
    pub fn new(domain: u32, enterprise: u32, message_bytes: usize) -> Self {
        Self {
            domain,
            enterprise,
            message_bytes_soft: message_bytes,
            sequence: 0,
            introduced: [false; 2],
            message: Vec::new(),
            set: None,
            records: 0,
        }
    }

    /// Sends templates again before the next records: over UDP now and then (RFC 7011 section 8.4), for the
    /// collector may have started since.
    pub fn expire_templates(&mut self) {
        self.introduced = [false; 2];
    }

    /// Begins a new transport session: templates are unknown there, and counting starts anew.
    pub fn restart(&mut self) {
        *self = Self::new(self.domain, self.enterprise, self.message_bytes_soft);
    }

    /// Adds a record. Returns the message so far if there was no room left in it.
    #[must_use]
    pub fn push(&mut self, record: &Record<'_>, export_seconds: u32) -> Option<Message> {
        let fields = record.fields();
        let family = usize::from(record.tuple.source.is_ipv6());
        let data: usize = fields.iter().map(|(_, value)| value.encoded_len()).sum();
        let template = if self.introduced[family] { 0 } else { 8 + SET_HEADER_BYTES + 8 * fields.len() };
        let needed = template + SET_HEADER_BYTES + data;
        let full = !self.message.is_empty() && self.message.len() + needed > self.message_bytes_soft;
        let message = if full { self.take(export_seconds) } else { None };
        if self.message.is_empty() {
            self.message.resize(HEADER_BYTES, 0);
        }
        let number = FIRST_TEMPLATE + family as u16;
        if !self.introduced[family] {
            self.introduced[family] = true;
            self.introduce(number, &fields);
        }
        self.enter_set(number);
        for (_, value) in &fields {
            value.write(&mut self.message);
        }
        self.records += 1;
        message
    }

    /// The message so far, if anything is in it.
    #[must_use]
    pub fn take(&mut self, export_seconds: u32) -> Option<Message> {
        if self.message.is_empty() {
            return None;
        }
        self.close_set();
        let mut bytes = std::mem::take(&mut self.message);
        let len = u16::try_from(bytes.len()).expect("a message is far shorter than 64 KiB");
        bytes[0..2].copy_from_slice(&VERSION.to_be_bytes());
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes[4..8].copy_from_slice(&export_seconds.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.domain.to_be_bytes());
        let records = std::mem::take(&mut self.records);
        self.sequence = self.sequence.wrapping_add(records);
        Some(Message { bytes, records })
    }

    /// Writes a template record (RFC 7011 section 3.4.1).
    fn introduce(&mut self, number: u16, fields: &[(record::Element, Value<'_>)]) {
        self.enter_set(TEMPLATE_SET);
        self.write_u16(number);
        self.write_u16(fields.len() as u16);
        for (element, value) in fields {
            let enterprise = element.enterprise(self.enterprise);
            self.write_u16(element.number() | if enterprise.is_some() { 0x8000 } else { 0 });
            self.write_u16(value.template_len());
            if let Some(enterprise) = enterprise {
                self.message.extend_from_slice(&enterprise.to_be_bytes());
            }
        }
    }

    fn enter_set(&mut self, number: u16) {
        if self.set.is_some_and(|(_, at_hand)| at_hand == number) {
            return;
        }
        self.close_set();
        self.set = Some((self.message.len(), number));
        self.write_u16(number);
        self.write_u16(0);
    }

    fn close_set(&mut self) {
        if let Some((start, _)) = self.set.take() {
            let len = (self.message.len() - start) as u16;
            self.message[start + 2..start + 4].copy_from_slice(&len.to_be_bytes());
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.message.extend_from_slice(&number.to_be_bytes());
    }
}
