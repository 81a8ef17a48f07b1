// SPDX-License-Identifier: Apache-2.0
//! What must hold for as long as one likes to watch.

mod asker;
mod handover;
mod neighbours;
mod probe;

pub use asker::Asker;
pub use handover::{Endured, HandOvers, hand_over};
pub use neighbours::{Noise, Peace, disturb, give_way};
pub use probe::{End, Probe, Times};
