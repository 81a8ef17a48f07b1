// SPDX-License-Identifier: Apache-2.0
//! The collector that spans of traced flows are sent to in tests: rotel, under the Apache licence.
//!
//! Debian has no collector of OpenTelemetry's traces. Python's package index has this one as a program in a package; it is
//! downloaded with its known checksum and unpacked below `target/collector`, and nothing is installed.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::packages::{self, PIP};
use crate::{progress, shell};

/// The package as pip is to be asked for it: no other version, no other contents.
const REQUIREMENT: &str =
    "rotel==0.0.1a15 --hash=sha256:2f4117e58410c933e0dc042a268ef738dab2e3a5d63b5831209acdac2a6ddcb7\n";
/// For which Python it was made; the program in it needs none.
const BUILD: [&str; 8] = [
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
    "--platform",
    "manylinux_2_34_x86_64",
];

/// Makes sure that the collector is there.
///
/// # Errors
/// When it is not and `may_install` is false, or when it cannot be downloaded.
pub fn require(may_install: bool) -> Result<()> {
    let program = testkit::guests::collector();
    let folder = program.parent().context("the collector has a folder")?;
    let done = folder.join("requirement.txt");
    if program.is_file() && fs::read_to_string(&done).is_ok_and(|known| known == REQUIREMENT) {
        return Ok(());
    }
    if !may_install {
        bail!("the collector of traces is not there: `cargo xtask test` without --no-install downloads it");
    }
    packages::require(&[PIP], true)?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("wait for another download of the collector")?;
    progress::step("download a collector of traces (10 MB)", || {
        let [wanted, wheels, unpacked] = ["wanted.txt", "wheels", "unpacked"].map(|name| folder.join(name));
        fs::write(&wanted, REQUIREMENT)?;
        let mut pip = Command::new("pip3");
        pip.args(["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
        pip.args(["--only-binary", ":all:"]).args(BUILD).arg("--dest").arg(&wheels);
        shell::output(pip.arg("--requirement").arg(&wanted))?;
        let wheel = fs::read_dir(&wheels)?.next().context("pip has downloaded nothing")??.path();
        let mut unzip = Command::new("python3");
        shell::output(unzip.args(["-m", "zipfile", "--extract"]).arg(wheel).arg(&unpacked))?;
        fs::rename(unpacked.join("rotel/rotel-agent"), &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::remove_dir_all(&wheels)?;
        fs::remove_dir_all(&unpacked)?;
        fs::rename(&wanted, &done)?;
        Ok(())
    })
}
