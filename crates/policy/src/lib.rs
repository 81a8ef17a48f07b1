// SPDX-License-Identifier: Apache-2.0
//! From what operators say to what the switch asks: access policies, compiled.
//!
//! [`compile()`] turns an inventory and its policies into a [`CompiledPolicy`], a pure function from a
//! flow to a verdict ([`model::Judge`]). Reading order of a verdict:
//!
//! 1. Flows between tenants match nothing and are denied, whatever the defaults say; but for calls to
//!    infrastructure services, about which both tenants' policies decide (`crossing`).
//! 2. A policy matches when one of its `from` and one of its `to` entries match. Only policies of
//!    the tenant are asked. What lies outside the mesh is selected by its network alone, so that nothing
//!    but an entry with a `cidr` ever speaks of it.
//! 3. A matching Deny wins over every matching Allow; without either the tenant's default decides.
//! 4. Policies in audit mode never decide; those that match are reported beside the verdict.
//!
//! **Flow policies** add services to flows, at four levels. All that match add what they add. They are taken from the
//! infrastructure inwards, at each level by their order and then by their files; where a service can be had only
//! once (a mirror, a redirection), the first counts. A matching one that denies wins over every Allow; of several
//! Denies the first is named, access policies coming behind the flow policies of the tenant's level.
//!
//! **Unknown processes.** A selector that names a process matches only a process that is known: an
//! *unknown* one matches neither an Allow nor a Deny that names a process. Where introspection knows
//! the socket but not its process, `user`, `uid`, `unit` and `container` are matched against the socket's,
//! and `name` and `exe` match nothing. So a Deny that names a process is no protection against one that
//! hides. What protects is the default Deny, with Allows that name who may pass, or a Deny that selects by
//! `attribution`: whatever is *unknown*, and what is *unattributed*, for which the guest has no socket at
//! all. [`CompiledPolicy::warnings`] says where a tenant relies on Denies that name processes.
//!
//! Invariants:
//! - Every verdict names the rule, or the default, that gave it.
//! - What is compiled answers exactly as a plain reading of the policies would; a property test
//!   compares the two.
//! - Work per judged flow grows with the rules that select both ends and the port, plus at most a few
//!   bits per rule of the tenant; never with machines or tenants. `examples/judge.rs` takes the figures.
//!
//! Deliberately absent: reading files (see `api`), I/O, clocks, generations (the publisher's), and
//! remembering verdicts (the switch's flow table).
#![forbid(unsafe_code)]

mod analysis;
mod bits;
mod catalogue;
mod classifier;
mod clause;
mod compile;
mod crossing;
mod explain;
mod insertion;
mod judge;
mod prefixes;
mod rule_set;

pub use analysis::Warning;
pub use catalogue::{Catalogue, CatalogueError, catalogue};
pub use compile::{CompileError, compile};
pub use explain::RuleTrace;
pub use judge::{CompiledPolicy, CompiledService};
