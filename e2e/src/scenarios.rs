// SPDX-License-Identifier: Apache-2.0
//! What must hold besides the story.

use crate::Chapter;

/// Every scenario.
pub const SCENARIOS: [Chapter; 0] = [];
