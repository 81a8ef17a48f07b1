// SPDX-License-Identifier: Apache-2.0
//! Kernel text and read-only data against what they were at first sight.
//!
//! Each line of 256 bytes has a hash with a key that the guest does not know; what the kernel rewrites by
//! itself ([`super::sites`]) counts as empty where it is a form that belongs there, and a probe's breakpoint as
//! the byte that it replaced. A line that differs is looked at again in each of the next calls.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use crate::error::Fault;
use crate::guest::Core;
use crate::memory::Gva;

use super::known::KnownCode;
use super::layout::IntegrityLayout;
use super::sites::{Form, SITE_BYTES_MAX, Site};
use super::suspects::Suspect;
use super::{Certainty, Coverage, FindingKind};

const PAGE_BYTES: u64 = 4096;
/// Bytes with a hash of their own.
const LINE_BYTES: usize = 256;
const LINES: usize = PAGE_BYTES as usize / LINE_BYTES;
/// Most pages watched: 128 MiB.
const PAGES_MAX: u64 = 1 << 15;
/// Pages that differ and are looked at in every call.
const DOUBTFUL_MAX: usize = 16;
/// Bytes of a line shown as evidence.
const SHOWN_BYTES: usize = 8;
/// A probe's breakpoint, and the jump that may follow it.
const BREAKPOINT: u8 = 0xcc;
const JUMP: u8 = 0xe9;
/// Bytes of a jump after the first.
const JUMP_REST_BYTES: usize = 4;

/// One page as it was at first sight.
struct Page {
    gva: Gva,
    kind: FindingKind,
    lines: Option<[u64; LINES]>,
    is_doubtful: bool,
}

/// All pages that are watched.
pub(super) struct Pages {
    pages: Vec<Page>,
    sites: Vec<Site>,
    key: RandomState,
    next: usize,
    rounds: u64,
    doubtful: VecDeque<usize>,
}

/// What a probe replaced.
struct Replaced {
    at: u64,
    first: u8,
    rest: Option<[u8; JUMP_REST_BYTES]>,
}

impl Core {
    /// The pages to watch; `None` while the guest is still booting, or if nothing is known of what the kernel
    /// rewrites by itself.
    pub(super) fn pages(&self, layout: &IntegrityLayout) -> Result<Option<Pages>, Fault> {
        // The first process has a program when the kernel has sealed its data.
        let Some(first) = self.tasks()?.first().copied() else { return Ok(None) };
        if self.of_any_thread(first, self.layout.task.mm)?.is_null() {
            return Ok(None);
        }
        let (known, _) = self.known_code(layout)?;
        let Some(sites) = self.sites(layout, &known)? else { return Ok(None) };
        let symbols = &self.anchors.symbols;
        let mut pages = Vec::new();
        let data = symbols.find("__start_rodata").zip(symbols.find("__end_rodata"));
        let data = data.map_or(0..0, |(start, end)| start.0..end.0);
        for (range, kind) in [(known.kernel, FindingKind::ModifiedText), (data, FindingKind::ModifiedData)] {
            let start = range.start.next_multiple_of(PAGE_BYTES);
            let count = (range.end.saturating_sub(start) / PAGE_BYTES).min(PAGES_MAX);
            pages.extend((0..count).map(|index| Page {
                gva: Gva(start).element(index, PAGE_BYTES as u32),
                kind,
                lines: None,
                is_doubtful: false,
            }));
        }
        let (key, doubtful) = (RandomState::new(), VecDeque::new());
        Ok((!pages.is_empty()).then_some(Pages { pages, sites, key, next: 0, rounds: 0, doubtful }))
    }

    /// What the probes in a page replaced.
    fn replaced(&self, layout: &IntegrityLayout, page: Gva) -> Result<Vec<Replaced>, Fault> {
        let Some(probes) = &layout.probes else { return Ok(Vec::new()) };
        let mut replaced = Vec::new();
        for probe in self.probes(probes)? {
            let at = self.reader.u64(probe.at(probes.address))?;
            if at.wrapping_sub(page.0) < PAGE_BYTES {
                let [first] = self.reader.array(probe.at(probes.opcode))?;
                // Where it is no jump, what is read here has no meaning and no use.
                let jump = layout.jump_probes.as_ref();
                let rest =
                    jump.and_then(|jump| self.reader.array(probe.container(jump.probe).at(jump.copied)).ok());
                replaced.push(Replaced { at, first, rest });
            }
        }
        Ok(replaced)
    }
}

impl Pages {
    pub(super) fn coverage(&self) -> Coverage {
        let pages_known = self.pages.iter().filter(|page| page.lines.is_some()).count();
        Coverage { pages: self.pages.len(), pages_known, rounds: self.rounds, views: 0 }
    }

    /// Checks the doubtful pages and the next `count`.
    pub(super) fn check_some(
        &mut self,
        core: &Core,
        layout: &IntegrityLayout,
        known: &KnownCode,
        count: usize,
    ) -> Vec<Suspect> {
        let mut suspects = Vec::new();
        for _ in 0..self.doubtful.len() {
            if let Some(index) = self.doubtful.pop_front() {
                self.pages[index].is_doubtful = false;
                self.check(core, layout, known, index, &mut suspects);
            }
        }
        for _ in 0..count.min(self.pages.len()) {
            let index = self.next;
            self.next = (self.next + 1) % self.pages.len();
            self.rounds += u64::from(self.next == 0);
            if !self.pages[index].is_doubtful {
                self.check(core, layout, known, index, &mut suspects);
            }
        }
        suspects
    }

