// SPDX-License-Identifier: Apache-2.0
//! The machine's list of users, in the pages of `/etc/passwd` below the root directory of `init`.

use super::*;

const MEMORY_MAP: u64 = 0xffff_ea00_0000_0000;
/// Bits that mark a node of a tree of pages.
const NODE: u64 = 2;

/// Places of interest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passwd {
    /// The entry of the directory, and what tells whether it is still linked there.
    pub(crate) dentry: Gva,
    pub(crate) hashed: Gva,
    /// The mount that it is found through, and the root directory there.
    pub(crate) mount: Gva,
    pub(crate) root: Gva,
    /// When the file was changed.
    pub(crate) changed: Gva,
    /// The tree of its pages.
    pub(crate) pages: Gva,
    /// Where its text lies, page by page.
    pub(crate) text: [Gva; 2],
}

impl Kernel {
    /// Gives the machine a file that begins with `text`, two pages long.
    pub(crate) fn list_users(&mut self, text: &str) -> Passwd {
        let layout = self.layout.user.clone().unwrap();
        let map = self.find("vmemmap_base");
        self.write(map, &MEMORY_MAP.to_le_bytes());
        let fs = self.alloc(64);
        let (mount, root, ..) = self.mounts();
        self.put(self.at.init, layout.task.fs, fs.0);
        self.put(fs, layout.fs.root, root.0);
        self.put(fs, layout.fs.mnt, mount.at(self.layout.mount.mnt).0);
        self.child(root, "usr");
        let etc = self.child(root, "etc");
        self.child(root, "var");
        let dentry = self.child(etc, "passwd");
        self.child(etc, "group");
        let (inode, mapping, node) = (self.alloc(128), self.alloc(64), self.alloc(8 + 512));
        let pages = [self.page(), self.page()];
        for (page, text) in pages.into_iter().zip(text.as_bytes().chunks(4096)) {
            self.write(page, text);
        }
        self.put(dentry, layout.dentry.inode, inode.0);
        for (offset, value) in [
            (layout.inode.len, 2 * 4096),
            (layout.inode.mapping, mapping.0),
            (layout.inode.changed_s, 1_700_000_000),
        ] {
            self.put(inode, offset, value);
        }
        self.put(mapping, layout.mapping.pages, node.0 | NODE);
        for (slot, page) in (0..).zip(pages) {
            let account = MEMORY_MAP + Self::gpa(page) / 4096 * u64::from(layout.page_bytes);
            self.put(node, layout.node.slots + slot * 8, account);
        }
        Passwd {
            dentry,
            mount,
            root,
            hashed: dentry.at(layout.dentry.hashed),
            changed: inode.at(layout.inode.changed_s),
            pages: node.at(layout.node.slots),
            text: pages,
        }
    }

    /// Mounts a file system on a directory; what it holds is not remembered by the kernel.
    pub(crate) fn mount_over(&mut self, list: Passwd, folder: Gva) {
        let (own, layout) = (self.layout.mount.clone(), self.layout.user.clone().unwrap().mount);
        let (mount, root) = (self.alloc(128), self.dentry(None, "/"));
        self.circle(&[mount.at(layout.children)]);
        self.put(mount, own.mountpoint, folder.0);
        self.put(mount, own.mnt_root, root.0);
        self.append(list.mount.at(layout.children), mount.at(layout.link));
    }

    /// A linked entry of a directory, before those that are there.
    fn child(&mut self, folder: Gva, name: &str) -> Gva {
        let layout = self.layout.user.clone().unwrap();
        let dentry = self.dentry(Some(folder), name);
        let first = self.read(folder.at(layout.children.head));
        self.put(dentry, layout.children.link, first);
        self.put(folder, layout.children.head, dentry.at(layout.children.link).0);
        self.put(dentry, layout.dentry.hashed, folder.0);
        dentry
    }
}
