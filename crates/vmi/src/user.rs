// SPDX-License-Identifier: Apache-2.0
//! Names of users, from the machine's `/etc/passwd` as it lies in the guest's page cache.
//!
//! The file is the one that the first process of the machine sees, whichever process is asked about: its user ids
//! are the kernel's own, and only the machine's administrator writes it. What a container's own file calls a user
//! is the container's word, and is not taken. The file is found through the directory entries that the kernel
//! remembers, and only what lies in memory is read; where either is missing, or the file is on a file system
//! that keeps its pages elsewhere (an overlay), users have numbers only.
//!
//! Bounds: [`ENTRIES_MAX`] directory entries, [`FILE_BYTES_MAX`] of the file.

use crate::core::Core;
use crate::error::Fault;
use crate::layout::user::UserFile;
use crate::memory::Gva;
use crate::users::{Known, Names, PasswdFile};

/// Most entries of one directory looked at.
const ENTRIES_MAX: usize = 16_384;
/// How much of the file is read.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Longest name taken (`LOGIN_NAME_MAX`).
const NAME_BYTES_MAX: usize = 256;
/// Most questions answered until the file is looked for again, whether it was found or not.
const QUESTIONS_MAX: u32 = 1024;
/// Likewise when directories changed under the reader: each look may take as many reads as there are entries.
const QUESTIONS_AFTER_FAULT: u32 = 16;
/// Most mounts on one mount looked at.
const MOUNTS_MAX: usize = 4096;
/// Most mounts on top of each other followed.
const STACK_MAX: usize = 8;
const PAGE_BYTES: u64 = 4096;
/// Slots of a node of the tree of pages.
const NODE_SLOTS: u64 = 64;
/// Entries of that tree whose lowest bits are these are the tree's own: nodes, and below this number siblings.
const TREE_OWN: u64 = 2;
const SIBLINGS_END: u64 = 4096;
/// Deepest tree: a file of 16 TiB.
const TREE_DEPTH_MAX: usize = 6;
/// Process id of the first process.
const FIRST_PID: u32 = 1;

/// A directory entry, and the mount through which it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    mount: Gva,
    dentry: Gva,
}

impl Core {
    /// The name of a user; `None` if the machine has none for it, or its names cannot be read.
    pub(crate) fn user_name(&self, uid: u32) -> Option<String> {
        let layout = self.layout.user.as_ref()?;
        let mut known = self.users.0.borrow_mut();
        let is_same = known.file.is_none_or(|file| self.identify(layout, file.dentry) == Ok(Some(file)));
        if is_same && known.questions_left > 0 {
            known.questions_left -= 1;
        } else {
            match self.read_users(layout) {
                Ok(read) => {
                    let (file, names) =
                        read.map_or((None, Names::new()), |(file, names)| (Some(file), names));
                    *known = Known { file, names, questions_left: QUESTIONS_MAX };
                }
                // The guest changed a directory under the reader: that says nothing about the file.
                Err(_) if is_same => known.questions_left = QUESTIONS_AFTER_FAULT,
                Err(_) => *known = Known { questions_left: QUESTIONS_AFTER_FAULT, ..Known::default() },
            }
        }
        known.names.get(&uid).cloned()
    }

    fn read_users(&self, layout: &UserFile) -> Result<Option<(PasswdFile, Names)>, Fault> {
        let first = self.reader.pointer(self.anchors.init_task.at(self.layout.task.tasks))?;
        let first = first.container(self.layout.task.tasks);
        if self.reader.u32(first.at(self.layout.task.tgid))? != FIRST_PID {
            return Ok(None);
        }
        let fs = self.reader.pointer(first.at(layout.task.fs))?;
        let mount = self.reader.pointer(fs.at(layout.fs.mnt))?.container(self.layout.mount.mnt);
        let root = Path { mount, dentry: self.reader.pointer(fs.at(layout.fs.root))? };
        let Some(folder) = self.entry_of(layout, root, "etc")? else { return Ok(None) };
        let Some(found) = self.entry_of(layout, folder, "passwd")? else { return Ok(None) };
        let Some(file) = self.identify(layout, found.dentry)? else { return Ok(None) };
        let Some(text) = self.cached(layout, &file)? else { return Ok(None) };
        Ok(Some((file, names(&text))))
    }

    /// The entry `name` of a directory, among those that the kernel remembers and has not unlinked; or what is
    /// mounted there.
    fn entry_of(&self, layout: &UserFile, folder: Path, name: &str) -> Result<Option<Path>, Fault> {
        let head = folder.dentry.at(layout.children.head);
        let mut link = self.reader.pointer(head)?;
        for _ in 0..ENTRIES_MAX {
            if link.is_null() || link == head {
                return Ok(None);
            }
            let dentry = link.container(layout.children.link);
            // Entries come and go with every name that is looked for and not found; one that went leads astray.
            if self.reader.pointer(dentry.at(self.layout.dentry.parent))? != folder.dentry {
                return Err(Fault::Inconsistent);
            }
            let len = self.reader.u32(dentry.at(self.layout.dentry.name_len))?;
            if len as usize == name.len()
                && !self.reader.pointer(dentry.at(layout.dentry.hashed))?.is_null()
                && self.dentry_name(dentry)? == name
            {
                return self.mounted_at(layout, Path { dentry, ..folder }).map(Some);
            }
            link = self.reader.pointer(link)?;
        }
        Err(Fault::Inconsistent)
    }

