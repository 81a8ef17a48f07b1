// SPDX-License-Identifier: Apache-2.0
//! Everything that crosses a boundary as text: resources in YAML files and the admin protocol in JSON.
//!
//! - [`admin`] is the protocol on the daemon's Unix socket: message types, framing and a blocking client.
//!
//! Invariants:
//! - Input is bounded before it is parsed: files, documents, nesting, lines on the wire.
//! - Whatever is refused is refused with a place and a way out ([`Diagnostic`], [`admin::Refusal`]).
//!
//! Deliberately absent: the meaning of policies (see `policy`), watching files, async, and any engine.
#![forbid(unsafe_code)]

pub mod admin;
mod diagnostic;

pub use diagnostic::Diagnostic;
