// SPDX-License-Identifier: Apache-2.0
//! A table that outlives its process.
//!
//! The table is a file mapped into memory. Whoever holds the file's lock owns the table. When the owner ends, in any way
//! whatever, the kernel releases the lock and keeps the contents, so the next process takes over what the last one
//! wrote: entries that it was killed in the middle of writing included, which the entry type must be able to tell.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::slice;

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, fallocate, flock, fstatfs};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::huge::HUGE_PAGE_BYTES;

/// `f_type` of a tmpfs, and of a ramfs (statfs(2)).
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// A fixed number of `T`, shared with the process that comes next. Used as a slice.
///
/// Nobody else may write to the file: it is made readable and writable by its user alone, and a lock keeps a second
/// owner out. It begins where a huge page can ([`crate::in_huge_pages`]). All its blocks are allocated when it is opened, so that a full file system fails there and not at a store.
#[derive(Debug)]
pub struct SharedTable<T> {
    entries: NonNull<T>,
    count: usize,
    /// Where the range of addresses begins that the table lies in.
    reserved: *mut c_void,
    /// Holds the lock for as long as the mapping lives.
    file: File,
    _owns: PhantomData<T>,
}

/// Why a table cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file cannot be opened, sized or mapped.
    #[error("cannot map table {path:?}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process owns the table.
    #[error("table {path:?} is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file holds another number or kind of entries; create it anew.
    #[error("table {path:?} has {found_bytes} bytes instead of {expected_bytes}")]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// What the entries asked for need.
        expected_bytes: u64,
        /// What the file has.
        found_bytes: u64,
    },
    /// No entries, entries without size, or more bytes than can be addressed.
    #[error("a table cannot have {count} entries of {entry_bytes} bytes")]
    Shape {
        /// Entries asked for.
        count: usize,
        /// Size of one.
        entry_bytes: usize,
    },
}

impl<T: FromBytes + IntoBytes + Immutable> SharedTable<T> {
    /// Makes a table of `count` zeroed entries, replacing what the file held.
    ///
    /// # Errors
    /// When another process owns the table, or the file cannot be made.
    pub fn create(path: &Path, count: usize) -> Result<Self, TableError> {
        let size_bytes = size_bytes::<T>(count)?;
        let file = lock(path, OFlags::CREATE)?;
        file.set_len(0).and_then(|()| file.set_len(size_bytes)).map_err(failed(path))?;
        Self::map(path, file, count, size_bytes)
    }

    /// Takes over the table that another process left.
    ///
    /// # Errors
    /// When there is none ([`TableError::Io`] of kind `NotFound`), another process owns it, or it was made for another
    /// number or size of entries.
    pub fn open(path: &Path, count: usize) -> Result<Self, TableError> {
        let size_bytes = size_bytes::<T>(count)?;
        let file = lock(path, OFlags::empty())?;
        let found_bytes = file.metadata().map_err(failed(path))?.size();
        if found_bytes != size_bytes {
            return Err(TableError::WrongSize { path: path.into(), expected_bytes: size_bytes, found_bytes });
        }
        Self::map(path, file, count, size_bytes)
    }

    fn map(path: &Path, file: File, count: usize, size_bytes: u64) -> Result<Self, TableError> {
        let io = |errno: Errno| failed(path)(errno.into());
        fallocate(&file, FallocateFlags::empty(), 0, size_bytes).map_err(io)?;
        let len = count * size_of::<T>();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // More addresses than needed, so that the table can begin where a huge page can.
        // SAFETY: the kernel chooses an address where nothing is mapped.
        let reserved = unsafe {
            mmap_anonymous(ptr::null_mut(), len + HUGE_PAGE_BYTES, ProtFlags::empty(), MapFlags::PRIVATE)
        };
        let reserved = reserved.map_err(io)?;
        let start = reserved.wrapping_byte_add(reserved.align_offset(HUGE_PAGE_BYTES));
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the range lies within what was just reserved, where nobody has a reference; the length is the file's.
        let map = unsafe { mmap(start, len, protection, flags, &file, 0) };
        let entries = NonNull::new(map.map_err(io)?.cast()).expect("a mapping is never at address zero");
        Ok(Self { entries, count, reserved, file, _owns: PhantomData })
    }
}

impl<T> SharedTable<T> {
    /// Whether the file lies in memory. One on a disk works, too, but stores to it wait now and then, for the system
    /// notes each page that is to be written back.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        fstatfs(&self.file).is_ok_and(|system| MEMORY_FILE_SYSTEMS.contains(&(system.f_type as u64)))
    }
}

impl<T> Deref for SharedTable<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `count` entries (checked in `map`'s callers), is page-aligned, lives as long as
        // `self`, any bytes are a valid `T` (`FromBytes`), and the lock keeps every other writer out.
        unsafe { slice::from_raw_parts(self.entries.as_ptr(), self.count) }
    }
}

impl<T> DerefMut for SharedTable<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference.
        unsafe { slice::from_raw_parts_mut(self.entries.as_ptr(), self.count) }
    }
}

