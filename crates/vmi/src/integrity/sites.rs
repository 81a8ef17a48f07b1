// SPDX-License-Identifier: Apache-2.0
//! Places in text that the kernel rewrites by itself while it runs: static keys (jump labels), static calls and
//! where functions can be traced. What stands there must be one of the few instructions that belong there.

use std::ops::Range;

use crate::core::Core;
use crate::error::Fault;
use crate::memory::Gva;

use super::known::{KnownCode, Module};
use super::layout::IntegrityLayout;

/// Most places of one sort taken: kernels have 50,000 functions that can be traced.
const SITES_MAX: usize = 1 << 18;
/// Longest instruction that is put there.
pub(super) const SITE_BYTES_MAX: usize = 8;
/// An entry of the table of static keys: two offsets relative to themselves, and the key.
const JUMP_ENTRY_BYTES: u64 = 16;
/// An entry of the table of static calls: two offsets relative to themselves.
const CALL_ENTRY_BYTES: u64 = 8;
/// An entry of a module's table of functions that can be traced: the address.
const TRACE_ENTRY_BYTES: u64 = 8;
/// Static call trampolines: a jump or return, and what marks them (`ud1 %esp, %ecx`).
const TRAMPOLINE_BYTES: u64 = 8;
const TRAMPOLINE_MARK: [u8; 3] = [0x0f, 0xb9, 0xcc];
const JUMP_BYTES: u64 = 5;
/// Read at a time.
const BLOCK_BYTES: usize = 4096;

const NOP2: [u8; 2] = [0x66, 0x90];
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// `xor %eax, %eax` with three prefixes: a static call that returns zero.
const RETURN_ZERO: [u8; 5] = [0x66, 0x66, 0x48, 0x31, 0xc0];
/// `xor %eax, %eax; return`, as some are built.
const ZERO_RETURN: [u8; 3] = [0x31, 0xc0, 0xc3];
const RETURN: u8 = 0xc3;
/// A breakpoint, for an instant, while the rest is rewritten.
const BREAKPOINT: u8 = 0xcc;
const CALL: u8 = 0xe8;
const JUMP: u8 = 0xe9;
const JUMP_SHORT: u8 = 0xeb;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SiteKind {
    /// Either nothing or a jump to this distance from the place.
    Key { target: i32 },
    /// Either nothing or a call.
    Trace,
    /// A call, a jump, a return, or a conditional jump.
    Call,
}

/// A place that the kernel rewrites by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    pub(super) at: u64,
    pub(super) kind: SiteKind,
}

/// What stands at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// It is being rewritten right now.
    Changing,
    /// What belongs there, and its length in bytes; it may lead to an address.
    Legal(usize, Option<u64>),
    /// Anything else.
    Illegal,
}

impl Site {
    /// What the instruction at the place is.
    pub(super) fn form(&self, bytes: &[u8; SITE_BYTES_MAX]) -> Form {
        let relative = || {
            let distance = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
            self.at.wrapping_add(5).wrapping_add_signed(distance.into())
        };
        if bytes[0] == BREAKPOINT {
            return Form::Changing;
        }
        match self.kind {
            _ if bytes.starts_with(&NOP5) => Form::Legal(5, None),
            SiteKind::Key { target } => {
                let target = self.at.wrapping_add_signed(target.into());
                let short = self.at.wrapping_add(2).wrapping_add_signed(bytes[1].cast_signed().into());
                match bytes[0] {
                    _ if bytes.starts_with(&NOP2) => Form::Legal(2, None),
                    JUMP if relative() == target => Form::Legal(5, None),
                    JUMP_SHORT if short == target => Form::Legal(2, None),
                    _ => Form::Illegal,
                }
            }
            SiteKind::Trace => match bytes[0] {
                CALL => Form::Legal(5, Some(relative())),
                _ => Form::Illegal,
            },
            SiteKind::Call => match bytes[0] {
                CALL | JUMP => Form::Legal(5, Some(relative())),
                RETURN => Form::Legal(5, None),
                _ if bytes.starts_with(&RETURN_ZERO) || bytes.starts_with(&ZERO_RETURN) => {
                    Form::Legal(5, None)
                }
                // A conditional tail call: two bytes of operation.
                0x0f if bytes[1] & 0xf0 == 0x80 => {
                    let distance = i32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
                    Form::Legal(6, Some(self.at.wrapping_add(6).wrapping_add_signed(distance.into())))
                }
                _ => Form::Illegal,
            },
        }
    }
}

