// SPDX-License-Identifier: Apache-2.0
//! Finding a kernel in raw RAM, with nothing known about it beforehand.
//!
//! One pass over resident memory collects where type information (BTF) and symbol tables (kallsyms) may lie.
//! Anything in the guest can put such bytes into memory, so none is believed alone: a pair counts only if
//! 1. the type information has exactly the length that the symbols `__start_BTF` and `__stop_BTF` tell,
//! 2. the offset between virtual and physical addresses, which follows from where it lies, leads to page
//!    tables (`init_top_pgt`) of four or five levels,
//! 3. these map the kernel's banner to just where that offset says, and a banner is there.
//!
//! Physical notes such as VMCOREINFO, CPU registers and debug files are deliberately not used.

use std::collections::HashMap;
use std::sync::Arc;

use crate::btf::{self, Btf};
use crate::error::AttachError;
use crate::kallsyms::{self, Encoding, START_KERNEL_MAP, Table};
use crate::memory::{Gva, PhysicalMemory};
use crate::paging::{Linear, PageTables, Translation};
use crate::reader::Reader;
use crate::scan;

/// Symbol tables decoded at most: a guest has one, unless it wants to be looked at for long.
const TABLES_MAX: usize = 8;
/// Start of the text in `linux_banner`.
const BANNER: &[u8] = b"Linux version ";
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

/// Addresses of the symbols that the library uses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Symbols {
    by_name: HashMap<&'static str, Gva>,
}

/// Every symbol that is looked for. Some kernels lack some of them.
const WANTED: [&str; 18] = [
    "_text",
    "_stext",
    "_end",
    "__bss_stop",
    "__start_BTF",
    "__stop_BTF",
    "linux_banner",
    "init_top_pgt",
    "phys_base",
    "init_task",
    "net_namespace_list",
    "socket_file_ops",
    "btf_modules",
    "udp_table",
    "net_hotdata",
    "inet_ehash_secret",
    "inet6_ehash_secret",
    "ipv6_hash_secret",
];

impl Symbols {
    /// Takes the wanted symbols of `table`; of several with one name, the first.
    ///
    /// The compiler may have given a static variable a suffix of digits (`inet_ehash_secret.5`).
    fn of(memory: &dyn PhysicalMemory, table: &Table) -> Option<Self> {
        let wanted: HashMap<&[u8], &'static str> =
            WANTED.iter().map(|&name| (name.as_bytes(), name)).collect();
        let mut by_name = HashMap::new();
        table.for_each(|name, address| {
            if let Some(&name) = wanted.get(without_suffix(name)) {
                by_name.entry(name).or_insert(Gva(address));
            }
        });
        if table.encoding == Encoding::PlaceRelative {
            let mut phys_base = [0; 8];
            memory.read(by_name.get("phys_base")?.0, &mut phys_base).ok()?;
            let offset = START_KERNEL_MAP.wrapping_sub(u64::from_le_bytes(phys_base));
            for address in by_name.values_mut() {
                address.0 = address.0.wrapping_add(offset);
            }
        }
        Some(Self { by_name })
    }

    pub(crate) fn find(&self, name: &'static str) -> Option<Gva> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn require(&self, name: &'static str) -> Result<Gva, AttachError> {
        self.find(name).ok_or(AttachError::MissingSymbol(name))
    }
}

/// `name` without a compiler-made suffix of a dot and digits.
fn without_suffix(name: &[u8]) -> &[u8] {
    match memchr::memrchr(b'.', name) {
        Some(dot) if name[dot + 1..].iter().all(u8::is_ascii_digit) => &name[..dot],
        _ => name,
    }
}

/// A kernel whose types, symbols and page tables agree.
pub(crate) struct Found {
    pub(crate) reader: Reader,
    pub(crate) symbols: Symbols,
    pub(crate) btf: Btf,
    pub(crate) kernel: Kernel,
}

/// Finds the kernel that runs in `memory`.
pub(crate) fn find(memory: Arc<dyn PhysicalMemory>) -> Result<Found, AttachError> {
    let [types, digits] = scan::find(&*memory, [btf::SIGNATURE, kallsyms::SIGNATURE]);
    let types: Vec<Types> = types.into_iter().filter_map(|gpa| Types::at(&*memory, gpa)).collect();
    if types.is_empty() {
        return Err(AttachError::NoTypes);
    }
    let mut tables = 0;
    for table in digits.into_iter().filter_map(|gpa| Table::at(&*memory, gpa)).take(TABLES_MAX) {
        tables += 1;
        let Some(symbols) = Symbols::of(&*memory, &table) else { continue };
        for types in &types {
            if let Some(place) = Place::of(&*memory, types, &symbols) {
                return place.enter(memory, types, symbols, &table);
            }
        }
    }
    Err(if tables == 0 { AttachError::NoSymbols } else { AttachError::NoKernel })
}

