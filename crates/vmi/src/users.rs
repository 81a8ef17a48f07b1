// SPDX-License-Identifier: Apache-2.0
//! What is remembered of a machine's users.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::memory::Gva;

/// Names by user id, as last read.
#[derive(Debug, Default)]
pub(crate) struct Users(pub(crate) RefCell<Known>);

#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) file: Option<PasswdFile>,
    pub(crate) names: Names,
    pub(crate) questions_left: u32,
}

pub(crate) type Names = HashMap<u32, String>;

/// A file that was read, and what tells whether it still is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PasswdFile {
    pub(crate) dentry: Gva,
    pub(crate) inode: Gva,
    pub(crate) len_bytes: u64,
    pub(crate) changed: [u64; 2],
}
