// SPDX-License-Identifier: Apache-2.0
//! Where cargo and `cargo xtask guests` put what is tested and what a guest boots from.

use std::path::PathBuf;

/// Every kernel that guests can boot.
pub const GUEST_KERNELS: [GuestKernel; 2] = [GuestKernel::V6_1, GuestKernel::V6_12];

/// A Debian cloud kernel by its line; which release of it is decided when the guests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestKernel {
    /// Debian 12's own.
    V6_1,
    /// The newer line in Debian 12's security archive.
    V6_12,
}

impl GuestKernel {
    /// The version line, for example `6.1`.
    #[must_use]
    pub fn line(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// The kernel image's path.
    #[must_use]
    pub fn image(self) -> PathBuf {
        folder().join(format!("vmlinuz-{}", self.line()))
    }
}

/// The initial root file system's path; one serves every kernel.
#[must_use]
pub fn initramfs() -> PathBuf {
    folder().join("initramfs.cpio")
}

/// The folder of all of them: `guests` in cargo's target folder.
#[must_use]
pub fn folder() -> PathBuf {
    target_folder().join("guests")
}

/// A program of this workspace as it ships (`cargo build --release`).
#[must_use]
pub fn shipped(program: &str) -> PathBuf {
    target_folder().join("release").join(program)
}

/// Where cargo puts what it builds.
fn target_folder() -> PathBuf {
    let checkout = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(checkout, PathBuf::from)
}
