// SPDX-License-Identifier: Apache-2.0
//! Names of what is outside the mesh, as rules name them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A domain name, or all names below one: `api.example.com`, `*.example.com`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainPattern {
    /// In small letters, without a dot at the end and without `*.`.
    name: Arc<str>,
    /// Whether the names below it are meant, and not itself.
    below: bool,
}

/// Why a text is not a [`DomainPattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a domain: use two labels or more of letters, digits, - and _, or `*.` before them")]
pub struct DomainPatternError(String);

impl DomainPattern {
    /// Longest name, in bytes (RFC 1035 section 2.3.4).
    pub const LEN_BYTES_MAX: usize = 253;

    /// Whether a name is meant. It must be in small letters, without a dot at the end.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match name.strip_suffix(&*self.name) {
            Some("") => !self.below,
            Some(before) => self.below && before.ends_with('.') && before.len() > 1,
            None => false,
        }
    }
}

impl FromStr for DomainPattern {
    type Err = DomainPatternError;

    fn from_str(text: &str) -> Result<Self, DomainPatternError> {
        let error = || DomainPatternError(text.chars().take(80).collect());
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let legal = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(legal);
        let good = name.len() <= Self::LEN_BYTES_MAX && name.contains('.') && name.split('.').all(is_label);
        // What looks like an address is one.
        if !good || name.bytes().all(|c| c.is_ascii_digit() || c == b'.') {
            return Err(error());
        }
        Ok(Self { name: name.to_ascii_lowercase().into(), below })
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_a_name_or_all_below_it() {
        for (pattern, name, means) in [
            ("api.example.com", "api.example.com", true),
            ("API.Example.com", "api.example.com", true),
            ("api.example.com", "xapi.example.com", false),
            ("api.example.com", "x.api.example.com", false),
            ("api.example.com", "example.com", false),
            ("*.example.com", "api.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "badexample.com", false),
            ("*.example.com", ".example.com", false),
        ] {
            let parsed: DomainPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(name), means, "{pattern} {name}");
        }
    }

    #[test]
    fn only_domains_are_patterns() {
        let long = format!("{}.com", "x".repeat(64));
        for bad in
            ["", "com", "*.com", "*", "a..b", ".a.b", "a.b.", "a*.b.c", "*.*.b.c", "10.0.0.1", "ä.de", &long]
        {
            assert!(bad.parse::<DomainPattern>().is_err(), "{bad}");
        }
        let pattern: DomainPattern = "*.Example.COM".parse().unwrap();
        assert_eq!(pattern.to_string(), "*.example.com");
    }
}
