// SPDX-License-Identifier: Apache-2.0
//! Threats: what in a guest's kernel contradicts itself, or is not as it was.
//!
//! An inspection is called some times a second ([`Guest::inspect`]). Each one checks the next few pages of text
//! and read-only data against what they were at first sight, and searches the next few page tables for code that
//! is nobody's; all of both in a [`ROUND`]. Every [`VIEWS_PERIOD`] all *views* are compared: lists that must agree
//! with each other, and pointers that must lead to code which is known.
//!
//! The guest runs meanwhile, so a contradiction is only a *suspect* at first, and is looked at again soon. It
//! becomes a [`Finding`] when it is seen [`SIGHTINGS_MIN`] times over [`SUSPECT_FOR`], and is forgotten
//! [`FINDING_KEPT`] after it was seen last. What is there before the first inspection is the baseline for text and
//! data, but not for views.
//!
//! Bounds: [`PAGES_PER_CALL`] pages and [`TABLES_PER_CALL`] page tables a call, [`VIEWS_READS_MAX`] reads for the views, [`SUSPECTS_MAX`] suspects,
//! a few bytes for every 256 of the kernel's image.

mod hooks;
mod known;
mod layout;
mod net;
mod pages;
mod search;
mod sites;
mod suspects;
mod tasks;

use std::fmt;
use std::time::Duration;

use crate::error::{Fault, ViewError};
use crate::guest::{Core, Guest};
use crate::kallsyms::SymbolNames;

use self::known::KnownCode;
pub(crate) use self::layout::IntegrityLayout;
use self::pages::{Look, Pages};
use self::search::Search;
use self::suspects::{Suspect, Suspects};

/// Time in which all pages of text and read-only data are checked, and all page tables searched.
const ROUND: Duration = Duration::from_secs(3);
/// Most pages checked in one call, so that the round of a large kernel takes longer.
pub const PAGES_PER_CALL: usize = 256;
/// Most page tables searched in one call; guests of 4 GiB may have that many for each call of a round.
pub const TABLES_PER_CALL: u32 = 64;
/// Sightings that make a suspect a finding.
pub const SIGHTINGS_MIN: u32 = 3;
/// Symbols looked up in one call, for each takes some milliseconds.
const NAMED_PER_CALL: usize = 2;
/// How long a suspect must have been seen to be a finding: longer than the kernel takes to rewrite itself.
pub const SUSPECT_FOR: Duration = Duration::from_millis(1200);
/// How long a suspect that is not seen again is remembered.
pub const SUSPECT_KEPT: Duration = Duration::from_secs(3);
/// How long a finding that is not seen again is told.
pub const FINDING_KEPT: Duration = Duration::from_secs(60);
/// Suspects and findings kept at most; more are dropped.
pub const SUSPECTS_MAX: usize = 1024;
/// Fewest tables searched in one call: at least those that lead to one address.
const TABLES_PER_CALL_MIN: u32 = 8;
/// Time between two comparisons of all views.
const VIEWS_PERIOD: Duration = Duration::from_millis(2500);
/// The same while there is a suspect.
const SUSPECT_PERIOD: Duration = Duration::from_millis(400);
/// Reads that comparing all views may take: some 50 ms, for a guest that wants to be looked at for long.
const VIEWS_READS_MAX: u32 = 2_000_000;
/// Reads that one slice of pages may take.
const SLICE_READS_MAX: u32 = 200_000;

/// Symbols that inspections use. A view whose symbols are absent is left out.
pub(crate) const SYMBOLS: [&str; 36] = [
    "init_pid_ns",
    "runqueues",
    "__per_cpu_offset",
    "nr_cpu_ids",
    "modules",
    "mod_tree",
    "bpf_kallsyms",
    "ftrace_ops_list",
    "ftrace_list_end",
    "ftrace_ops_trampoline_list",
    "ftrace_pages_start",
    "ftrace_call",
    "ftrace_regs_call",
    "ftrace_graph_call",
    "kprobe_table",
    "pre_handler_kretprobe",
    "idt_table",
    "early_idt_handler_array",
    "sys_call_table",
    "_etext",
    "__start_rodata",
    "__end_rodata",
    "__start___jump_table",
    "__stop___jump_table",
    "__start_static_call_sites",
    "__stop_static_call_sites",
    "__static_call_text_start",
    "__static_call_text_end",
    "pack_list",
    "nr_node_ids",
    "kprobe_insn_slots",
    "kprobe_optinsn_slots",
    "real_mode_header",
    "execmem_cache",
    "rcu_state",
    "init_free_list",
];

