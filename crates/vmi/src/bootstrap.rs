// SPDX-License-Identifier: Apache-2.0
//! Finding a kernel whose symbol table does not name its data (built without `CONFIG_KALLSYMS_ALL`), or has a form
//! not known here: from its types and its first task alone.
//!
//! The idle task of the first processor is called `swapper/0` and is its own parent. Where it says that it lies, less
//! where it does lie, is the offset of the kernel's image; where its neighbour in the list of tasks lies, that of the
//! mapping of all RAM. Any process may imitate all that in its memory, so a task counts only if
//! 1. both offsets are as aligned as a kernel's are, and the neighbour points back,
//! 2. page tables that lie in the image map task, neighbour and types to just where the offsets say,
//! 3. they map a banner likewise, and it names the release that the task's own namespace names.
//!
//! Several that pass are told apart as in [`crate::attach`]: the one whose idle task is switched to and from lives.

use std::sync::Arc;

use crate::btf::{self, Btf, Structures};
use crate::error::{AttachError, Fault};
use crate::found::{BANNER, Found, IMAGE_ALIGNMENT, Kernel, read_banner, release_of};
use crate::heartbeats::Heartbeats;
use crate::kallsyms::{START_KERNEL_MAP, SymbolNames};
use crate::layout::origin::Origin;
use crate::memory::{Gva, PhysicalMemory};
use crate::paging::{Linear, PageTables, Translation};
use crate::reader::Reader;
use crate::scan;
use crate::symbols::Symbols;

/// Types looked into: the largest that look like a kernel's.
const TYPES_TRIED_MAX: usize = 4;
/// Most kernels between which one try decides.
const CANDIDATES_MAX: usize = 8;
/// Tasks asked for an address space.
const TASKS_TRIED_MAX: usize = 64;
/// Start of the first task's name.
const IDLE: &[u8] = b"swapper";
/// All of RAM is mapped at a multiple of this.
const DIRECT_MAP_ALIGNMENT: u64 = 1 << 30;
/// How far from the first task the image's own page tables may lie.
const IMAGE_REACH_BYTES: u64 = 64 << 20;
const PAGE_BYTES: u64 = 4096;
/// Bytes of a top table for the half that is not the kernel's.
const USER_HALF_BYTES: usize = 2048;
/// Longest release (`__NEW_UTS_LEN`).
const RELEASE_BYTES_MAX: usize = 64;
/// Most protocols walked.
const PROTOCOLS_MAX: usize = 1024;
/// Longest name of a protocol, with its NUL.
const PROTOCOL_NAME_BYTES: usize = 32;
/// Protocols whose tables have names elsewhere, and these names.
const PROTOCOL_TABLES: [(&str, &str); 3] =
    [("UDP", "udp_table"), ("RAW", "raw_v4_hashinfo"), ("RAWv6", "raw_v6_hashinfo")];

/// Where a kernel lies, by its first task.
struct Place {
    task: Gva,
    task_gpa: u64,
    image_offset: u64,
    tables: PageTables,
    banner: String,
}

/// A kernel that passed.
struct Candidate {
    place: Place,
    origin: Origin,
    btf: Btf,
    types_bytes: usize,
}

/// Finds the kernel that runs in `memory`.
pub(crate) fn find(
    memory: Arc<dyn PhysicalMemory>,
    heartbeats: &mut Heartbeats,
) -> Result<Found, AttachError> {
    let idle = hits(&*memory, IDLE)?;
    let mut candidates: Vec<Candidate> = Vec::new();
    for (types_gpa, btf, types_bytes) in types(&*memory)? {
        let Ok(origin) = Origin::resolve(&Structures::of(&btf)) else { continue };
        for &hit in &idle {
            let Some(place) = Place::of(&*memory, &origin, hit, types_gpa) else { continue };
            if candidates.len() == CANDIDATES_MAX {
                return Err(AttachError::Crowded);
            }
            let (origin, btf) = (origin.clone(), btf.clone());
            candidates.push(Candidate { place, origin, btf, types_bytes });
        }
    }
    if candidates.len() > 1 {
        let clock = |candidate: &Candidate| {
            Some(candidate.place.task_gpa.wrapping_add(candidate.origin.task.switches.into()))
        };
        candidates = heartbeats.keep_living(&*memory, candidates, clock);
        if candidates.len() != 1 {
            return Err(AttachError::Ambiguous);
        }
    }
    candidates.pop().ok_or(AttachError::NoKernel)?.enter(memory)
}

/// Where `pattern` occurs, if not too often to be looked at.
fn hits(memory: &dyn PhysicalMemory, pattern: &[u8]) -> Result<Vec<u64>, AttachError> {
    let hits = scan::find(memory, &memory.extents(), pattern);
    if hits.len() < scan::HITS_MAX { Ok(hits) } else { Err(AttachError::Crowded) }
}

