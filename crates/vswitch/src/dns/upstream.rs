// SPDX-License-Identifier: Apache-2.0
//! Questions that an upstream is asked, and the way of its answers back to whoever asked.

use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use model::{Moment, VmIndex};
use packet::emit;

use super::message::{Request, Why, encoded};
use super::pending::{Back, DnsQuestion, DnsReply, DnsTicket, Pending};
use super::{STREAMED_LEN_BYTES_MAX, learned};
use crate::{FlowSlots, PortId, Switch};

/// Most questions of one port that wait for an upstream's answer.
pub(super) const PENDING_MAX: usize = 64;
/// How long a question waits at most.
pub(super) const PENDING_TIME: Duration = Duration::from_secs(15);

impl<S: FlowSlots> Switch<S> {
    /// Questions for upstreams, oldest first.
    pub fn dns_questions(&mut self) -> impl Iterator<Item = DnsQuestion> + '_ {
        self.dns.questions.drain(..)
    }

    /// Passes an upstream's answer on to whoever asked, if it is still waited for.
    pub fn dns_reply(&mut self, now: Moment, reply: DnsReply) {
        self.now = now;
        let DnsTicket { port, number } = reply.ticket;
        let Some(state) = self.states.get_mut(usize::from(port.0)) else { return };
        let pending = &mut state.dns.pending;
        let Some(position) = pending.iter().position(|pending| pending.number == number) else { return };
        let Some(Pending { request, back, wanted, .. }) = pending.remove(position) else { return };
        if let (Some((tenant, name)), Some(message)) = (wanted, &reply.message) {
            let found = learned::found(request.query.name(), message);
            self.dns.learned.learn(now, &tenant, &name, &found);
        }
        let message = match reply.message {
            Some(message) => request.passed_on(message),
            None => request.answer(ResponseCode::ServFail, Some(Why::NoReachableAuthority)),
        };
        match back {
            Back::Datagram(ends, len_bytes_max) => {
                let bytes = encoded(message, len_bytes_max);
                self.emit(port, emit::udp(ends.link, ends.addresses, ends.ports, &bytes));
            }
            Back::Stream(id) => {
                let streams = &mut state.dns.streams;
                let Some(position) = streams.iter().position(|stream| stream.id == id) else { return };
                let stream = &mut streams[position];
                stream.waited();
                let frames = if stream.push(&encoded(message, STREAMED_LEN_BYTES_MAX)) {
                    stream.transmit(now, false)
                } else {
                    vec![streams.swap_remove(position).reset()]
                };
                frames.into_iter().for_each(|frame| self.emit(port, frame));
            }
        }
    }

    /// Has an upstream asked.
    ///
    /// # Errors
    /// With the answer, when the port waits for too many already.
    pub(super) fn forward(
        &mut self,
        port: PortId,
        vm: VmIndex,
        request: Request,
        back: Back,
    ) -> Result<(), Box<Message>> {
        let busy = || Box::new(request.answer(ResponseCode::ServFail, Some(Why::Busy)));
        let Some(snapshot) = &self.snapshot else { return Err(busy()) };
        let pending = &mut self.states[usize::from(port.0)].dns.pending;
        while pending.front().is_some_and(|oldest| self.now.since(oldest.since) > PENDING_TIME) {
            pending.pop_front();
        }
        if pending.len() >= PENDING_MAX {
            return Err(busy());
        }
        let tenant = &snapshot.inventory.vm(vm).id.tenant;
        let wanted = learned::plain(request.query.name())
            .filter(|name| snapshot.judge.names_domain(vm, name))
            .map(|name| (tenant.clone(), name));
        let number = self.dns.number();
        self.dns.questions.push_back(DnsQuestion {
            ticket: DnsTicket { port, number },
            tenant: tenant.clone(),
            query: request.query.clone(),
            dnssec_ok: request.dnssec_ok(),
            checking_disabled: request.checking_disabled,
        });
        pending.push_back(Pending { number, since: self.now, request, back, wanted });
        Ok(())
    }
}
