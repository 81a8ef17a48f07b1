// SPDX-License-Identifier: Apache-2.0
//! Text of the kernel and its modules, read-only data and interrupt gates against what they were at first sight.
//!
//! A page whose bytes are those that were found right last costs one copy and one hash, with a key that the guest
//! does not know. Of any other, each line of 256 bytes has a hash; what the kernel rewrites by itself
//! ([`super::sites`]) counts as empty where it is a form that belongs there, and a probe's breakpoint as the byte
//! that it replaced. A page that differs is looked at again in each of the next calls.
//!
//! The first look may see what is only there for an instant, like the half of a probe. So what a page was counts only
//! when a look in the next round sees the same.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::ops::Range;

use foldhash::quality::RandomState;

use crate::core::Core;
use crate::error::Fault;
use crate::memory::Gva;

use super::finding::{Certainty, Coverage, FindingKind};
use super::known::{KnownCode, Module};
use super::layout::IntegrityLayout;
use super::sites::{Form, SITE_BYTES_MAX, Site};
use super::suspects::Suspect;

const PAGE_BYTES: u64 = 4096;
/// Bytes with a hash of their own.
const LINE_BYTES: usize = 256;
const LINES: usize = PAGE_BYTES as usize / LINE_BYTES;
/// Most pages watched of the kernel's text and of its data: 128 MiB each.
const PAGES_MAX: u64 = 1 << 15;
/// Modules with more text are not watched; the largest have some 8 MiB.
const MODULE_BYTES_MAX: u64 = 32 << 20;
/// Pages that differ and are looked at in every call.
const DOUBTFUL_MAX: usize = 16;
/// Bytes of a line shown as evidence.
const SHOWN_BYTES: usize = 8;
/// A probe's breakpoint, and the jump that may follow it.
const BREAKPOINT: u8 = 0xcc;
const JUMP: u8 = 0xe9;
/// Bytes of a jump after the first.
const JUMP_REST_BYTES: usize = 4;

/// Looks at a page that may see something else each time before what it was last counts.
const FIRST_LOOKS_MAX: u8 = 8;

/// One page.
#[derive(Clone, Default)]
struct Page {
    /// The hash of its bytes when they were found right last.
    right: Option<u64>,
    /// Those of its lines at first sight.
    lines: Option<[u64; LINES]>,
    /// Looks that saw something else than the one before, until [`Page::is_settled`].
    first_looks: u8,
    is_settled: bool,
}

impl Page {
    /// What the lines must be, now that they are these.
    fn expected(&mut self, lines: [u64; LINES]) -> [u64; LINES] {
        if !self.is_settled {
            self.is_settled = self.lines == Some(lines) || self.first_looks == FIRST_LOOKS_MAX;
        }
        if !self.is_settled {
            self.first_looks += 1;
            self.lines = Some(lines);
        }
        *self.lines.get_or_insert(lines)
    }
}

/// Pages that belong together.
struct Area {
    start: Gva,
    kind: FindingKind,
    pages: Vec<Page>,
    sites: Vec<Site>,
    /// Whose text it is, if not the kernel's own.
    module: Option<Module>,
}

impl Area {
    fn new(range: &Range<u64>, kind: FindingKind, sites: Vec<Site>, module: Option<Module>) -> Self {
        let start = range.start.checked_next_multiple_of(PAGE_BYTES).unwrap_or(range.end);
        let count = (range.end.saturating_sub(start) / PAGE_BYTES).min(PAGES_MAX);
        Self { start: Gva(start), kind, pages: vec![Page::default(); count as usize], sites, module }
    }

    fn page_at(&self, index: usize) -> Gva {
        self.start.element(index as u64, PAGE_BYTES as u32)
    }

    fn index_of(&self, page: Gva) -> Option<usize> {
        let index = page.0.checked_sub(self.start.0)? / PAGE_BYTES;
        usize::try_from(index).ok().filter(|index| *index < self.pages.len())
    }
}

/// All pages that are watched.
pub(super) struct Pages {
    areas: Vec<Area>,
    key: RandomState,
    /// The next area, and the next page of it.
    next: (usize, usize),
    rounds: u64,
    doubtful: VecDeque<Gva>,
    /// The page that is looked at. It is read into one place, for copies from stack to stack cost more than reading.
    read: Box<Bytes>,
}