/// The largest types that may be a kernel's, with where they lie and how long they are.
fn types(memory: &dyn PhysicalMemory) -> Result<Vec<(u64, Btf, usize)>, AttachError> {
    let mut sized: Vec<(usize, u64)> = Vec::new();
    for gpa in hits(memory, btf::SIGNATURE)? {
        let mut header = [0; btf::HEADER_BYTES];
        if memory.read(gpa, &mut header).is_ok()
            && let Some(header) = btf::Header::parse(&header)
            && header.is_kernels(|at, out| memory.read(gpa + at as u64, out).is_ok())
        {
            sized.push((header.len_bytes(), gpa));
        }
    }
    sized.sort_unstable_by(|one, other| other.cmp(one));
    let parsed = sized.into_iter().take(TYPES_TRIED_MAX).filter_map(|(len_bytes, gpa)| {
        let mut bytes = vec![0; len_bytes];
        memory.read(gpa, &mut bytes).ok()?;
        Some((gpa, Btf::parse(&bytes).ok()?, len_bytes))
    });
    Ok(parsed.collect())
}

impl Place {
    /// The kernel whose first task's name lies at `hit`, if everything about it fits.
    fn of(memory: &dyn PhysicalMemory, origin: &Origin, hit: u64, types_gpa: u64) -> Option<Self> {
        let layout = &origin.task;
        let task_gpa = hit.checked_sub(layout.comm.into())?;
        let at = |offset: u32| word(memory, task_gpa.checked_add(offset.into())?);
        let mut name = [0; IDLE.len() + 3];
        memory.read(hit, &mut name).ok()?;
        let rest = &name[IDLE.len()..];
        let task = Gva(at(layout.real_parent)?);
        let image_offset = task.0.wrapping_sub(task_gpa);
        let is_first = (rest == b"/0\0" || rest[0] == 0)
            && at(layout.parent)? == task.0
            && at(layout.tgid)? & u64::from(u32::MAX) == 0
            && task.0 >= START_KERNEL_MAP
            && image_offset % IMAGE_ALIGNMENT == 0;
        if !is_first {
            return None;
        }
        let (node, neighbour) = (task.at(layout.tasks), Gva(at(layout.tasks)?));
        // Where in its GiB the neighbour lies is known; in which, it says itself by pointing back.
        let ram_end = memory.extents().last()?.end;
        let mut places = (neighbour.0 % DIRECT_MAP_ALIGNMENT..ram_end).step_by(DIRECT_MAP_ALIGNMENT as usize);
        places.find_map(|neighbour_gpa| {
            if neighbour == node || word(memory, neighbour_gpa.checked_add(8)?)? != node.0 {
                return None;
            }
            let direct_offset = neighbour.0.wrapping_sub(neighbour_gpa);
            let follow = |gva: u64, offset: u32| {
                let is_image = gva >= START_KERNEL_MAP;
                let gpa = gva.wrapping_sub(if is_image { image_offset } else { direct_offset });
                word(memory, gpa.checked_add(offset.into())?)
            };
            let types = Gva(types_gpa.wrapping_add(image_offset));
            let known = [(task, task_gpa), (neighbour, neighbour_gpa), (types, types_gpa)];
            // The idle task lends an address space while it runs; otherwise the first process with one of its own will do.
            let (mut space, mut entry) = (at(layout.active_mm)?, neighbour);
            for _ in 0..TASKS_TRIED_MAX {
                if space != 0 {
                    break;
                }
                space = follow(entry.container(layout.tasks).0, layout.mm)?;
                entry = Gva(follow(entry.0, 0)?);
            }
            let pgd = follow(space, origin.mm.pgd)?;
            let is_image = pgd >= START_KERNEL_MAP;
            let pgd_gpa = pgd.wrapping_sub(if is_image { image_offset } else { direct_offset });
            let tables = tables_in_image(memory, pgd_gpa, task_gpa, &known)?;
            let uts = follow(at(layout.nsproxy)?, origin.namespaces.uts)?;
            let banner = banner(memory, &tables, image_offset, Gva(uts).at(origin.uts.release))?;
            Some(Self { task, task_gpa, image_offset, tables, banner })
        })
    }
}

