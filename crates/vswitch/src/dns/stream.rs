// SPDX-License-Identifier: Apache-2.0
//! Questions over TCP (RFC 7766): the few connections that one port has open to the resolver.
//!
//! This is no TCP for anything else. Both ends are on one host, so there is no congestion; data comes in order or
//! waits for its retransmission; what goes out is sent as far as the peer's window reaches, and again from the first
//! byte that is not acknowledged when nothing was acknowledged for a while. A port has [`STREAMS_MAX`] connections,
//! the longest idle makes room for a new one, and each holds at most [`INCOMING_LEN_BYTES_MAX`] bytes of questions
//! and [`OUTGOING_LEN_BYTES_MAX`] of answers: a port's connections take some 1 MiB at most.

use std::time::Duration;

use model::Moment;
use packet::emit::{Link, Segment, Stream as Announced};
use packet::{Addresses, Tcp, TcpFlags, emit};

use crate::key::FlowKey;

/// Most connections of one port.
pub(super) const STREAMS_MAX: usize = 16;
/// Most bytes of questions that are not answered yet, and the window that is announced. A segment that fills it
/// fits [`crate::HEAD_LEN_BYTES_MAX`], whatever its sender's segmentation offloads.
const INCOMING_LEN_BYTES_MAX: usize = 1800;
/// Most bytes of answers that are not acknowledged yet: one of the largest.
const OUTGOING_LEN_BYTES_MAX: usize = 65_537;
/// Most data of one segment, either way: fits every link that IPv6 has.
const SEGMENT_LEN_BYTES_MAX: u16 = 1220;
/// Most questions of one connection that wait for an upstream's answer.
const WAITING_MAX: usize = 16;

/// How long nothing may come on a connection before it is forgotten.
const IDLE: Duration = Duration::from_secs(15);
/// How long bytes may go unacknowledged before they are sent again the first time; twice that the next time.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often they are sent again.
const TRIES_MAX: u32 = 6;

/// Both ends of a connection, as frames to the peer name them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub link: Link,
    pub addresses: Addresses,
    pub ports: (u16, u16),
}

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// Differs between all connections of a port.
    pub id: u64,
    pub key: FlowKey,
    ends: Ends,
    /// Whether the peer has acknowledged our SYN.
    is_open: bool,
    /// Whether it sends no more.
    is_ended: bool,
    /// Whether we have said that we send no more.
    fin_sent: bool,
    /// The next byte that we expect.
    expected: u32,
    incoming: Vec<u8>,
    /// Number of the first byte of `outgoing`, which is the first that is not acknowledged.
    base: u32,
    outgoing: Vec<u8>,
    /// How many bytes of `outgoing` were sent, since it was last begun anew.
    sent: usize,
    /// How many were sent ever.
    reached: usize,
    window: u16,
    waiting: usize,
    heard: Moment,
    /// When something was acknowledged or sent again last.
    tried: Moment,
    tries: u32,
}

