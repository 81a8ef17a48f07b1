// SPDX-License-Identifier: Apache-2.0
//! Access to memory that a guest changes at any time.
//!
//! A [`Window`] is an address range of mapped guest memory, never a Rust reference to it. Fields of rings are read and
//! written by volatile or atomic operations of their natural size, bytes by block copies; so a guest that writes at
//! the same time can make a value wrong, but never torn into something else than bytes.

use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

/// `len` bytes of guest memory that stay mapped for `'m`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window<'m> {
    start: NonNull<u8>,
    len: usize,
    _mapping: PhantomData<&'m u8>,
}

// SAFETY: a window is an address; what it points to is shared with another machine anyway, and every access is one
// that tolerates writers.
unsafe impl Send for Window<'_> {}
// SAFETY: as above.
unsafe impl Sync for Window<'_> {}

impl<'m> Window<'m> {
    /// A window on `len` bytes at `start`.
    ///
    /// # Safety
    /// The bytes must be mapped, readable and writable, for `'m`, and no Rust reference to them may exist meanwhile.
    pub(crate) unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self { start, len, _mapping: PhantomData }
    }

    /// The same window without its lifetime, for keeping beside the `Arc` that holds the mapping.
    ///
    /// # Safety
    /// The caller must drop the result, and all copies of it, before the mapping.
    pub(crate) unsafe fn detach(self) -> Window<'static> {
        Window { start: self.start, len: self.len, _mapping: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the window starts in this process.
    pub(crate) fn address(&self) -> usize {
        self.start.as_ptr().addr()
    }

    /// Whether the window starts at a multiple of `align` in this process.
    pub(crate) fn is_aligned(&self, align: usize) -> bool {
        self.address().is_multiple_of(align)
    }

    /// The address of a `T` at `offset`, checked.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> *mut T {
        let end = offset.checked_add(size_of::<T>());
        assert!(end.is_some_and(|end| end <= self.len), "fields lie in their window");
        // SAFETY: `offset` is within the window, which is one mapping.
        let field = unsafe { self.start.as_ptr().add(offset) }.cast::<T>();
        assert!(field.is_aligned(), "fields are aligned");
        field
    }

    #[inline(always)]
    fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `at` checked bounds and alignment, and an atomic tolerates other writers.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }
    }

    /// Reads what another machine publishes; what it wrote before is visible afterwards.
    #[inline(always)]
    pub(crate) fn acquire_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.atomic_u16(offset).load(Ordering::Acquire))
    }

    /// Publishes to another machine; what was written before is visible to it first.
    #[inline(always)]
    pub(crate) fn release_u16(&self, offset: usize, value: u16) {
        self.atomic_u16(offset).store(value.to_le(), Ordering::Release);
    }

    #[inline(always)]
    pub(crate) fn read_u16(&self, offset: usize) -> u16 {
        u16::from_le(self.atomic_u16(offset).load(Ordering::Relaxed))
    }

    #[inline(always)]
    pub(crate) fn write_u16(&self, offset: usize, value: u16) {
        self.atomic_u16(offset).store(value.to_le(), Ordering::Relaxed);
    }

    /// Sets bits that another machine clears; what was written before is visible to it first.
    pub(crate) fn set_bits(&self, offset: usize, bits: u8) {
        // SAFETY: `at` checked bounds, and an atomic tolerates other writers.
        unsafe { AtomicU8::from_ptr(self.at(offset)) }.fetch_or(bits, Ordering::Release);
    }

    #[inline(always)]
    fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: `at` checked bounds and alignment, and an atomic tolerates other writers.
        unsafe { AtomicU64::from_ptr(self.at(offset)) }
    }

    /// As [`Window::acquire_u16`].
    #[inline(always)]
    pub(crate) fn acquire_u64(&self, offset: usize) -> u64 {
        u64::from_le(self.atomic_u64(offset).load(Ordering::Acquire))
    }

    /// As [`Window::release_u16`].
    #[inline(always)]
    pub(crate) fn release_u64(&self, offset: usize, value: u64) {
        self.atomic_u64(offset).store(value.to_le(), Ordering::Release);
    }

    #[inline(always)]
    pub(crate) fn read_u32(&self, offset: usize) -> u32 {
        let field = self.at::<u32>(offset);
        // SAFETY: `at` checked bounds and alignment; volatile, because the guest may write at the same time.
        u32::from_le(unsafe { ptr::read_volatile(field) })
    }

    #[inline(always)]
    pub(crate) fn read_u64(&self, offset: usize) -> u64 {
        let field = self.at::<u64>(offset);
        // SAFETY: `at` checked bounds and alignment; volatile, because the guest may write at the same time.
        u64::from_le(unsafe { ptr::read_volatile(field) })
    }

    /// Two words, one after the other.
    #[inline(always)]
    pub(crate) fn read_u64_pair(&self, offset: usize) -> [u64; 2] {
        let field = self.at::<[u64; 2]>(offset).cast::<u64>();
        // SAFETY: `at` checked bounds and alignment; volatile, because the guest may write at the same time.
        let first = unsafe { ptr::read_volatile(field) };
        // SAFETY: the second word lies within the bounds that were checked.
        let second = unsafe { field.add(1) };
        // SAFETY: as for the first.
        [u64::from_le(first), u64::from_le(unsafe { ptr::read_volatile(second) })]
    }

    /// Two words, one after the other.
    #[inline(always)]
    pub(crate) fn write_u32_pair(&self, offset: usize, values: [u32; 2]) {
        let field = self.at::<[u32; 2]>(offset).cast::<u32>();
        // SAFETY: `at` checked bounds and alignment; volatile, because the guest may read at the same time.
        unsafe { ptr::write_volatile(field, values[0].to_le()) };
        // SAFETY: the second word lies within the bounds that were checked.
        let second = unsafe { field.add(1) };
        // SAFETY: as for the first.
        unsafe { ptr::write_volatile(second, values[1].to_le()) };
    }

    #[inline(always)]
    pub(crate) fn write_u32(&self, offset: usize, value: u32) {
        let field = self.at::<u32>(offset);
        // SAFETY: `at` checked bounds and alignment; volatile, because the guest may read at the same time.
        unsafe { ptr::write_volatile(field, value.to_le()) }
    }

    /// The part from `offset` on, empty if that is past the end.
    #[inline(always)]
    pub(crate) fn skip(&self, offset: usize) -> Self {
        let offset = offset.min(self.len);
        // SAFETY: `offset` is within the window or at its end.
        let start = unsafe { self.start.add(offset) };
        Self { start, len: self.len - offset, _mapping: PhantomData }
    }

    /// Copies the first bytes out, as many as both have; says how many.
    #[inline(always)]
    pub(crate) fn copy_out(&self, out: &mut [u8]) -> usize {
        let len = self.len.min(out.len());
        // SAFETY: both sides have `len` bytes; `out` is private memory and cannot overlap a mapping.
        unsafe { ptr::copy_nonoverlapping(self.start.as_ptr(), out.as_mut_ptr(), len) };
        len
    }

    /// Copies the first bytes in, as many as both have; says how many.
    #[inline(always)]
    pub(crate) fn copy_in(&self, bytes: &[u8]) -> usize {
        let len = self.len.min(bytes.len());
        // SAFETY: both sides have `len` bytes; `bytes` is private memory and cannot overlap a mapping.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr(), len) };
        len
    }

    /// Copies the first few bytes out, of which the compiler knows the number; nothing if there are fewer.
    #[inline(always)]
    pub(crate) fn take<const N: usize>(&self) -> Option<[u8; N]> {
        if self.len < N {
            return None;
        }
        let mut bytes = [0; N];
        // SAFETY: the window has `N` bytes; `bytes` is private memory and cannot overlap a mapping.
        unsafe { ptr::copy_nonoverlapping(self.start.as_ptr(), bytes.as_mut_ptr(), N) };
        Some(bytes)
    }

    /// Writes the first few bytes, of which the compiler knows the number; `false`, and nothing written, if they do not
    /// fit.
    #[inline(always)]
    pub(crate) fn put<const N: usize>(&self, bytes: [u8; N]) -> bool {
        if self.len < N {
            return false;
        }
        // SAFETY: the window has `N` bytes; `bytes` is private memory and cannot overlap a mapping.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr(), N) };
        true
    }

    /// Copies the first bytes of `from` here, as many as both have; says how many. The two may overlap: a guest can give
    /// one buffer for both directions.
    #[inline(always)]
    pub(crate) fn copy_from(&self, from: &Window<'_>) -> usize {
        let len = self.len.min(from.len);
        // SAFETY: both sides have `len` bytes, and the copy allows overlap.
        unsafe { ptr::copy(from.start.as_ptr(), self.start.as_ptr(), len) };
        len
    }

    /// Has the cache line at `offset` become this processor's alone by writing a byte there, which is on its way while other
    /// work goes on. Of a line that another processor has read meanwhile, [`Window::prefetch_to_write`] does not do that (AMD
    /// Zen 4): then what is really written waits, each line behind the one before.
    #[inline(always)]
    pub(crate) fn claim(&self, offset: usize) {
        self.skip(offset).put([0]);
    }

    /// Hints that the cache line at `offset` will be needed.
    #[inline(always)]
    pub(crate) fn prefetch(&self, offset: usize) {
        if offset < self.len {
            platform::prefetch(self.start.addr().get() + offset);
        }
    }

    /// Hints that the cache line at `offset` will be written.
    #[inline(always)]
    pub(crate) fn prefetch_to_write(&self, offset: usize) {
        if offset < self.len {
            // SAFETY: `offset` is within the window.
            let byte = unsafe { self.start.add(offset) };
            // SAFETY: the byte is mapped; the reference lives for this call, in which nothing is accessed through it.
            platform::prefetch_to_write(unsafe { byte.cast::<AtomicU8>().as_ref() });
        }
    }
}
