// SPDX-License-Identifier: Apache-2.0
//! A private folder for sockets, manifests and logs that goes away with its value.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::remains::{remains, remove};

/// A longer folder leaves too little of the 107 bytes that a socket's path may have.
const BASE_BYTES_MAX: usize = 40;
/// What daemons, machines and their logs may need: containers often have a `/dev/shm` of 64 MiB.
const ROOM_BYTES_MIN: u64 = 2 << 30;
/// Names tried before giving up; each taken one is another test of the same process.
const NAMES_MAX: u32 = 1_000;

/// A folder that only this user may enter, removed on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one in the user's runtime directory, else in `/dev/shm` if that has room, else in `/tmp`: a flow table
    /// belongs in memory.
    ///
    /// # Errors
    /// When it cannot be written to.
    pub fn new(name: &str) -> Result<Self> {
        let usable = |path: &PathBuf| path.is_dir() && path.as_os_str().len() <= BASE_BYTES_MAX;
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(usable);
        let roomy = |path: &PathBuf| {
            rustix::fs::statvfs(path).is_ok_and(|system| {
                system.f_bavail.saturating_mul(system.f_frsize) >= ROOM_BYTES_MIN
                    && !system.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY)
            })
        };
        let memory = || Some(PathBuf::from("/dev/shm")).filter(roomy);
        let base = runtime.or_else(memory).unwrap_or_else(|| "/tmp".into());
        for number in 0..NAMES_MAX {
            let path = base.join(format!("meshvisor-{name}-{}-{number}", std::process::id()));
            let made =
                std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(&path);
            match made {
                Ok(()) => {
                    remains().folders.insert(path.clone());
                    return Ok(Self { path });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("make {}", path.display())),
            }
        }
        anyhow::bail!("no free name for a folder in {}", base.display())
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path inside the folder.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remains().folders.remove(&self.path);
        remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_folders_of_one_name_are_apart_and_go_away() -> Result<()> {
        let (one, two) = (Scratch::new("twice")?, Scratch::new("twice")?);
        assert_ne!(one.path(), two.path());
        fs::write(one.join("file"), "x")?;
        let gone = one.path().to_owned();
        drop(one);
        assert!(!gone.exists() && two.path().exists());
        Ok(())
    }
}
