// SPDX-License-Identifier: Apache-2.0
//! The one switch that all poll cores share.
//!
//! Every decision about a frame is made by one switch, one at a time, whichever core the frame came in at. So a flow is
//! tracked, translated, counted and charged as if there were one core only: there is nothing to be kept in step. What takes
//! most of the time (guests' rings, copies of heads and payloads, parsing, hashing) is done without the switch, and the
//! switch is taken for a batch of frames, not for each.
//!
//! Rules for whoever has it:
//! - Nobody touches a guest's memory meanwhile: it may fault, and all cores would wait.
//! - Poll cores alone take it, never a thread that the kernel would rather have wait.
//! - It is taken for a batch of one ring at most. The lock is one that is handed on to whoever waits after half a millisecond,
//!   so that a core whose guests make it decide all the time does not keep the others from it.
//! - What the switch has made itself is taken out before it is given back, so that nobody has to look for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use model::Moment;
use parking_lot::{Mutex, MutexGuard};
use vswitch::{DnsQuestion, DnsReply, DnsTicket, Emission, Previewer, Switch};

use crate::dns::DnsHandle;
use crate::funnel::Funnel;
use crate::handover::FlowMemory;

/// A switch that one poll core has at a time.
pub struct SharedSwitch {
    inner: Mutex<Inner>,
    /// Cores that wait for it.
    waiting: AtomicUsize,
    previewer: Previewer,
}

/// What a core gets with the switch, beside what it asked for.
#[derive(Debug, Default)]
pub struct Turn {
    /// Frames that the switch made, to be delivered.
    pub made: Vec<Emission>,
    /// Whether another core was waited for.
    pub waited: bool,
}

struct Inner {
    switch: Switch<FlowMemory>,
    events: Funnel,
    /// Whether somebody watches flows as they come and go.
    watched: Arc<AtomicBool>,
    /// Who asks upstreams about names; none when there are none.
    dns: Option<DnsHandle>,
    /// The latest time that any core has told it: each reads the clock for itself, and time must not run backwards.
    latest: Moment,
}

impl SharedSwitch {
    /// Shares a switch, whose events go into `events`, those of flows that open while somebody watches, and whose questions
    /// about names to `dns`.
    pub fn new(
        switch: Switch<FlowMemory>,
        (events, watched): (Funnel, Arc<AtomicBool>),
        dns: Option<DnsHandle>,
    ) -> Self {
        let previewer = switch.previewer();
        let inner = Mutex::new(Inner { switch, events, watched, dns, latest: Moment::default() });
        Self { inner, waiting: AtomicUsize::new(0), previewer }
    }

    /// What previews frames for it, without having it.
    pub fn previewer(&self) -> Previewer {
        self.previewer.clone()
    }

    /// Has the switch do something at a time that is never before that of anything it did earlier. Waits while another core
    /// has it.
    pub fn with<R>(
        &self,
        now: Moment,
        turn: &mut Turn,
        act: impl FnOnce(&mut Switch<FlowMemory>, Moment) -> R,
    ) -> R {
        let inner = self.inner.try_lock().unwrap_or_else(|| {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let inner = self.inner.lock();
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            turn.waited = true;
            inner
        });
        use_it(inner, now, turn, act)
    }

    /// As [`SharedSwitch::with`], unless another core has it.
    pub fn try_with<R>(
        &self,
        now: Moment,
        turn: &mut Turn,
        act: impl FnOnce(&mut Switch<FlowMemory>, Moment) -> R,
    ) -> Option<R> {
        Some(use_it(self.inner.try_lock()?, now, turn, act))
    }

    /// Whether a core waits for it: whatever is not urgent should be put off.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

fn use_it<R>(
    mut inner: MutexGuard<'_, Inner>,
    now: Moment,
    turn: &mut Turn,
    act: impl FnOnce(&mut Switch<FlowMemory>, Moment) -> R,
) -> R {
    let Inner { switch, events, watched, dns, latest } = &mut *inner;
    *latest = now.max(*latest);
    switch.tell_openings(watched.load(Ordering::Relaxed));
    let result = act(switch, *latest);
    ask_upstreams(switch, dns.as_ref(), *latest);
    turn.made.extend(switch.emissions());
    events.drain();
    for event in switch.events() {
        events.offer(event);
    }
    result
}

/// Hands over what upstreams are to be asked. Does not wait.
fn ask_upstreams(switch: &mut Switch<FlowMemory>, dns: Option<&DnsHandle>, now: Moment) {
    let asked = |question: DnsQuestion| match dns {
        Some(dns) => dns.ask(question),
        None => Err(question.ticket),
    };
    let refused: Vec<DnsTicket> =
        switch.dns_questions().filter_map(|question| asked(question).err()).collect();
    for ticket in refused {
        switch.dns_reply(now, DnsReply { ticket, message: None });
    }
}
