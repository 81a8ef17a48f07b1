// SPDX-License-Identifier: Apache-2.0
//! The kernel's compressed symbol table (Linux, kernel/kallsyms.c and scripts/kallsyms.c), found in RAM
//! without any symbol.
//!
//! Names are strings of token numbers; the token table keeps all single digits, so the run
//! `"0\0" "1\0" ... "9\0"` leads to it. The other arrays lie before and after it, in an order that changed
//! over the years:
//!
//! | kernels | order | addresses |
//! |---|---|---|
//! | before 6.4 | offsets, base, count, names, markers, (sequence,) tokens, index | base and offset |
//! | 6.4 to 6.19 | count, names, markers, tokens, index, offsets, base, sequence | base and offset |
//! | from 7.0 | the same without base, aligned to 4 instead of 8 | relative to the offset's own place |
//!
//! What was found is believed only if every name parses exactly between the markers.

use crate::memory::PhysicalMemory;

/// The single-digit tokens, in the middle of the token table.
pub(crate) const SIGNATURE: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";

/// Where the kernel image is mapped (`__START_KERNEL_map`).
pub(crate) const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

const TOKENS: usize = 256;
/// The number of the token `0`.
const DIGIT_TOKEN: usize = b'0' as usize;
/// Longest token table taken; real ones have about 1,000 bytes.
const TOKEN_TABLE_BYTES_MAX: usize = 8192;
/// How far before the token table the names may begin: 190,000 symbols take 3 MB.
const NAMES_WINDOW_BYTES: usize = 8 << 20;
/// Read at a time, going back from the token table.
const WINDOW_STEP_BYTES: usize = 1 << 20;
/// Token tables followed to their names at most. A guest has one, unless it wants to be looked at for long.
const TABLES_MAX: usize = 32;
/// Most symbols taken.
const SYMBOLS_MAX: usize = 1 << 20;
/// Names between two markers.
const NAMES_PER_MARKER: usize = 256;
/// Smallest and greatest step between two markers. One of 18,004 was seen on 7.2.
const MARKER_STEP: std::ops::RangeInclusive<u32> = 512..=40_960;
/// Fewest markers taken; a table has one for every 256 symbols.
const MARKERS_MIN: usize = 8;
/// Words after the true markers that may look like markers too.
const MARKERS_EXCESS_MAX: usize = 2;
/// Names parsed per token table, in all attempts together.
const NAMES_PARSED_MAX: usize = 4 * SYMBOLS_MAX;
/// Marker runs tried per token table.
const RUNS_MAX: usize = 16;
/// Longest symbol name (`KSYM_NAME_LEN`), with its type.
const NAME_BYTES_MAX: usize = 513;

/// How the address of a symbol follows from its 32-bit offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Virtual: base and unsigned offset.
    Base(u64),
    /// Virtual: absolute if not negative, else base - 1 - offset (`CONFIG_KALLSYMS_ABSOLUTE_PERCPU`).
    BaseOrAbsolute(u64),
    /// Physical: where the offset lies, and the signed offset.
    PlaceRelative,
}

/// A symbol table in guest RAM.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    tokens: Vec<u8>,
    index: Vec<u16>,
    /// The names, each a length and as many token numbers.
    names: Vec<u8>,
    /// Guest-physical address of `kallsyms_offsets`.
    offsets_gpa: u64,
    offsets: Vec<u32>,
    pub(crate) encoding: Encoding,
}

/// The token tables whose digits lie at one of `hits`; `None` if there are more than are looked at.
pub(crate) fn token_tables(memory: &dyn PhysicalMemory, hits: &[u64]) -> Option<Vec<Tokens>> {
    let tables = hits.iter().filter_map(|&gpa| Tokens::at(memory, gpa));
    let tables: Vec<Tokens> = tables.take(TABLES_MAX + 1).collect();
    (tables.len() <= TABLES_MAX).then_some(tables)
}

