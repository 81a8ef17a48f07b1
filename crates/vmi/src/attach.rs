// SPDX-License-Identifier: Apache-2.0
//! Finding a kernel in raw RAM, with nothing known about it beforehand.
//!
//! Samples, or else one pass over resident memory, show where symbol tables (kallsyms) may lie. Anything in the guest can put
//! such bytes into memory, so none is believed alone. Its symbols count only if
//! 1. type information (BTF; where the kernel has none, its banner) of just the length between `__start_BTF` and `__stop_BTF` lies somewhere in RAM; a
//!    kernel image is loaded and mapped at multiples of 2 MiB, so there is one place for it in every 2 MiB,
//! 2. the offset between virtual and physical addresses that follows leads to page tables (`init_top_pgt`) of
//!    four or five levels,
//! 3. these map the kernel's banner to just where that offset says, and a banner is there.
//!
//! Two tables that pass and say different things are a kernel and what a reset left of its predecessor, or an
//! original and its imitation. Only the one whose clock has moved since an earlier try is believed.
//! A table that does not name the kernel's data leads to [`crate::bootstrap`].
//! Notes such as VMCOREINFO, CPU registers and debug files are deliberately not used.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::bootstrap;
use crate::btf::{self, Btf};
use crate::error::AttachError;
use crate::integrity;
use crate::kallsyms::{self, Encoding, START_KERNEL_MAP, SymbolNames, Table};
use crate::memory::{Gva, PhysicalMemory};
use crate::paging::{Linear, PageTables, Translation};
use crate::reader::Reader;
use crate::scan;

/// A kernel image lies at a multiple of this, physically and virtually (`CONFIG_PHYSICAL_ALIGN`).
pub(crate) const IMAGE_ALIGNMENT: u64 = 2 << 20;
/// Start of the text in `linux_banner`.
pub(crate) const BANNER: &[u8] = b"Linux version ";
/// Longest banner taken.
const BANNER_BYTES_MAX: usize = 512;

/// Gives the types of a kernel by its release: a whole BTF, of a kernel that carries none itself.
pub type Profiles<'a> = &'a dyn Fn(&str) -> Option<Vec<u8>>;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Symbols {
    by_name: HashMap<&'static str, Gva>,
}

/// Every symbol that is looked for. Some kernels lack some of them.
const WANTED: [&str; 28] = [
    "_text",
    "_stext",
    "_end",
    "__bss_stop",
    "__start_BTF",
    "__stop_BTF",
    "linux_banner",
    "init_top_pgt",
    "phys_base",
    "jiffies_64",
    "init_task",
    "net_namespace_list",
    "socket_file_ops",
    "btf_modules",
    "udp_table",
    "net_hotdata",
    "inet_ehash_secret",
    "inet6_ehash_secret",
    "ipv6_hash_secret",
    "__per_cpu_offset",
    "nr_cpu_ids",
    "runqueues",
    "raw_v4_hashinfo",
    "raw_v6_hashinfo",
    "vmemmap_base",
    "nf_conntrack_hash",
    "nf_conntrack_htable_size",
    "nf_conntrack_hash_rnd",
];

