// SPDX-License-Identifier: Apache-2.0
//! What is known about a flow, and how it is told to others.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::{Attribution, FiveTuple, Generation, Judgement, Moment, NicRef, Sample, ServiceFlags, Spoken};
use packet::TcpFlags;

use crate::balance::Choice;
use crate::qos::FlowMeters;
use crate::services::Served;
use crate::talk::Talk;
use crate::{FlowState, PortId};

/// What this process knows about a flow beside its slots.
#[derive(Debug)]
pub(crate) struct Flow {
    /// The slot of the initiator's direction.
    pub initiator: u32,
    /// The slot of the answers; a refused flow has none.
    pub responder: Option<u32>,
    /// Who opened it, once asked.
    pub source: Option<Arc<Attribution>>,
    /// Whom it was opened to, once asked.
    pub destination: Option<Arc<Attribution>>,
    /// What its destination outside was found under when it was judged.
    pub names: Vec<Arc<str>>,
    /// The latest judgement; none when adopted and not judged yet.
    pub judgement: Option<Arc<Judgement>>,
    /// The generation of that judgement.
    pub generation: Generation,
    /// The epoch in which upkeep left it to its next frame, which can be asked about.
    pub left_in_epoch: Option<u8>,
    /// Which endpoint of a service it was redirected to, while it is live; not known when adopted.
    pub served: Option<Served>,
    /// Why that one, also when it is over.
    pub choice: Option<Choice>,
    /// When it was opened, or adopted.
    pub opened: Moment,
    /// Which services it goes through.
    pub services: ServiceFlags,
    /// Of those, the ones whose stages have to do with its frames.
    pub attends: ServiceFlags,
    /// What is spoken in it, once that is told.
    pub spoken: Option<Spoken>,
    /// What has been said so far, while that is not told, or could still be said in other words.
    pub talk: Option<Box<Talk>>,
    /// Who gets copies of its frames.
    pub mirror: Option<PortId>,
    /// What holds its frames back.
    pub meters: Option<Box<FlowMeters>>,
    /// Round-trip time of its handshake, once that is complete.
    pub rtt: Option<Duration>,
    /// What is noted of it, if it is traced.
    pub trace: Option<Box<FlowTrace>>,
    /// What others were told of it while it went on.
    pub told: Option<Box<Told>>,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEnd {
    /// The end's port.
    pub port: PortId,
    /// The card at that port, if it is in the inventory.
    pub nic: Option<NicRef>,
    /// Who it is; `None` when nobody needed to know.
    pub attribution: Option<Arc<Attribution>>,
    /// Frames that this end has sent. A super-frame counts once.
    pub sent_frames: u64,
    /// Their bytes, Ethernet headers included.
    pub sent_bytes: u64,
    /// All TCP flags among them.
    pub sent_flags: TcpFlags,
}

/// A flow as others are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// As the initiator's packets name it.
    pub tuple: FiveTuple,
    /// Where they are delivered: elsewhere, if an endpoint was chosen or a rule redirects.
    pub delivered: SocketAddr,
    /// Who opened it.
    pub initiator: FlowEnd,
    /// Whom it was opened to.
    pub responder: FlowEnd,
    /// Where it is in its life.
    pub state: FlowState,
    /// What policy said last; `None` when the flow was taken over from a predecessor and has been silent.
    pub judgement: Option<Arc<Judgement>>,
    /// The generation that said so.
    pub generation: Generation,
    /// When it was opened, or taken over.
    pub opened: Moment,
    /// When its last frame passed, to the millisecond.
    pub last_seen: Moment,
    /// From the initiator's SYN to its acknowledgment of the answer: both ends and the way between them. None
    /// when a segment of the handshake was sent twice, for then nobody knows which was answered (Karn).
    pub rtt: Option<Duration>,
    /// Why its endpoint was chosen, if it is to a service's virtual address. Not known when taken over.
    pub choice: Option<Choice>,
    /// The moments of its life, if it is traced.
    pub trace: Option<FlowTrace>,
    /// What others were told of it while it went on.
    pub told: Option<Told>,
    /// What is spoken in it, if a rule wants that told and its first bytes have told it.
    pub spoken: Option<Spoken>,
}

impl FlowRecord {
    /// Leaves of what the flow has counted what others were not told of yet, as of a flow that began where that ended.
    pub fn leave_untold(&mut self) {
        let Some(told) = self.told.take() else { return };
        self.opened = told.at;
        for (end, (frames, bytes)) in [&mut self.initiator, &mut self.responder].into_iter().zip(told.sent) {
            end.sent_frames = end.sent_frames.saturating_sub(frames);
            end.sent_bytes = end.sent_bytes.saturating_sub(bytes);
        }
    }
}

/// What a flow had counted when others were told that it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// When that was.
    pub at: Moment,
    /// Frames and bytes that the initiator and the responder had sent.
    pub sent: [(u64, u64); 2],
}

/// The moments of the life of a flow that is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowTrace {
    /// Names it, and is never zero. The lowest [`Sample::RANDOM_BITS`] are what it was sampled by.
    pub id: u128,
    /// Which part of its like is traced.
    pub sample: Sample,
    /// Whether it was traced from its first frame on: what came before is not known.
    pub whole: bool,
    /// When its handshake was complete.
    pub connected: Option<Moment>,
    /// When the first byte of the answer was forwarded.
    pub answered: Option<Moment>,
    /// When both ends had closed, or one had reset.
    pub closed: Option<Moment>,
}

/// What happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowChange {
    /// Its first frame was allowed.
    Opened,
    /// Its first frame was denied.
    Denied,
    /// It was live, and a change of policy ended it.
    Reset,
    /// It goes on, and nobody was told of it for long.
    Ongoing,
    /// It ended by itself, fell idle, was evicted or lost an end.
    Closed,
}

impl fmt::Display for FlowChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Opened => "opened",
            Self::Denied => "denied",
            Self::Reset => "reset",
            Self::Ongoing => "ongoing",
            Self::Closed => "closed",
        })
    }
}

/// Something that happened to a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// When.
    pub at: Moment,
    /// What.
    pub change: FlowChange,
    /// The flow, as it was then.
    pub record: FlowRecord,
    /// How many flows alike this tells of: more than one only when whoever takes the events had to add them up.
    pub flows: u64,
    /// Whether a rule wants it written to the log.
    pub logged: bool,
}

impl FlowEvent {
    /// Whether a span follows from it: all is known of a flow that is traced.
    #[must_use]
    pub fn tells_span(&self) -> bool {
        self.record.trace.is_some() && !matches!(self.change, FlowChange::Opened | FlowChange::Ongoing)
    }
}
