// SPDX-License-Identifier: Apache-2.0
//! One direction of a flow, as it lies in memory that may outlive the process.

use packet::TcpFlags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::key::FlowKey;
use crate::tcp::{Limits, Progress};
use crate::{FlowState, PortId};

/// Most slots a table uses: 2 GiB.
pub const SLOTS_MAX: usize = 1 << 24;

/// Where TCP flags begin in the first word of a tally; below is a flow's position.
const FLAGS_BIT: u32 = 24;
/// The bits of a position.
const FLOW: u32 = (1 << FLAGS_BIT) - 1;

const _: () = assert!(SLOTS_MAX <= 1 << FLAGS_BIT, "positions of flows fit below the flags");

/// What is counted of a slot's direction in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Tally {
    /// Position in the list of flows; in the high byte all TCP flags seen.
    flow_and_flags: u32,
    /// What the peer allows a TCP sender.
    pub(crate) limits: Limits,
    frames: u64,
    bytes: u64,
}

impl Tally {
    pub(crate) const fn of_flow(position: u32) -> Self {
        Self { flow_and_flags: position, limits: Limits::NONE, frames: 0, bytes: 0 }
    }

    #[inline]
    pub(crate) fn flow(&self) -> u32 {
        self.flow_and_flags & FLOW
    }

    pub(crate) fn move_to(&mut self, position: u32) {
        self.flow_and_flags = self.flow_and_flags & !FLOW | position;
    }

    /// Counts a frame.
    #[inline]
    pub(crate) fn count(&mut self, len_bytes: usize, flags: TcpFlags) {
        self.flow_and_flags |= u32::from(flags.0) << FLAGS_BIT;
        self.frames += 1;
        self.bytes += len_bytes as u64;
    }

    /// Frames and bytes, with all their TCP flags.
    pub(crate) fn counted(&self) -> (u64, u64, TcpFlags) {
        (self.frames, self.bytes, TcpFlags((self.flow_and_flags >> FLAGS_BIT) as u8))
    }
}

/// The keys that would best live in a slot, and do not, because others were there before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Displaced {
    keys: u16,
    /// How many slots away they are at most.
    farthest: u16,
}

impl Displaced {
    pub(crate) const NONE: Self = Self { keys: 0, farthest: 0 };

    /// How many slots away one may be.
    #[inline]
    pub(crate) fn farthest(self) -> usize {
        self.farthest.into()
    }

    /// Takes in a key that lives so many slots away.
    pub(crate) fn add(&mut self, distance: usize) {
        self.keys += 1;
        self.farthest = self.farthest.max(distance as u16);
    }

    /// One of them is gone.
    pub(crate) fn remove(&mut self) {
        self.keys = self.keys.saturating_sub(1);
        if self.keys == 0 {
            *self = Self::NONE;
        }
    }
}

/// One direction of a flow: a cache line that decides, and one beside it in which is counted; plain bytes, all zero when
/// free.
///
/// What names the flow is covered by a keyed check; what changes with every frame is not, and each such
/// field is written whole. So a process killed at any instruction leaves slots that are either right or
/// recognised as wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(128))]
pub struct FlowSlot {
    pub(crate) key: FlowKey,
    /// Position of the other direction's slot in the low bits, [`Progress::marks`] in the highest byte.
    partner: u32,
    /// Keyed hash of `key`, the partner's position, `output` and the upper bits of `state`.
    pub(crate) check: u32,
    sequence_end: u32,
    acknowledged: u32,
    /// Low bits of the millisecond in which a frame last came this way.
    pub(crate) last_seen_ms: u32,
    /// Where frames of this direction go out.
    output: u16,
    /// [`FlowState`] in the low bits, zero when free; flags above them.
    state: u8,
    /// Which of this process's snapshots has judged the flow; zero: none.
    pub(crate) epoch: u8,
    /// Means something to this process only.
    pub(crate) tally: Tally,
    /// Of the keys whose place is here, whoever lives here. Means something to this process only.
    pub(crate) displaced: Displaced,
    spare: [u32; 7],
}

pub(crate) const CACHE_LINE_BYTES: usize = 64;
const _: () =
    assert!(std::mem::offset_of!(FlowSlot, tally) == CACHE_LINE_BYTES, "what decides is one cache line");
const _: () =
    assert!(size_of::<FlowSlot>() == 2 * CACHE_LINE_BYTES, "a slot is two cache lines, in one page");

/// Set in the state of the slot that the initiator's frames hit.
const INITIATOR: u8 = 0x80;
/// Set in the states of both slots of a flow whose packets leave under another tuple than they came in with.
const TRANSLATED: u8 = 0x40;
/// Set in the states of both slots of a flow whose frames have stages to go through. Which, is known to this process
/// only, so it is not taken over.
const SERVED: u8 = 0x20;
const STATE: u8 = 0x1f;

