// SPDX-License-Identifier: Apache-2.0
//! Damaged RAM: a kernel made up in memory, some of whose words are overwritten before or after the library attaches.
//!
//! A word is overwritten with another word of the same RAM, give or take a little, more often than with anything
//! else: lies that look like the truth lead furthest.

use std::ops::Range;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use crate::tests::ask_everything;
use crate::tests::kernel::{Kernel, Virtio};
use crate::tests::symbols::SymbolOrder;
use crate::{Guest, PhysicalMemory, Unmapped};

/// Most words that are overwritten.
const LIES_MAX: usize = 32;

/// One kernel, and where its RAM holds anything.
struct Subject {
    ram: Vec<u8>,
    words: Vec<usize>,
    ring_gpa: u64,
}

static SUBJECTS: LazyLock<Vec<Subject>> = LazyLock::new(|| {
    let forms = SymbolOrder::ALL.into_iter().zip([4, 5, 4, 5, 4]).zip(Virtio::ALL.into_iter().cycle());
    forms.map(|((order, levels), virtio)| subject(Kernel::with_virtio(levels, order, virtio))).collect()
});

fn subject(mut kernel: Kernel) -> Subject {
    kernel.contain();
    kernel.list_users("root:x:0:0::/:/bin/sh\nshop:x:1001:1001::/:/bin/sh\n");
    let (ring_gpa, ram) = (kernel.at.ring_gpa, kernel.ram.0);
    let filled = (0..ram.len()).step_by(8).filter(|at| ram[*at..at + 8] != [0; 8]);
    Subject { words: filled.collect(), ram, ring_gpa }
}

struct Memory(RwLock<Vec<u8>>);

impl PhysicalMemory for Memory {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
        let ram = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(gpa).map_err(|_| Unmapped)?;
        let end = start.checked_add(out.len()).ok_or(Unmapped)?;
        out.copy_from_slice(ram.get(start..end).ok_or(Unmapped)?);
        Ok(())
    }

    fn extents(&self) -> Vec<Range<u64>> {
        let ram = self.0.read().unwrap_or_else(PoisonError::into_inner);
        std::iter::once(0..ram.len() as u64).collect()
    }
}

/// One run: which kernel, how many lies before attaching, and the lies, twelve bytes each.
pub fn run(bytes: &[u8]) {
    let Some((&[form, before], lies)) = bytes.split_first_chunk() else { return };
    let subject = &SUBJECTS[usize::from(form) % SUBJECTS.len()];
    let memory = Arc::new(Memory(RwLock::new(subject.ram.clone())));
    let lies: Vec<[u8; 12]> = lies.as_chunks().0.iter().take(LIES_MAX).copied().collect();
    let (early, late) = lies.split_at(usize::from(before).min(lies.len()));
    early.iter().for_each(|lie| tell(&memory, subject, *lie));
    let Ok(mut guest) = Guest::attach(Arc::clone(&memory) as Arc<dyn PhysicalMemory>) else { return };
    ask_everything(&mut guest, subject.ring_gpa);
    late.iter().for_each(|lie| tell(&memory, subject, *lie));
    ask_everything(&mut guest, subject.ring_gpa);
}

/// Overwrites one word: its place, a kind, a correction, and a value or the place of another word.
fn tell(memory: &Memory, subject: &Subject, lie: [u8; 12]) {
    let [place_low, place_high, kind, correction, value @ ..] = lie;
    let word_at =
        |low, high| subject.words[usize::from(u16::from_le_bytes([low, high])) % subject.words.len()];
    let mut ram = memory.0.write().unwrap_or_else(PoisonError::into_inner);
    let place = word_at(place_low, place_high);
    let other = word_at(value[0], value[1]);
    let found = u64::from_le_bytes(std::array::from_fn(|at| ram[other + at]));
    let told = match kind % 8 {
        0 => u64::from_le_bytes(value),
        1 => value[0].into(),
        2 => u64::MAX,
        _ => found.wrapping_add_signed(i64::from(correction.cast_signed()) * 8),
    };
    ram[place..place + 8].copy_from_slice(&told.to_le_bytes());
}
