// SPDX-License-Identifier: Apache-2.0
//! Finding where a kernel may be in resident RAM: by samples, or by one pass over everything.
//!
//! A kernel's symbol table holds an array of some hundred KiB of 32-bit offsets, which ascend or descend in small steps.
//! Little else in memory does for so long, and a few words show it. So looking at one line in every
//! [`SAMPLE_STEP_BYTES`] tells where symbol tables can be, and only there memory is read whole: the time to find a kernel
//! hardly grows with RAM.

use std::ops::Range;

use memchr::memmem::Finder;

use crate::memory::PhysicalMemory;

/// Copied and searched at a time; stays in the second-level cache.
const BLOCK_BYTES: usize = 1 << 20;
/// Hits at most. A running guest has tens; one that wants to be scanned for long has more.
pub(crate) const HITS_MAX: usize = 4096;

/// One sample is taken in this many bytes: two in a row in the array of any kernel with more than 49,000 symbols.
const SAMPLE_STEP_BYTES: u64 = 64 << 10;
/// Words of a sample.
const SAMPLE_WORDS: usize = 16;
/// Largest step between two offsets: longer than nearly all functions and variables.
const OFFSET_STEP_MAX: i32 = 1 << 17;
/// What a step can be in the wrong direction: offsets from their own place lose four bytes with each place.
const OFFSET_BACKSTEP_MAX: i32 = 4;
/// How much of a sample's steps may be zero: several symbols of one address.
const ZERO_STEPS_MAX: usize = SAMPLE_WORDS / 2;
/// How far before and after a sample the rest of its symbol table can lie.
const TABLE_BEFORE_BYTES: u64 = 4 << 20;
const TABLE_AFTER_BYTES: u64 = 12 << 20;
/// Most of memory that samples may send one to; beyond, they tell nothing.
const LIKELY_BYTES_MAX: u64 = 256 << 20;

/// The ranges in which symbol tables can be, as samples show; `None` if they show nothing, or too much.
pub(crate) fn likely(memory: &dyn PhysicalMemory, extents: &[Range<u64>]) -> Option<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut likely_bytes = 0;
    for extent in extents {
        let mut at = extent.start.next_multiple_of(SAMPLE_STEP_BYTES);
        let mut was_likely = false;
        while at < extent.end {
            // A single sample may be of anything; of a symbol table's array there are several in a row.
            let is_likely = is_of_offsets(memory, at);
            if is_likely && was_likely {
                let start = at.saturating_sub(TABLE_BEFORE_BYTES).max(extent.start);
                let end = at.saturating_add(TABLE_AFTER_BYTES).min(extent.end);
                match ranges.last_mut().filter(|last| last.end >= start) {
                    Some(last) => {
                        likely_bytes += end - last.end;
                        last.end = end;
                    }
                    None => {
                        likely_bytes += end - start;
                        ranges.push(start..end);
                    }
                }
                if likely_bytes > LIKELY_BYTES_MAX {
                    return None;
                }
            }
            was_likely = is_likely;
            at += SAMPLE_STEP_BYTES;
        }
    }
    (!ranges.is_empty()).then_some(ranges)
}

/// Whether what lies at `gpa` ascends, or descends, as offsets of symbols do.
fn is_of_offsets(memory: &dyn PhysicalMemory, gpa: u64) -> bool {
    let mut bytes = [0; SAMPLE_WORDS * 4];
    if memory.read_once(gpa, &mut bytes).is_err() {
        return false;
    }
    let words = bytes.as_chunks().0;
    let (mut least, mut most, mut zeros) = (0, 0, 0);
    for pair in words.windows(2) {
        let step = i32::from_le_bytes(pair[1]).wrapping_sub(i32::from_le_bytes(pair[0]));
        least = least.min(step);
        most = most.max(step);
        zeros += usize::from(step == 0);
    }
    let ascend = least >= -OFFSET_BACKSTEP_MAX && most <= OFFSET_STEP_MAX;
    let descend = least >= -OFFSET_STEP_MAX && most <= 0;
    (ascend || descend) && zeros <= ZERO_STEPS_MAX
}

