// SPDX-License-Identifier: Apache-2.0
//! From the ends of a connection as the wire shows them to the socket behind it: first through the guest's own
//! translations of addresses, then in the namespaces that hold the address that is left.

use std::net::SocketAddr;

use model::{Attribution, Confidence, Protocol, UnknownReason};

use crate::conntrack::Tracking;
use crate::core::Core;
use crate::ends::Ends;
use crate::error::Fault;
use crate::lookup::Hashing;
use crate::memory::Gva;
use crate::owner::Memo;
use crate::socket::canonical;

/// What searches learn about the guest and keep.
#[derive(Default)]
pub(crate) struct Lookups {
    hashing: Hashing,
    tracking: Tracking,
}

/// What a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) sock: Option<Gva>,
    /// The local end inside, if the guest translates it.
    inner: Option<SocketAddr>,
}

impl Found {
    /// Who is behind it; `found` is how sure that is if a process holds the socket. `None` if nothing at all was
    /// found.
    pub(crate) fn owner(
        self,
        core: &Core,
        memo: &mut Memo,
        found: Confidence,
    ) -> Result<Option<Attribution>, Fault> {
        let owner = match (self.sock, self.inner) {
            (Some(sock), _) => core.owner(memo, sock, found)?,
            (None, Some(_)) => Attribution::unknown(UnknownReason::NoSocket),
            (None, None) => return Ok(None),
        };
        Ok(Some(Attribution { inner: self.inner, ..owner }))
    }
}

impl Core {
    /// The socket of the connection that the wire shows as `ends`.
    pub(crate) fn find_connected(&self, lookups: &mut Lookups, ends: Ends) -> Result<Found, Fault> {
        let (inner, is_translated) = self.innermost(lookups, ends)?;
        let sock = self.find_socket(lookups, inner)?;
        Ok(Found { sock, inner: is_translated.then_some(inner.local) })
    }

    /// The socket that listens on what the wire shows as `local`, for `remote` or anybody.
    pub(crate) fn find_listening(
        &self,
        lookups: &mut Lookups,
        local: SocketAddr,
        remote: Option<SocketAddr>,
        protocol: Protocol,
    ) -> Result<Found, Fault> {
        let (local, inner) = match remote {
            None => (canonical(local), None),
            Some(remote) => {
                let (inner, is_translated) = self.innermost(lookups, Ends { local, remote, protocol })?;
                (inner.local, is_translated.then_some(inner.local))
            }
        };
        let homes = self.homes(local.ip())?;
        let sock = match protocol {
            Protocol::Tcp => self.find_listener(local, &homes)?,
            Protocol::Udp => self.find_udp(local, None, &homes)?,
            _ => None,
        };
        Ok(Found { sock, inner })
    }

    /// The socket that sent what the guest follows as `ends`: they are those of a socket, unless one namespace
    /// routes for another that itself routes for a third.
    pub(crate) fn find_tracked(&self, lookups: &mut Lookups, ends: Ends) -> Result<Found, Fault> {
        let ends = ends.canonical();
        let sock = self.find_socket(lookups, ends)?;
        if sock.is_some() {
            return Ok(Found { sock, inner: Some(ends.local) });
        }
        let found = self.find_connected(lookups, ends)?;
        Ok(Found { inner: found.inner.or(Some(ends.local)), ..found })
    }

    fn innermost(&self, lookups: &mut Lookups, ends: Ends) -> Result<(Ends, bool), Fault> {
        let ends = ends.canonical();
        let inner = self.untranslated(&mut lookups.tracking, ends)?;
        Ok((inner, inner != ends))
    }

    /// The socket with these (canonical) ends, in the namespaces that hold the local one.
    fn find_socket(&self, lookups: &mut Lookups, ends: Ends) -> Result<Option<Gva>, Fault> {
        let Ends { local, remote, protocol } = ends;
        let homes = self.homes(local.ip())?;
        match protocol {
            Protocol::Tcp => self.find_connection(&mut lookups.hashing, local, remote, &homes),
            Protocol::Udp => self.find_udp(local, Some(remote), &homes),
            _ => Ok(None),
        }
    }
}
