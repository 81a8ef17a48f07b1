// SPDX-License-Identifier: Apache-2.0
//! Whether a kernel is understood alike when what it tells of itself is hidden: its symbols, or its types.
//!
//! Debian's kernels tell both. So the machine is stopped, and the file of its RAM looked into by a program that reads
//! it as it is, and with either of them made unreadable.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use testkit::guests::example;
use testkit::scratch::Scratch;
use testkit::vm::{Board, Vm};

/// What must be told alike.
const VIEWS: [&str; 2] = ["ps", "ss"];

/// Compares all views of a machine that stands still.
pub(super) fn compare(vm: &Vm, board: Board) -> Result<String> {
    let scratch = Scratch::new("veiled")?;
    let profile = scratch.join("profile.btf");
    let file = vm.ram_path()?;
    let below_4g = board.below_4g_bytes().to_string();
    let look =
        |options: &[&str], view: &str| look(&file, &[&["--below-4g", &below_4g], options, &[view]].concat());
    vm.while_frozen(|| {
        fs::write(&profile, look(&[], "types")?).context("keep the kernel's types")?;
        let profile = profile.to_string_lossy();
        let mut lines = 0;
        for view in VIEWS {
            let whole = look(&[], view)?;
            lines += whole.iter().filter(|byte| **byte == b'\n').count();
            for options in [&["--without", "symbols"][..], &["--without", "types", "--profile", &profile]] {
                if look(options, view)? != whole {
                    bail!("`{view}` with {options:?} differs");
                }
            }
        }
        Ok(format!("{lines} lines"))
    })
}

fn look(file: &Path, options: &[&str]) -> Result<Vec<u8>> {
    let done =
        Command::new(example("ram")).arg(file).args(options).output().context("start the example `ram`")?;
    if !done.status.success() {
        bail!("{options:?}: {}", String::from_utf8_lossy(&done.stderr).trim_end());
    }
    Ok(done.stdout)
}