impl Table {
    /// The symbol table around a token table.
    pub(crate) fn around(memory: &dyn PhysicalMemory, tokens: Tokens) -> Option<Self> {
        let before = Window::before(memory, tokens.gpa);
        let names = Names::before_tokens(&before)?;
        let (offsets_gpa, encoding, offsets) = find_offsets(memory, &before, &names, &tokens)?;
        let bytes = before.bytes[names.range].to_vec();
        Some(Self { tokens: tokens.table, index: tokens.index, names: bytes, offsets_gpa, offsets, encoding })
    }

    /// Number of symbols.
    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Calls `each` with every symbol's name (without its type) and address; virtual or physical as
    /// [`Table::encoding`] says.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&[u8], u64)) {
        let mut at = 0;
        let mut name = Vec::with_capacity(NAME_BYTES_MAX);
        for (index, &offset) in self.offsets.iter().enumerate() {
            let Some((start, end)) = name_span(&self.names, at) else { return };
            name.clear();
            for text in self.names[start..end].iter().map(|&token| self.token(token)) {
                if name.len() + text.len() > NAME_BYTES_MAX {
                    break;
                }
                name.extend_from_slice(text);
            }
            if let Some((_kind, name)) = name.split_first() {
                each(name, self.address(index, offset));
            }
            at = end;
        }
    }

    /// The text of a token: it ends with a NUL before the next one begins.
    fn token(&self, token: u8) -> &[u8] {
        let start = usize::from(self.index[usize::from(token)]);
        let end = self.index.get(usize::from(token) + 1).map_or(self.tokens.len(), |&next| next.into());
        &self.tokens[start..end - 1]
    }

    fn address(&self, index: usize, offset: u32) -> u64 {
        let signed = i64::from(offset.cast_signed());
        match self.encoding {
            Encoding::Base(base) => base.wrapping_add(u64::from(offset)),
            Encoding::BaseOrAbsolute(_) if signed >= 0 => u64::from(offset),
            Encoding::BaseOrAbsolute(base) => base.wrapping_sub(1).wrapping_add_signed(signed.wrapping_neg()),
            Encoding::PlaceRelative => {
                self.offsets_gpa.wrapping_add(index as u64 * 4).wrapping_add_signed(signed)
            }
        }
    }
}

/// Names for addresses of the kernel's image: a table that is kept, compressed as it is (some 4 MB).
#[derive(Clone, Debug, Default)]
pub(crate) struct SymbolNames {
    table: Option<Table>,
    /// What is added to the table's addresses to get virtual ones.
    offset: u64,
    image: std::ops::Range<u64>,
}

impl SymbolNames {
    /// The names of `table`. `image_offset` is what is added to a physical address of the image.
    pub(crate) fn new(table: Table, image_offset: u64, image: std::ops::Range<u64>) -> Self {
        let offset = if table.encoding == Encoding::PlaceRelative { image_offset } else { 0 };
        Self { table: Some(table), offset, image }
    }

    /// The last symbol at or before `address`, with the distance: `schedule+0x10`. Takes milliseconds.
    pub(crate) fn nearest(&self, address: u64) -> Option<String> {
        let table = self.table.as_ref().filter(|_| self.image.contains(&address))?;
        let mut nearest: Option<(u64, Vec<u8>)> = None;
        table.for_each(|name, place| {
            let place = place.wrapping_add(self.offset);
            if place <= address && nearest.as_ref().is_none_or(|(known, _)| place > *known) {
                nearest = Some((place, name.to_vec()));
            }
        });
        let (place, name) = nearest?;
        let name = String::from_utf8_lossy(&name).into_owned();
        Some(if place == address { name } else { format!("{name}+{:#x}", address - place) })
    }
}

/// `kallsyms_token_table` and `kallsyms_token_index`.
pub(crate) struct Tokens {
    gpa: u64,
    table: Vec<u8>,
    index: Vec<u16>,
    /// Where the index ends.
    end_gpa: u64,
}

