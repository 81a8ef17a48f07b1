// SPDX-License-Identifier: Apache-2.0
//! The ends of a connection.

use std::net::SocketAddr;

use model::Protocol;

use crate::socket::canonical;

/// The ends of a socket, or of the packets that it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) protocol: Protocol,
}

impl Ends {
    pub(crate) fn reversed(self) -> Self {
        Self { local: self.remote, remote: self.local, protocol: self.protocol }
    }

    /// With v4-mapped addresses as v4.
    pub(crate) fn canonical(self) -> Self {
        Self { local: canonical(self.local), remote: canonical(self.remote), protocol: self.protocol }
    }
}
