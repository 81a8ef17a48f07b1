// SPDX-License-Identifier: Apache-2.0
//! Memory in huge pages: tables of which any place may be asked for next cost a walk of the page tables each time, in a
//! virtual host two, and 512 times fewer entries mostly stay in the processor's cache of them.

/// Size of a huge page on x86-64, in bytes.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Has the system put memory into huge pages now, as far as it goes: whole ones within it, where there is memory in one
/// piece, Linux 6.1 on (`MADV_COLLAPSE`, whatever the system's settings for transparent huge pages say). Tells whether all
/// whole ones are.
///
/// Takes the time of copying what is there.
pub fn in_huge_pages<T>(memory: &[T]) -> bool {
    let range = memory.as_ptr_range();
    let (start, end) = (range.start as usize, range.end as usize);
    let start = start.next_multiple_of(HUGE_PAGE_BYTES);
    let end = end - end % HUGE_PAGE_BYTES;
    if start >= end {
        return false;
    }
    let start = range.start.cast::<u8>().wrapping_add(start - range.start as usize);
    // SAFETY: the range lies within memory that is lent for the time of the call; the advice changes where its bytes are
    // physically, never what they are.
    let advised =
        unsafe { libc::madvise(start.cast_mut().cast(), end - start as usize, libc::MADV_COLLAPSE) };
    advised == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_what_it_holds() {
        let mut memory: Vec<u64> = (0..(4 * HUGE_PAGE_BYTES / 8) as u64).collect();
        // Whether it can depends on the system.
        let is_huge = in_huge_pages(&memory);
        assert!(memory.iter().enumerate().all(|(at, word)| *word == at as u64), "huge: {is_huge}");
        memory[7] = 1;
        assert!(!in_huge_pages(&memory[..1000]), "there is no whole huge page in it");
    }
}
