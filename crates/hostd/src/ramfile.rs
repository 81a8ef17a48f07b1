// SPDX-License-Identifier: Apache-2.0
//! A guest's RAM in a file: shared by a running VMM (`memory-backend-file,share=on`, or a memfd through
//! `/proc/PID/fd/N`), or a dump (raw, LiME, or an ELF core as of QEMU's `dump-guest-memory`).
//!
//! The file is opened for reading and read by position, never mapped; holes stay holes. A raw file does not say at
//! which guest addresses its bytes belong. There are three ways that PC machines lay out RAM, and [`open`] gives those
//! that the size allows, the likeliest first: the one in which a kernel is found is right.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmi::{PhysicalMemory, Unmapped};

/// What does not fit below the hole for devices continues here.
const HIGH_RAM_GPA: u64 = 4 << 30;
/// RAM below the hole on QEMU's `q35`, if there is more than [`Q35_WHOLE_MAX`].
const Q35_LOW_BYTES: u64 = 2 << 30;
/// RAM that `q35` leaves in one piece.
const Q35_WHOLE_MAX: u64 = 0xb000_0000;
/// RAM below the hole on QEMU's `pc` and cloud-hypervisor, if there is more.
const PC_LOW_BYTES: u64 = 3 << 30;
/// Most pieces that a dump may name.
const PIECES_MAX: usize = 256;

const ELF_MAGIC: &[u8] = b"\x7fELF\x02\x01";
const ELF_PROGRAM_HEADER_BYTES: usize = 56;
const ELF_LOADED: u32 = 1;
const LIME_MAGIC: &[u8] = b"EMiL\x01\0\0\0";
const LIME_HEADER_BYTES: u64 = 32;

/// Guest RAM read from a file, laid out in one of the possible ways.
#[derive(Debug)]
pub struct RamFile {
    file: File,
    /// Ascending by guest address, not overlapping.
    pieces: Vec<Piece>,
}

/// A range of guest addresses and where it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    gpa: u64,
    offset: u64,
    len_bytes: u64,
}

/// Why a file cannot be taken for a guest's RAM.
#[derive(Debug, thiserror::Error)]
pub enum RamFileError {
    /// It cannot be opened or read.
    #[error("cannot be read")]
    Io(#[from] io::Error),
    /// It is a directory, pipe or device.
    #[error("is not a regular file")]
    NotRegular,
    /// It has the header of a known form, and the rest contradicts it.
    #[error("is a damaged {0}")]
    Damaged(&'static str),
}

/// Opens a file in every layout that it may have, the likeliest first; one that says its layout has just that.
///
/// # Errors
/// See [`RamFileError`].
pub fn open(path: &Path) -> Result<Vec<RamFile>, RamFileError> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(RamFileError::NotRegular);
    }
    let len_bytes = metadata.len();
    let mut magic = [0; 8];
    let has_header = file.read_exact_at(&mut magic, 0).is_ok();
    let layouts = if has_header && magic.starts_with(ELF_MAGIC) {
        vec![of_elf(&file).ok_or(RamFileError::Damaged("ELF core"))?]
    } else if has_header && magic == LIME_MAGIC {
        vec![of_lime(&file, len_bytes).ok_or(RamFileError::Damaged("LiME dump"))?]
    } else {
        of_raw(len_bytes)
    };
    layouts.into_iter().map(|pieces| Ok(RamFile { file: file.try_clone()?, pieces })).collect()
}

/// The layouts that raw RAM of this size may have.
fn of_raw(len_bytes: u64) -> Vec<Vec<Piece>> {
    let whole = vec![Piece { gpa: 0, offset: 0, len_bytes }];
    let split = |low_bytes: u64| {
        let low = Piece { gpa: 0, offset: 0, len_bytes: low_bytes };
        vec![low, Piece { gpa: HIGH_RAM_GPA, offset: low_bytes, len_bytes: len_bytes - low_bytes }]
    };
    if len_bytes <= Q35_LOW_BYTES {
        return vec![whole];
    }
    let mut layouts = vec![split(Q35_LOW_BYTES)];
    if len_bytes > PC_LOW_BYTES {
        layouts.push(split(PC_LOW_BYTES));
    }
    layouts.insert(if len_bytes < Q35_WHOLE_MAX { 0 } else { layouts.len() }, whole);
    layouts
}

