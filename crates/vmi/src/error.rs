// SPDX-License-Identifier: Apache-2.0
//! Why a guest could not be understood, or a question about it not answered.

use model::UnknownReason;

/// Why a guest's kernel was not found in its RAM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// No symbol table: no kernel yet, one whose table has a form not known here, or encrypted memory.
    #[error("no kernel symbol table (kallsyms) in guest memory")]
    NoSymbols,
    /// Symbols, but neither type information nor a banner that fits them: a kernel just unpacked.
    #[error("no kernel type information (BTF) in guest memory")]
    NoTypes,
    /// A kernel built without BTF, of which no profile was given.
    #[error("kernel {0} has no type information (BTF) in guest memory, and there is no profile of it")]
    NoProfile(String),
    /// The profile of a kernel is not type information.
    #[error("profile of kernel {release} is not usable")]
    Profile {
        /// The kernel.
        release: String,
        /// What is wrong with it.
        source: TypesError,
    },
    /// Symbols and types, but no page tables that fit them.
    #[error("no symbols, types and page tables in guest memory that belong together")]
    NoKernel,
    /// More that looks like a symbol table than is looked at: somebody fills memory with imitations.
    #[error("too many imitations of a kernel symbol table in guest memory")]
    Crowded,
    /// Several symbol tables fit types and page tables, but contradict each other, and none or more than one of
    /// their kernels is alive as far as [`crate::Heartbeats`] can tell. Try again a little later.
    #[error("contradicting kernel symbol tables in guest memory")]
    Ambiguous,
    /// The kernel's symbol table lacks a symbol that is needed.
    #[error("kernel has no symbol `{0}`")]
    MissingSymbol(&'static str),
    /// The type information is malformed.
    #[error(transparent)]
    Types(#[from] TypesError),
    /// The kernel is there, but its first structures do not read as they must.
    #[error("kernel's {0} is not as expected")]
    Unexpected(&'static str),
}

/// Why type information (BTF) was refused, or did not say what is needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypesError {
    /// Header or a type record contradicts itself, or runs past the end.
    #[error("malformed type information at byte {0}")]
    Malformed(usize),
    /// A bound of this library was exceeded.
    #[error("more than {0} types")]
    TooMany(usize),
    /// A structure is not described.
    #[error("no structure `{0}`")]
    NoStructure(&'static str),
    /// A structure has no such member.
    #[error("structure `{structure}` has no member `{member}`")]
    NoMember {
        /// The structure.
        structure: &'static str,
        /// The path of the member.
        member: &'static str,
    },
}

/// Why a view of the guest could not be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The kernel is no longer where it was found: the guest was reset. Attach again.
    #[error("kernel is gone from guest memory")]
    Gone,
    /// The structures changed under the reader, or contradicted themselves, on every try.
    #[error("guest structures are inconsistent")]
    Inconsistent,
    /// The walk needed more reads than one query may spend.
    #[error("guest structures are too large to walk")]
    Exhausted,
}

impl From<ViewError> for UnknownReason {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::Gone => Self::NotAttached,
            ViewError::Inconsistent | ViewError::Exhausted => Self::Inconsistent,
        }
    }
}

/// Why one read of guest-virtual memory, or one walk, failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The address is not mapped by the kernel's page tables, or not backed by memory.
    Unmapped,
    /// A list, tree or count contradicts itself or exceeds its bound.
    Inconsistent,
    /// The query has spent all its reads.
    Exhausted,
}

impl From<crate::Unmapped> for Fault {
    fn from(_: crate::Unmapped) -> Self {
        Self::Unmapped
    }
}

impl From<Fault> for ViewError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unmapped | Fault::Inconsistent => Self::Inconsistent,
            Fault::Exhausted => Self::Exhausted,
        }
    }
}