/// What kind of threat a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// A task that runs, or has a process id, but is in no list of tasks.
    HiddenTask,
    /// A process in the list of tasks that has no process id: `/proc` does not show it.
    TaskWithoutId,
    /// A socket that a process holds, but that is in no table of sockets.
    HiddenSocket,
    /// A packet socket that no descriptor refers to.
    PacketSocket,
    /// A network device that takes frames for others.
    Promiscuous,
    /// Kernel text that is not as it was.
    ModifiedText,
    /// Read-only data that is not as it was.
    ModifiedData,
    /// A system call that leads out of the kernel's text.
    SyscallEntry,
    /// An interrupt gate that leads out of the kernel's text.
    InterruptEntry,
    /// A tracer that leads to code of no known module, or redirects functions into a module.
    FunctionHook,
    /// A probe that leads to code of no known module.
    Probe,
    /// A packet filter that leads to code of no known module.
    PacketHook,
    /// A module that is loaded, but not in the list of modules.
    HiddenModule,
    /// Pages that may be executed and are code of no known module.
    UnknownCode,
}

impl FindingKind {
    /// The word shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HiddenTask => "hidden-task",
            Self::TaskWithoutId => "task-without-id",
            Self::HiddenSocket => "hidden-socket",
            Self::PacketSocket => "packet-socket",
            Self::Promiscuous => "promiscuous",
            Self::ModifiedText => "modified-text",
            Self::ModifiedData => "modified-data",
            Self::SyscallEntry => "syscall-entry",
            Self::InterruptEntry => "interrupt-entry",
            Self::FunctionHook => "function-hook",
            Self::Probe => "probe",
            Self::PacketHook => "packet-hook",
            Self::HiddenModule => "hidden-module",
            Self::UnknownCode => "unknown-code",
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How sure it is that a finding is the work of somebody who hides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Certainty {
    /// Administrators do this too.
    Possible,
    /// No administrator does this, but some software may.
    Likely,
    /// The kernel never does this by itself.
    Certain,
}

impl Certainty {
    /// The word shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}

/// A threat that was seen several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// How sure it is.
    pub certainty: Certainty,
    /// Guest-virtual address of what was found.
    pub address: u64,
    /// The kernel's own symbol at or before the address, `name+0x10`, if it lies in the kernel's image.
    pub symbol: Option<String>,
    /// What was seen, for people. Names in it are the guest's own and may say anything.
    pub evidence: String,
    /// When it was seen first, on the clock of the caller of [`Guest::inspect`].
    pub first_seen: Duration,
    /// When it was seen last.
    pub last_seen: Duration,
}

/// What has been inspected, and what is known to be inspectable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Pages of text and read-only data.
    pub pages: usize,
    /// Of these, those with a baseline.
    pub pages_known: usize,
    /// Times all pages have been checked.
    pub rounds: u64,
    /// Times all views have been compared.
    pub views: u64,
}

/// A comparison of views.
type View<'a> = &'a dyn Fn(&Core) -> Result<Vec<Suspect>, Fault>;

/// What inspections remember of a guest.
pub(crate) struct Integrity {
    layout: IntegrityLayout,
    names: SymbolNames,
    pages: Option<Pages>,
    search: Search,
    known: KnownCode,
    suspects: Suspects,
    inspected: Option<Duration>,
    views_due: Duration,
    views: u64,
}

impl Integrity {
    pub(crate) fn new(layout: IntegrityLayout, names: SymbolNames) -> Self {
        Self {
            layout,
            names,
            pages: None,
            search: Search::default(),
            known: KnownCode::default(),
            suspects: Suspects::default(),
            inspected: None,
            views_due: Duration::ZERO,
            views: 0,
        }
    }

    /// Reads what code is known, and which modules hide.
    fn learn_code(&mut self, core: &Core) -> Result<Vec<Suspect>, ViewError> {
        let layout = &self.layout;
        let (known, hidden) = core.query(VIEWS_READS_MAX, |core| core.known_code(layout))?;
        if let Some(pages) = &mut self.pages {
            if !known.covers(&self.known) {
                pages.doubt_all();
            }
            pages.follow(core, layout, &known);
        }
        self.known = known;
        Ok(hidden)
    }

