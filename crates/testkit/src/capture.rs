// SPDX-License-Identifier: Apache-2.0
//! Capture files in the classic format of libpcap, as programs that send and receive frames read and write them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};

/// A file's header: magic, version 2.4, no time zone, frames of any length, Ethernet.
const FILE_HEADER: [u32; 6] = [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 65_535, 1];
/// What is before each frame: two words of time, its length here and on the wire.
const RECORD_BYTES: usize = 16;

/// Writes frames into a file.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, frames: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<()> {
    let failed = || format!("write {}", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(failed)?);
    FILE_HEADER.iter().try_for_each(|word| file.write_all(&word.to_le_bytes()))?;
    for frame in frames {
        let frame = frame.as_ref();
        let len = u32::try_from(frame.len())?;
        [0, 0, len, len].iter().try_for_each(|word| file.write_all(&word.to_le_bytes()))?;
        file.write_all(frame)?;
    }
    file.flush().with_context(failed)
}

/// The whole frames in a file's bytes, of which somebody may be writing more.
#[must_use]
pub fn frames(file: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut frames) = (file.get(size_of_val(&FILE_HEADER)..).unwrap_or_default(), Vec::new());
    while let Some((record, behind)) = rest.split_at_checked(RECORD_BYTES) {
        let len = u32::from_le_bytes([record[8], record[9], record[10], record[11]]) as usize;
        let Some((frame, behind)) = behind.split_at_checked(len) else { break };
        frames.push(frame);
        rest = behind;
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn what_was_written_is_read_as_far_as_it_is_whole() -> Result<()> {
        let scratch = Scratch::new("capture")?;
        let path = scratch.join("file.pcap");
        let sent = [vec![1; 60], vec![2; 1514], Vec::new()];
        write(&path, &sent)?;
        let file = std::fs::read(&path)?;
        assert_eq!(frames(&file), sent);
        assert_eq!(frames(&file[..file.len() - RECORD_BYTES - 1]), sent[..1]);
        assert!(frames(&file[..20]).is_empty());
        Ok(())
    }
}
