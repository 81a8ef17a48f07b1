// SPDX-License-Identifier: Apache-2.0
//! Whether a thread had to wait.

use std::mem::MaybeUninit;

/// How often the calling thread has waited for something so far, in the kernel's count: a page that had to come from a disk,
/// from swap or from whoever handles the faults of some memory (userfaultfd), a lock, a descriptor. Losing the processor to
/// other threads does not count.
#[must_use]
pub fn times_blocked() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole `rusage`, which the call fills.
    let failed = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    debug_assert_eq!(failed, 0, "the arguments are legal");
    // SAFETY: any bytes are an `rusage`, and it was filled with zeros before.
    let usage = unsafe { usage.assume_init() };
    u64::try_from(usage.ru_nvcsw).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn waiting_counts_and_losing_the_processor_does_not() {
        let before = times_blocked();
        (0..100).for_each(|_| std::thread::yield_now());
        assert_eq!(times_blocked(), before);
        std::thread::sleep(Duration::from_millis(1));
        assert!(times_blocked() > before);
    }
}
