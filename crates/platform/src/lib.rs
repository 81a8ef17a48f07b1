// SPDX-License-Identifier: Apache-2.0
//! The few primitives of operating system and processor that the daemon needs, as safe functions.
//!
//! Invariants:
//! - No function here blocks, except [`Poller::wait`], which says so.
//! - A [`SharedTable`] has one owner among all processes that use this crate.
//!
//! Deliberately absent: guest memory (see `vhost-port`), threads, and anything that knows what the daemon does.
#![allow(unsafe_code)] // Mapping a file, prefetching a cache line, asking a driver and counting waits have no safe form.

mod bell;
mod blocked;
mod clock;
mod cpu;
mod event;
mod huge;
mod order;
mod sparse;
mod table;
mod tap;

pub use bell::Bell;
pub use blocked::times_blocked;
pub use clock::monotonic_ns;
pub use cpu::{pin_current_thread, prefetch, prefetch_to_write};
pub use event::{EventFd, Poller, Trigger};
pub use huge::in_huge_pages;
pub use order::write_then_read;
pub use sparse::for_each_data;
pub use table::{SharedTable, TableError};
pub use tap::Tap;
