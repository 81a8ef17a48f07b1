// SPDX-License-Identifier: Apache-2.0
//! Questions read from guests' bytes, and answers as bytes.
//!
//! The codec is `hickory-proto`'s. It sets memory aside for as many records as a header claims, so the header is
//! held against what a question can have before the codec sees it.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Record};

/// Largest answer over UDP that we ask for and that a resolver without EDNS gets, in bytes: the first avoids
/// fragments (DNS flag day 2020), the second is RFC 1035's.
const PAYLOAD_LEN_BYTES: u16 = 1232;
pub(super) const PLAIN_LEN_BYTES: u16 = 512;

const HEADER_LEN_BYTES: usize = 12;
/// Most additional records in a question: EDNS, a signature, and room for what may come.
const ADDITIONALS_MAX: u16 = 4;

/// The EDNS option for more precise errors (RFC 8914).
const EXTENDED_ERROR: u16 = 15;

/// Why a question has no better answer (RFC 8914 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Policy does not let the asker ask for names outside the mesh.
    Prohibited,
    /// There is nobody to ask for names outside the mesh.
    NotAuthoritative,
    /// Nobody who could know has answered.
    NoReachableAuthority,
    /// There is too much to do.
    Busy,
}

impl Why {
    fn option(self) -> EdnsOption {
        let (code, text) = match self {
            Self::Prohibited => (18_u16, "no policy allows this"),
            Self::NotAuthoritative => (20, "not a name of the mesh, and no upstream is set"),
            Self::NoReachableAuthority => (22, "no upstream has answered"),
            Self::Busy => (0, "too many questions at once"),
        };
        let mut data = code.to_be_bytes().to_vec();
        data.extend_from_slice(text.as_bytes());
        EdnsOption::Unknown(EXTENDED_ERROR, data)
    }
}

/// A question, and how its answer must look.
#[derive(Clone, Debug)]
pub(super) struct Request {
    id: u16,
    pub query: Query,
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    /// What the asker says by EDNS, if it does: its largest answer over UDP, whether it wants DNSSEC's records, and
    /// the version that it speaks.
    edns: Option<(u16, bool, u8)>,
}

/// Why bytes are no question that can be answered as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Not a query at all; nobody expects an answer.
    NotAQuery,
    /// A query that cannot be read or means nothing here, and its answer.
    Refused(Vec<u8>),
}

impl Request {
    /// Reads a message, which ends where `bytes` ends.
    ///
    /// # Errors
    /// When it is not one question of a kind that has answers.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Unusable> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN_BYTES>() else { return Err(Unusable::NotAQuery) };
        let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (id, is_response, op_code) =
            (number(0), header[2] & 0x80 != 0, OpCode::from_u8((header[2] >> 3) & 15));
        if is_response {
            return Err(Unusable::NotAQuery);
        }
        let refuse = |code| Unusable::Refused(bytes_of(&Message::error_msg(id, op_code, code)));
        if op_code != OpCode::Query {
            return Err(refuse(ResponseCode::NotImp));
        }
        let counts = (number(4), number(6), number(8));
        if counts != (1, 0, 0) || number(10) > ADDITIONALS_MAX {
            return Err(refuse(ResponseCode::FormErr));
        }
        let Ok(mut message) = Message::from_vec(bytes) else { return Err(refuse(ResponseCode::FormErr)) };
        let Some(query) = message.queries.pop() else { return Err(refuse(ResponseCode::FormErr)) };
        let edns = message.edns.as_ref();
        let request = Self {
            id,
            query,
            recursion_desired: message.metadata.recursion_desired,
            checking_disabled: message.metadata.checking_disabled,
            edns: edns.map(|edns| (edns.max_payload(), edns.flags().dnssec_ok, edns.version())),
        };
        let unusable = match request.edns {
            Some((_, _, version)) if version != 0 => Some(ResponseCode::BADVERS),
            _ if request.query.query_class() != DNSClass::IN => Some(ResponseCode::Refused),
            _ => None,
        };
        match unusable {
            Some(code) => Err(Unusable::Refused(bytes_of(&request.answer(code, None)))),
            None => Ok(request),
        }
    }

    /// Whether the asker wants DNSSEC's records.
    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|(_, dnssec_ok, _)| dnssec_ok)
    }

    /// Largest answer over UDP, in bytes, that the asker takes and a link takes in one packet.
    pub(super) fn len_bytes_max(&self, link_len_bytes_max: usize) -> usize {
        let own = self.edns.map_or(PLAIN_LEN_BYTES, |(len, ..)| len.max(PLAIN_LEN_BYTES));
        usize::from(own).min(link_len_bytes_max.max(PLAIN_LEN_BYTES.into()))
    }

    /// An answer without records.
    pub(super) fn answer(&self, code: ResponseCode, why: Option<Why>) -> Message {
        let mut message = Message::error_msg(self.id, OpCode::Query, code);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        if let Some((_, dnssec_ok, _)) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD_LEN_BYTES).set_dnssec_ok(dnssec_ok);
            if let Some(why) = why {
                edns.options_mut().insert(why.option());
            }
            message.set_edns(edns);
        }
        message
    }

    /// An answer of our own zones.
    pub(super) fn own_answer(
        &self,
        code: ResponseCode,
        answers: Vec<Record>,
        authorities: Vec<Record>,
        additionals: Vec<Record>,
    ) -> Message {
        let mut message = self.answer(code, None);
        message.metadata.authoritative = true;
        (message.answers, message.authorities, message.additionals) = (answers, authorities, additionals);
        message
    }

    /// An answer of somebody else's, as if we had given it.
    pub(super) fn passed_on(&self, theirs: Message) -> Message {
        let mut message = self.answer(theirs.metadata.response_code, None);
        // Codes above 15 are said by EDNS only (RFC 6891 section 6.1.3).
        if message.metadata.response_code.high() != 0 && self.edns.is_none() {
            message.metadata.response_code = ResponseCode::ServFail;
        }
        message.metadata.authentic_data = theirs.metadata.authentic_data && self.dnssec_ok();
        (message.answers, message.authorities, message.additionals) =
            (theirs.answers, theirs.authorities, theirs.additionals);
        message
    }
}

/// An answer as bytes. One that is too long loses what is only of use, then all records, and says so.
pub(super) fn encoded(mut message: Message, len_bytes_max: usize) -> Vec<u8> {
    let bytes = bytes_of(&message);
    if bytes.len() <= len_bytes_max {
        return bytes;
    }
    message.additionals.clear();
    let bytes = bytes_of(&message);
    if bytes.len() <= len_bytes_max { bytes } else { bytes_of(&message.truncate()) }
}

/// A message as bytes; what cannot be written, which nothing that was read can be, is a failure without records.
fn bytes_of(message: &Message) -> Vec<u8> {
    debug_assert_eq!(message.metadata.message_type, MessageType::Response);
    message.to_vec().unwrap_or_else(|_| {
        let mut failure = Message::error_msg(message.metadata.id, OpCode::Query, ResponseCode::ServFail);
        failure.metadata.recursion_desired = message.metadata.recursion_desired;
        failure.to_vec().unwrap_or_default()
    })
}
