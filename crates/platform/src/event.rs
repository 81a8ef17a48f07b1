// SPDX-License-Identifier: Apache-2.0
//! Waking a thread that sleeps, and sleeping until something happens.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

/// A counter in the kernel that makes its descriptor readable while it is not zero.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Creates a counter of zero.
    ///
    /// # Errors
    /// When the process or the host is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable. A counter that is already at its greatest stays readable, so nothing is lost.
    pub fn signal(&self) {
        // The only failure of a valid event descriptor is "would block": the counter is full and so already readable.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable again; tells whether it was readable.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        rustix::io::read(&self.0, &mut count) == Ok(count.len())
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// When a descriptor is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// As long as it is readable.
    Level,
    /// Once for every time it becomes readable, and for every write to an event descriptor: it need not be read.
    Edge,
}

/// A set of descriptors to wait on; each is known by a token that the caller chose.
pub struct Poller {
    epoll: OwnedFd,
    /// Tokens of the last wait.
    woken: Vec<u64>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Poller").field(&self.epoll).finish()
    }
}

/// Most descriptors that one [`Poller::wait`] reports; the rest is reported by the next.
const EVENTS_PER_WAIT_MAX: usize = 64;

impl Poller {
    /// Creates an empty set.
    ///
    /// # Errors
    /// When the process or the host is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, woken: Vec::with_capacity(EVENTS_PER_WAIT_MAX) })
    }

    /// Waits for `fd` to become readable, too. Closing every copy of the descriptor removes it.
    ///
    /// # Errors
    /// When the descriptor is already in the set, or is of a kind that cannot be waited for.
    pub fn add(&self, fd: impl AsFd, token: u64, trigger: Trigger) -> io::Result<()> {
        let mut flags = epoll::EventFlags::IN;
        if trigger == Trigger::Edge {
            flags |= epoll::EventFlags::ET;
        }
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Waits for `fd` no longer.
    ///
    /// # Errors
    /// When the descriptor is not in the set.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Sleeps until a descriptor is readable or hung up, or `timeout` has passed, or a signal arrived; without a
    /// timeout for as long as that takes. Yields the tokens of what happened, none after a timeout or signal.
    ///
    /// # Errors
    /// Never in practice: only for an invalid set.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<impl Iterator<Item = u64> + '_> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let mut events = [MaybeUninit::uninit(); EVENTS_PER_WAIT_MAX];
        self.woken.clear();
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((events, _)) => self.woken.extend(events.iter().map(|event| event.data.u64())),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.woken.drain(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    fn tokens(poller: &mut Poller) -> Vec<u64> {
        poller.wait(NOW).unwrap().collect()
    }

    #[test]
    fn level_is_reported_until_drained() {
        let mut poller = Poller::new().unwrap();
        let event = EventFd::new().unwrap();
        poller.add(&event, 7, Trigger::Level).unwrap();
        assert!(tokens(&mut poller).is_empty());
        assert!(!event.drain());

        event.signal();
        event.signal();
        assert_eq!(tokens(&mut poller), [7]);
        assert_eq!(tokens(&mut poller), [7]);
        assert!(event.drain());
        assert!(tokens(&mut poller).is_empty());
    }

    #[test]
    fn edge_is_reported_once_per_signal_without_draining() {
        let mut poller = Poller::new().unwrap();
        let event = EventFd::new().unwrap();
        poller.add(&event, 1, Trigger::Edge).unwrap();
        for _ in 0..3 {
            event.signal();
            assert_eq!(tokens(&mut poller), [1]);
            assert!(tokens(&mut poller).is_empty());
        }
    }

    #[test]
    fn removed_descriptors_are_silent_and_cannot_be_removed_again() {
        let mut poller = Poller::new().unwrap();
        let event = EventFd::new().unwrap();
        poller.add(&event, 1, Trigger::Level).unwrap();
        assert!(poller.add(&event, 2, Trigger::Level).is_err());
        event.signal();
        poller.remove(&event).unwrap();
        assert!(tokens(&mut poller).is_empty());
        assert!(poller.remove(&event).is_err());
    }

    #[test]
    fn files_cannot_be_waited_for() {
        let poller = Poller::new().unwrap();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(poller.add(&file, 1, Trigger::Level).is_err());
    }
}