impl Core {
    /// Every place in a module's text that the kernel rewrites, by address.
    pub(super) fn module_sites(
        &self,
        layout: &IntegrityLayout,
        module: &Module,
    ) -> Result<Option<Vec<Site>>, Fault> {
        let Some(lives) = &layout.module_lives else { return Ok(None) };
        let table = |start, count, entry_bytes| {
            let start = self.reader.pointer(module.at.at(start))?;
            let end = start.element(self.reader.u32(module.at.at(count))?.into(), entry_bytes);
            Ok::<_, Fault>((start, end))
        };
        let mut sites = Vec::new();
        self.add_keys(table(lives.keys, lives.key_count, JUMP_ENTRY_BYTES as u32)?, &mut sites)?;
        self.add_calls(table(lives.calls, lives.call_count, CALL_ENTRY_BYTES as u32)?, &mut sites)?;
        let (start, end) = table(lives.traces, lives.trace_count, TRACE_ENTRY_BYTES as u32)?;
        self.table(start, end, TRACE_ENTRY_BYTES, |_, entry| {
            let at = entry.first_chunk().copied().map_or(0, u64::from_le_bytes);
            sites.push(Site { at, kind: SiteKind::Trace });
        })?;
        self.add_trampolines(&module.text, &mut sites)?;
        Ok(Some(sorted(sites, &module.text)))
    }

    fn add_keys(&self, (start, end): (Gva, Gva), sites: &mut Vec<Site>) -> Result<(), Fault> {
        self.table(start, end, JUMP_ENTRY_BYTES, |place, entry| {
            let (code, target) = (relative(place, entry, 0), relative(place, entry, 4));
            let target = i32::try_from(target.wrapping_sub(code).cast_signed()).unwrap_or_default();
            sites.push(Site { at: code, kind: SiteKind::Key { target } });
        })
    }

    fn add_calls(&self, (start, end): (Gva, Gva), sites: &mut Vec<Site>) -> Result<(), Fault> {
        self.table(start, end, CALL_ENTRY_BYTES, |place, entry| {
            sites.push(Site { at: relative(place, entry, 0), kind: SiteKind::Call });
        })
    }

    /// Adds static call trampolines, which no table of a module lists: they are told by their mark.
    fn add_trampolines(&self, text: &Range<u64>, sites: &mut Vec<Site>) -> Result<(), Fault> {
        let mark = memchr::memmem::Finder::new(&TRAMPOLINE_MARK);
        self.table(Gva(text.start), Gva(text.end), BLOCK_BYTES as u64, |place, block| {
            let marks = mark.find_iter(block).map(|at| place.wrapping_add(at as u64));
            let starts = marks.filter_map(|mark| mark.checked_sub(JUMP_BYTES));
            sites.extend(starts.filter(|at| at % 4 == 0).map(|at| Site { at, kind: SiteKind::Call }));
        })
    }

    /// Every place in the kernel's own text that the kernel rewrites, by address; `None` if one of the tables
    /// is not there to be read.
    pub(super) fn sites(
        &self,
        layout: &IntegrityLayout,
        known: &KnownCode,
    ) -> Result<Option<Vec<Site>>, Fault> {
        let mut sites = Vec::new();
        let symbols = &self.anchors.symbols;
        let table = |start, end| symbols.find(start).zip(symbols.find(end));
        let Some(keys) = table("__start___jump_table", "__stop___jump_table") else {
            return Ok(None);
        };
        self.add_keys(keys, &mut sites)?;
        if let Some(calls) = table("__start_static_call_sites", "__stop_static_call_sites") {
            self.add_calls(calls, &mut sites)?;
        }
        if let Some((start, end)) = table("__static_call_text_start", "__static_call_text_end") {
            let count = (end.0.wrapping_sub(start.0) / TRAMPOLINE_BYTES).min(SITES_MAX as u64);
            sites.extend((0..count).map(|index| Site {
                at: start.element(index, TRAMPOLINE_BYTES as u32).0,
                kind: SiteKind::Call,
            }));
        }
        // The calls in the tracer's own trampolines.
        let calls = ["ftrace_call", "ftrace_regs_call", "ftrace_graph_call"].map(|name| symbols.find(name));
        sites.extend(calls.into_iter().flatten().map(|at| Site { at: at.0, kind: SiteKind::Call }));
        if let Some((layout, record_bytes)) = &layout.trace_sites {
            let Some(first) = symbols.find("ftrace_pages_start") else { return Ok(None) };
            let mut page = self.reader.pointer(first)?;
            let mut pages = 0;
            while !page.is_null() {
                let records = self.reader.pointer(page.at(layout.records))?;
                let count = self.reader.u32(page.at(layout.count))?;
                pages += 1;
                if pages > SITES_MAX || count as usize > SITES_MAX {
                    return Err(Fault::Inconsistent);
                }
                let end = records.element(count.into(), *record_bytes);
                self.table(records, end, u64::from(*record_bytes), |_, record| {
                    let at = record.get(layout.address as usize..).and_then(|rest| rest.first_chunk());
                    sites.push(Site { at: at.copied().map_or(0, u64::from_le_bytes), kind: SiteKind::Trace });
                })?;
                page = self.reader.pointer(page.at(layout.next))?;
            }
        }
        Ok(Some(sorted(sites, &known.kernel)))
    }

