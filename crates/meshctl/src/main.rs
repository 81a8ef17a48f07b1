// SPDX-License-Identifier: Apache-2.0
//! Placeholder until the binary is written.
fn main() {}
