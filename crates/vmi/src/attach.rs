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

use std::ops::Range;
use std::sync::Arc;

use crate::bootstrap;
use crate::btf::{self, Btf};
use crate::error::AttachError;
use crate::found::{BANNER, Found, IMAGE_ALIGNMENT, Kernel, read_banner, release_of};
use crate::heartbeats::Heartbeats;
use crate::kallsyms::{self, SymbolNames, Table};
use crate::memory::{Gva, PhysicalMemory};
use crate::paging::{Linear, PageTables, Translation};
use crate::reader::Reader;
use crate::scan;
use crate::symbols::Symbols;

/// Most kernels, dead, imitated or alive, between which one try decides.
const CANDIDATES_MAX: usize = 8;

/// Gives the types of a kernel by its release: a whole BTF, of a kernel that carries none itself.
pub type Profiles<'a> = &'a dyn Fn(&str) -> Option<Vec<u8>>;

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
