// SPDX-License-Identifier: Apache-2.0
//! Questions over UDP.

use model::{Protocol, VmIndex};
use packet::{Addresses, Layer, Udp, emit};

use super::deciding::Reaction;
use super::message::{PLAIN_LEN_BYTES, encoded};
use super::pending::Back;
use super::taking::ends;
use crate::arrival::{Arrival, unreadable};
use crate::port::Port;
use crate::{DropReason, FlowSlots, Switch, Verdict};

/// Headers of IP and UDP, in bytes, with no options, for either family.
const HEADERS_V4_LEN_BYTES: usize = 28;
const HEADERS_V6_LEN_BYTES: usize = 48;

impl<S: FlowSlots> Switch<S> {
    pub(super) fn serve_datagram(
        &mut self,
        arrival: &mut Arrival<'_>,
        (port, vm): (&Port, VmIndex),
        udp: &Udp,
    ) -> Option<Verdict> {
        self.config.dns.as_ref()?;
        if !self.may_ask(arrival.ingress) {
            return Some(Verdict::Drop(DropReason::DnsRate));
        }
        let end = udp.payload_offset + udp.payload_len_bytes;
        let bytes = match arrival.frame.parsable().slice(udp.payload_offset, end, Layer::Udp) {
            Ok(bytes) => bytes,
            Err(error) => return Some(unreadable(error, arrival.frame)),
        };
        let passes = !self.takes_over(port, arrival.ip.addresses.destination(), Protocol::Udp);
        let headers_len = match arrival.ip.addresses {
            Addresses::V4 { .. } => HEADERS_V4_LEN_BYTES,
            Addresses::V6 { .. } => HEADERS_V6_LEN_BYTES,
        };
        let link_max = usize::from(port.mtu_bytes).saturating_sub(headers_len);
        let ends = ends(arrival, (udp.source_port, udp.destination_port));
        let say = |switch: &mut Self, bytes: &[u8]| {
            switch.emit(arrival.ingress, emit::udp(ends.link, ends.addresses, ends.ports, bytes));
            Some(Verdict::Answered)
        };
        let reaction = self.react(arrival, vm, bytes, passes, |request| request.len_bytes_max(link_max));
        self.note_reaction(&reaction);
        match reaction {
            Reaction::Pass => None,
            Reaction::Silence => Some(Verdict::Drop(DropReason::NothingToAnswer)),
            Reaction::Ask => Some(self.ask_for_sender(arrival)),
            Reaction::Say(answer) | Reaction::Refuse(answer) => say(self, &answer),
            Reaction::Forward(request) => {
                let back = Back::Datagram(ends, request.len_bytes_max(link_max));
                match self.forward(arrival.ingress, vm, request, back) {
                    Ok(()) => Some(Verdict::Answered),
                    Err(answer) => say(self, &encoded(*answer, usize::from(PLAIN_LEN_BYTES))),
                }
            }
        }
    }
}
