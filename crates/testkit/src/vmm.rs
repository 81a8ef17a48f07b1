// SPDX-License-Identifier: Apache-2.0
//! The virtual machine monitors that guests run in: the machine's own QEMU, or a newer one of a later Debian.
//!
//! The newer one lies unpacked beside the guests with all libraries that it was built with. Its own dynamic loader
//! starts it, so that it needs nothing of the machine's and nothing is installed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use crate::guests;

/// QEMU's program.
const QEMU: &str = "qemu-system-x86_64";
/// What is where in the folder of the newer one.
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// Which QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// The machine's own.
    Installed,
    /// That of a later Debian, where `cargo xtask` could get it.
    Newer,
}

impl Vmm {
    /// Whether it is there, starts, and has a device of that name.
    #[must_use]
    pub fn has_device(self, name: &str) -> bool {
        let (program, first) = self.program();
        let told = Command::new(program).args(first).args(["-device", &format!("{name},help")]).output();
        told.is_ok_and(|told| told.stdout.starts_with(format!("{name} options:").as_bytes()))
    }

    /// The program to start, and what it has to be told before anything else.
    pub(crate) fn program(self) -> (PathBuf, Vec<OsString>) {
        let Self::Newer = self else { return (QEMU.into(), Vec::new()) };
        let folder = guests::newer_vmm();
        let mut arguments: Vec<OsString> = vec!["--library-path".into(), folder.join(LIBRARIES).into()];
        arguments.push(folder.join("usr/bin").join(QEMU).into());
        arguments.extend(FIRMWARE.into_iter().flat_map(|part| ["-L".into(), folder.join(part).into()]));
        (folder.join(LOADER), arguments)
    }

    /// Has a socket that was closed connect again after a second: the option was replaced.
    pub(crate) fn reconnects(self) -> &'static str {
        match self {
            Self::Installed => "reconnect=1",
            Self::Newer => "reconnect-ms=1000",
        }
    }
}
