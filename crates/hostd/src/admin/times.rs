// SPDX-License-Identifier: Apache-2.0
//! How long the views of guests take, for whoever wants to know what looking costs.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use api::admin::Latency;
use hdrhistogram::Histogram;

use super::view;
use crate::poll;

/// The times of each view, by its name.
#[derive(Default)]
pub struct ViewTimes(Mutex<BTreeMap<&'static str, Histogram<u64>>>);

impl ViewTimes {
    /// Looks, and notes how long that took.
    pub fn timed<R>(&self, view: &'static str, look: impl FnOnce() -> R) -> R {
        let started = Instant::now();
        let seen = look();
        let took = started.elapsed();
        poll::record(self.lock().entry(view).or_insert_with(poll::latencies), took);
        seen
    }

    /// As clients see them.
    pub fn shown(&self) -> BTreeMap<String, Latency> {
        self.lock().iter().map(|(view, times)| ((*view).to_owned(), view::latency(times))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Histogram<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
