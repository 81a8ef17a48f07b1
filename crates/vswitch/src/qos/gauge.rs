// SPDX-License-Identifier: Apache-2.0
//! What passes a limit, in numbers.

use std::time::Duration;

use model::Moment;

use super::SECOND_NS;

/// Counts frames that leave.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    /// The last second or so: when it began, and what has left in it.
    window: (u64, u64),
    /// What left in the one before, in bits per second.
    bits_per_second: u64,
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) held_frames: u64,
    held_ns: u64,
    held_max_ns: u64,
}

impl Gauge {
    /// Counts a frame that leaves at a time, for which it was held so long.
    pub(super) fn count(&mut self, leaves: Moment, held: Duration, len_bytes: u64) {
        let held_ns = u64::try_from(held.as_nanos()).unwrap_or(u64::MAX);
        self.frames += 1;
        self.bytes += len_bytes;
        if held_ns > 0 {
            self.held_frames += 1;
            self.held_ns = self.held_ns.saturating_add(held_ns);
            self.held_max_ns = self.held_max_ns.max(held_ns);
        }
        let (began_ns, bytes) = &mut self.window;
        let span_ns = leaves.0.saturating_sub(*began_ns);
        if span_ns >= SECOND_NS {
            self.bits_per_second = per_second(*bytes, span_ns);
            (*began_ns, *bytes) = (leaves.0, 0);
        }
        *bytes += len_bytes;
    }

    /// What leaves lately: over a second or so.
    pub(super) fn bits_per_second(&self, now: Moment) -> u64 {
        let (began_ns, bytes) = self.window;
        let span_ns = now.0.saturating_sub(began_ns);
        if span_ns >= 2 * SECOND_NS { per_second(bytes, span_ns) } else { self.bits_per_second }
    }

    /// For how long frames were held, together and at most.
    pub(super) fn held(&self) -> [Duration; 2] {
        [self.held_ns, self.held_max_ns].map(Duration::from_nanos)
    }
}

fn per_second(bytes: u64, span_ns: u64) -> u64 {
    let bits = u128::from(bytes) * 8 * u128::from(SECOND_NS) / u128::from(span_ns.max(1));
    u64::try_from(bits).unwrap_or(u64::MAX)
}
