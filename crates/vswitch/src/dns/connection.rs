// SPDX-License-Identifier: Apache-2.0
//! Questions over TCP: the frames of a port's connections to the resolver.

use std::time::Duration;

use hickory_proto::op::ResponseCode;
use model::{Protocol, VmIndex};
use packet::{Layer, Tcp, TcpFlags};

use super::STREAMED_LEN_BYTES_MAX;
use super::deciding::Reaction;
use super::message::{Request, Why, encoded};
use super::pending::Back;
use super::stream::{STREAMS_MAX, Stream};
use super::taking::ends;
use crate::arrival::{Arrival, unreadable};
use crate::key::FlowKey;
use crate::port::Port;
use crate::{DropReason, FlowSlots, PortId, Switch, Verdict};

/// How often connections are looked after.
const UPKEEP: Duration = Duration::from_millis(50);

impl<S: FlowSlots> Switch<S> {
    pub(super) fn serve_segment(
        &mut self,
        arrival: &mut Arrival<'_>,
        (port, vm): (&Port, VmIndex),
        tcp: &Tcp,
    ) -> Option<Verdict> {
        self.config.dns.as_ref()?;
        let key = FlowKey::of(arrival.ingress, arrival.ip)?;
        let known = self.asked_by(arrival.ingress).streams.iter().position(|stream| stream.key == key);
        let takes_up = |switch: &Self| {
            tcp.flags.opens() && switch.takes_over(port, arrival.ip.addresses.destination(), Protocol::Tcp)
        };
        if known.is_none() && !takes_up(self) {
            return None;
        }
        let asks = tcp.flags.opens() || tcp.payload_len_bytes > 0;
        if asks && !self.may_ask(arrival.ingress) {
            return Some(Verdict::Drop(DropReason::DnsRate));
        }
        if tcp.flags.opens() {
            self.open_stream(arrival, key, tcp, known);
            return Some(Verdict::Answered);
        }
        let position = known?;
        if tcp.flags.has(TcpFlags::RST) {
            let streams = &mut self.asked_by(arrival.ingress).streams;
            if streams[position].ends_with(tcp) {
                streams.swap_remove(position);
            }
            return Some(Verdict::Answered);
        }
        Some(self.continue_stream(arrival, vm, tcp, position))
    }

    /// A segment of a connection.
    fn continue_stream(&mut self, arrival: &Arrival<'_>, vm: VmIndex, tcp: &Tcp, position: usize) -> Verdict {
        let (now, port) = (self.now, arrival.ingress);
        let start = arrival.ip.end - tcp.payload_len_bytes;
        let payload = match arrival.frame.parsable().slice(start, arrival.ip.end, Layer::Tcp) {
            Ok(payload) => payload,
            Err(error) => return unreadable(error, arrival.frame),
        };
        let Ok((questions, rest)) = self.asked_by(port).streams[position].preview(tcp, payload) else {
            return self.reset_stream(port, position);
        };
        let react = |bytes: &Vec<u8>| self.react(arrival, vm, bytes, false, |_| STREAMED_LEN_BYTES_MAX);
        let reactions: Vec<Reaction> = questions.iter().map(react).collect();
        if reactions.iter().any(|reaction| matches!(reaction, Reaction::Ask)) {
            return self.ask_for_sender(arrival);
        }
        if !self.asked_by(port).streams[position].accept(now, tcp, payload, rest) {
            self.asked_by(port).streams.swap_remove(position);
            return Verdict::Answered;
        }
        for reaction in reactions {
            self.note_reaction(&reaction);
            let answer = match reaction {
                Reaction::Say(answer) | Reaction::Refuse(answer) => answer,
                Reaction::Forward(request) => match self.forward_streamed(port, vm, request, position) {
                    Some(answer) => answer,
                    None => continue,
                },
                Reaction::Ask | Reaction::Pass | Reaction::Silence => continue,
            };
            if !self.asked_by(port).streams[position].push(&answer) {
                return self.reset_stream(port, position);
            }
        }
        let acknowledge = tcp.payload_len_bytes > 0 || tcp.flags.has(TcpFlags::FIN);
        let frames = self.asked_by(port).streams[position].transmit(now, acknowledge);
        frames.into_iter().for_each(|frame| self.emit(port, frame));
        Verdict::Answered
    }

    /// Has an upstream asked; the answer if that cannot be.
    fn forward_streamed(
        &mut self,
        port: PortId,
        vm: VmIndex,
        request: Request,
        position: usize,
    ) -> Option<Vec<u8>> {
        let stream = &mut self.asked_by(port).streams[position];
        let id = stream.id;
        if !stream.wait() {
            let answer = request.answer(ResponseCode::ServFail, Some(Why::Busy));
            return Some(encoded(answer, STREAMED_LEN_BYTES_MAX));
        }
        let answer = self.forward(port, vm, request, Back::Stream(id)).err()?;
        self.asked_by(port).streams[position].waited();
        Some(encoded(*answer, STREAMED_LEN_BYTES_MAX))
    }

    /// Takes up a connection, or answers its SYN once more.
    fn open_stream(&mut self, arrival: &Arrival<'_>, key: FlowKey, tcp: &Tcp, known: Option<usize>) {
        let now = self.now;
        // A number that nobody else can guess and that grows with time (RFC 6528).
        let sequence = (self.table.scatter(&key) as u32).wrapping_add((now.0 / 4096) as u32);
        let number = self.dns.number();
        let ends = ends(arrival, (tcp.source_port, tcp.destination_port));
        let streams = &mut self.asked_by(arrival.ingress).streams;
        let position = match known {
            Some(position) if streams[position].repeats(tcp) => position,
            known => {
                let stream = Stream::new(now, (number, key), ends, tcp, sequence);
                let oldest = || (0..streams.len()).min_by_key(|position| streams[*position].heard());
                match known.or_else(|| oldest().filter(|_| streams.len() >= STREAMS_MAX)) {
                    Some(position) => {
                        streams[position] = stream;
                        position
                    }
                    None => {
                        streams.push(stream);
                        streams.len() - 1
                    }
                }
            }
        };
        let frame = streams[position].syn();
        self.emit(arrival.ingress, frame);
        self.dns.upkeep.get_or_insert(now.after(UPKEEP));
    }

    fn reset_stream(&mut self, port: PortId, position: usize) -> Verdict {
        let stream = self.asked_by(port).streams.swap_remove(position);
        self.emit(port, stream.reset());
        Verdict::Answered
    }

    /// Looks after all connections, now and then.
    pub(crate) fn look_after_dns(&mut self) {
        let now = self.now;
        if self.dns.upkeep.is_none_or(|due| now < due) {
            return;
        }
        let mut frames = Vec::new();
        let mut any = false;
        for (state, id) in self.states.iter_mut().zip(0..) {
            state.dns.streams.retain_mut(|stream| match stream.look_after(now) {
                Some(due) => {
                    frames.extend(due.into_iter().map(|frame| (PortId(id), frame)));
                    true
                }
                None => false,
            });
            any |= !state.dns.streams.is_empty();
        }
        frames.into_iter().for_each(|(port, frame)| self.emit(port, frame));
        self.dns.upkeep = any.then(|| now.after(UPKEEP));
    }
}
