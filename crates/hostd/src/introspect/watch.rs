// SPDX-License-Identifier: Apache-2.0
//! What is known of one machine, shared by all who ask, and which memory it is of.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{Attribution, UnknownReason};

/// A guest's RAM.
pub type Ram = Arc<dyn vmi::PhysicalMemory>;

/// Where a machine stands.
#[derive(Default)]
pub enum State {
    /// No VMM shares its memory.
    #[default]
    Waiting,
    /// Its kernel is being understood.
    Attaching,
    /// Its kernel is understood.
    Attached {
        /// The engine's view of the guest.
        guest: Box<vmi::Guest>,
        /// How long the successful try took.
        took: Duration,
    },
    /// Its kernel was not understood, with the last reason.
    Failed(String),
}

impl State {
    /// Looks inside an attached guest; `None` when it is not attached.
    ///
    /// A panic while looking is a bug, but the guest may be what triggered it: it costs this guest its
    /// introspection, and nobody else anything.
    pub fn look<R>(&mut self, look: impl FnOnce(&mut vmi::Guest) -> R) -> Option<R> {
        let Self::Attached { guest, .. } = self else { return None };
        match catch_unwind(AssertUnwindSafe(|| look(guest))) {
            Ok(seen) => Some(seen),
            Err(_) => {
                tracing::error!("introspection of a guest panicked, it is given up");
                *self = Self::Failed("introspection failed, see the daemon's log".into());
                None
            }
        }
    }

    /// Who is behind one end of a flow, as `look` tells if the guest is attached; `None` if that tells nothing.
    pub(super) fn attribute(
        &mut self,
        look: impl FnOnce(&mut vmi::Guest) -> Option<Attribution>,
    ) -> Option<Result<Attribution, NotReady>> {
        // After a restart of the daemon a machine may hear from one whose VMM is not back yet.
        if matches!(self, Self::Waiting | Self::Attaching) {
            return Some(Err(NotReady));
        }
        self.look(look).map_or(NOT_WATCHED, |found| found.map(Ok))
    }
}

/// One machine's introspection, shared.
///
/// The poll thread says when memory comes and goes without waiting for whoever looks at the guest meanwhile: it only
/// changes the epoch, and what belongs to an earlier one is forgotten by whoever takes the lock next.
#[derive(Default)]
pub(super) struct Watch {
    /// Odd while a VMM shares memory.
    epoch: AtomicU64,
    watched: Mutex<Watched>,
}

/// What is known of a machine.
#[derive(Default)]
pub(super) struct Watched {
    /// Which memory this is of.
    pub(super) epoch: u64,
    pub(super) state: State,
    pub(super) memory: Option<Ram>,
}

impl Watch {
    /// One that stays as it is.
    pub(super) fn fixed(state: State) -> Self {
        Self { watched: Mutex::new(Watched { state, ..Watched::default() }), ..Self::default() }
    }

    /// Begins an epoch with memory or, by [`Watch::leave`], one without; returns its number.
    pub(super) fn enter(&self) -> u64 {
        let next = |epoch| Some((epoch + 1) | 1);
        self.epoch.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).map_or(0, |epoch| (epoch + 1) | 1)
    }

    pub(super) fn leave(&self) {
        // Never fails: there always is a next epoch.
        let _ = self.epoch.fetch_update(Ordering::AcqRel, Ordering::Acquire, |epoch| Some((epoch + 1) & !1));
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What is known in this epoch.
    pub(super) fn lock(&self) -> MutexGuard<'_, Watched> {
        let mut watched = lock(&self.watched);
        let epoch = self.epoch();
        if watched.epoch != epoch {
            let state = if epoch % 2 == 1 { State::Attaching } else { State::Waiting };
            *watched = Watched { epoch, state, memory: None };
        }
        watched
    }

    /// As [`Watch::lock`], if that can be had at once.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Watched>> {
        let watched = self.watched.try_lock().ok()?;
        (watched.epoch == self.epoch()).then_some(watched)
    }
}

/// The machine is still being attached to, or not running.
pub(super) struct NotReady;

/// What is told of a machine that is not looked into.
pub(super) const NOT_WATCHED: Option<Result<Attribution, NotReady>> =
    Some(Ok(Attribution::unknown(UnknownReason::NotAttached)));

/// A poisoned lock means that a thread panicked while it held it, which the release build turns into
/// an abort; tests may go on.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_memory_that_is_gone_is_forgotten() {
        let watch = Watch::default();
        assert!(matches!(watch.lock().state, State::Waiting));
        let first = watch.enter();
        assert!(watch.try_lock().is_none(), "what is behind was told at once");
        assert!(matches!(watch.lock().state, State::Attaching));
        watch.lock().state = State::Failed("of the first memory".into());
        assert!(watch.try_lock().is_some());

        let second = watch.enter();
        assert_ne!(first, second);
        assert!(matches!(watch.lock().state, State::Attaching));
        for _ in 0..2 {
            watch.leave();
            assert!(matches!(watch.lock().state, State::Waiting));
        }
        assert!(watch.enter() > second);
    }

    #[test]
    fn nobody_is_judged_by_a_machine_that_is_not_there_or_not_understood_yet() {
        let failed = State::Failed("not a kernel that anybody knows".into());
        for (mut state, is_ready) in [(State::Waiting, false), (State::Attaching, false), (failed, true)] {
            let answer = state.attribute(|_| unreachable!("there is nothing to look into"));
            assert_eq!(matches!(answer, Some(Ok(_))), is_ready);
        }
    }

    #[test]
    fn memory_comes_and_goes_while_somebody_looks() {
        let watch = Watch::default();
        watch.enter();
        let looking = watch.lock();
        // Neither of these waits, or the test would not end.
        watch.leave();
        watch.enter();
        assert!(watch.try_lock().is_none());
        drop(looking);
    }
}