/// What a look at a page needs besides the page.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) core: &'a Core,
    pub(super) layout: &'a IntegrityLayout,
    pub(super) known: &'a KnownCode,
}

type Bytes = [u8; PAGE_BYTES as usize];

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
        let data = symbols.find("__start_rodata").zip(symbols.find("__end_rodata"));
        let data = data.map_or(0..0, |(start, end)| start.0..end.0);
        // The kernel protects the gates against writing once they are set.
        let gates =
            symbols.find("idt_table").map_or(0..0, |table| table.0..table.0.saturating_add(PAGE_BYTES));
        let areas = vec![
            Area::new(&known.kernel, FindingKind::ModifiedText, sites, None),
            Area::new(&data, FindingKind::ModifiedData, Vec::new(), None),
            Area::new(&gates, FindingKind::InterruptEntry, Vec::new(), None),
        ];
        let (key, doubtful) = (RandomState::default(), VecDeque::new());
        let read = Box::new([0; PAGE_BYTES as usize]);
        let pages = Pages { areas, key, next: (0, 0), rounds: 0, doubtful, read };
        Ok((pages.count() > 0).then_some(pages))
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
    pub(super) fn count(&self) -> usize {
        self.areas.iter().map(|area| area.pages.len()).sum()
    }

    pub(super) fn coverage(&self) -> Coverage {
        let known = |area: &Area| area.pages.iter().filter(|page| page.is_settled).count();
        let pages_known = self.areas.iter().map(known).sum();
        Coverage { pages: self.count(), pages_known, rounds: self.rounds, views: 0 }
    }

    /// Takes in modules that have come, and lets go of those that went.
    pub(super) fn follow(&mut self, core: &Core, layout: &IntegrityLayout, known: &KnownCode) {
        let is_there = |module: &Module| known.modules.iter().any(|own| own.is_live && own.is_same(module));
        self.areas.retain(|area| area.module.as_ref().is_none_or(is_there));
        for module in known.modules.iter().filter(|module| module.is_live) {
            let is_own = |area: &Area| area.module.as_ref().is_some_and(|own| own.is_same(module));
            let is_watched = self.areas.iter().any(is_own);
            let is_small = module.text.end.saturating_sub(module.text.start) <= MODULE_BYTES_MAX;
            // One that cannot be understood now is tried again.
            if !is_watched
                && is_small
                && let Ok(Some(sites)) = core.module_sites(layout, module)
            {
                let kind = FindingKind::ModifiedText;
                self.areas.push(Area::new(&module.text, kind, sites, Some(module.clone())));
            }
        }
    }

    /// Has every page looked at in detail once more: code that was known no longer is.
    pub(super) fn doubt_all(&mut self) {
        for page in self.areas.iter_mut().flat_map(|area| &mut area.pages) {
            page.right = None;
        }
    }

    /// Checks the doubtful pages and the next `count`.
    pub(super) fn check_some(&mut self, look: Look<'_>, count: usize) -> Vec<Suspect> {
        let (mut suspects, mut mapped) = (Vec::new(), 0..0);
        for page in std::mem::take(&mut self.doubtful) {
            let found = self.areas.iter().position(|area| area.index_of(page).is_some());
            if let Some(area) = found {
                self.check(look, area, page, &mut mapped, &mut suspects);
            }
        }
        for _ in 0..count {
            let (area, index) = self.next;
            let Some(found) = self.areas.get(area) else {
                self.next = (0, 0);
                self.rounds += 1;
                continue;
            };
            self.next = if index + 1 < found.pages.len() { (area, index + 1) } else { (area + 1, 0) };
            let page = found.page_at(index);
            if index < found.pages.len() && !self.doubtful.contains(&page) {
                self.check(look, area, page, &mut mapped, &mut suspects);
            }
        }
        suspects
    }

    /// Checks the doubtful pages once more; what else `suspects` had stays.
    pub(super) fn check_again(&mut self, look: Look<'_>, mut suspects: Vec<Suspect>) -> Vec<Suspect> {
        suspects.retain(|suspect| suspect.kind != FindingKind::FunctionHook);
        suspects.extend(self.check_some(look, 0));
        suspects
    }

    fn check(
        &mut self,
        look: Look<'_>,
        area: usize,
        page: Gva,
        mapped: &mut Range<u64>,
        suspects: &mut Vec<Suspect>,
    ) {
        // A page that cannot be read now (freed, or the guest is being reset) is no evidence of anything.
        let before = suspects.len();
        let area = &mut self.areas[area];
        let _ = area
            .check_mapping(look.core, page, mapped, suspects)
            .and_then(|()| look.core.reader.bytes(page, &mut *self.read))
            .and_then(|()| area.compare(look, &self.key, page, &self.read, suspects));
        if suspects.len() > before && self.doubtful.len() < DOUBTFUL_MAX {
            self.doubtful.push_back(page);
        }
    }
}

