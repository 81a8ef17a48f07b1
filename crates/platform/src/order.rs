// SPDX-License-Identifier: Apache-2.0
//! The one order on which waking depends, on both sides of a ring or queue.
//!
//! Each side writes something that the other must learn of, and then reads whether the other has written. Were
//! the read done before the write is visible, both could miss each other's: the one sleeps on a full ring that the other
//! thinks is watched. Only a full fence between the two rules that out (for vrings: virtio 1.2, sections 2.7.13.4.1 and
//! 2.8.21.3).

use std::sync::atomic::{Ordering, fence};

/// Writes, and when that is visible to all, reads.
#[inline(always)]
pub fn write_then_read<T>(write: impl FnOnce(), read: impl FnOnce() -> T) -> T {
    ordered(write, || fence(Ordering::SeqCst), read)
}

#[inline(always)]
fn ordered<T>(write: impl FnOnce(), fence: impl FnOnce(), read: impl FnOnce() -> T) -> T {
    write();
    fence();
    read()
}

#[cfg(test)]
mod tests {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU16, Ordering, fence};
    use loom::thread;

    use super::ordered;

    /// Two sides in every order that their processors may show: one makes something available and tells of it if told to,
    /// the other asks to be told and sleeps if there is nothing. Whether it can sleep for ever.
    fn can_miss(fenced: bool) -> bool {
        let missed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let noticed = std::sync::Arc::clone(&missed);
        loom::model(move || {
            let index = Arc::new(AtomicU16::new(0));
            let wish = Arc::new(AtomicU16::new(0));
            let barrier = move || {
                if fenced {
                    fence(Ordering::SeqCst);
                }
            };
            let (theirs, their_wish) = (Arc::clone(&index), Arc::clone(&wish));
            let shows = thread::spawn(move || {
                let show = || theirs.store(1, Ordering::Release);
                ordered(show, barrier, || their_wish.load(Ordering::Relaxed) == 1)
            });
            let asks = || wish.store(1, Ordering::Relaxed);
            let found = ordered(asks, barrier, || index.load(Ordering::Acquire) == 1);
            let told = shows.join().unwrap();
            if !found && !told {
                noticed.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        });
        missed.load(std::sync::atomic::Ordering::Relaxed)
    }

    #[test]
    fn nobody_sleeps_on_something_that_was_made_available() {
        assert!(!can_miss(true));
    }

    #[test]
    fn without_the_fence_somebody_would() {
        assert!(can_miss(false));
    }
}