    /// Calls `each` with the place and bytes of every entry of a table.
    fn table(
        &self,
        start: Gva,
        end: Gva,
        entry_bytes: u64,
        mut each: impl FnMut(u64, &[u8]),
    ) -> Result<(), Fault> {
        let count = end.0.wrapping_sub(start.0).checked_div(entry_bytes).unwrap_or(u64::MAX);
        if count > SITES_MAX as u64 || entry_bytes > BLOCK_BYTES as u64 {
            return Err(Fault::Inconsistent);
        }
        let per_block = BLOCK_BYTES as u64 / entry_bytes;
        let mut block = [0; BLOCK_BYTES];
        let mut index = 0;
        while index < count {
            let entries = per_block.min(count - index);
            let bytes = &mut block[..(entries * entry_bytes) as usize];
            let place = start.0.wrapping_add(index * entry_bytes);
            self.reader.bytes(Gva(place), bytes)?;
            for (place, entry) in
                (place..).step_by(entry_bytes as usize).zip(bytes.chunks_exact(entry_bytes as usize))
            {
                each(place, entry);
            }
            index += entries;
        }
        Ok(())
    }
}

/// Those that lie in `text`, one for each address, in order.
fn sorted(mut sites: Vec<Site>, text: &Range<u64>) -> Vec<Site> {
    sites.retain(|site| text.contains(&site.at));
    sites.sort_unstable();
    sites.dedup_by_key(|site| site.at);
    sites
}

/// The address that an offset relative to its own place names.
fn relative(place: u64, entry: &[u8], at: usize) -> u64 {
    let offset = entry.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, i32::from_le_bytes);
    place.wrapping_add(at as u64).wrapping_add_signed(offset.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(kind: SiteKind, bytes: &[u8]) -> Form {
        let mut all = [0; SITE_BYTES_MAX];
        all[..bytes.len()].copy_from_slice(bytes);
        Site { at: 0x1000, kind }.form(&all)
    }

    #[test]
    fn only_what_belongs_there_is_legal() {
        let key = SiteKind::Key { target: 0x20 };
        for (kind, bytes, expected) in [
            (key, &NOP5[..], Form::Legal(5, None)),
            (key, &NOP2, Form::Legal(2, None)),
            (key, &[0xeb, 0x1e], Form::Legal(2, None)),
            (key, &[0xeb, 0x1f], Form::Illegal),
            (key, &[0xe9, 0x1b, 0, 0, 0], Form::Legal(5, None)),
            (key, &[0xe9, 0x1c, 0, 0, 0], Form::Illegal),
            (key, &[0xe8, 0x1b, 0, 0, 0], Form::Illegal),
            (key, &[0xcc], Form::Changing),
            (SiteKind::Trace, &NOP5, Form::Legal(5, None)),
            (SiteKind::Trace, &[0xe8, 0xfb, 0xff, 0xff, 0xff], Form::Legal(5, Some(0x1000))),
            (SiteKind::Trace, &[0xe9, 0, 0, 0, 0], Form::Illegal),
            (SiteKind::Call, &[0xe9, 0, 0, 0, 0], Form::Legal(5, Some(0x1005))),
            (SiteKind::Call, &[0x0f, 0x84, 0, 0, 0, 0], Form::Legal(6, Some(0x1006))),
            (SiteKind::Call, &[RETURN, 0xcc], Form::Legal(5, None)),
            (SiteKind::Call, &RETURN_ZERO, Form::Legal(5, None)),
            (SiteKind::Call, &[0x90], Form::Illegal),
        ] {
            assert_eq!(form(kind, bytes), expected, "{kind:?} {bytes:x?}");
        }
    }
}
