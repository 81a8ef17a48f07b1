// SPDX-License-Identifier: Apache-2.0
//! Control group paths (version 2 hierarchy), through the nodes of the file system that shows them.

use crate::core::Core;
use crate::error::Fault;
use crate::memory::Gva;
use crate::path::join;
use crate::task::Task;

/// Deepest nesting told.
const DEPTH_MAX: usize = 128;
/// Longest name of one group.
const NAME_BYTES_MAX: usize = 255;

impl Core {
    /// The control group that a process is in.
    pub(crate) fn task_cgroup(&self, task: Task) -> Result<Gva, Fault> {
        let css_set = self.reader.pointer(task.0.at(self.layout.task.cgroups))?;
        self.reader.pointer(css_set.at(self.layout.css_set.dfl_cgrp))
    }

    /// Path of a control group from the hierarchy's root.
    pub(crate) fn cgroup_path(&self, cgroup: Gva) -> Result<String, Fault> {
        let layout = &self.layout.kernfs_node;
        let mut node = self.reader.pointer(cgroup.at(self.layout.cgroup.kn))?;
        let mut names = Vec::new();
        for _ in 0..DEPTH_MAX {
            let parent = self.reader.pointer(node.at(layout.parent))?;
            if parent.is_null() {
                return Ok(join(&names));
            }
            let name = self.reader.pointer(node.at(layout.name))?;
            names.push(self.reader.text(name, NAME_BYTES_MAX)?);
            node = parent;
        }
        Err(Fault::Inconsistent)
    }
}