impl<T> Drop for SharedTable<T> {
    fn drop(&mut self) {
        // SAFETY: this is the range reserved in `map`, of this length, and nothing borrows from it any more.
        let unmapped = unsafe { munmap(self.reserved, self.count * size_of::<T>() + HUGE_PAGE_BYTES) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can always be removed");
    }
}

// SAFETY: the table owns its entries like a boxed slice does.
unsafe impl<T: Send> Send for SharedTable<T> {}
// SAFETY: the table lends its entries like a boxed slice does.
unsafe impl<T: Sync> Sync for SharedTable<T> {}

/// Bytes of the whole table.
fn size_bytes<T>(count: usize) -> Result<u64, TableError> {
    let shape = || TableError::Shape { count, entry_bytes: size_of::<T>() };
    let size = count.checked_mul(size_of::<T>()).filter(|size| (1..=isize::MAX as usize).contains(size));
    size.map(|size| size as u64).ok_or_else(shape)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> TableError {
    move |source| TableError::Io { path: path.into(), source }
}

/// Opens the file, never through a symbolic link, and takes its lock.
fn lock(path: &Path, extra: OFlags) -> Result<File, TableError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | extra;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR);
    let file: File = file.map_err(|errno| failed(path)(errno.into()))?.into();
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(TableError::InUse { path: path.into() }),
        Err(errno) => Err(failed(path)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that no other test uses, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("platform-table-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_next_owner_finds_what_the_last_one_wrote() {
        let path = Scratch::new("takeover");
        let mut table = SharedTable::<[u64; 8]>::create(&path.0, 100).unwrap();
        assert!(table.iter().flatten().all(|word| *word == 0));
        table[99][7] = 42;
        drop(table);
        assert_eq!(path.0.metadata().unwrap().mode() & 0o777, 0o600);

        let table = SharedTable::<[u64; 8]>::open(&path.0, 100).unwrap();
        assert_eq!((table.len(), table[99][7]), (100, 42));
        drop(table);

        let table = SharedTable::<[u64; 8]>::create(&path.0, 100).unwrap();
        assert_eq!(table[99][7], 0);
    }

    #[test]
    fn a_table_in_memory_is_told_from_one_on_a_disk() {
        let in_memory = |dir: &str| {
            let kind = rustix::fs::statfs(dir).map(|system| system.f_type as u64);
            kind.is_ok_and(|kind| MEMORY_FILE_SYSTEMS.contains(&kind))
        };
        for dir in ["/dev/shm", "/proc/self/cwd"] {
            let path = Scratch(format!("{dir}/platform-table-{}", std::process::id()).into());
            if let Ok(table) = SharedTable::<u64>::create(&path.0, 4) {
                assert_eq!(table.is_in_memory(), in_memory(dir), "{dir}");
            }
        }
    }

    #[test]
    fn a_killed_owner_leaves_a_table_that_opens() {
        let path = Scratch::new("killed");
        SharedTable::<u64>::create(&path.0, 4).unwrap()[3] = 9;
        // A child that inherits the lock's description and is killed stands for the owner.
        let file = lock(&path.0, OFlags::empty()).unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("60").stdin(file.try_clone().unwrap()).spawn().unwrap();
        drop(file);
        assert!(matches!(SharedTable::<u64>::open(&path.0, 4), Err(TableError::InUse { .. })));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(SharedTable::<u64>::open(&path.0, 4).unwrap()[3], 9);
    }

    #[test]
    fn a_second_owner_is_refused() {
        let path = Scratch::new("second");
        let _owner = SharedTable::<u32>::create(&path.0, 1).unwrap();
        assert!(matches!(SharedTable::<u32>::open(&path.0, 1), Err(TableError::InUse { .. })));
        assert!(matches!(SharedTable::<u32>::create(&path.0, 1), Err(TableError::InUse { .. })));
    }

    #[test]
    fn another_size_is_refused_and_missing_files_are_named() {
        let path = Scratch::new("size");
        let missing = SharedTable::<u32>::open(&path.0, 1).unwrap_err();
        assert!(
            matches!(&missing, TableError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
        );
        drop(SharedTable::<u32>::create(&path.0, 2).unwrap());
        let wrong = SharedTable::<u32>::open(&path.0, 3).unwrap_err();
        assert!(matches!(wrong, TableError::WrongSize { expected_bytes: 12, found_bytes: 8, .. }));
    }

    #[test]
    fn impossible_shapes_and_symbolic_links_are_refused() {
        let path = Scratch::new("shape");
        for count in [0, usize::MAX, usize::MAX / 4] {
            assert!(matches!(SharedTable::<u32>::create(&path.0, count), Err(TableError::Shape { .. })));
        }
        assert!(matches!(SharedTable::<()>::create(&path.0, 1), Err(TableError::Shape { .. })));
        std::os::unix::fs::symlink("/dev/null", &path.0).unwrap();
        assert!(matches!(SharedTable::<u32>::create(&path.0, 1), Err(TableError::Io { .. })));
    }
}
