// SPDX-License-Identifier: Apache-2.0
//! Frames that a guest sent, a batch at a time.

use std::sync::Arc;

use crate::chain::{CACHE_LINE_BYTES, Chain, Rules};
use crate::fault::ChainFault;
use crate::memory::GuestMemory;
use crate::ring::{Head, Vring};
use crate::window::Window;

/// Frames that a guest sent, in order, not yet given back to it.
///
/// Made once and used again and again; it holds on to the guest's memory for as long as it holds frames.
#[derive(Debug, Default)]
pub struct Batch {
    spans: Vec<Span>,
    segments: Vec<Window<'static>>,
    /// Holds the mapping of the windows above; replaced only after they are gone.
    memory: Option<Arc<GuestMemory>>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    first: u32,
    count: u16,
    head: u16,
    len: u32,
}

impl Batch {
    /// Most frames at a time.
    pub const FRAMES_MAX: usize = 32;

    /// An empty batch with room for frames of a few segments; more are made room for once.
    #[must_use]
    pub fn new() -> Self {
        Self {
            spans: Vec::with_capacity(Self::FRAMES_MAX),
            segments: Vec::with_capacity(4 * Self::FRAMES_MAX),
            memory: None,
        }
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The frame at a position.
    ///
    /// # Panics
    /// When there is no such frame.
    #[must_use]
    #[inline(always)]
    pub fn chain(&self, position: usize) -> Chain<'_> {
        let span = self.spans[position];
        let first = span.first as usize;
        Chain {
            segments: &self.segments[first..first + usize::from(span.count)],
            len: span.len as usize,
            head: span.head,
        }
    }

    /// Length of the frame at a position with its virtio-net header, in bytes.
    ///
    /// # Panics
    /// When there is no such frame.
    #[must_use]
    #[inline(always)]
    pub fn len_bytes_of(&self, position: usize) -> usize {
        self.spans[position].len as usize
    }

    /// All frames, oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Chain<'_>> {
        (0..self.len()).map(|position| self.chain(position))
    }

    /// Length of all frames with their virtio-net headers, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.spans.iter().map(|span| span.len as usize).sum()
    }

    /// Forgets the frames, and the memory with them. Does not give them back to the guest.
    pub fn clear(&mut self) {
        self.forget();
        self.memory = None;
    }

    /// Forgets the frames, to take others from `memory`.
    #[inline(always)]
    pub(crate) fn begin(&mut self, memory: &Arc<GuestMemory>) {
        self.forget();
        if !self.memory.as_ref().is_some_and(|held| Arc::ptr_eq(held, memory)) {
            self.memory = Some(Arc::clone(memory));
        }
    }

    #[inline(always)]
    fn forget(&mut self) {
        self.spans.clear();
        self.segments.clear();
    }

    /// Adds a chain of a ring, of which the start is fetched; nothing on a fault. The ring is of the memory that `begin` got.
    #[inline(always)]
    pub(crate) fn add(&mut self, ring: &impl Vring, head: Head, rules: &Rules) -> Result<(), ChainFault> {
        let Self { spans, segments, memory } = self;
        let memory = memory.as_deref().expect("a batch begins before it is added to");
        let first = segments.len();
        // SAFETY: the batch keeps `memory` until its segments are forgotten.
        let mut push = |window: Window<'_>| segments.push(unsafe { window.detach() });
        let walked = match ring.lone_buffer(head, rules.direction) {
            Some(window) => {
                push(window);
                Ok(window.len())
            }
            None => ring.walk(memory, head, rules, push),
        };
        match walked {
            Ok(len) => {
                // Counts and lengths are bounded by `CHAIN_DESCRIPTORS_MAX` and `FRAME_BYTES_MAX`.
                let count = (segments.len() - first) as u16;
                spans.push(Span { first: first as u32, count, head: head.id, len: len as u32 });
                // The virtio-net header and what comes next, be it in the same segment or in a second one. They are taken
                // from the guest's caches altogether: its next frame is often written to the same place, and takes longest
                // where two caches have a line.
                segments[first].prefetch_to_write(0);
                segments[first].prefetch_to_write(CACHE_LINE_BYTES);
                if let Some(second) = segments.get(first + 1) {
                    second.prefetch_to_write(0);
                }
                Ok(())
            }
            Err(fault) => {
                segments.truncate(first);
                Err(fault)
            }
        }
    }
}
