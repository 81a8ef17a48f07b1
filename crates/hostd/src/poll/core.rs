// SPDX-License-Identifier: Apache-2.0
//! One poll core: what it has at hand.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use hdrhistogram::Histogram;
use model::Moment;
use platform::{Bell, Poller, Trigger};
use vswitch::{PortId, Previewer};

use super::desk::Desk;
use super::finish::Workbench;
use super::handle::{Command, PollHandle};
use super::lane::Lane;
use super::link::Links;
use super::moves::Moves;
use super::numbers::{CoreNumbers, latencies};
use super::owners::CoreId;
use super::shared::{SharedSwitch, Turn};
use super::strain::Strain;
use super::upkeep::Upkeep;
use super::uplink::Uplink;
use crate::clock::now;
use crate::dns::DnsHandle;
use crate::introspect::{Inquiry, Introspection};

/// What the poller says when the core's bell has rung.
pub(super) const WAKE_TOKEN: u64 = u64::MAX;

/// What the poll cores work with.
pub struct Wiring {
    /// To the introspection thread.
    pub inquiries: Sender<Inquiry>,
    /// Told about memory that comes and goes.
    pub introspection: Arc<Introspection>,
    /// To the thread that asks upstreams; none when there are none.
    pub dns: Option<DnsHandle>,
    /// Longest wait for an answer.
    pub attribution_wait: Duration,
    /// Whether somebody watches flows as they come and go.
    pub watched: Arc<AtomicBool>,
    /// The CPU of each core; any CPU for those beyond.
    pub cpus: Vec<usize>,
}

/// One poll core's state.
pub(super) struct Core {
    pub(super) id: CoreId,
    pub(super) handle: PollHandle,
    pub(super) commands: Receiver<Command>,
    pub(super) links: Links,
    pub(super) shared: Arc<SharedSwitch>,
    pub(super) previewer: Previewer,
    pub(super) wiring: Arc<Wiring>,
    /// Ports by their number; those of other cores are none.
    pub(super) lanes: Vec<Option<Box<Lane>>>,
    pub(super) uplinks: Vec<Uplink>,
    pub(super) poller: Poller,
    /// The batch being handled.
    pub(super) desk: Desk,
    pub(super) workbench: Workbench,
    /// What the switch gave beside its decisions.
    pub(super) turn: Turn,
    /// Where such a frame gets its virtio-net header.
    pub(super) scratch: Vec<u8>,
    pub(super) moves: Moves,
    pub(super) upkeep: Upkeep,
    /// When the work that is being timed began.
    pub(super) mark: Moment,
    /// What it is timed by.
    pub(super) clock: fn() -> Moment,
    pub(super) strain: Strain,
    /// Ports whose memory was waited for in this round.
    pub(super) suspects: Vec<PortId>,
    pub(super) numbers: CoreNumbers,
    pub(super) waits: Histogram<u64>,
    pub(super) lookups: Histogram<u64>,
    pub(super) gaps: Histogram<u64>,
    /// Interactive ports, in this round.
    pub(super) interactive: Vec<usize>,
}

impl Core {
    /// A core without ports.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub(super) fn new(
        id: CoreId,
        handle: PollHandle,
        commands: Receiver<Command>,
        links: Links,
        shared: Arc<SharedSwitch>,
        wiring: Arc<Wiring>,
    ) -> std::io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&*handle.cores.ends[id.index()].bell, WAKE_TOKEN, Trigger::Level)?;
        Ok(Self {
            id,
            handle,
            commands,
            links,
            previewer: shared.previewer(),
            shared,
            wiring,
            lanes: Vec::new(),
            uplinks: Vec::new(),
            poller,
            desk: Desk::new(),
            workbench: Workbench::default(),
            turn: Turn::default(),
            scratch: Vec::new(),
            moves: Moves::default(),
            upkeep: Upkeep::default(),
            mark: Moment::default(),
            clock: now,
            strain: Strain::default(),
            suspects: Vec::new(),
            numbers: CoreNumbers::default(),
            waits: latencies(),
            lookups: latencies(),
            gaps: latencies(),
            interactive: Vec::new(),
        })
    }

    /// What its thread is called.
    pub(super) fn name(&self) -> String {
        format!("poll-{}", self.handle.name(self.id))
    }

    pub(super) fn bell(&self) -> &Bell {
        &self.handle.cores.ends[self.id.index()].bell
    }

    pub(super) fn lane(&mut self, id: PortId) -> Option<&mut Lane> {
        self.lanes.get_mut(usize::from(id.0))?.as_deref_mut()
    }

    pub(super) fn numbers(&self) -> CoreNumbers {
        let counters = |lane: &Lane| (lane.id, *lane.port.counters());
        CoreNumbers {
            ports: self.lanes.iter().flatten().map(|lane| counters(lane)).collect(),
            waits: Some(self.waits.clone()),
            lookups: Some(self.lookups.clone()),
            gaps: Some(self.gaps.clone()),
            ..self.numbers.clone()
        }
    }
}