/// What of `partner` is a position.
const POSITION: u32 = SLOTS_MAX as u32 - 1;
const MARKS_BIT: u32 = 24;
const _: () = assert!(POSITION < 1 << MARKS_BIT, "a position leaves room for a byte");

impl FlowSlot {
    /// A slot that holds nothing.
    pub const FREE: Self = Self {
        key: zerocopy::transmute!([0_u64; 5]),
        partner: 0,
        check: 0,
        sequence_end: 0,
        acknowledged: 0,
        last_seen_ms: 0,
        output: 0,
        state: 0,
        epoch: 0,
        tally: Tally::of_flow(0),
        displaced: Displaced::NONE,
        spare: [0; 7],
    };

    pub(crate) fn new(
        key: FlowKey,
        output: PortId,
        partner: u32,
        (from_initiator, translated): (bool, bool),
    ) -> Self {
        let state = if from_initiator { INITIATOR } else { 0 } | if translated { TRANSLATED } else { 0 };
        Self { key, partner, output: output.0, state, ..Self::FREE }
    }

    /// The flow's state; `None` when the slot is free (or corrupt, before it is validated).
    #[inline]
    pub(crate) fn state(&self) -> Option<FlowState> {
        FlowState::from_number(self.state & STATE)
    }

    pub(crate) fn set_state(&mut self, state: FlowState) {
        self.state = self.state & !STATE | state as u8;
    }

    /// Whether nothing was ever written here, or all was wiped.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.state == 0
    }

    /// Whether nothing was ever written to what decides.
    pub(crate) fn is_blank(&self) -> bool {
        Self { tally: Self::FREE.tally, displaced: Displaced::NONE, ..*self } == Self::FREE
    }

    /// Puts another direction here, or none.
    pub(crate) fn replace(&mut self, slot: Self) {
        *self = Self { displaced: self.displaced, ..slot };
    }

    /// Whether this is the initiator's direction.
    #[inline]
    pub(crate) fn is_initiator(&self) -> bool {
        self.state & INITIATOR != 0
    }

    /// Whether frames of this direction leave as the answer to the partner's key, which is not their own.
    #[inline]
    pub(crate) fn is_translated(&self) -> bool {
        self.state & TRANSLATED != 0
    }

    /// Whether more is done with frames of this direction than forwarding them.
    #[inline]
    pub(crate) fn is_treated(&self) -> bool {
        self.state & (TRANSLATED | SERVED) != 0
    }

    /// Whether frames of this direction have stages to go through.
    pub(crate) fn is_served(&self) -> bool {
        self.state & SERVED != 0
    }

    pub(crate) fn set_served(&mut self, served: bool) {
        self.state = self.state & !SERVED | if served { SERVED } else { 0 };
    }

    #[inline]
    pub(crate) fn output(&self) -> PortId {
        PortId(self.output)
    }

    #[inline]
    pub(crate) fn progress(&self) -> Progress {
        let marks = (self.partner >> MARKS_BIT) as u8;
        Progress { sequence_end: self.sequence_end, acknowledged: self.acknowledged, marks }
    }

    #[inline]
    pub(crate) fn set_progress(&mut self, progress: Progress) {
        self.sequence_end = progress.sequence_end;
        self.acknowledged = progress.acknowledged;
        self.partner = self.partner & POSITION | u32::from(progress.marks) << MARKS_BIT;
    }

    /// Position of the other direction's slot.
    #[inline]
    pub(crate) fn partner(&self) -> usize {
        (self.partner & POSITION) as usize
    }

    /// Time since a frame last came this way. A time before `last_seen_ms` counts as zero.
    #[inline]
    pub(crate) fn idle_ms(&self, now_ms: u32) -> u32 {
        let idle = now_ms.wrapping_sub(self.last_seen_ms);
        if idle > u32::MAX / 2 { 0 } else { idle }
    }

    /// What the check covers beside the key.
    pub(crate) fn place(&self) -> u64 {
        self.partner() as u64 | u64::from(self.output) << 32 | u64::from(self.state >> 6) << 48
    }
}

/// Memory for the flow table: given by the caller, so that it may outlive the process.
///
/// A `Vec<FlowSlot>` will do, and so does a `&'static mut [FlowSlot]` in a shared mapping.
pub trait FlowSlots: AsRef<[FlowSlot]> + AsMut<[FlowSlot]> {}

impl<T: AsRef<[FlowSlot]> + AsMut<[FlowSlot]>> FlowSlots for T {}
