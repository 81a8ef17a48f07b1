// SPDX-License-Identifier: Apache-2.0
//! A guest's driver and a VMM, both of a few lines, and what the port must do with them.

#[cfg(test)]
mod dirty;
pub(crate) mod driver;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod frames;
pub(crate) mod frontend;
#[cfg(test)]
mod handshake;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod packed;
pub(crate) mod packed_driver;
#[cfg(test)]
mod random;
#[cfg(test)]
mod together;
