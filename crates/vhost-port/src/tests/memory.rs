// SPDX-License-Identifier: Apache-2.0
//! Memory tables, and looking at memory without making it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{MemfdFlags, memfd_create};

use super::driver::{MEMORY_BYTES, memfd, region};
use crate::memory::{GuestMemory, MapError, REGIONS_MAX, RegionRequest, Unmapped};

const PAGE: u64 = 4096;

/// Two halves of one file with a gap between them in guest addresses, as VMMs leave one below 4 GiB.
fn halves(file: &File) -> Vec<RegionRequest> {
    let half = MEMORY_BYTES / 2;
    let part = |gpa: u64, offset: u64| RegionRequest {
        gpa,
        size_bytes: half,
        vmm_address: 0x5000_0000 + offset,
        file_offset: offset,
        file: file.try_clone().unwrap(),
    };
    vec![part(1 << 32, half), part(0, 0)]
}

#[test]
fn looking_at_memory_does_not_make_it_grow() {
    let file = memfd(MEMORY_BYTES);
    file.write_all_at(b"hello", 3 * PAGE).unwrap();
    file.write_all_at(b"world", MEMORY_BYTES / 2 + PAGE).unwrap();
    let memory = GuestMemory::map(halves(&file)).unwrap();
    let blocks = || file.metadata().unwrap().blocks();
    let before = blocks();
    for _ in 0..2 {
        let mut all = vec![0xff; (MEMORY_BYTES / 2) as usize];
        memory.read(0, &mut all).unwrap();
        assert_eq!(&all[3 * PAGE as usize..][..6], b"hello\0");
        assert_eq!(all.iter().filter(|byte| **byte != 0).count(), 5);
        memory.read(1 << 32, &mut all).unwrap();
        assert_eq!(&all[PAGE as usize..][..5], b"world");
        let extents = memory.extents();
        assert_eq!(extents, [3 * PAGE..4 * PAGE, (1 << 32) + PAGE..(1 << 32) + 2 * PAGE]);
        assert_eq!(blocks(), before);
    }
    // Pages that appear later are seen at once, through the file or through the mapping.
    file.write_all_at(b"later", 9 * PAGE + 4094).unwrap();
    let mut bytes = [0; 5];
    memory.read(9 * PAGE + 4094, &mut bytes).unwrap();
    assert_eq!(&bytes, b"later");
}

#[test]
fn reads_end_where_memory_does() {
    let memory = GuestMemory::map(halves(&memfd(MEMORY_BYTES))).unwrap();
    let half = MEMORY_BYTES / 2;
    let mut bytes = [0; 8];
    assert_eq!(memory.read(half - 8, &mut bytes), Ok(()));
    assert_eq!(memory.read(half - 7, &mut bytes), Err(Unmapped { gpa: half }));
    assert_eq!(memory.read((1 << 32) - 1, &mut bytes), Err(Unmapped { gpa: (1 << 32) - 1 }));
    assert_eq!(memory.read(u64::MAX, &mut bytes), Err(Unmapped { gpa: u64::MAX }));
    assert_eq!(memory.read(u64::MAX, &mut []), Ok(()));
    assert!(memory.window(half - 8, 8).is_some());
    for (gpa, len) in [(half - 8, 9), (half, 0), (u64::MAX, 1), (0, usize::MAX), (1 << 33, 1)] {
        assert!(memory.window(gpa, len).is_none(), "{gpa:#x} {len}");
    }
    assert_eq!(memory.ranges().collect::<Vec<_>>(), [0..half, 1 << 32..(1 << 32) + half]);
    assert_eq!(memory.size_bytes(), MEMORY_BYTES);
}

#[test]
fn the_vmms_addresses_are_translated() {
    let memory = GuestMemory::map(halves(&memfd(MEMORY_BYTES))).unwrap();
    assert_eq!(memory.gpa_of(0x5000_0000), Some(0));
    assert_eq!(memory.gpa_of(0x5000_0000 + MEMORY_BYTES / 2 + 5), Some((1 << 32) + 5));
    assert_eq!(memory.gpa_of(0x5000_0000 + MEMORY_BYTES), None);
    assert_eq!(memory.gpa_of(0x4fff_ffff), None);
}

#[test]
fn impossible_tables_are_refused() {
    let file = memfd(MEMORY_BYTES);
    let change = |change: fn(&mut RegionRequest)| {
        let mut request = region(&file);
        change(&mut request);
        GuestMemory::map(vec![request]).unwrap_err()
    };
    assert!(matches!(change(|r| r.size_bytes = 0), MapError::Shape { .. }));
    assert!(matches!(change(|r| r.gpa = u64::MAX - 5), MapError::Shape { .. }));
    assert!(matches!(change(|r| r.vmm_address = u64::MAX - 5), MapError::Shape { .. }));
    assert!(matches!(change(|r| r.file_offset = u64::MAX - 5), MapError::Shape { .. }));
    assert!(matches!(change(|r| r.file_offset = 100), MapError::Shape { .. }));
    assert!(matches!(change(|r| r.size_bytes = 1 << 50), MapError::Shape { .. }));
    assert!(matches!(change(|r| r.size_bytes += 1), MapError::BeyondFile { .. }));
    assert!(matches!(change(|r| r.file_offset = PAGE), MapError::BeyondFile { .. }));
    let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
    let mut request = region(&file);
    request.file = File::from(OwnedFd::from(socket));
    assert!(matches!(GuestMemory::map(vec![request]), Err(MapError::BeyondFile { .. })));

    assert!(matches!(GuestMemory::map(vec![]), Err(MapError::Count { count: 0 })));
    let many = (0..=REGIONS_MAX).map(|_| region(&file)).collect();
    assert!(matches!(GuestMemory::map(many), Err(MapError::Count { .. })));
    let mut overlap = halves(&file);
    overlap[0].gpa = MEMORY_BYTES / 2 - 1;
    assert!(matches!(GuestMemory::map(overlap), Err(MapError::Overlap { .. })));
    let mut overlap = halves(&file);
    overlap[0].vmm_address -= 1;
    assert!(matches!(GuestMemory::map(overlap), Err(MapError::Overlap { .. })));
}

#[test]
fn memory_that_can_be_shrunk_under_us_is_reported() {
    assert!(GuestMemory::map(halves(&memfd(MEMORY_BYTES))).unwrap().sealed());
    let file = File::from(memfd_create("unsealed", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(MEMORY_BYTES).unwrap();
    assert!(!GuestMemory::map(halves(&file)).unwrap().sealed());
    let mut mixed = halves(&file);
    mixed[0].file = memfd(MEMORY_BYTES);
    assert!(!GuestMemory::map(mixed).unwrap().sealed());
}
