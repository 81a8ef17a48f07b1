// SPDX-License-Identifier: Apache-2.0
//! What can go wrong between a VMM and a port.

use platform::TableError;
use vhost::vhost_user::Error as ProtocolError;

use crate::fault::RingFault;
use crate::memory::MapError;
use crate::ring::LayoutError;

/// The poll thread did not take up a command in time, or is gone, or the port is being closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("poll thread did not answer")]
pub struct Stalled;

/// What went wrong last on a port.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The VMM broke the protocol, or the connection broke.
    #[error("connection to the VMM failed")]
    Protocol(#[source] ProtocolError),
    /// The VMM's memory cannot be used.
    #[error("memory table refused")]
    Memory(#[source] MapError),
    /// The VMM's bitmap of written pages cannot be used.
    #[error("dirty log refused")]
    Log(#[source] std::io::Error),
    /// A ring cannot be where the VMM says.
    #[error("ring {ring} refused")]
    Layout {
        /// Its number in the protocol.
        ring: usize,
        /// Why.
        source: LayoutError,
    },
    /// Where a packed ring stands cannot be written down.
    #[error("no notes of ring {ring} can be kept")]
    Journal {
        /// Its number in the protocol.
        ring: usize,
        /// Why.
        source: TableError,
    },
    /// The VMM accepted features that were not offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// The driver does not speak virtio 1.0.
    #[error("driver does not speak virtio 1.0")]
    Legacy,
    /// The guest broke a ring.
    #[error("port stopped")]
    Ring(#[source] RingFault),
    /// The poll thread did not take up a change.
    #[error("device change failed")]
    Stalled(#[from] Stalled),
    /// The socket of a VMM that listens cannot be connected to.
    #[error("cannot connect to the VMM")]
    Connect(#[source] std::io::Error),
    /// The listening socket failed.
    #[error("cannot accept connections")]
    Accept(#[source] std::io::Error),
}