impl Tokens {
    /// The token table in which token `0` lies at `digits_gpa`.
    fn at(memory: &dyn PhysicalMemory, digits_gpa: u64) -> Option<Self> {
        let mut bytes = vec![0; TOKEN_TABLE_BYTES_MAX];
        memory.read(digits_gpa, &mut bytes).ok()?;
        let tail_tokens = TOKENS - DIGIT_TOKEN;
        let end = memchr::memchr_iter(0, &bytes).nth(tail_tokens - 1)? + 1;
        let end_gpa = digits_gpa.checked_add(end as u64)?;
        [8, 4].into_iter().find_map(|alignment| {
            let index_gpa = end_gpa.checked_next_multiple_of(alignment)?;
            let mut index = [0; TOKENS * 2];
            memory.read(index_gpa, &mut index).ok()?;
            let index: Vec<u16> =
                index.as_chunks().0.iter().map(|&pair: &[u8; 2]| u16::from_le_bytes(pair)).collect();
            let gpa = digits_gpa.checked_sub(u64::from(index[DIGIT_TOKEN]))?;
            let mut table = vec![0; usize::try_from(end_gpa - gpa).ok()?];
            memory.read(gpa, &mut table).ok()?;
            let starts = std::iter::once(0).chain(memchr::memchr_iter(0, &table).map(|nul| nul + 1));
            let agree = index.iter().map(|&start| usize::from(start)).eq(starts.take(TOKENS));
            let end_gpa = index_gpa + 2 * TOKENS as u64;
            (agree && gpa % 4 == 0).then_some(Self { gpa, table, index, end_gpa })
        })
    }
}

/// What lies before an address, as far as it is mapped.
struct Window {
    gpa: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn before(memory: &dyn PhysicalMemory, end_gpa: u64) -> Self {
        let mut start = end_gpa;
        let mut pieces = Vec::new();
        for _ in 0..NAMES_WINDOW_BYTES / WINDOW_STEP_BYTES {
            let mut piece = vec![0; WINDOW_STEP_BYTES.min(usize::try_from(start).unwrap_or(usize::MAX))];
            let from = start - piece.len() as u64;
            if piece.is_empty() || memory.read(from, &mut piece).is_err() {
                break;
            }
            pieces.push(piece);
            start = from;
        }
        pieces.reverse();
        Self { gpa: start, bytes: pieces.concat() }
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.bytes.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
    }
}

/// Where the names lie in the window before the token table.
struct Names {
    /// Place of `kallsyms_num_syms`.
    count_at: usize,
    count: usize,
    range: std::ops::Range<usize>,
}

impl Names {
    /// The names that end at a run of markers in the window; the last such run that fits.
    fn before_tokens(window: &Window) -> Option<Self> {
        // The window's start is aligned: its end is, and it was read in aligned steps.
        let mut runs = Vec::new();
        let mut at = 0;
        while at + 8 <= window.bytes.len() {
            let len = marker_run(window, at);
            if len >= MARKERS_MIN {
                runs.push((at, len));
            }
            at += 4 * len.max(1);
        }
        let mut names_left = NAMES_PARSED_MAX;
        runs.into_iter().rev().take(RUNS_MAX).find_map(|(at, len)| {
            (len.saturating_sub(MARKERS_EXCESS_MAX)..=len).rev().find_map(|len| {
                let markers: Option<Vec<u32>> = (0..len).map(|i| window.u32(at + i * 4)).collect();
                Self::before_markers(window, at, &markers?, &mut names_left)
            })
        })
    }

