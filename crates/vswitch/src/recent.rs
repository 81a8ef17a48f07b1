// SPDX-License-Identifier: Apache-2.0
//! What was lately decided about flows that are not in the table.

use std::collections::VecDeque;

use crate::key::FlowKey;

/// Most flows of one port that are remembered: each of its queues holds at most one frame that waits.
const FLOWS_MAX: usize = 16;

/// Something about each of a few flows; the oldest is forgotten first.
#[derive(Clone, Debug)]
pub(crate) struct Recent<T>(VecDeque<(FlowKey, T)>);

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Recent<T> {
    pub(crate) fn take(&mut self, key: &FlowKey) -> Option<T> {
        let position = self.0.iter().position(|(flow, _)| flow == key)?;
        self.0.remove(position).map(|(_, known)| known)
    }

    pub(crate) fn keep(&mut self, key: FlowKey, known: T) {
        self.take(&key);
        if self.0.len() == FLOWS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((key, known));
    }
}
