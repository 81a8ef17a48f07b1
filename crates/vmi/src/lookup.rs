// SPDX-License-Identifier: Apache-2.0
//! Finding the socket of a connection, of a listener, or of a UDP port, in given network namespaces.
//!
//! A TCP connection is looked for where the guest's own hash puts it; when it is not there, or the hash is not
//! understood, in the whole table, which is the truth. UDP sockets and listeners are few.

use std::cmp::Reverse;
use std::net::SocketAddr;

use crate::core::Core;
use crate::error::Fault;
use crate::hash::{Form, Secrets};
use crate::memory::{Gva, is_described};
use crate::socket::{SocketState, canonical};

/// Live connections that must confirm a form of the hash, if there are as many.
const SAMPLES_MAX: usize = 8;

/// How this guest hashes connections, as far as learnt; v4 and v6 separately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hashing {
    v4: Option<(Form, Secrets)>,
    v6: Option<(Form, Secrets)>,
}

impl Hashing {
    fn of_family(&mut self, local: SocketAddr) -> &mut Option<(Form, Secrets)> {
        if local.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }
}

impl Core {
    /// The socket of the TCP connection between these ends, in the first of the namespaces `nets` that has one.
    pub(crate) fn find_connection(
        &self,
        hashing: &mut Hashing,
        local: SocketAddr,
        remote: SocketAddr,
        nets: &[Gva],
    ) -> Result<Option<Gva>, Fault> {
        let (local, remote) = (canonical(local), canonical(remote));
        let tables = self.connection_tables(nets)?;
        if let Some((form, secrets)) = *hashing.of_family(local) {
            for net in nets {
                let mix = self.reader.u32(net.at(self.layout.net.hash_mix))?;
                let Some(hash) = form.hash(local, remote, secrets, mix) else { return Ok(None) };
                for table in &tables {
                    let sockets = self.bucket(table, hash)?;
                    if let Some(sock) = self.pick(&sockets, local, remote, std::slice::from_ref(net))? {
                        return Ok(Some(sock));
                    }
                }
            }
        }
        let mut sockets = Vec::new();
        for table in &tables {
            sockets.extend(self.entries(table)?);
        }
        let found = self.pick(&sockets, local, remote, nets)?;
        if found.is_some() || hashing.of_family(local).is_none() {
            *hashing.of_family(local) = self.learn_hash(&sockets, local)?;
        }
        Ok(found)
    }

    /// The one of `sockets` with these ends in the first of `nets` that has one; one in TIME_WAIT only if that
    /// has no other.
    fn pick(
        &self,
        sockets: &[Gva],
        local: SocketAddr,
        remote: SocketAddr,
        nets: &[Gva],
    ) -> Result<Option<Gva>, Fault> {
        let mut best: Option<((usize, bool), Gva)> = None;
        for &sock in sockets {
            let Some(common) = self.common(sock)? else { continue };
            let Some(place) = nets.iter().position(|net| *net == common.net) else { continue };
            let rank = (place, common.state == SocketState::TimeWait);
            if common.ends() == (local, remote) && best.is_none_or(|(other, _)| rank < other) {
                best = Some((rank, sock));
            }
        }
        Ok(best.map(|(_, sock)| sock))
    }

    /// The form of hash that explains what live sockets of the family of `like` store.
    fn learn_hash(&self, sockets: &[Gva], like: SocketAddr) -> Result<Option<(Form, Secrets)>, Fault> {
        let mut samples = Vec::new();
        if ![self.layout.net.hash_mix, self.layout.sock.hash].into_iter().all(is_described) {
            return Ok(None);
        }
        for &sock in sockets {
            let Some(common) = self.common(sock)? else { continue };
            if common.state.is_whole() && common.ends().0.is_ipv4() == like.is_ipv4() {
                let mix = self.reader.u32(common.net.at(self.layout.net.hash_mix))?;
                samples.push((common, mix));
                if samples.len() == SAMPLES_MAX {
                    break;
                }
            }
        }
        let secrets = self.hash_secrets()?;
        let explains = |form: &Form| {
            samples.iter().all(|(common, mix)| {
                let (local, remote) = common.ends();
                form.hash(local, remote, secrets, *mix) == Some(common.hash)
            })
        };
        let form = Form::ALL.into_iter().find(explains).filter(|_| !samples.is_empty());
        Ok(form.map(|form| (form, secrets)))
    }

    fn hash_secrets(&self) -> Result<Secrets, Fault> {
        let symbols = &self.anchors.symbols;
        if let (Some(base), Some(layout)) = (symbols.find("net_hotdata"), &self.layout.hotdata) {
            return Ok(Secrets {
                v4: self.reader.u32(base.at(layout.tcp))?,
                v6: self.reader.u32(base.at(layout.tcp6))?,
                v6_address: self.reader.u32(base.at(layout.tcp6_address))?,
            });
        }
        let read = |name| symbols.find(name).map_or(Ok(0), |place| self.reader.u32(place));
        Ok(Secrets {
            v4: read("inet_ehash_secret")?,
            v6: read("inet6_ehash_secret")?,
            v6_address: read("ipv6_hash_secret")?,
        })
    }

    /// The TCP socket that listens for connections to `local`, in the first of the namespaces `nets` that has
    /// one: the closest fit there.
    pub(crate) fn find_listener(&self, local: SocketAddr, nets: &[Gva]) -> Result<Option<Gva>, Fault> {
        let mut sockets = Vec::new();
        for table in self.listener_tables(nets)? {
            sockets.extend(self.entries(&table)?);
        }
        self.closest(&sockets, local, None, nets)
    }

    /// The UDP socket that takes what `remote` sends to `local`, in the first of the namespaces `nets` that has
    /// one; without `remote`, what anybody sends.
    pub(crate) fn find_udp(
        &self,
        local: SocketAddr,
        remote: Option<SocketAddr>,
        nets: &[Gva],
    ) -> Result<Option<Gva>, Fault> {
        let tables = self.udp_tables(nets)?;
        let mut sockets = Vec::new();
        for net in nets {
            // The slot of a port in a namespace needs no secret.
            let mix = self.reader.u32(net.at(self.layout.net.hash_mix))?;
            for table in &tables {
                sockets.extend(self.bucket(table, u32::from(local.port()).wrapping_add(mix))?);
            }
        }
        self.closest(&sockets, local, remote, nets)
    }

    /// The one of `sockets` that takes what is sent to `local` in the first of `nets` that has one, and fits
    /// closest there.
    fn closest(
        &self,
        sockets: &[Gva],
        local: SocketAddr,
        remote: Option<SocketAddr>,
        nets: &[Gva],
    ) -> Result<Option<Gva>, Fault> {
        let (local, remote) = (canonical(local), remote.map(canonical));
        let mut best: Option<((Reverse<usize>, u8), Gva)> = None;
        for &sock in sockets {
            let Some(common) = self.common(sock)? else { continue };
            let Some(place) = nets.iter().position(|net| *net == common.net) else { continue };
            let (_, own_remote) = common.ends();
            let is_connected = own_remote.port() != 0;
            if is_connected && remote != Some(own_remote) {
                continue;
            }
            let Some(fit) = common.accepts(local) else { continue };
            let rank = (Reverse(place), fit + if is_connected { CONNECTED_FIT } else { 0 });
            if best.is_none_or(|(other, _)| rank > other) {
                best = Some((rank, sock));
            }
        }
        Ok(best.map(|(_, sock)| sock))
    }
}

/// A connected socket fits closer than any other.
const CONNECTED_FIT: u8 = 4;