/// What the loaded segments of an ELF core are, by their physical addresses.
fn of_elf(file: &File) -> Option<Vec<Piece>> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    let (table, count) = (u64_at(&header, 32)?, usize::from(u16_at(&header, 56)?));
    if usize::from(u16_at(&header, 54)?) != ELF_PROGRAM_HEADER_BYTES || count > PIECES_MAX {
        return None;
    }
    let mut segments = vec![0; count * ELF_PROGRAM_HEADER_BYTES];
    file.read_exact_at(&mut segments, table).ok()?;
    let mut pieces = Vec::new();
    for segment in segments.chunks(ELF_PROGRAM_HEADER_BYTES) {
        let (offset, gpa, len_bytes) = (u64_at(segment, 8)?, u64_at(segment, 24)?, u64_at(segment, 32)?);
        if u32_at(segment, 0)? == ELF_LOADED && len_bytes > 0 {
            pieces.push(Piece { gpa, offset, len_bytes });
        }
    }
    in_order(pieces)
}

/// The ranges of a LiME dump, each behind a header of its own.
fn of_lime(file: &File, len_bytes: u64) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < len_bytes {
        let mut header = [0; LIME_HEADER_BYTES as usize];
        file.read_exact_at(&mut header, at).ok()?;
        let (gpa, last) = (u64_at(&header, 8)?, u64_at(&header, 16)?);
        if !header.starts_with(LIME_MAGIC) || pieces.len() == PIECES_MAX {
            return None;
        }
        let piece =
            Piece { gpa, offset: at + LIME_HEADER_BYTES, len_bytes: last.checked_sub(gpa)?.checked_add(1)? };
        at = piece.offset.checked_add(piece.len_bytes)?;
        pieces.push(piece);
    }
    in_order(pieces)
}

/// Sorts pieces by guest address; none if there are none, or they wrap or overlap.
fn in_order(mut pieces: Vec<Piece>) -> Option<Vec<Piece>> {
    pieces.sort_unstable_by_key(|piece| piece.gpa);
    let bounded = pieces.iter().all(|piece| {
        piece.gpa.checked_add(piece.len_bytes).is_some()
            && piece.offset.checked_add(piece.len_bytes).is_some()
    });
    let apart = bounded && pieces.windows(2).all(|pair| pair[0].gpa + pair[0].len_bytes <= pair[1].gpa);
    (apart && !pieces.is_empty()).then_some(pieces)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}

