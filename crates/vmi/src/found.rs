// SPDX-License-Identifier: Apache-2.0
//! A kernel that was found.

use crate::btf::Btf;
use crate::kallsyms::SymbolNames;
use crate::memory::PhysicalMemory;
use crate::reader::Reader;
use crate::symbols::Symbols;

/// A kernel image lies at a multiple of this, physically and virtually (`CONFIG_PHYSICAL_ALIGN`).
pub(crate) const IMAGE_ALIGNMENT: u64 = 2 << 20;
/// Start of the text in `linux_banner`.
pub(crate) const BANNER: &[u8] = b"Linux version ";
/// Longest banner taken.
const BANNER_BYTES_MAX: usize = 512;

/// What is known of the guest's kernel as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Release, for example `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The whole banner, as `/proc/version` shows it.
    pub banner: String,
    /// Levels of its page tables: four or five.
    pub paging_levels: u8,
    /// What is added to a physical address to get the virtual one of the kernel image.
    pub image_offset: u64,
    /// Length of its type information, in bytes.
    pub types_bytes: usize,
    /// Number of its types.
    pub types: usize,
    /// Number of its symbols.
    pub symbols: usize,
}

/// A kernel whose types, symbols and page tables agree.
pub(crate) struct Found {
    pub(crate) reader: Reader,
    pub(crate) symbols: Symbols,
    pub(crate) names: SymbolNames,
    pub(crate) btf: Btf,
    pub(crate) kernel: Kernel,
    /// Where the last of the RAM in use ends.
    pub(crate) ram_end: u64,
}

pub(crate) fn read_banner(memory: &dyn PhysicalMemory, gpa: u64) -> String {
    let mut bytes = vec![0; BANNER_BYTES_MAX];
    if memory.read(gpa, &mut bytes).is_err() {
        return String::new();
    }
    let end = bytes.iter().position(|&byte| byte == 0 || byte == b'\n').unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The third word of the banner: `Linux version 6.1.0-56-cloud-amd64 (...) ...`.
pub(crate) fn release_of(banner: &str) -> &str {
    banner.split(' ').nth(2).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_is_the_third_word() {
        assert_eq!(release_of("Linux version 6.1.0-56-cloud-amd64 (x@y) (gcc)"), "6.1.0-56-cloud-amd64");
        assert_eq!(release_of("Linux"), "");
    }
}