impl Area {
    /// Compares where the page tables say that a page lies with where it must. `mapped` is what was compared
    /// last: large pages are walked to once.
    fn check_mapping(
        &self,
        core: &Core,
        page: Gva,
        mapped: &mut Range<u64>,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(), Fault> {
        if self.module.is_some() || mapped.contains(&page.0) {
            return Ok(());
        }
        let (walked, linear) = (core.reader.walk(page)?, core.reader.translate(page)?);
        if walked.gpa == linear.gpa {
            *mapped = page.0..page.0.saturating_add(walked.left_bytes);
            return Ok(());
        }
        let evidence = format!("the page at {:#x} is mapped to other memory ({:#x})", page.0, walked.gpa);
        suspects.push(found(self.kind, page.0, evidence));
        Ok(())
    }

    fn compare(
        &mut self,
        look: Look<'_>,
        key: &RandomState,
        page: Gva,
        original: &Bytes,
        suspects: &mut Vec<Suspect>,
    ) -> Result<(), Fault> {
        let Look { core, layout, known } = look;
        let Some(index) = self.index_of(page) else { return Ok(()) };
        let whole = key.hash_one(original);
        if self.pages[index].right == Some(whole) {
            self.pages[index].is_settled = true;
            return Ok(());
        }
        let mut bytes = *original;
        restore(&mut bytes, page, &core.replaced(layout, page)?);
        let Some(targets) = self.clear_sites(core, page, &mut bytes)? else { return Ok(()) };
        let before = suspects.len();
        for (site, target) in targets.into_iter().filter(|(_, target)| known.is_unknown(*target)) {
            let evidence = format!("the kernel's text, at {site:#x}, calls {}", known.describe(target));
            suspects.push(found(FindingKind::FunctionHook, target, evidence));
        }
        let lines = hashes(key, &bytes);
        let expected = self.pages[index].expected(lines);
        let differ = (0..LINES).filter(|&line| lines[line] != expected[line]);
        suspects.extend(differ.map(|line| self.differs(page, line, original)));
        if suspects.len() == before {
            self.pages[index].right = Some(whole);
        }
        Ok(())
    }

    fn differs(&self, page: Gva, line: usize, bytes: &Bytes) -> Suspect {
        let what = match (self.kind, &self.module) {
            (FindingKind::ModifiedText, None) => "text".into(),
            (FindingKind::ModifiedText, Some(module)) => format!("text of module `{}`", module.name),
            (FindingKind::InterruptEntry, _) => "interrupt gates".into(),
            _ => "read-only data".to_owned(),
        };
        let at = page.0 + (line * LINE_BYTES) as u64;
        let shown = &bytes[line * LINE_BYTES..][..SHOWN_BYTES];
        let evidence =
            format!("{LINE_BYTES} bytes of {what} at {at:#x} are not as they were; they begin {shown:02x?}");
        found(self.kind, at, evidence)
    }

    /// Clears what the kernel rewrites by itself, and tells where it leads; `None` if it is being rewritten now.
    fn clear_sites(
        &self,
        core: &Core,
        gva: Gva,
        bytes: &mut Bytes,
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
}

fn hashes(key: &RandomState, bytes: &Bytes) -> [u64; LINES] {
    let lines = bytes.as_chunks::<LINE_BYTES>().0;
    std::array::from_fn(|line| key.hash_one(lines[line]))
}

fn found(kind: FindingKind, address: u64, evidence: String) -> Suspect {
    Suspect { kind, certainty: Certainty::Certain, address, evidence }
}

/// Puts back what probes replaced.
fn restore(bytes: &mut Bytes, page: Gva, replaced: &[Replaced]) {
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
