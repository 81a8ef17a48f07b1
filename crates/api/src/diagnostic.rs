// SPDX-License-Identifier: Apache-2.0
//! One thing wrong with an operator's input, with its place.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One thing wrong, where it is, and what to do about it.
///
/// Shown as `file:line:column: field: reason`, which editors and CI systems make clickable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// The file, as it was named to us.
    pub file: PathBuf,
    /// Line, counted from 1; zero when the whole file is meant.
    pub line: u32,
    /// Column in characters, counted from 1; zero when the whole file is meant.
    pub column: u32,
    /// Dotted path of the field, such as `spec.nics[0].mac`; empty when the whole document is meant.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong.
    pub reason: String,
    /// What to write instead; empty when the reason says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub help: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_leaves_out_what_is_not_known() {
        let mut diagnostic = Diagnostic {
            file: "mesh.yaml".into(),
            line: 3,
            column: 7,
            field: "spec.nics[0].mac".into(),
            reason: "not an address".into(),
            help: String::new(),
        };
        assert_eq!(diagnostic.to_string(), "mesh.yaml:3:7: spec.nics[0].mac: not an address");
        diagnostic.line = 0;
        diagnostic.field.clear();
        assert_eq!(diagnostic.to_string(), "mesh.yaml: not an address");
    }
}