    /// What is seen at a place: the root of what is mounted there last, if anything is.
    fn mounted_at(&self, layout: &UserFile, mut place: Path) -> Result<Path, Fault> {
        for _ in 0..STACK_MAX {
            let mut above = None;
            for link in self.list(place.mount.at(layout.mount.children), MOUNTS_MAX)? {
                let mount = link.container(layout.mount.link);
                if self.reader.pointer(mount.at(self.layout.mount.mountpoint))? == place.dentry {
                    above = Some(mount);
                }
            }
            let Some(mount) = above else { return Ok(place) };
            place = Path { mount, dentry: self.reader.pointer(mount.at(self.layout.mount.mnt_root))? };
        }
        Err(Fault::Inconsistent)
    }

    /// The file behind a directory entry; `None` if there is none any more.
    fn identify(&self, layout: &UserFile, dentry: Gva) -> Result<Option<PasswdFile>, Fault> {
        let is_linked = !self.reader.pointer(dentry.at(layout.dentry.hashed))?.is_null();
        let inode = self.reader.pointer(dentry.at(layout.dentry.inode))?;
        if !is_linked || inode.is_null() {
            return Ok(None);
        }
        let changed = [layout.inode.changed_s, layout.inode.changed_ns];
        Ok(Some(PasswdFile {
            dentry,
            inode,
            len_bytes: self.reader.u64(inode.at(layout.inode.len))?,
            changed: [
                self.reader.u64(inode.at(changed[0]))?,
                u64::from(self.reader.u32(inode.at(changed[1]))?),
            ],
        }))
    }

    /// The start of a file; `None` unless all of that lies in memory.
    fn cached(&self, layout: &UserFile, file: &PasswdFile) -> Result<Option<Vec<u8>>, Fault> {
        let mapping = self.reader.pointer(file.inode.at(layout.inode.mapping))?;
        let mut text = vec![0; file.len_bytes.min(FILE_BYTES_MAX) as usize];
        for (index, page) in (0..).zip(text.chunks_mut(PAGE_BYTES as usize)) {
            let Some(gpa) = self.cached_page(layout, mapping, index)? else { return Ok(None) };
            self.reader.physical(gpa, page)?;
        }
        Ok(Some(text))
    }

    /// Where a page of a file lies in RAM. The tree of pages is an xarray; a large folio stands in the first of
    /// its slots, and those after refer to it (Linux, Documentation/core-api/xarray.rst).
    fn cached_page(&self, layout: &UserFile, mapping: Gva, index: u64) -> Result<Option<u64>, Fault> {
        let mut entry = self.reader.u64(mapping.at(layout.mapping.pages))?;
        let mut within = 0;
        let mut is_root = true;
        for _ in 0..TREE_DEPTH_MAX {
            if entry & 3 != TREE_OWN || entry <= SIBLINGS_END {
                break;
            }
            is_root = false;
            let node = Gva(entry - TREE_OWN);
            let [shift] = self.reader.array(node.at(layout.node.shift))?;
            if u64::from(shift) >= u64::BITS.into() {
                return Err(Fault::Inconsistent);
            }
            let slot = index >> shift & (NODE_SLOTS - 1);
            let slots = node.at(layout.node.slots);
            entry = self.reader.u64(slots.element(slot, 8))?;
            if entry & 3 == TREE_OWN && entry <= SIBLINGS_END {
                let first = entry >> 2;
                within = slot.checked_sub(first).ok_or(Fault::Inconsistent)?;
                entry = self.reader.u64(slots.element(first, 8))?;
            }
        }
        // Neither a page, nor one of several of a single entry at the root.
        if entry == 0 || entry & 3 != 0 || (is_root && index > 0) {
            return Ok(None);
        }
        let map = self.anchors.symbols.find("vmemmap_base").ok_or(Fault::Unmapped)?;
        let map = self.reader.u64(map)?;
        let page = entry.checked_sub(map).ok_or(Fault::Inconsistent)? / u64::from(layout.page_bytes);
        Ok((page + within).checked_mul(PAGE_BYTES))
    }
}

/// Names by user id; of two with one id, the first counts.
fn names(text: &[u8]) -> Names {
    let mut names = Names::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b':');
        let (Some(name), Some(_), Some(uid)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty());
        let uid = std::str::from_utf8(uid).ok().and_then(|uid| uid.parse().ok());
        if let (Some(name), Some(uid)) = (name.filter(|name| name.len() <= NAME_BYTES_MAX), uid) {
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_users_are_passed_over() {
        let text =
            b"root:x:0:0::/:/bin/sh\nshop:x:1000:\ntoor:x:0:0\n:x:5:\n#c\nx\nbad:x:-1:\n\xff:x:7:\nlate:x:8";
        let mut found: Vec<_> = names(text).into_iter().collect();
        found.sort_unstable();
        assert_eq!(found, [(0, "root".into()), (8, "late".into()), (1000, "shop".into())]);
    }
}
