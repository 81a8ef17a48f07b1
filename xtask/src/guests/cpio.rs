// SPDX-License-Identifier: Apache-2.0
//! Writes the "newc" archive that Linux unpacks as its initial root file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Everything belongs to root; no privilege and
//! no device node on this machine is needed.

/// File type bits of `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive under construction, in memory.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; parents come first.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file that all may read, and run if `executable`.
    pub fn file(&mut self, path: &str, executable: bool, contents: &[u8]) {
        self.entry(path, REGULAR | if executable { 0o755 } else { 0o644 }, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device with its major and minor number.
    pub fn character_device(&mut self, path: &str, device: (u32, u32)) {
        self.entry(path, CHARACTER_DEVICE | 0o600, device, &[]);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        let inode = self.entries;
        self.entries += 1;
        let size = u32::try_from(contents.len()).expect("a guest file is far below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        let (owner, group, links, mtime, check) = (0, 0, 1, 0, 0);
        let (on_major, on_minor) = (0, 0);
        self.bytes.extend_from_slice(b"070701");
        for field in [
            inode, mode, owner, group, links, mtime, size, on_major, on_minor, device.0, device.1, name_size,
            check,
        ] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    /// Headers and contents start at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_contents_are_aligned_and_the_trailer_is_last() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.character_device("dev/console", (5, 1));
        archive.file("init", true, b"#!/bin/sh");
        archive.symlink("bin/sh", "busybox");
        let bytes = archive.finish();
        let starts: Vec<usize> =
            (0..bytes.len() - 5).filter(|at| &bytes[*at..*at + 6] == b"070701").collect();
        assert_eq!(starts.len(), 5);
        assert!(starts.iter().all(|start| start % 4 == 0));
        let last = &bytes[starts[4]..];
        assert_eq!(&last[110..121], b"TRAILER!!!\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn a_device_node_carries_its_numbers() {
        let mut archive = Archive::default();
        archive.character_device("dev/console", (5, 1));
        let text = String::from_utf8(archive.finish()).expect("no contents, so all of it is text");
        assert_eq!(&text[14..22], "00002180", "character device, mode 0600");
        assert_eq!((&text[78..86], &text[86..94]), ("00000005", "00000001"));
    }
}
