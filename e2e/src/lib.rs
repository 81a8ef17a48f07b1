// SPDX-License-Identifier: Apache-2.0
//! Scenarios on real virtual machines, shared by the tests and the demo.
#![forbid(unsafe_code)]