/// A question is too long for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Stream {
    /// The connection that a SYN opens.
    pub(super) fn new(now: Moment, (id, key): (u64, FlowKey), ends: Ends, tcp: &Tcp, sequence: u32) -> Self {
        Self {
            id,
            key,
            ends,
            is_open: false,
            is_ended: false,
            fin_sent: false,
            expected: tcp.sequence.wrapping_add(1),
            incoming: Vec::new(),
            base: sequence.wrapping_add(1),
            outgoing: Vec::new(),
            sent: 0,
            reached: 0,
            window: tcp.window,
            waiting: 0,
            heard: now,
            tried: now,
            tries: 0,
        }
    }

    /// Whether a SYN is the one that opened the connection, sent again.
    pub(super) fn repeats(&self, tcp: &Tcp) -> bool {
        !self.is_open && self.expected == tcp.sequence.wrapping_add(1)
    }

    /// Whether a reset is exact (RFC 5961 section 3.2).
    pub(super) fn ends_with(&self, tcp: &Tcp) -> bool {
        tcp.sequence == self.expected
    }

    /// When the peer was heard last.
    pub(super) fn heard(&self) -> Moment {
        self.heard
    }

    /// The answer to the SYN.
    pub(super) fn syn(&self) -> Vec<u8> {
        let flags = TcpFlags::SYN | TcpFlags::ACK;
        self.frame(self.base.wrapping_sub(1), flags, Some(SEGMENT_LEN_BYTES_MAX), &[])
    }

    /// A reset that the peer will accept.
    pub(super) fn reset(&self) -> Vec<u8> {
        self.frame(self.base.wrapping_add(self.sent as u32), TcpFlags::RST | TcpFlags::ACK, None, &[])
    }

    /// The questions that are complete with this segment, and what is left over. Changes nothing.
    ///
    /// # Errors
    /// When a question is too long.
    pub(super) fn preview(&self, tcp: &Tcp, payload: &[u8]) -> Result<(Vec<Vec<u8>>, Vec<u8>), TooLong> {
        let bytes = [&self.incoming, self.fresh(tcp, payload)].concat();
        let (mut rest, mut questions) = (bytes.as_slice(), Vec::new());
        // Each round takes at least two bytes off.
        while let Some((len, data)) = rest.split_first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(*len));
            if len > INCOMING_LEN_BYTES_MAX - 2 {
                return Err(TooLong);
            }
            let Some((question, others)) = data.split_at_checked(len) else { break };
            questions.push(question.to_vec());
            rest = others;
        }
        Ok((questions, rest.to_vec()))
    }

    /// What of a segment's data comes next, as far as there is room for it.
    fn fresh<'a>(&self, tcp: &Tcp, payload: &'a [u8]) -> &'a [u8] {
        if !self.is_plausible(tcp) || self.is_ended {
            return &[];
        }
        let known = self.expected.wrapping_sub(tcp.sequence) as usize;
        let fresh = payload.get(known..).unwrap_or_default();
        &fresh[..fresh.len().min(self.room())]
    }

    fn room(&self) -> usize {
        INCOMING_LEN_BYTES_MAX - self.incoming.len()
    }

    /// Whether a segment acknowledges no less than our SYN and no more than was sent.
    fn is_plausible(&self, tcp: &Tcp) -> bool {
        let in_flight = self.reached as u32 + u32::from(self.fin_sent);
        tcp.flags.has(TcpFlags::ACK) && tcp.acknowledgment.wrapping_sub(self.base) <= in_flight
    }

    /// Takes a segment in of which [`Stream::preview`] left `rest` over. Tells whether the connection goes on.
    pub(super) fn accept(&mut self, now: Moment, tcp: &Tcp, payload: &[u8], rest: Vec<u8>) -> bool {
        if !self.is_plausible(tcp) {
            return true;
        }
        let fresh_len = self.fresh(tcp, payload).len() as u32;
        (self.heard, self.is_open, self.window) = (now, true, tcp.window);
        let acknowledged = tcp.acknowledgment.wrapping_sub(self.base);
        let data_len = (acknowledged as usize).min(self.outgoing.len());
        if acknowledged > 0 {
            (self.tried, self.tries) = (now, 0);
            self.outgoing.drain(..data_len);
            self.base = self.base.wrapping_add(data_len as u32);
            self.sent = self.sent.saturating_sub(data_len);
            self.reached = self.reached.saturating_sub(data_len);
        }
        if self.fin_sent && acknowledged as usize > data_len {
            return false;
        }
        self.incoming = rest;
        self.expected = self.expected.wrapping_add(fresh_len);
        let is_last = tcp.sequence_end() == self.expected.wrapping_add(1);
        if tcp.flags.has(TcpFlags::FIN) && is_last && !self.is_ended {
            (self.is_ended, self.expected) = (true, self.expected.wrapping_add(1));
        }
        true
    }

    /// Notes a question whose answer comes later; `false` when there are too many.
    pub(super) fn wait(&mut self) -> bool {
        let room = self.waiting < WAITING_MAX;
        self.waiting += usize::from(room);
        room
    }

    /// An answer that was waited for, or that none comes.
    pub(super) fn waited(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Queues an answer; `false` when there is no room.
    pub(super) fn push(&mut self, answer: &[u8]) -> bool {
        let Ok(len) = u16::try_from(answer.len()) else { return false };
        if self.outgoing.len() + 2 + answer.len() > OUTGOING_LEN_BYTES_MAX {
            return false;
        }
        self.outgoing.extend_from_slice(&len.to_be_bytes());
        self.outgoing.extend_from_slice(answer);
        true
    }

    /// The frames that are due: data as far as the window reaches, the end if there is nothing more to say, or
    /// else an acknowledgment if the segment that came calls for one.
    pub(super) fn transmit(&mut self, now: Moment, acknowledge: bool) -> Vec<Vec<u8>> {
        if self.reached == 0 {
            (self.tried, self.tries) = (now, 0);
        }
        let mut frames = self.data();
        let is_all_sent = self.sent == self.outgoing.len();
        if self.is_ended && !self.fin_sent && self.waiting == 0 && is_all_sent {
            self.fin_sent = true;
            frames.push(self.fin());
        } else if frames.is_empty() && acknowledge {
            let sequence = self.base.wrapping_add(self.sent as u32 + u32::from(self.fin_sent));
            frames.push(self.frame(sequence, TcpFlags::ACK, None, &[]));
        }
        frames
    }

    fn data(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let reach = self.outgoing.len().min(self.window.into());
        while self.sent < reach {
            let end = reach.min(self.sent + usize::from(SEGMENT_LEN_BYTES_MAX));
            let sequence = self.base.wrapping_add(self.sent as u32);
            let flags = TcpFlags::PSH | TcpFlags::ACK;
            frames.push(self.frame(sequence, flags, None, &self.outgoing[self.sent..end]));
            self.sent = end;
        }
        self.reached = self.reached.max(self.sent);
        frames
    }

    fn fin(&self) -> Vec<u8> {
        let sequence = self.base.wrapping_add(self.outgoing.len() as u32);
        self.frame(sequence, TcpFlags::FIN | TcpFlags::ACK, None, &[])
    }

    /// What is due without a segment: what was not acknowledged in time, sent again. `None` when the connection is
    /// to be forgotten.
    pub(super) fn look_after(&mut self, now: Moment) -> Option<Vec<Vec<u8>>> {
        if now.since(self.heard) > IDLE || self.tries > TRIES_MAX {
            return None;
        }
        let is_under_way = self.is_open && (!self.outgoing.is_empty() || self.fin_sent);
        if !is_under_way || now.since(self.tried) < PATIENCE * 2_u32.pow(self.tries) {
            return Some(Vec::new());
        }
        (self.tried, self.tries, self.sent) = (now, self.tries + 1, 0);
        // A closed window is tried with one byte (RFC 9293 section 3.8.6.1).
        self.window = self.window.max(1);
        let mut frames = self.data();
        if self.fin_sent && self.sent == self.outgoing.len() {
            frames.push(self.fin());
        }
        Some(frames)
    }

    fn frame(&self, sequence: u32, flags: TcpFlags, segment_max: Option<u16>, payload: &[u8]) -> Vec<u8> {
        let segment = Segment {
            source_port: self.ends.ports.0,
            destination_port: self.ends.ports.1,
            sequence,
            acknowledgment: self.expected,
            flags,
        };
        let announced = Announced { window: self.room() as u16, segment_len_bytes_max: segment_max };
        emit::tcp_data(self.ends.link, self.ends.addresses, segment, announced, payload)
    }
}