    /// Checks the doubtful pages once more; what else `suspects` had stays.
    pub(super) fn check_again(
        &mut self,
        core: &Core,
        layout: &IntegrityLayout,
        known: &KnownCode,
        mut suspects: Vec<Suspect>,
    ) -> Vec<Suspect> {
        suspects.retain(|suspect| suspect.kind != FindingKind::FunctionHook);
        suspects.extend(self.check_some(core, layout, known, 0));
        suspects
    }

    fn check(
        &mut self,
        core: &Core,
        layout: &IntegrityLayout,
        known: &KnownCode,
        index: usize,
        suspects: &mut Vec<Suspect>,
    ) {
        // A page that cannot be read now (freed, or the guest is being reset) is no evidence of anything.
        let before = suspects.len();
        let _ = self.compare(core, layout, known, index, suspects);
        if suspects.len() > before && self.doubtful.len() < DOUBTFUL_MAX {
            self.pages[index].is_doubtful = true;
            self.doubtful.push_back(index);
        }
    }

    fn compare(
        &mut self,
        core: &Core,
        layout: &IntegrityLayout,
        known: &KnownCode,
        index: usize,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(), Fault> {
        let (gva, kind) = (self.pages[index].gva, self.pages[index].kind);
        let found =
            |address: u64, kind, evidence| Suspect { kind, certainty: Certainty::Certain, address, evidence };
        let (walked, linear) = (core.reader.walk(gva)?, core.reader.translate(gva)?);
        if walked.gpa != linear.gpa {
            let evidence = format!("the page at {:#x} is mapped to other memory ({:#x})", gva.0, walked.gpa);
            suspects.push(found(gva.0, kind, evidence));
        }
        let mut bytes = [0; PAGE_BYTES as usize];
        core.reader.bytes(gva, &mut bytes)?;
        let original = bytes;
        let Some(targets) = self.clear_sites(core, gva, &mut bytes)? else { return Ok(()) };
        for (site, target) in targets.into_iter().filter(|(_, target)| known.is_unknown(*target)) {
            let evidence = format!("the kernel's text, at {site:#x}, calls {}", known.describe(target));
            suspects.push(found(target, FindingKind::FunctionHook, evidence));
        }
        let lines = self.hash(&bytes);
        let Some(expected) = self.pages[index].lines else {
            self.pages[index].lines = Some(lines);
            return Ok(());
        };
        if lines == expected {
            return Ok(());
        }
        bytes = original;
        restore(&mut bytes, gva, &core.replaced(layout, gva)?);
        if self.clear_sites(core, gva, &mut bytes)?.is_none() {
            return Ok(());
        }
        let lines = self.hash(&bytes);
        for line in (0..LINES).filter(|&line| lines[line] != expected[line]) {
            let at = line * LINE_BYTES;
            let shown = &original[at..at + SHOWN_BYTES];
            let what = if kind == FindingKind::ModifiedText { "text" } else { "read-only data" };
            let evidence = format!(
                "{LINE_BYTES} bytes of {what} at {:#x} are not as they were; they begin {shown:02x?}",
                gva.0 + at as u64
            );
            suspects.push(found(gva.0 + at as u64, kind, evidence));
        }
        Ok(())
    }

    /// Clears what the kernel rewrites by itself, and tells where it leads; `None` if it is being rewritten now.
    fn clear_sites(
        &self,
        core: &Core,
        gva: Gva,
        bytes: &mut [u8; PAGE_BYTES as usize],
    ) -> Result<Option<Vec<(u64, u64)>>, Fault> {
        let reach = gva.0.saturating_sub(SITE_BYTES_MAX as u64);
        let end = gva.0.saturating_add(PAGE_BYTES);
        let first = self.sites.partition_point(|site| site.at <= reach);
        let mut targets = Vec::new();
        for site in self.sites[first..].iter().take_while(|site| site.at < end) {
            let offset = site.at.wrapping_sub(gva.0).cast_signed();
            let own = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)?.first_chunk().copied());
            let instruction = own.map_or_else(|| core.reader.array(Gva(site.at)), Ok)?;
            match site.form(&instruction) {
                Form::Changing => return Ok(None),
                // What does not belong there is left to the hash.
                Form::Illegal => {}
                Form::Legal(len, target) => {
                    targets.extend(target.map(|target| (site.at, target)));
                    for at in (0..len as i64).map(|byte| offset + byte) {
                        if let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
                            *byte = 0;
                        }
                    }
                }
            }
        }
        Ok(Some(targets))
    }

    fn hash(&self, bytes: &[u8; PAGE_BYTES as usize]) -> [u64; LINES] {
        let lines = bytes.as_chunks::<LINE_BYTES>().0;
        std::array::from_fn(|line| self.key.hash_one(lines[line]))
    }
}

/// Puts back what probes replaced.
fn restore(bytes: &mut [u8; PAGE_BYTES as usize], page: Gva, replaced: &[Replaced]) {
    for Replaced { at, first, rest } in replaced {
        let at = at.wrapping_sub(page.0) as usize;
        let is_jump = match bytes.get(at) {
            Some(&BREAKPOINT) => false,
            Some(&JUMP) => true,
            _ => continue,
        };
        bytes[at] = *first;
        for (byte, original) in bytes[at + 1..].iter_mut().zip(rest.filter(|_| is_jump).unwrap_or_default()) {
            if is_jump {
                *byte = original;
            }
        }
    }
}
