// SPDX-License-Identifier: Apache-2.0
//! Paths of files, through directory entries and the tree of mounts.
//!
//! A path is the one from the root of the file's own mount namespace. That its file has been deleted since is
//! not told: a service goes on under the name it was started by while its package is being replaced.

use crate::core::Core;
use crate::error::Fault;
use crate::memory::Gva;

/// Longest path told (`PATH_MAX`).
const PATH_BYTES_MAX: usize = 4096;
/// Longest name of one component (`NAME_MAX`).
const NAME_BYTES_MAX: u32 = 255;
/// Most components and mount points passed on the way to the root.
const STEPS_MAX: usize = 512;

impl Core {
    /// The path of an open file.
    ///
    /// # Errors
    /// When the way to the root is longer than any real one.
    pub(crate) fn file_path(&self, file: Gva) -> Result<String, Fault> {
        let layout = &self.layout;
        let mut dentry = self.reader.pointer(file.at(layout.file.dentry))?;
        let vfsmount = self.reader.pointer(file.at(layout.file.mnt))?;
        let mut mount = vfsmount.container(layout.mount.mnt);
        let mut names = Vec::new();
        for _ in 0..STEPS_MAX {
            let mount_root = self.reader.pointer(mount.at(layout.mount.mnt_root))?;
            let parent = self.reader.pointer(dentry.at(layout.dentry.parent))?;
            if dentry == mount_root || dentry == parent {
                let parent_mount = self.reader.pointer(mount.at(layout.mount.parent))?;
                if parent_mount == mount {
                    return Ok(join(&names));
                }
                dentry = self.reader.pointer(mount.at(layout.mount.mountpoint))?;
                mount = parent_mount;
                continue;
            }
            names.push(self.dentry_name(dentry)?);
            if names.iter().map(|name| name.len() + 1).sum::<usize>() > PATH_BYTES_MAX {
                return Err(Fault::Inconsistent);
            }
            dentry = parent;
        }
        Err(Fault::Inconsistent)
    }

    pub(crate) fn dentry_name(&self, dentry: Gva) -> Result<String, Fault> {
        let len = self.reader.u32(dentry.at(self.layout.dentry.name_len))?;
        if len == 0 || len > NAME_BYTES_MAX {
            return Err(Fault::Inconsistent);
        }
        let name = self.reader.pointer(dentry.at(self.layout.dentry.name))?;
        self.reader.text(name, len as usize)
    }
}

/// Joins names, innermost first, to an absolute path.
pub(crate) fn join(names: &[String]) -> String {
    if names.is_empty() {
        return "/".to_owned();
    }
    names.iter().rev().flat_map(|name| ["/", name]).collect()
}
