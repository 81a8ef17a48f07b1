// SPDX-License-Identifier: Apache-2.0
//! Names of resources: DNS labels, because they become parts of DNS names and of identities.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A DNS label (RFC 1123 section 2.1): 1 to 63 of `a-z`, `0-9` and `-`, not starting or ending with `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name: use 1 to 63 of a-z, 0-9 and -, starting and ending with a letter or digit")]
pub struct NameError(String);

impl Name {
    /// Longest name, in bytes.
    pub const LEN_BYTES_MAX: usize = 63;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        let legal = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let edge = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
        if bytes.len() <= Self::LEN_BYTES_MAX
            && bytes.iter().all(legal)
            && edge(bytes.first())
            && edge(bytes.last())
        {
            Ok(Self(text.into()))
        } else {
            Err(NameError(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A virtual machine of a tenant, written `tenant/vm`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmRef {
    /// The tenant that owns the machine.
    pub tenant: Name,
    /// The machine's name within the tenant.
    pub name: Name,
}

impl fmt::Display for VmRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

impl FromStr for VmRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (tenant, name) =
            text.split_once('/').ok_or_else(|| NameError(text.chars().take(80).collect()))?;
        Ok(Self { tenant: tenant.parse()?, name: name.parse()? })
    }
}

/// A network card of a virtual machine, written `tenant/vm/nic`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NicRef {
    /// The machine the card belongs to.
    pub vm: VmRef,
    /// The card's name within the machine.
    pub nic: Name,
}

impl fmt::Display for NicRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vm, self.nic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dns_labels_are_names() {
        for good in ["a", "web", "web-1", "0", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn vm_reference_reads_back() {
        let vm: VmRef = "acme/web".parse().unwrap();
        assert_eq!(vm.to_string(), "acme/web");
        for bad in ["acme", "acme/", "/web", "a/b/c"] {
            assert!(bad.parse::<VmRef>().is_err(), "{bad}");
        }
    }
}
