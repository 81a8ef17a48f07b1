// SPDX-License-Identifier: Apache-2.0
//! How endpoints of services fare, as found in their machines' memory and on the wire.

use std::time::Duration;

/// Connections that are complete and that a listener's process has not accepted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcceptQueue {
    /// How many there are.
    pub len: u32,
    /// How many there may be; one more fits.
    pub max: u32,
}

impl AcceptQueue {
    /// Whether the guest's kernel drops further SYNs (Linux, `sk_acceptq_is_full`).
    #[must_use]
    pub fn is_full(self) -> bool {
        self.len > self.max
    }

    /// Whether so much of a queue that was full is accepted that new connections are welcome again: half of it.
    #[must_use]
    pub fn is_drained(self) -> bool {
        self.len <= self.max / 2
    }

    /// The one of two that is nearer to being full.
    #[must_use]
    pub fn fuller(self, other: Self) -> Self {
        let filled = |own: Self, by: Self| u64::from(own.len) * (u64::from(by.max) + 1);
        if filled(other, self) > filled(self, other) { other } else { self }
    }
}

/// Who listens at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    /// Nobody, or not whom the service is about.
    Absent,
    /// Whoever offers the service.
    Present {
        /// What waits to be accepted; `None` where nothing does (UDP) or that cannot be read.
        queue: Option<AcceptQueue>,
    },
}

/// How the switch tries for itself whether an endpoint takes TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    /// Time from the beginning of one attempt to that of the next. Default: 5 s.
    pub interval: Duration,
    /// How long an attempt may stay unanswered. Default: 1 s.
    pub timeout: Duration,
    /// After how many failures in a row an endpoint is left out. Default: 3.
    pub unhealthy: u32,
    /// After how many answers in a row it is in again. Default: 2.
    pub healthy: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        let (interval, timeout) = (Duration::from_secs(5), Duration::from_secs(1));
        Self { interval, timeout, unhealthy: 3, healthy: 2 }
    }
}

/// Whether an endpoint gets new flows, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndpointState {
    /// It does.
    In,
    /// It gets a growing part of them: it has just come in.
    SlowStart,
    /// Its share is zero, or no share selects it.
    Drained,
    /// No card of it has a port on this host.
    NoPort,
    /// Nobody listens there who offers the service.
    NotListening,
    /// Its process does not accept what has come in already.
    QueueFull,
    /// Checks of it fail.
    CheckFailing,
    /// It has failed too often in a row.
    Ejected {
        /// How long it is still left out.
        left: Duration,
    },
}

impl EndpointState {
    /// The word shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::SlowStart => "slow-start",
            Self::Drained => "drained",
            Self::NoPort => "no-port",
            Self::NotListening => "not-listening",
            Self::QueueFull => "queue-full",
            Self::CheckFailing => "check-failing",
            Self::Ejected { .. } => "ejected",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_full_beyond_its_backlog_and_drained_at_half() {
        let at = |len, max| {
            let queue = AcceptQueue { len, max };
            (queue.is_full(), queue.is_drained())
        };
        assert_eq!([at(4, 4), at(5, 4), at(3, 4), at(2, 4)].map(|is| is.0), [false, true, false, false]);
        assert_eq!([at(5, 4), at(3, 4), at(2, 4)].map(|is| is.1), [false, false, true]);
        assert_eq!([at(1, 0), at(0, 0)], [(true, false), (false, true)]);
    }

    #[test]
    fn of_two_queues_the_fuller_counts() {
        let (small, large) = (AcceptQueue { len: 2, max: 1 }, AcceptQueue { len: 100, max: u32::MAX });
        assert_eq!((small.fuller(large), large.fuller(small)), (small, small));
        let empty = AcceptQueue { len: 0, max: 0 };
        assert_eq!((empty.fuller(large), large.fuller(empty)), (large, large));
    }
}