impl Symbols {
    /// Takes the wanted symbols of `table`; of several with one name, the first.
    ///
    /// The compiler may have given a static variable a suffix of digits (`inet_ehash_secret.5`).
    fn of(memory: &dyn PhysicalMemory, table: &Table) -> Option<Self> {
        let wanted: HashMap<&[u8], &'static str> =
            WANTED.iter().chain(&integrity::SYMBOLS).map(|&name| (name.as_bytes(), name)).collect();
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

    /// Names what was found by other means.
    pub(crate) fn add(&mut self, name: &'static str, place: Gva) {
        self.by_name.insert(name, place);
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
    pub(crate) names: SymbolNames,
    pub(crate) btf: Btf,
    pub(crate) kernel: Kernel,
    /// Where the last of the RAM in use ends.
    pub(crate) ram_end: u64,
}

/// Most kernels, dead, imitated or alive, between which one try decides.
const CANDIDATES_MAX: usize = 8;

/// The clocks of kernels between which earlier tries to attach could not decide.
///
/// A reset does not wipe RAM, so the predecessor's kernel lies there whole until it is overwritten; but its clock
/// stands still. Hand the same value to every try at one guest, with some time (a second, for an idle guest)
/// between them.
#[derive(Clone, Debug, Default)]
pub struct Heartbeats {
    /// Clocks by their guest-physical address; at most [`CANDIDATES_MAX`].
    seen: HashMap<u64, u64>,
}

impl Heartbeats {
    /// Keeps the candidates whose clock has moved since the last try, and notes all clocks for the next. `clock` tells
    /// where a candidate's lies.
    pub(crate) fn keep_living<T>(
        &mut self,
        memory: &dyn PhysicalMemory,
        candidates: Vec<T>,
        clock: impl Fn(&T) -> Option<u64>,
    ) -> Vec<T> {
        let earlier = std::mem::take(&mut self.seen);
        let moved = |candidate: &T| {
            let Some(gpa) = clock(candidate) else { return false };
            let mut ticks = [0; 8];
            if memory.read(gpa, &mut ticks).is_err() {
                return false;
            }
            let ticks = u64::from_le_bytes(ticks);
            self.seen.insert(gpa, ticks);
            earlier.get(&gpa).is_some_and(|before| *before != ticks)
        };
        candidates.into_iter().filter(moved).collect()
    }
}

/// Symbols that agree with types and page tables.
struct Candidate {
    place: Place,
    symbols: Symbols,
    table: Table,
}

/// Finds the kernel that runs in `memory`: by its symbols or, where they do not name its data, without.
pub(crate) fn find(
    memory: Arc<dyn PhysicalMemory>,
    heartbeats: &mut Heartbeats,
    profiles: Profiles<'_>,
) -> Result<Found, AttachError> {
    let problem = match find_by_symbols(Arc::clone(&memory), heartbeats, profiles) {
        Err(problem @ (AttachError::NoSymbols | AttachError::MissingSymbol(_))) => problem,
        outcome => return outcome,
    };
    match bootstrap::find(memory, heartbeats) {
        // What the symbols lack says more.
        Err(AttachError::NoKernel) => Err(problem),
        outcome => outcome,
    }
}

fn find_by_symbols(
    memory: Arc<dyn PhysicalMemory>,
    heartbeats: &mut Heartbeats,
    profiles: Profiles<'_>,
) -> Result<Found, AttachError> {
    let resident = memory.extents();
    // Mostly it is where samples say; if not, or not yet, it may be anywhere.
    if let Some(likely) = scan::likely(&*memory, &resident) {
        let found = find_in(Arc::clone(&memory), (&likely, &resident), heartbeats, profiles);
        if matches!(found, Ok(_) | Err(AttachError::Ambiguous)) {
            return found;
        }
    }
    find_in(memory, (&resident, &resident), heartbeats, profiles)
}

/// Finds the kernel whose symbol table lies in one of `extents`, and whatever else is `resident`.
fn find_in(
    memory: Arc<dyn PhysicalMemory>,
    (extents, resident): (&[Range<u64>], &[Range<u64>]),
    heartbeats: &mut Heartbeats,
    profiles: Profiles<'_>,
) -> Result<Found, AttachError> {
    let hits = scan::find(&*memory, extents, kallsyms::SIGNATURE);
    let tokens = kallsyms::token_tables(&*memory, &hits).filter(|_| hits.len() < scan::HITS_MAX);
    // The real one may be among those that would not be looked at.
    let tokens = tokens.ok_or(AttachError::Crowded)?;
    let mut problem = AttachError::NoSymbols;
    let mut candidates: Vec<Candidate> = Vec::new();
    for table in tokens.into_iter().filter_map(|tokens| Table::around(&*memory, tokens)) {
        let Some(symbols) = Symbols::of(&*memory, &table) else { continue };
        match Place::of(&*memory, resident, &symbols) {
            Ok(_) if candidates.iter().any(|other| other.symbols == symbols) => {}
            Ok(_) if candidates.len() == CANDIDATES_MAX => return Err(AttachError::Crowded),
            Ok(place) => candidates.push(Candidate { place, symbols, table }),
            Err(error) => problem = error,
        }
    }
    if candidates.len() > 1 {
        let clock = |candidate: &Candidate| {
            let symbol = candidate.symbols.find("jiffies_64")?;
            Some(symbol.0.wrapping_sub(candidate.place.image_offset))
        };
        candidates = heartbeats.keep_living(&*memory, candidates, clock);
        if candidates.len() != 1 {
            return Err(AttachError::Ambiguous);
        }
    }
    let Candidate { place, symbols, table } = candidates.pop().ok_or(problem)?;
    let ram_end = resident.last().map_or(0, |extent| extent.end);
    place.enter(memory, ram_end, (symbols, table), profiles)
}

/// Where a kernel lies, agreed upon by its symbols, page tables, banner and, if it carries any, types.
struct Place {
    /// Where the types lie, and their length.
    types: Option<(u64, usize)>,
    tables: PageTables,
    image_offset: u64,
    banner: String,
}

impl Place {
    /// Looks for the types that `symbols` belong to, in the one place of every 2 MiB where they can lie; if there are
    /// none, for the banner in the same way.
    fn of(
        memory: &dyn PhysicalMemory,
        resident: &[Range<u64>],
        symbols: &Symbols,
    ) -> Result<Self, AttachError> {
        let banner = symbols.require("linux_banner")?;
        let mut problem = AttachError::NoTypes;
        if let Some((start, end)) = symbols.find("__start_BTF").zip(symbols.find("__stop_BTF")) {
            let len_bytes = end.0.wrapping_sub(start.0);
            for gpa in places(resident, start) {
                if types_bytes(memory, gpa).is_some_and(|found| found as u64 == len_bytes) {
                    problem = AttachError::NoKernel;
                    if let Some(place) = Self::at(memory, symbols, start.0.wrapping_sub(gpa)) {
                        let types = types_bytes(memory, gpa).map(|len_bytes| (gpa, len_bytes));
                        return Ok(Self { types, ..place });
                    }
                }
            }
        }
        if problem == AttachError::NoTypes {
            for gpa in places(resident, banner) {
                if let Some(place) = Self::at(memory, symbols, banner.0.wrapping_sub(gpa)) {
                    return Ok(place);
                }
            }
        }
        Err(problem)
    }

    /// The kernel whose image lies at this offset, if page tables and banner say so.
    fn at(memory: &dyn PhysicalMemory, symbols: &Symbols, image_offset: u64) -> Option<Self> {
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
        Some(Self { types: None, tables, image_offset, banner: read_banner(memory, banner_gpa) })
    }

    fn enter(
        self,
        memory: Arc<dyn PhysicalMemory>,
        ram_end: u64,
        (symbols, table): (Symbols, Table),
        profiles: Profiles<'_>,
    ) -> Result<Found, AttachError> {
        let release = release_of(&self.banner).to_owned();
        let (btf, types_bytes) = if let Some((gpa, len_bytes)) = self.types {
            let mut bytes = vec![0; len_bytes];
            memory.read(gpa, &mut bytes).map_err(|_| AttachError::NoTypes)?;
            (Btf::parse(&bytes)?, len_bytes)
        } else {
            let bytes = profiles(&release).ok_or_else(|| AttachError::NoProfile(release.clone()))?;
            let parsed = Btf::parse(&bytes);
            let btf = parsed.map_err(|source| AttachError::Profile { release: release.clone(), source })?;
            (btf, bytes.len())
        };
        let start = symbols.find("_text").or(symbols.find("_stext"));
        let end = symbols.find("_end").or(symbols.find("__bss_stop"));
        let range = start.map_or(0, |start| start.0)..end.map_or(0, |end| end.0);
        let image_range = range.clone();
        let image = Linear { gpa: range.start.wrapping_sub(self.image_offset), range };
        let kernel = Kernel {
            release,
            banner: self.banner,
            paging_levels: self.tables.levels,
            image_offset: self.image_offset,
            types_bytes,
            types: btf.type_count() - 1,
            symbols: table.len(),
        };
        let names = SymbolNames::new(table, self.image_offset, image_range);
        let reader = Reader::new(memory, self.tables, image);
        Ok(Found { reader, symbols, names, btf, kernel, ram_end })
    }
}

/// Every place in RAM where something of the image can lie that is mapped at `gva`.
fn places(resident: &[Range<u64>], gva: Gva) -> impl Iterator<Item = u64> {
    let phase = gva.0 % IMAGE_ALIGNMENT;
    resident.iter().flat_map(move |extent| {
        let skipped = phase.wrapping_sub(extent.start) % IMAGE_ALIGNMENT;
        (extent.start.saturating_add(skipped)..extent.end).step_by(IMAGE_ALIGNMENT as usize)
    })
}

/// Length of the type information that begins at `gpa`, if any does.
fn types_bytes(memory: &dyn PhysicalMemory, gpa: u64) -> Option<usize> {
    let mut bytes = [0; btf::HEADER_BYTES];
    memory.read(gpa, &mut bytes).ok()?;
    btf::Header::parse(&bytes).map(|header| header.len_bytes())
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