/// Guest-physical addresses at which `pattern` occurs, ascending; the first [`HITS_MAX`] of them.
///
/// Reads the given extents only. A pattern that lies across two extents with a gap between is not found.
pub(crate) fn find(memory: &dyn PhysicalMemory, extents: &[Range<u64>], pattern: &[u8]) -> Vec<u64> {
    let finder = Finder::new(pattern);
    let overlap = pattern.len().saturating_sub(1);
    let mut hits = Vec::new();
    let mut block = vec![0; BLOCK_BYTES];
    for extent in extents {
        let mut at = extent.start;
        while at < extent.end {
            let len = usize::try_from(extent.end - at).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            let bytes = &mut block[..len];
            if memory.read(at, bytes).is_ok() {
                let room = HITS_MAX - hits.len();
                hits.extend(finder.find_iter(bytes).take(room).map(|offset| at + offset as u64));
            }
            if len < BLOCK_BYTES || hits.len() == HITS_MAX {
                break;
            }
            at += (BLOCK_BYTES - overlap) as u64;
        }
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::fixture::Ram;

    #[test]
    fn patterns_across_block_ends_are_found_once() {
        let mut ram = Ram(vec![0; 2 * BLOCK_BYTES + 100]);
        let places = [0, BLOCK_BYTES - 3, 2 * BLOCK_BYTES + 96];
        for place in places {
            ram.0[place..place + 4].copy_from_slice(b"abcd");
        }
        assert_eq!(find(&ram, &ram.extents(), b"abcd"), places.map(|place| place as u64));
        assert!(find(&ram, &ram.extents(), b"abcde").is_empty());
    }

    #[test]
    fn hits_are_bounded() {
        let ram = Ram(b"ab".repeat(BLOCK_BYTES));
        assert_eq!(find(&ram, &ram.extents(), b"ab").len(), HITS_MAX);
    }

    /// RAM made up word by word, from a word's number.
    struct MadeUp(u64, Box<dyn Fn(u32) -> u32 + Send + Sync>);

    impl PhysicalMemory for MadeUp {
        fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), crate::Unmapped> {
            let first = u32::try_from(gpa / 4).map_err(|_| crate::Unmapped)?;
            for (word, bytes) in (first..).zip(out.chunks_mut(4)) {
                bytes.copy_from_slice(&self.1(word).to_le_bytes()[..bytes.len()]);
            }
            Ok(())
        }

        fn extents(&self) -> Vec<Range<u64>> {
            std::iter::once(0..self.0).collect()
        }
    }

    fn noise(word: u32) -> u32 {
        word.wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(2_246_822_519)
    }

    const PLACE: u64 = 40 << 20;

    /// Noise, but for 40,000 words that are what `offset` makes of their number.
    fn with_offsets(offset: fn(u32) -> u32) -> MadeUp {
        let first = u32::try_from(PLACE / 4).unwrap();
        let word =
            move |word| if (first..first + 40_000).contains(&word) { offset(word) } else { noise(word) };
        MadeUp(64 << 20, Box::new(word))
    }

    #[test]
    fn samples_show_where_offsets_ascend_or_descend() {
        let bumpy = |word: u32| word.wrapping_mul(1600).wrapping_add(noise(word) % 1600);
        for offset in [
            bumpy,
            |word: u32| !word.wrapping_mul(64),
            |word: u32| (word / 2).wrapping_mul(1024).wrapping_sub(word).wrapping_mul(4),
        ] {
            let memory = with_offsets(offset);
            let ranges = likely(&memory, &memory.extents()).expect("they show");
            let [range] = &ranges[..] else { panic!("{ranges:x?}") };
            assert!(range.start <= PLACE - (3 << 20) && range.end >= PLACE + (11 << 20), "{range:x?}");
        }
        for other in [noise, |_| 7, |word: u32| word << 20, |word: u32| noise(word) % 4096] {
            let memory = with_offsets(other);
            assert_eq!(likely(&memory, &memory.extents()), None);
        }
    }

    #[test]
    fn memory_full_of_offsets_tells_nothing() {
        let memory = MadeUp(2 * LIKELY_BYTES_MAX, Box::new(|word| word.wrapping_mul(16)));
        assert_eq!(likely(&memory, &memory.extents()), None);
    }
}