    fn before_markers(window: &Window, at: usize, markers: &[u32], left: &mut usize) -> Option<Self> {
        let latest = at.checked_sub(*markers.last()? as usize)?;
        let earliest = latest.saturating_sub(*MARKER_STEP.end() as usize).next_multiple_of(4);
        (earliest..latest).step_by(4).find_map(|start| {
            [4, 8].into_iter().find_map(|back| {
                let count_at = start.checked_sub(back)?;
                let count = window.u32(count_at)? as usize;
                let fits = count.div_ceil(NAMES_PER_MARKER) == markers.len() && count <= SYMBOLS_MAX;
                let end = fits.then(|| names_end(window, start, count, markers, left)).flatten()?;
                let gap = at.checked_sub(end)?;
                (gap < 8).then_some(Self { count_at, count, range: start..end })
            })
        })
    }
}

/// How many words from `at` on can be markers: a zero, then steps of plausible size.
fn marker_run(window: &Window, at: usize) -> usize {
    let Some(mut previous @ 0) = window.u32(at) else { return 0 };
    let mut len = 1;
    while len <= SYMBOLS_MAX / NAMES_PER_MARKER {
        let next = window.u32(at + len * 4);
        let Some(next) = next.filter(|next| MARKER_STEP.contains(&next.wrapping_sub(previous))) else {
            break;
        };
        previous = next;
        len += 1;
    }
    len
}

/// Where `count` names that begin at `start` end, if every 256th lies where its marker says.
/// Each name parsed is taken from `left`.
fn names_end(
    window: &Window,
    start: usize,
    count: usize,
    markers: &[u32],
    left: &mut usize,
) -> Option<usize> {
    let mut at = start;
    for index in 0..count {
        if index % NAMES_PER_MARKER == 0 && at - start != markers[index / NAMES_PER_MARKER] as usize {
            return None;
        }
        *left = left.checked_sub(1)?;
        at = name_span(&window.bytes, at)?.1;
    }
    Some(at)
}

/// Start and end of the token numbers of the name at `at`. A length of 128 or more takes two bytes.
fn name_span(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let first = usize::from(*bytes.get(at)?);
    let (start, len) = if first & 0x80 == 0 {
        (at + 1, first)
    } else {
        (at + 2, first & 0x7f | usize::from(*bytes.get(at + 1)?) << 7)
    };
    let end = start + len;
    (len > 0 && end <= bytes.len()).then_some((start, end))
}

/// Finds `kallsyms_offsets`, before the names or after the token index, and how to read them.
fn find_offsets(
    memory: &dyn PhysicalMemory,
    before: &Window,
    names: &Names,
    tokens: &Tokens,
) -> Option<(u64, Encoding, Vec<u32>)> {
    let is_base = |value: &u64| *value >= START_KERNEL_MAP;
    let len_bytes = names.count as u64 * 4;
    let aligned_bytes = len_bytes.next_multiple_of(8);
    let read = |gpa: u64| {
        let mut bytes = vec![0; names.count * 4];
        memory.read(gpa, &mut bytes).ok()?;
        Some(bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect::<Vec<u32>>())
    };
    let with_base = |gpa: u64, base: u64| {
        let offsets = read(gpa)?;
        let negative = offsets.iter().filter(|offset| offset.cast_signed() < 0).count();
        let mostly = negative > offsets.len() / 2;
        let encoding = if mostly { Encoding::BaseOrAbsolute(base) } else { Encoding::Base(base) };
        Some((gpa, encoding, offsets))
    };
    let base_at = names.count_at.checked_sub(8);
    if let Some((at, base)) = base_at.and_then(|at| Some((at, before.u64(at).filter(is_base)?))) {
        return with_base((before.gpa + at as u64).checked_sub(aligned_bytes)?, base);
    }
    let gpa = tokens.end_gpa.next_multiple_of(4);
    let mut base = [0; 8];
    let base_gpa = gpa.next_multiple_of(8).checked_add(aligned_bytes)?;
    memory.read(base_gpa, &mut base).ok()?;
    let base = u64::from_le_bytes(base);
    if is_base(&base) {
        return with_base(gpa.next_multiple_of(8), base);
    }
    Some((gpa, Encoding::PlaceRelative, read(gpa)?))
}
