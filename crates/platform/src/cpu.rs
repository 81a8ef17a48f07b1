// SPDX-License-Identifier: Apache-2.0
//! Where a thread runs, and what its cache holds.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Binds the calling thread to one processor, counted from zero.
///
/// # Errors
/// When the processor does not exist, is offline, or is not in the set that the process may use.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Asks the processor to fetch the cache line at an address, which need not be anybody's; only a hint.
#[inline(always)]
pub fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch neither faults nor changes anything, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// As [`prefetch`], for a cache line that will be written: it is taken from other processors' caches at once, not first
/// shared with them.
#[inline(always)]
pub fn prefetch_to_write<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        let line = std::ptr::from_ref(value);
        // SAFETY: a prefetch neither faults nor changes anything, and the address comes from a live reference. Processors
        // without this instruction take it for one that does nothing. (The intrinsic needs a feature that the target
        // does not promise, and gives an ordinary prefetch without it.)
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinning_accepts_only_processors_that_exist() {
        std::thread::spawn(|| {
            let allowed = rustix::thread::sched_getaffinity(None).unwrap();
            let cpu = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
            pin_current_thread(cpu).unwrap();
            let now = rustix::thread::sched_getaffinity(None).unwrap();
            assert_eq!(now.count(), 1);
            assert!(now.is_set(cpu));
            assert!(pin_current_thread(CpuSet::MAX_CPU).is_err());
            assert!(pin_current_thread(CpuSet::MAX_CPU - 1).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn prefetch_changes_nothing() {
        let values = [1_u64, 2, 3];
        prefetch(std::ptr::from_ref(&values[1]).addr());
        prefetch(usize::MAX);
        prefetch_to_write(&values[2]);
        assert_eq!(values, [1, 2, 3]);
    }
}
