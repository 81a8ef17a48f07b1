// SPDX-License-Identifier: Apache-2.0
//! Rules about files that no compiler knows: a licence line in each, none too long, unsafe code in two crates only,
//! no test left out.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::tally::Tally;
use crate::{repository, shell};

/// A file longer than this should have been two.
const LINES_MAX: usize = 800;
/// The licence, as the first line says it (the second one where the first is for the system).
const LICENCE: &str = "SPDX-License-Identifier: Apache-2.0";
/// Kinds of files that carry it.
const LICENSED: [&str; 4] = ["rs", "toml", "sh", "script"];
/// The crates that may hold unsafe code, each block with its reason.
const UNSAFE_CRATES: [&str; 2] = ["platform", "vhost-port"];
/// Attributes that hide a test or silence the rule about unsafe code, put together so that this file has neither.
const FORBIDDEN: [&str; 1] = [concat!("#[", "ignore")];

/// Looks at every file under version control.
pub fn check() -> Result<Tally> {
    let root = repository();
    let list = shell::lines(std::process::Command::new("git").arg("-C").arg(&root).args(["ls-files"]));
    let mut problems = Vec::new();
    for file in list.context("list the files under version control")? {
        // A file that was removed but not committed yet has nothing to be looked at.
        let Ok(text) = fs::read_to_string(root.join(&file)) else { continue };
        problems.extend(problems_of(&file, &text).into_iter().map(|problem| format!("{file}: {problem}")));
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(Tally::passed(1))
}

/// What is wrong with one file.
fn problems_of(file: &str, text: &str) -> Vec<String> {
    let path = Path::new(file);
    let kind = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let mut problems = Vec::new();
    if LICENSED.contains(&kind) && !text.lines().take(2).any(|line| line.ends_with(LICENCE)) {
        problems.push(format!("does not start with `{LICENCE}`"));
    }
    if kind != "rs" {
        return problems;
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        problems.push(format!("has {lines} lines, more than {LINES_MAX}"));
    }
    for forbidden in FORBIDDEN {
        if text.contains(forbidden) {
            problems.push(format!("contains `{forbidden}`"));
        }
    }
    let is_root = ["src/lib.rs", "src/main.rs"].iter().any(|root| file.ends_with(root));
    let may_be_unsafe = UNSAFE_CRATES.iter().any(|name| file.starts_with(&format!("crates/{name}/")));
    if is_root && !may_be_unsafe && !text.contains("#![forbid(unsafe_code)]") {
        problems.push("does not forbid unsafe code".into());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "// SPDX-License-Identifier: Apache-2.0\n//! Words.\n#![forbid(unsafe_code)]\n";

    #[test]
    fn each_rule_is_reported_and_a_good_file_is_not() {
        let long = format!("{GOOD}{}", "\n".repeat(LINES_MAX));
        let hidden = format!("{GOOD}{}]\n", FORBIDDEN[0]);
        for (file, text, problems) in [
            ("crates/model/src/lib.rs", GOOD, 0),
            ("crates/model/src/lib.rs", "//! Words.\n", 2),
            ("crates/platform/src/lib.rs", "// SPDX-License-Identifier: Apache-2.0\n", 0),
            ("crates/model/src/name.rs", "// SPDX-License-Identifier: Apache-2.0\n", 0),
            ("crates/model/src/lib.rs", long.as_str(), 1),
            ("crates/model/src/lib.rs", hidden.as_str(), 1),
            ("x.sh", "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n", 0),
            ("x.toml", "[package]\n", 1),
            ("README.md", "# Words\n", 0),
        ] {
            assert_eq!(problems_of(file, text).len(), problems, "{file}: {:?}", problems_of(file, text));
        }
    }
}
