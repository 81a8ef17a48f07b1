// SPDX-License-Identifier: Apache-2.0
//! The short way of nearly all frames: a plain packet of a flow that is known, allowed, and changes by nothing but counters.
//!
//! It decides as [`Switch::decide_whole`] does, or not at all; then nothing has changed. What makes a flow or a packet
//! special belongs there and is a reason to turn back here.

use packet::edit;

use crate::preview::Reading;
use crate::table::millisecond;
use crate::tcp::is_steady;
use crate::{FRAME_LEN_BYTES_MAX, FlowSlots, FlowState, Frame, PortId, Preview, Switch};

impl<S: FlowSlots> Switch<S> {
    /// Where the frame goes, rewritten and counted, if it may take the short way.
    #[inline]
    pub(crate) fn express(
        &mut self,
        ingress: PortId,
        frame: &mut Frame,
        preview: &Preview,
    ) -> Option<PortId> {
        let (Reading::Plain(glance), Some((key, home))) = (&preview.reading, &preview.flow) else {
            return None;
        };
        let len_bytes = frame.total_len_bytes;
        if self.ports.port(ingress)?.mac != glance.source || len_bytes > FRAME_LEN_BYTES_MAX {
            return None;
        }
        let vnet = frame.vnet.forwarded(len_bytes, None).ok()?;
        let index = self.table.find_from(*home, key)? as usize;
        let (slot, now_ms) = (self.table.slot(index), millisecond(self.now));
        let (state, output) = (slot.state()?, slot.output());
        let is_idle = slot.idle_ms(now_ms) > self.idle_limits.of(state);
        if slot.epoch != self.epoch || slot.is_treated() || is_idle {
            return None;
        }
        let is_steady = match &glance.tcp {
            Some(tcp) => is_steady(state, tcp),
            None => state == FlowState::TwoWay || state == FlowState::OneWay && slot.is_initiator(),
        };
        let destination = self.ports.port(output)?.mac;
        if !is_steady || glance.destination == self.config.gateway_mac {
            return None;
        }
        let flags = match &glance.tcp {
            Some(tcp) => {
                self.table.track(index, state, tcp, None).ok()?;
                tcp.flags
            }
            None => Default::default(),
        };
        edit::set_destination(&mut frame.head, destination);
        frame.vnet = vnet;
        self.table.slot_mut(index).last_seen_ms = now_ms;
        self.table.count(index, len_bytes, flags);
        self.counters.hits += 1;
        self.counters.forward(len_bytes);
        Some(output)
    }
}
