// SPDX-License-Identifier: Apache-2.0
//! Everything that crosses a boundary as text: resources in YAML files and the admin protocol in JSON.
//!
//! - [`manifest`] reads a directory of resources into a validated [`model::Inventory`] and
//!   [`model::PolicySet`], or says with file, line and column why not.
//! - [`admin`] is the protocol on the daemon's Unix socket: message types, framing and a blocking client.
//!
//! Invariants:
//! - A load is all or nothing: no value leaves [`manifest`] unless every document was right.
//! - Input is bounded before it is parsed: files, documents, nesting, lines on the wire.
//! - Whatever is refused is refused with a place and a way out ([`Diagnostic`], [`admin::Refusal`]).
//!
//! Deliberately absent: the meaning of policies (see `policy`), watching files, async, and any engine.
#![forbid(unsafe_code)]

pub mod admin;
mod diagnostic;
pub mod manifest;

pub use diagnostic::Diagnostic;
