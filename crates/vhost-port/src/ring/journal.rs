// SPDX-License-Identifier: Apache-2.0
//! Where a packed ring stands, for whoever comes after this process.
//!
//! A packed ring keeps no index in the guest's memory: a slot that was used and one that is available again differ by a
//! flag that means something else in every lap, and what a used slot once held is overwritten. So the device writes down,
//! before it shows anything to the guest, from where to where it is about to go and what it is about to
//! write. Showing begins with the second slot and ends with the first, so a successor that finds the first slot still
//! available does all of it again, and one that finds it used or reused does nothing. Either way it goes on
//! behind.
//!
//! The notes are those of one guest's memory, told apart by the file that backs it. They are discarded when the VMM asks
//! where the ring stands: from then on the VMM knows.

use std::io;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use platform::{SharedTable, TableError};

use super::Position;

/// Words of one ring's notes: two pages.
const WORDS: usize = 1024;
/// Device and inode of the memory's file; the second is never zero for a file that exists.
const OWNER: usize = 0;
/// Step in progress: from, to, number of entries.
const STEP: usize = 2;
const ENTRIES: usize = 3;

/// A chain given back: slot with wrap counter, id, length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) at: Position,
    pub(super) id: u16,
    pub(super) written: u32,
}

impl Entry {
    #[inline(always)]
    fn to_word(self) -> u64 {
        u64::from(self.written) | u64::from(self.id) << 32 | u64::from(self.at.value()) << 48
    }

    #[inline(always)]
    fn from_word(word: u64) -> Self {
        Self { at: Position::new((word >> 48) as u16), id: (word >> 32) as u16, written: word as u32 }
    }
}

/// The step that was last begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) from: Position,
    pub(super) to: Position,
}

/// The notes of one ring.
#[derive(Debug)]
pub(crate) struct Journal {
    notes: Notes,
    /// Entries noted for the step that comes next.
    count: usize,
}

#[derive(Debug)]
enum Notes {
    Shared(SharedTable<u64>),
    /// Of a port that has no place for them: nobody comes after it.
    Private(Box<[u64]>),
}

impl Notes {
    #[inline(always)]
    fn words(&mut self) -> &mut [u64] {
        match self {
            Self::Shared(table) => table,
            Self::Private(words) => words,
        }
    }
}

impl Journal {
    /// Most chains of one step.
    pub(super) const ENTRIES_MAX: usize = WORDS - ENTRIES;

    /// Takes up the notes at `path`, if there are any; without a path, notes for this process alone.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, TableError> {
        let notes = match path {
            None => Notes::Private(vec![0; WORDS].into()),
            Some(path) => Notes::Shared(match SharedTable::open(path, WORDS) {
                Err(error @ TableError::InUse { .. }) => return Err(error),
                Err(_) => SharedTable::create(path, WORDS)?,
                Ok(table) => table,
            }),
        };
        Ok(Self { notes, count: 0 })
    }

    /// Makes the notes at `path` nobody's.
    pub(crate) fn discard(path: &Path) {
        if let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(?path, %error, "a ring's position could not be forgotten");
        }
    }

    /// The last step of a ring of the memory with this `owner`, with its entries; `None` if the notes are not of that.
    pub(super) fn last(&mut self, owner: [u64; 2]) -> Option<(Step, Vec<Entry>)> {
        let words = self.notes.words();
        if words[OWNER..STEP] != owner {
            return None;
        }
        let step = words[STEP];
        let count = ((step >> 32) as usize).min(Self::ENTRIES_MAX);
        let entries = words[ENTRIES..][..count].iter().map(|word| Entry::from_word(*word)).collect();
        let (from, to) = (Position::new(step as u16), Position::new((step >> 16) as u16));
        Some((Step { from, to }, entries))
    }

    /// Begins notes for the memory with this `owner`, of a ring that stands at `at`.
    pub(super) fn begin(&mut self, owner: [u64; 2], at: Position) {
        self.count = 0;
        let words = self.notes.words();
        words[OWNER..STEP].fill(0);
        fence(Ordering::Release);
        words[STEP] = u64::from(at.value()) | u64::from(at.value()) << 16;
        fence(Ordering::Release);
        words[OWNER..STEP].copy_from_slice(&owner);
    }

    /// Entries that can still be added to the step that comes next.
    #[inline(always)]
    pub(super) fn room(&self) -> usize {
        Self::ENTRIES_MAX - self.count
    }

    /// Notes an entry of the step that comes next. The caller has made room.
    #[inline(always)]
    pub(super) fn add(&mut self, entry: Entry) {
        let word = entry.to_word();
        self.notes.words()[ENTRIES + self.count] = word;
        self.count += 1;
    }

    /// Notes that the step with all entries added begins, and hands each to `show`, the first one last.
    #[inline(always)]
    pub(super) fn step(&mut self, step: Step, mut show: impl FnMut(Entry)) {
        let count = std::mem::take(&mut self.count);
        let words = self.notes.words();
        // Whoever finds this step finds its entries; and nobody sees any of it in the ring before.
        fence(Ordering::Release);
        words[STEP] = u64::from(step.from.value()) | u64::from(step.to.value()) << 16 | (count as u64) << 32;
        fence(Ordering::Release);
        if let [first, rest @ ..] = &words[ENTRIES..][..count] {
            rest.iter().for_each(|word| show(Entry::from_word(*word)));
            fence(Ordering::Release);
            show(Entry::from_word(*first));
        }
    }
}
