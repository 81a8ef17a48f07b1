// SPDX-License-Identifier: Apache-2.0
//! Layouts on the way from a process's root directory to the pages of a file.

use crate::btf::Structures;
use crate::error::TypesError;
use crate::layout::Gaps;

offsets! {
    /// Where a process has its root directory.
    TaskFs of "task_struct" { fs: "fs" }
}
offsets! {
    /// What processes may share of that.
    FsStruct of "fs_struct" { root: "root.dentry", mnt: "root.mnt" }
}
offsets! {
    /// The children of a directory entry, and how they are linked; until 6.7 as a ring.
    Children of "dentry" { head: "d_children" | "d_subdirs", link: "d_sib" | "d_child" }
}
offsets! {
    /// A directory entry: what it names, and whether a lookup would still find it.
    NamedFile of "dentry" { inode: "d_inode", hashed: "d_hash.pprev" }
}
offsets! {
    /// A file: its length, when it was changed, and its pages.
    FileInode of "inode" {
        len: "i_size", mapping: "i_mapping",
        changed_s: "i_ctime_sec" | "__i_ctime.tv_sec" | "i_ctime.tv_sec",
        changed_ns: "i_ctime_nsec" | "__i_ctime.tv_nsec" | "i_ctime.tv_nsec",
    }
}
offsets! {
    /// A mounted file system, and what is mounted on it.
    Mounts of "mount" { children: "mnt_mounts", link: "mnt_child" }
}
offsets! {
    /// The pages of a file that lie in memory.
    AddressSpace of "address_space" { pages: "i_pages.xa_head" }
}
offsets! {
    /// A node of a tree of pages.
    XaNode of "xa_node" { shift: "shift", slots: "slots" }
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct UserFile {
    pub(crate) task: TaskFs,
    pub(crate) fs: FsStruct,
    pub(crate) children: Children,
    pub(crate) dentry: NamedFile,
    pub(crate) inode: FileInode,
    pub(crate) mount: Mounts,
    pub(crate) mapping: AddressSpace,
    pub(crate) node: XaNode,
    /// Size of the kernel's account of a page.
    pub(crate) page_bytes: u32,
}

impl UserFile {
    pub(crate) fn resolve(types: &Structures<'_>) -> Result<Self, TypesError> {
        Ok(Self {
            task: TaskFs::resolve(types)?,
            fs: FsStruct::resolve(types)?,
            children: Children::resolve(types)?,
            dentry: NamedFile::resolve(types)?,
            inode: FileInode::resolve(types)?,
            mount: Mounts::resolve(types)?,
            mapping: AddressSpace::resolve(types)?,
            node: XaNode::resolve(types)?,
            page_bytes: types.size("page")?,
        })
    }
}
