// SPDX-License-Identifier: Apache-2.0
//! The vhost-user backend of one network card, and the guest memory that comes with it.
//!
//! A card is one [`Port`], owned by a poll thread, and one [`PortControl`], which keeps the thread that talks to the VMM.
//! The two share no lock: the talking thread translates what the VMM says into complete ring sets and hands them over
//! through a channel; the poll thread takes them up between two batches, in [`Port::service`], and acknowledges. So the
//! poll thread never waits for a VMM, and a VMM never sees memory used after it was told that its use has ended.
//!
//! Theory of operation:
//! - The protocol's message layer is the `vhost` crate's. A session lasts as long as a connection; the port listens or
//!   connects again until [`PortControl`] is dropped, and serves one VMM at a time.
//! - A queue pair runs while both its rings have addresses, a kick descriptor and are enabled, memory is known, and the driver
//!   speaks virtio 1.0. Whatever ends one of these stops it first.
//! - Chains are returned to the guest strictly in the order in which they were made available. Therefore the used
//!   index alone says what has been done, and every start resumes there, be it after a reconnect, a crash of this process
//!   or a reset of the guest's. `SET_VRING_BASE` says at best the same, at worst (from a VMM that counts what was
//!   available when the backend died) something that loses every receive buffer; it is ignored. Frames that were
//!   received but not completed are received again. A packed ring has no such index: it is resumed where the port itself
//!   wrote down (see `ring::journal`), or else where the VMM says.
//! - Notifications are given and asked for as late as possible: used entries are published once per
//!   [`Port::flush`], kicks are suppressed until [`Port::arm_kicks`].
//!
//! Invariants:
//! - Guest memory is never a Rust reference. It is copied by address, each shared field is read once, and
//!   decisions are made on the copy.
//! - Whatever a guest writes into its rings ends in a typed [`RingFault`] or [`ChainFault`], counted, that stops this
//!   port or drops that frame.
//! - Memory is mapped only where its file has bytes at that time. What a guest does cannot change that; its VMM can, and
//!   the first access would then kill this process: by truncating a file that is not sealed against it, which is
//!   reported ([`PortStatus::memory_sealed`]), or by using huge pages without reserving them.
//! - Looking at memory through [`GuestMemory::read`] does not make the guest bigger.
//!
//! A frame for a guest that has no receive buffers left is refused ([`SendError::NoBuffers`]), never kept: a slow guest
//! must not hold up others. The sender's TCP takes it for congestion, which it is.
//!
//! Deliberately absent: post-copy, an IOMMU,
//! error notifications (`SET_VRING_ERR` is accepted and ignored), and any idea of what is in a frame behind the
//! virtio-net header.
#![allow(unsafe_code)] // Guest memory is mapped and reached by address; all of it is in `memory`, `window` and `batch`.

mod batch;
mod chain;
mod control;
mod conversation;
mod counters;
mod device;
mod endpoint;
mod failure;
mod fault;
mod features;
#[cfg(fuzzing)]
pub mod fuzzing;
mod link;
mod log;
mod memory;
mod outgoing;
mod pair;
mod port;
mod ring;
mod session;
mod shared;
mod window;

#[cfg(feature = "testing")]
pub mod testing;
#[cfg(any(test, fuzzing, feature = "testing"))]
#[cfg_attr(not(any(test, fuzzing)), allow(dead_code))] // Other crates' tests need a part of it only.
mod tests;

pub use batch::Batch;
pub use chain::Chain;
pub use control::{PortConfig, PortControl, open};
pub use counters::PortCounters;
pub use endpoint::OpenError;
pub use failure::{SessionError, Stalled};
pub use fault::{ChainFault, RingFault, SendError};
pub use features::{Features, VNET_HEADER_BYTES};
pub use memory::{GuestMemory, MapError, Unmapped};
pub use outgoing::Outgoing;
pub use port::{Port, PortEvent};
pub use ring::{LayoutError, RingAddresses};
pub use shared::PortStatus;
