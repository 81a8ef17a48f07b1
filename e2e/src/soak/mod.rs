// SPDX-License-Identifier: Apache-2.0
//! What must hold for as long as one likes to watch.

mod handover;
mod neighbours;
mod probe;

pub use handover::{Endured, HandOvers, hand_over};
pub use neighbours::{Noise, Peace, disturb};
pub use probe::Times;