/// Type information that may be a kernel's.
struct Types {
    gpa: u64,
    len_bytes: usize,
}

impl Types {
    fn at(memory: &dyn PhysicalMemory, gpa: u64) -> Option<Self> {
        let mut bytes = [0; btf::HEADER_BYTES];
        memory.read(gpa, &mut bytes).ok()?;
        btf::Header::parse(&bytes).map(|header| Self { gpa, len_bytes: header.len_bytes() })
    }
}

/// Where a kernel lies, agreed upon by its types, symbols and page tables.
struct Place {
    tables: PageTables,
    image_offset: u64,
    banner: String,
}

impl Place {
    fn of(memory: &dyn PhysicalMemory, types: &Types, symbols: &Symbols) -> Option<Self> {
        let start = symbols.find("__start_BTF")?.0;
        let len_bytes = symbols.find("__stop_BTF")?.0.checked_sub(start)?;
        if len_bytes != types.len_bytes as u64 {
            return None;
        }
        let image_offset = start.wrapping_sub(types.gpa);
        let banner = symbols.find("linux_banner")?;
        let banner_gpa = banner.0.wrapping_sub(image_offset);
        let mut bytes = [0; BANNER.len()];
        memory.read(banner_gpa, &mut bytes).ok()?;
        if bytes != BANNER {
            return None;
        }
        let root_gpa = symbols.find("init_top_pgt")?.0.wrapping_sub(image_offset);
        let tables = [4, 5].map(|levels| PageTables { root_gpa, levels }).into_iter().find(|tables| {
            let found = tables.translate(memory, banner);
            matches!(found, Ok(Translation { gpa, .. }) if gpa == banner_gpa)
        })?;
        Some(Self { tables, image_offset, banner: read_banner(memory, banner_gpa) })
    }

    fn enter(
        self,
        memory: Arc<dyn PhysicalMemory>,
        types: &Types,
        symbols: Symbols,
        table: &Table,
    ) -> Result<Found, AttachError> {
        let mut bytes = vec![0; types.len_bytes];
        memory.read(types.gpa, &mut bytes).map_err(|_| AttachError::NoTypes)?;
        let btf = Btf::parse(&bytes)?;
        let start = symbols.find("_text").or(symbols.find("_stext"));
        let end = symbols.find("_end").or(symbols.find("__bss_stop"));
        let range = start.map_or(0, |start| start.0)..end.map_or(0, |end| end.0);
        let image = Linear { gpa: range.start.wrapping_sub(self.image_offset), range };
        let kernel = Kernel {
            release: release_of(&self.banner).to_owned(),
            banner: self.banner,
            paging_levels: self.tables.levels,
            image_offset: self.image_offset,
            types_bytes: types.len_bytes,
            types: btf.type_count() - 1,
            symbols: table.len(),
        };
        Ok(Found { reader: Reader::new(memory, self.tables, image), symbols, btf, kernel })
    }
}

fn read_banner(memory: &dyn PhysicalMemory, gpa: u64) -> String {
    let mut bytes = vec![0; BANNER_BYTES_MAX];
    if memory.read(gpa, &mut bytes).is_err() {
        return String::new();
    }
    let end = bytes.iter().position(|&byte| byte == 0 || byte == b'\n').unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The third word of the banner: `Linux version 6.1.0-56-cloud-amd64 (...) ...`.
fn release_of(banner: &str) -> &str {
    banner.split(' ').nth(2).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiler_suffixes_are_cut() {
        for (name, cut) in [
            ("inet_ehash_secret.5", "inet_ehash_secret"),
            ("init_task", "init_task"),
            ("tcp_v4_rcv.cold", "tcp_v4_rcv.cold"),
            ("x.", "x"),
        ] {
            assert_eq!(without_suffix(name.as_bytes()), cut.as_bytes());
        }
    }

    #[test]
    fn release_is_the_third_word() {
        assert_eq!(release_of("Linux version 6.1.0-56-cloud-amd64 (x@y) (gcc)"), "6.1.0-56-cloud-amd64");
        assert_eq!(release_of("Linux"), "");
    }
}
