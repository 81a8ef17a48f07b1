// SPDX-License-Identifier: Apache-2.0
//! Frames in, values out, against hand-made bytes and an independent parser.

mod emitting;
mod finishing;
mod malformed;
mod options;
mod oracle;
mod plain;
mod readdressing;