/// The kernel's own page tables, from the top table of any address space: they lie in the image (within reach of
/// `near`), lead to the same tables and map each of `known` to where it lies. A process's own would serve as well, but
/// end with it.
fn tables_in_image(
    memory: &dyn PhysicalMemory,
    pgd_gpa: u64,
    near: u64,
    known: &[(Gva, u64)],
) -> Option<PageTables> {
    let start = near.saturating_sub(IMAGE_REACH_BYTES) & !(PAGE_BYTES - 1);
    [4, 5].into_iter().find_map(|levels| {
        let some = PageTables { root_gpa: pgd_gpa, levels };
        let maps = |tables: &PageTables| {
            known.iter().all(|&(gva, gpa)| {
                matches!(tables.translate(memory, gva), Ok(Translation { gpa: found, .. }) if found == gpa)
            })
        };
        if !maps(&some) {
            return None;
        }
        let (gva, _) = *known.first()?;
        let leads = some.top_entry(memory, gva);
        let pages = (start..near.saturating_add(IMAGE_REACH_BYTES)).step_by(PAGE_BYTES as usize);
        let mut own = pages.map(|root_gpa| PageTables { root_gpa, levels });
        own.find(|tables| {
            let mut user_half = [0; USER_HALF_BYTES];
            tables.top_entry(memory, gva) == leads
                && maps(tables)
                && memory.read(tables.root_gpa, &mut user_half).is_ok()
                && user_half == [0; USER_HALF_BYTES]
        })
    })
}

/// The banner in the image that names the release at `release`.
fn banner(
    memory: &dyn PhysicalMemory,
    tables: &PageTables,
    image_offset: u64,
    release: Gva,
) -> Option<String> {
    let mut bytes = [0; RELEASE_BYTES_MAX];
    memory.read(tables.translate(memory, release).ok()?.gpa, &mut bytes).ok()?;
    let release = std::str::from_utf8(&bytes[..memchr::memchr(0, &bytes)?]).ok()?;
    hits(memory, BANNER).ok()?.into_iter().find_map(|gpa| {
        let found = tables.translate(memory, Gva(gpa.wrapping_add(image_offset)));
        let is_there = matches!(found, Ok(Translation { gpa: found, .. }) if found == gpa);
        let banner = is_there.then(|| read_banner(memory, gpa))?;
        (!release.is_empty() && release_of(&banner) == release).then_some(banner)
    })
}

fn word(memory: &dyn PhysicalMemory, gpa: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read(gpa, &mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

impl Candidate {
    fn enter(self, memory: Arc<dyn PhysicalMemory>) -> Result<Found, AttachError> {
        let Place { tables, image_offset, banner, .. } = &self.place;
        let ram_end = memory.extents().last().map_or(0, |extent| extent.end);
        let reader = Reader::new(memory, *tables, Linear::default());
        let symbols = self.symbols(&reader).map_err(|_| AttachError::Unexpected("first namespaces"))?;
        let kernel = Kernel {
            release: release_of(banner).to_owned(),
            banner: banner.clone(),
            paging_levels: tables.levels,
            image_offset: *image_offset,
            types_bytes: self.types_bytes,
            types: self.btf.type_count() - 1,
            symbols: 0,
        };
        Ok(Found { reader, symbols, names: SymbolNames::default(), btf: self.btf, kernel, ram_end })
    }

    /// What a symbol table would name and the first task leads to.
    fn symbols(&self, reader: &Reader) -> Result<Symbols, Fault> {
        let mut symbols = Symbols::default();
        symbols.add("init_task", self.place.task);
        let namespaces = reader.pointer(self.place.task.at(self.origin.task.nsproxy))?;
        symbols.add("init_pid_ns", reader.pointer(namespaces.at(self.origin.namespaces.pid))?);
        let net = reader.pointer(namespaces.at(self.origin.namespaces.net))?;
        // The first namespace follows the head of their list.
        let node = net.at(self.origin.net.list);
        let head = reader.pointer(node.at(8))?;
        if reader.pointer(head)? != node {
            return Err(Fault::Inconsistent);
        }
        symbols.add("net_namespace_list", head);
        // What protocols lead to is missed by some views only.
        let _ = self.protocol_tables(reader, net, &mut symbols);
        Ok(symbols)
    }

    fn protocol_tables(&self, reader: &Reader, net: Gva, symbols: &mut Symbols) -> Result<(), Fault> {
        let Some((sock, layout)) = &self.origin.protocols else { return Ok(()) };
        let any = reader.pointer(reader.pointer(net.at(self.origin.net.any_sock))?.at(sock.protocol))?;
        let first = any.at(layout.list);
        let mut node = first;
        for _ in 0..PROTOCOLS_MAX {
            let protocol = node.container(layout.list);
            // The head of the list is no protocol; whatever lies there has none of the names.
            let name = reader.text(protocol.at(layout.name), PROTOCOL_NAME_BYTES).unwrap_or_default();
            if let Some((_, symbol)) = PROTOCOL_TABLES.into_iter().find(|(known, _)| *known == name) {
                let table = reader.pointer(protocol.at(layout.table))?;
                if !table.is_null() {
                    symbols.add(symbol, table);
                }
            }
            node = reader.pointer(node)?;
            if node == first {
                break;
            }
        }
        Ok(())
    }
}
