// SPDX-License-Identifier: Apache-2.0
//! Where cargo and `cargo xtask` put what is tested and what a guest boots from.

use std::path::PathBuf;

/// The kernels that demo and tests boot.
pub const GUEST_KERNELS: [GuestKernel; 2] = [GuestKernel::V6_1, GuestKernel::V6_12];

/// The kernels of `cargo xtask matrix`: from the oldest that is supported to the newest that Debian packages.
pub const MATRIX_KERNELS: [GuestKernel; 6] = [
    GuestKernel("5.10-cloud"),
    GuestKernel("6.1-cloud"),
    GuestKernel("6.12-cloud"),
    GuestKernel("6.12-generic"),
    GuestKernel("6.12-rt"),
    GuestKernel("newest-cloud"),
];

/// A Debian kernel by its name; which release of it is decided when the guests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestKernel(&'static str);

impl GuestKernel {
    /// Debian 12's own, for clouds.
    pub const V6_1: Self = Self("6.1");
    /// The newer line in Debian 12's security archive, for clouds.
    pub const V6_12: Self = Self("6.12");

    /// Its name, for example `6.1`, or `6.12-rt` for one of the matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0
    }

    /// The kernel image's path.
    #[must_use]
    pub fn image(self) -> PathBuf {
        folder().join(format!("vmlinuz-{}", self.0))
    }

    /// The path of its initial root file system. One serves both kernels of the tests; each kernel of the matrix
    /// has its own.
    #[must_use]
    pub fn initramfs(self) -> PathBuf {
        if GUEST_KERNELS.contains(&self) {
            initramfs()
        } else {
            folder().join(format!("initramfs-{}.cpio", self.0))
        }
    }
}

/// The path of the initial root file system of the kernels that demo and tests boot.
#[must_use]
pub fn initramfs() -> PathBuf {
    folder().join("initramfs.cpio")
}

/// The same with more programs that ask for names, `dig`, `curl`, `getent` and `psql`, and PostgreSQL's server. Takes
/// 512 MiB of memory.
#[must_use]
pub fn clients_initramfs() -> PathBuf {
    folder().join("initramfs-clients.cpio")
}

/// The folder of a newer QEMU than the machine's, with its libraries and firmware.
#[must_use]
pub fn newer_vmm() -> PathBuf {
    folder().join("vmm/unpacked")
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

/// An example program of this workspace (`cargo build --release --example`).
#[must_use]
pub fn example(program: &str) -> PathBuf {
    target_folder().join("release/examples").join(program)
}

/// The collector of traces that `cargo xtask test` gets.
#[must_use]
pub fn collector() -> PathBuf {
    target_folder().join("collector/rotel-agent")
}

/// Where cargo puts what it builds.
fn target_folder() -> PathBuf {
    let checkout = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(checkout, PathBuf::from)
}
