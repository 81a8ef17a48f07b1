// SPDX-License-Identifier: Apache-2.0
//! Waking a thread that may or may not sleep, without asking the kernel unless it does.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{EventFd, write_then_read};

/// What a thread is woken by that mostly does not sleep.
///
/// Whoever has put something where the sleeper looks rings afterwards. The sleeper, before it sleeps on this as on an
/// [`EventFd`], says so in [`Bell::doze`], which looks once more. So nothing is slept on (see `order`), and a ring costs a
/// call into the kernel only when somebody sleeps.
#[derive(Debug)]
pub struct Bell {
    asleep: AtomicBool,
    event: EventFd,
}

impl Bell {
    /// A bell that nobody sleeps by.
    ///
    /// # Errors
    /// When the process or the host is out of file descriptors.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { asleep: AtomicBool::new(false), event: EventFd::new()? })
    }

    /// Wakes the sleeper, if it sleeps or is about to.
    pub fn ring(&self) {
        if write_then_read(|| (), || self.asleep.load(Ordering::Relaxed)) {
            self.event.signal();
        }
    }

    /// Wakes the sleeper, whatever it does: if it does not sleep, its next sleep ends at once.
    pub fn ring_always(&self) {
        self.event.signal();
    }

    /// Says that whoever rings must wake this thread, then looks whether there is anything; tells what the look said. Only
    /// if it found nothing may the thread sleep. Either way [`Bell::rise`] follows.
    pub fn doze(&self, look: impl FnOnce() -> bool) -> bool {
        write_then_read(|| self.asleep.store(true, Ordering::Relaxed), look)
    }

    /// Says that this thread is awake.
    pub fn rise(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Makes it silent after it has rung.
    pub fn hush(&self) {
        self.event.drain();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Poller, Trigger};

    fn rings(poller: &mut Poller) -> bool {
        poller.wait(Some(Duration::ZERO)).unwrap().count() > 0
    }

    #[test]
    fn only_a_sleeper_is_woken_unless_it_must_be() {
        let bell = Bell::new().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&bell, 1, Trigger::Level).unwrap();
        bell.ring();
        assert!(!rings(&mut poller), "nobody sleeps");

        assert!(!bell.doze(|| false));
        bell.ring();
        assert!(rings(&mut poller));
        bell.rise();
        bell.hush();
        bell.ring();
        assert!(!rings(&mut poller), "awake again");

        assert!(bell.doze(|| true), "something is there");
        bell.rise();
        bell.ring_always();
        assert!(rings(&mut poller));
    }
}
