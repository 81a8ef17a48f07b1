// SPDX-License-Identifier: Apache-2.0
//! Which of several kernels lives.

use std::collections::HashMap;

use crate::memory::PhysicalMemory;

/// The clocks of kernels between which earlier tries to attach could not decide.
///
/// A reset does not wipe RAM, so the predecessor's kernel lies there whole until it is overwritten; but its clock
/// stands still. Hand the same value to every try at one guest, with some time (a second, for an idle guest)
/// between them.
#[derive(Clone, Debug, Default)]
pub struct Heartbeats {
    /// Clocks by their guest-physical address; as many as one try decides between.
    seen: HashMap<u64, u64>,
}

impl Heartbeats {
    /// Keeps the candidates whose clock has moved since the last try, and notes all clocks for the next. `clock` tells
    /// where a candidate's lies.
    pub(crate) fn keep_living<T>(
        &mut self,
        memory: &dyn PhysicalMemory,
        candidates: Vec<T>,
        clock: impl Fn(&T) -> Option<u64>,
    ) -> Vec<T> {
        let earlier = std::mem::take(&mut self.seen);
        let moved = |candidate: &T| {
            let Some(gpa) = clock(candidate) else { return false };
            let mut ticks = [0; 8];
            if memory.read(gpa, &mut ticks).is_err() {
                return false;
            }
            let ticks = u64::from_le_bytes(ticks);
            self.seen.insert(gpa, ticks);
            earlier.get(&gpa).is_some_and(|before| *before != ticks)
        };
        candidates.into_iter().filter(moved).collect()
    }
}
