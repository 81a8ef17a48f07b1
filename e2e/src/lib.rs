// SPDX-License-Identifier: Apache-2.0
//! Scenarios on real virtual machines under the daemon as it ships.
//!
//! [`Shop`] is the world: the daemon on a copy of `examples/shop`, with the four machines it names. [`story`] is
//! what the demo tells and the tests repeat; [`scenarios`] are what else must hold, bad input above all;
//! [`matrix`] compares what is told of many kernels with the truth, under load.
//!
//! Invariants: each claim is checked against what the guests themselves saw; each scenario leaves the world as it
//! found it, so that they can run in any order.
//!
//! Deliberately absent: anything that is faster or surer to check without a virtual machine.
#![forbid(unsafe_code)]

mod agreement;
mod conversation;
pub mod matrix;
mod report;
pub mod scenarios;
mod shop;
pub mod soak;
pub mod story;

pub use report::Report;
pub use shop::Shop;

/// A part of the story, or a scenario of its own.
pub struct Chapter {
    /// What it shows, for people.
    pub title: &'static str,
    /// Its name as a claim, for choosing it.
    pub name: &'static str,
    /// Checks it, one line for each claim. An error means that it could not go on.
    pub run: fn(&mut Shop, &mut Report) -> anyhow::Result<()>,
}