    /// Compares all views. What one of them cannot read is left out: the others still tell.
    fn compare_views(&mut self, core: &Core) -> Result<Vec<Suspect>, ViewError> {
        let mut suspects = self.learn_code(core)?;
        let (layout, known) = (&self.layout, &self.known);
        let views: [View<'_>; 6] = [
            &|core| core.task_suspects(layout),
            &|core| core.network_suspects(layout),
            &|core| core.entry_suspects(known),
            &|core| core.tracer_suspects(layout, known),
            &|core| core.probe_suspects(layout, known),
            &|core| core.packet_hook_suspects(layout, known),
        ];
        for view in views {
            match core.query(VIEWS_READS_MAX, view) {
                Ok(found) => suspects.extend(found),
                Err(ViewError::Gone) => return Err(ViewError::Gone),
                Err(ViewError::Inconsistent | ViewError::Exhausted) => {}
            }
        }
        core.reader.start_query(SLICE_READS_MAX);
        suspects.extend(self.search.compare(core, &self.layout, &self.known).unwrap_or_default());
        Ok(suspects)
    }

    /// Checks the next pages, once the guest has got as far as its first process.
    fn check_pages(&mut self, core: &Core, since: Duration) -> Result<Vec<Suspect>, ViewError> {
        if self.pages.is_none() {
            let layout = &self.layout;
            self.pages = core.query(VIEWS_READS_MAX, |core| core.pages(layout))?;
            self.learn_code(core)?;
        }
        let Some(pages) = &mut self.pages else { return Ok(Vec::new()) };
        let count = share(pages.count(), since).min(PAGES_PER_CALL);
        core.reader.start_query(SLICE_READS_MAX);
        let look = Look { core, layout: &self.layout, known: &self.known };
        let suspects = pages.check_some(look, count);
        if !suspects.iter().any(|suspect| suspect.kind == FindingKind::FunctionHook) {
            return Ok(suspects);
        }
        // Code may have been generated since the views were compared: look again with what is known now.
        self.learn_code(core)?;
        core.reader.start_query(SLICE_READS_MAX);
        let look = Look { core, layout: &self.layout, known: &self.known };
        let Some(pages) = &mut self.pages else { return Ok(Vec::new()) };
        Ok(pages.check_again(look, suspects))
    }

    /// Searches the next page tables; what is found is compared at once.
    fn search_tables(&mut self, core: &Core, since: Duration, now: Duration) {
        let tables = u32::try_from(share(self.search.tables() as usize, since)).unwrap_or(u32::MAX);
        let tables = tables.clamp(TABLES_PER_CALL_MIN, TABLES_PER_CALL);
        core.reader.start_query(SLICE_READS_MAX);
        if self.known.is_account_of_pages && self.search.go_on(core, &self.known, tables) == Ok(true) {
            self.views_due = now;
        }
    }
}

/// The part of `count` that is due `since` the last call, for all to be done in a [`ROUND`].
fn share(count: usize, since: Duration) -> usize {
    (count as u128 * since.as_micros()).div_ceil(ROUND.as_micros()) as usize
}

impl Guest {
    /// Looks for threats for a fraction of a millisecond, and for some more every [`VIEWS_PERIOD`] or when there
    /// is a suspect. `now` is any clock that goes on; call ten to forty times a second.
    ///
    /// # Errors
    /// [`ViewError::Gone`] when the guest was reset; others when its modules cannot be listed.
    pub fn inspect(&mut self, now: Duration) -> Result<(), ViewError> {
        let Self { core, integrity, .. } = self;
        let since = now.saturating_sub(integrity.inspected.replace(now).unwrap_or(now));
        if now >= integrity.views_due {
            integrity.views_due = now.saturating_add(VIEWS_PERIOD);
            let suspects = integrity.compare_views(core)?;
            integrity.views += 1;
            integrity.suspects.saw(now, suspects);
        }
        let suspects = integrity.check_pages(core, since)?;
        integrity.suspects.saw(now, suspects);
        integrity.search_tables(core, since, now);
        if integrity.suspects.is_any_open() || integrity.search.is_in_doubt() {
            integrity.views_due = integrity.views_due.min(now.saturating_add(SUSPECT_PERIOD));
        }
        integrity.suspects.forget(now);
        integrity.suspects.name(&integrity.names, NAMED_PER_CALL);
        Ok(())
    }

    /// What inspections have found, the surest first.
    #[must_use]
    pub fn threats(&self) -> Vec<Finding> {
        self.integrity.suspects.findings()
    }

    /// How much inspections have seen.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        let pages = self.integrity.pages.as_ref().map(Pages::coverage);
        Coverage { views: self.integrity.views, ..pages.unwrap_or_default() }
    }
}
