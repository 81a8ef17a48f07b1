// SPDX-License-Identifier: Apache-2.0
//! The one pass over resident RAM that finds where a kernel may be.

use memchr::memmem::Finder;

use crate::memory::PhysicalMemory;

/// Copied and searched at a time; stays in the second-level cache.
const BLOCK_BYTES: usize = 1 << 20;
/// Hits at most. A running guest has tens; one that wants to be scanned for long has more.
pub(crate) const HITS_MAX: usize = 4096;

/// Guest-physical addresses at which `pattern` occurs, ascending; the first [`HITS_MAX`] of them.
///
/// Reads resident extents only. A pattern that lies across two extents with a gap between is not found.
pub(crate) fn find(memory: &dyn PhysicalMemory, pattern: &[u8]) -> Vec<u64> {
    let finder = Finder::new(pattern);
    let overlap = pattern.len().saturating_sub(1);
    let mut hits = Vec::new();
    let mut block = vec![0; BLOCK_BYTES];
    for extent in memory.extents() {
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
        assert_eq!(find(&ram, b"abcd"), places.map(|place| place as u64));
        assert!(find(&ram, b"abcde").is_empty());
    }

    #[test]
    fn hits_are_bounded() {
        let ram = Ram(b"ab".repeat(BLOCK_BYTES));
        assert_eq!(find(&ram, b"ab").len(), HITS_MAX);
    }
}
