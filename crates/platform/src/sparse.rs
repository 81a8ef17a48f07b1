// SPDX-License-Identifier: Apache-2.0
//! Where a sparse file has data.

use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Calls `each` with every range of bytes within `range` that exists in the file, in ascending order; holes, which read
/// as zeros and take no space, are left out. A file that cannot tell counts as existing whole.
///
/// Moves the file's position, so that reads must name theirs.
pub fn for_each_data(file: impl AsFd, range: Range<u64>, mut each: impl FnMut(Range<u64>)) {
    let Range { start: mut at, end } = range;
    while at < end {
        let data = match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data.max(at),
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        if data >= end {
            break;
        }
        let hole = seek(&file, SeekFrom::Hole(data)).unwrap_or(end).min(end);
        if hole <= data {
            break;
        }
        each(data..hole);
        at = hole;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    const PAGE: u64 = 4096;

    fn data(file: &File, range: Range<u64>) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        for_each_data(file, range, |data| found.push(data));
        found
    }

    #[test]
    fn data_is_told_and_holes_are_not() {
        let file = File::from(memfd_create("sparse", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(64 * PAGE).unwrap();
        assert!(data(&file, 0..64 * PAGE).is_empty());
        for page in [3, 4, 40] {
            file.write_all_at(&[1], page * PAGE).unwrap();
        }
        assert_eq!(data(&file, 0..64 * PAGE), [3 * PAGE..5 * PAGE, 40 * PAGE..41 * PAGE]);
        assert_eq!(data(&file, 4 * PAGE..40 * PAGE + 7), [4 * PAGE..5 * PAGE, 40 * PAGE..40 * PAGE + 7]);
        assert!(data(&file, 5 * PAGE..40 * PAGE).is_empty());
    }

    #[test]
    fn file_that_cannot_tell_exists_whole() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let mut found = Vec::new();
        for_each_data(&reader, 0..PAGE, |data| found.push(data));
        assert_eq!(found, std::iter::once(0..PAGE).collect::<Vec<_>>());
    }
}
