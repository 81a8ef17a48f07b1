// SPDX-License-Identifier: Apache-2.0
//! A guest's driver and a VMM, both of a few lines, and what the port must do with them.

mod driver;
mod faults;
mod frames;
mod frontend;
mod handshake;
mod memory;
mod oracle;
mod random;
