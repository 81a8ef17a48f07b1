// SPDX-License-Identifier: Apache-2.0
//! Questions to upstreams as bytes, and whether bytes answer one.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};

/// Largest answer over UDP that is asked for, in bytes (DNS flag day 2020).
const PAYLOAD_LEN_BYTES: u16 = 1232;

const HEADER_LEN_BYTES: usize = 12;
/// Shortest record, in bytes: a root name, type, class, time to live and length.
const RECORD_LEN_BYTES_MIN: usize = 11;

/// A question as an upstream is asked it.
#[derive(Clone, Debug)]
pub struct Asked {
    id: u16,
    query: Query,
    /// The message.
    pub bytes: Vec<u8>,
}

impl Asked {
    /// A question under this number; `None` for one that cannot be written, which nothing that was read can be.
    pub fn new(id: u16, query: &Query, dnssec_ok: bool, checking_disabled: bool) -> Option<Self> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = checking_disabled;
        message.add_query(query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD_LEN_BYTES).set_dnssec_ok(dnssec_ok);
        message.set_edns(edns);
        Some(Self { id, query: query.clone(), bytes: message.to_vec().ok()? })
    }

    /// The message in `bytes` if it answers this very question: its number, and the question letter by letter.
    pub fn answer(&self, bytes: &[u8]) -> Option<Message> {
        // The codec sets memory aside for as many records as the header claims.
        let header = bytes.first_chunk::<HEADER_LEN_BYTES>()?;
        let number = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let records = number(6) + number(8) + number(10);
        if number(0) != usize::from(self.id) || number(4) != 1 || records > bytes.len() / RECORD_LEN_BYTES_MIN
        {
            return None;
        }
        let message = Message::from_vec(bytes).ok()?;
        let [query] = message.queries.as_slice() else { return None };
        let same = query.name().eq_case(self.query.name())
            && query.query_type() == self.query.query_type()
            && query.query_class() == self.query.query_class();
        let metadata = &message.metadata;
        let is_answer = metadata.message_type == MessageType::Response && metadata.op_code == OpCode::Query;
        (same && is_answer).then_some(message)
    }

    /// Asks over TCP and waits, for at most about three times `timeout`.
    ///
    /// # Errors
    /// When the upstream cannot be reached, is late, or answers something else.
    pub fn exchange(&self, upstream: SocketAddr, timeout: Duration) -> io::Result<(Message, usize)> {
        let mut stream = TcpStream::connect_timeout(&upstream, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let len = u16::try_from(self.bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&len.to_be_bytes()[..], &self.bytes].concat())?;
        let mut len = [0; 2];
        stream.read_exact(&mut len)?;
        let mut answer = Vec::new();
        let len = u64::from(u16::from_be_bytes(len));
        // Whoever trickles bytes is late, too.
        let deadline = std::time::Instant::now() + timeout;
        let mut chunk = [0; 4096];
        while (answer.len() as u64) < len {
            let wanted = (len as usize - answer.len()).min(chunk.len());
            match stream.read(&mut chunk[..wanted])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                taken => answer.extend_from_slice(&chunk[..taken]),
            }
            if std::time::Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let message = self.answer(&answer).ok_or(io::ErrorKind::InvalidData)?;
        Ok((message, answer.len()))
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    fn query(name: &str) -> Query {
        Query::query(Name::from_ascii(name).unwrap(), RecordType::A)
    }

    #[test]
    fn only_the_very_question_is_answered() {
        let asked = Asked::new(7, &query("www.example.com."), true, false).unwrap();
        let question = Message::from_vec(&asked.bytes).unwrap();
        assert!(question.metadata.recursion_desired && question.edns.unwrap().flags().dnssec_ok);
        let answer = |id, name, message_type| {
            let mut message = Message::new(id, message_type, OpCode::Query);
            message.add_query(query(name));
            asked.answer(&message.to_vec().unwrap())
        };
        assert!(answer(7, "www.example.com.", MessageType::Response).is_some());
        assert!(answer(8, "www.example.com.", MessageType::Response).is_none());
        assert!(answer(7, "ww2.example.com.", MessageType::Response).is_none());
        assert!(answer(7, "WWW.example.com.", MessageType::Response).is_none());
        assert!(answer(7, "www.example.com.", MessageType::Query).is_none());
        assert!(asked.answer(&[]).is_none());
        let mut claims = asked.bytes.clone();
        claims[2] |= 0x80;
        claims[6..8].fill(0xff);
        assert!(asked.answer(&claims).is_none(), "65,535 records in forty bytes");
    }
}