impl PhysicalMemory for RamFile {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), Unmapped> {
        let (mut gpa, mut out) = (gpa, out);
        while !out.is_empty() {
            let piece = self.pieces.iter().find(|piece| gpa.wrapping_sub(piece.gpa) < piece.len_bytes);
            let piece = piece.ok_or(Unmapped)?;
            let skipped = gpa - piece.gpa;
            let len = usize::try_from(piece.len_bytes - skipped).unwrap_or(usize::MAX).min(out.len());
            let (now, later) = out.split_at_mut(len);
            self.file.read_exact_at(now, piece.offset + skipped).map_err(|_| Unmapped)?;
            gpa = gpa.wrapping_add(len as u64);
            out = later;
        }
        Ok(())
    }

    fn extents(&self) -> Vec<Range<u64>> {
        let mut extents = Vec::new();
        for piece in &self.pieces {
            platform::for_each_data(&self.file, piece.offset..piece.offset + piece.len_bytes, |data| {
                let gpa = |offset: u64| piece.gpa + (offset - piece.offset);
                extents.push(gpa(data.start)..gpa(data.end));
            });
        }
        extents
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use testkit::scratch::Scratch;

    use super::*;

    const PAGE: u64 = 4096;
    const GIB: u64 = 1 << 30;

    fn piece(gpa: u64, offset: u64, len_bytes: u64) -> Piece {
        Piece { gpa, offset, len_bytes }
    }

    fn opened(contents: &[u8]) -> (Scratch, Result<Vec<RamFile>, RamFileError>) {
        let dir = Scratch::new("ramfile").unwrap();
        std::fs::write(dir.join("ram"), contents).unwrap();
        let opened = open(&dir.join("ram"));
        (dir, opened)
    }

    #[test]
    fn raw_layouts_are_those_of_the_machines_that_have_so_much() {
        let whole = |len| vec![piece(0, 0, len)];
        let split = |low, len| vec![piece(0, 0, low), piece(4 * GIB, low, len - low)];
        for (len, expected) in [
            (GIB, vec![whole(GIB)]),
            (2 * GIB, vec![whole(2 * GIB)]),
            (5 * GIB / 2, vec![whole(5 * GIB / 2), split(2 * GIB, 5 * GIB / 2)]),
            (3 * GIB, vec![split(2 * GIB, 3 * GIB), whole(3 * GIB)]),
            (8 * GIB, vec![split(2 * GIB, 8 * GIB), split(3 * GIB, 8 * GIB), whole(8 * GIB)]),
        ] {
            assert_eq!(of_raw(len), expected, "{len:#x}");
        }
    }

    #[test]
    fn holes_read_as_zeros_and_stay_holes() {
        let dir = Scratch::new("ramfile").unwrap();
        let path = dir.join("ram");
        let file = File::create(&path).unwrap();
        file.set_len(3 * GIB).unwrap();
        file.write_all_at(b"low", 5 * PAGE).unwrap();
        file.write_all_at(b"high", 2 * GIB + PAGE).unwrap();
        let blocks = file.metadata().unwrap().blocks();

        let ram = open(&path).unwrap().swap_remove(0);
        let low = 5 * PAGE..6 * PAGE;
        let high = 4 * GIB + PAGE..4 * GIB + 2 * PAGE;
        assert_eq!(ram.extents(), [low, high]);
        let mut bytes = [1; 8];
        ram.read(4 * GIB + PAGE - 4, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0\0\0high");
        let mut step = vec![0; 1 << 20];
        (0..2 * GIB).step_by(step.len()).for_each(|gpa| ram.read(gpa, &mut step).unwrap());
        for gpa in [2 * GIB - 4, 2 * GIB, 5 * GIB - 4, u64::MAX - 2] {
            assert_eq!(ram.read(gpa, &mut bytes), Err(Unmapped), "{gpa:#x}");
        }
        assert_eq!(file.metadata().unwrap().blocks(), blocks, "reading took space");
    }

    #[test]
    fn elf_core_says_where_its_segments_belong() {
        let mut core = vec![0; 0x400];
        core[..6].copy_from_slice(ELF_MAGIC);
        core[32..40].copy_from_slice(&64_u64.to_le_bytes());
        core[54..58].copy_from_slice(&[56, 0, 3, 0]);
        // A note, the upper RAM, the lower.
        for (index, (kind, offset, gpa, len)) in
            [(4_u32, 0_u64, 0_u64, 9_u64), (1, 0x300, 4 * GIB, 0x100), (1, 0x200, 0, 0x100)]
                .iter()
                .enumerate()
        {
            let at = 64 + index * 56;
            core[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            core[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
            core[at + 24..at + 32].copy_from_slice(&gpa.to_le_bytes());
            core[at + 32..at + 40].copy_from_slice(&len.to_le_bytes());
        }
        core[0x304..0x308].copy_from_slice(b"high");
        let (_dir, ram) = opened(&core);
        let ram = ram.unwrap().swap_remove(0);
        assert_eq!(ram.pieces, [piece(0, 0x200, 0x100), piece(4 * GIB, 0x300, 0x100)]);
        let mut bytes = [0; 4];
        ram.read(4 * GIB + 4, &mut bytes).unwrap();
        assert_eq!(&bytes, b"high");
    }

    #[test]
    fn lime_dump_says_where_its_ranges_belong() {
        let mut dump = Vec::new();
        for (gpa, text) in [(0x1000_u64, b"low!"), (4 * GIB, b"high")] {
            dump.extend_from_slice(LIME_MAGIC);
            dump.extend_from_slice(&gpa.to_le_bytes());
            dump.extend_from_slice(&(gpa + 3).to_le_bytes());
            dump.extend_from_slice(&[0; 8]);
            dump.extend_from_slice(text);
        }
        let (_dir, ram) = opened(&dump);
        assert_eq!(ram.unwrap().swap_remove(0).pieces, [piece(0x1000, 32, 4), piece(4 * GIB, 68, 4)]);
        for cut in [9, 40] {
            let (_dir, ram) = opened(&dump[..cut]);
            assert!(matches!(ram, Err(RamFileError::Damaged("LiME dump"))), "{cut}");
        }
    }

    #[test]
    fn what_is_no_file_of_ram_is_refused() {
        let dir = Scratch::new("ramfile").unwrap();
        assert!(matches!(open(dir.path()), Err(RamFileError::NotRegular)));
        assert!(matches!(open(&dir.join("none")), Err(RamFileError::Io(_))));
        let (_dir, ram) = opened(b"\x7fELF\x02\x01\x01\0");
        assert!(matches!(ram, Err(RamFileError::Damaged("ELF core"))));
    }
}
