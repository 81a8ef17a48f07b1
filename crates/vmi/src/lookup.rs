// SPDX-License-Identifier: Apache-2.0
//! Finding the socket of a connection, of a listener, or of a UDP port.
//!
//! A TCP connection is looked for where the guest's own hash puts it; when it is not there, or the hash is not
//! understood, in the whole table, which is the truth. UDP sockets and listeners are few.

use std::net::SocketAddr;

use crate::error::Fault;
use crate::guest::Core;
use crate::hash::{Form, Secrets};
use crate::memory::{Gva, is_described};
use crate::socket::{SocketState, canonical};
use crate::table::SocketTable;

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
    /// The socket of the TCP connection between these ends, in any namespace.
    pub(crate) fn find_connection(
        &self,
        hashing: &mut Hashing,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<Option<Gva>, Fault> {
        let (local, remote) = (canonical(local), canonical(remote));
        let namespaces = self.namespaces()?;
        let tables = self.connection_tables(&namespaces)?;
        if let Some((form, secrets)) = *hashing.of_family(local) {
            for &net in &namespaces {
                let mix = self.reader.u32(net.at(self.layout.net.hash_mix))?;
                let Some(hash) = form.hash(local, remote, secrets, mix) else { return Ok(None) };
                for table in &tables {
                    if let Some(sock) = self.pick(&self.bucket(table, hash)?, local, remote)? {
                        return Ok(Some(sock));
                    }
                }
            }
        }
        let mut sockets = Vec::new();
        for table in &tables {
            sockets.extend(self.sockets_in(table)?);
        }
        let found = self.pick(&sockets, local, remote)?;
        if found.is_some() || hashing.of_family(local).is_none() {
            *hashing.of_family(local) = self.learn_hash(&sockets, local)?;
        }
        Ok(found)
    }

    /// The one of `sockets` with these ends; one in TIME_WAIT only if there is no other.
    fn pick(&self, sockets: &[Gva], local: SocketAddr, remote: SocketAddr) -> Result<Option<Gva>, Fault> {
        let mut waiting = None;
        for &sock in sockets {
            let Some(common) = self.common(sock)? else { continue };
            if common.ends() == (local, remote) {
                if common.state != SocketState::TimeWait {
                    return Ok(Some(sock));
                }
                waiting = Some(sock);
            }
        }
        Ok(waiting)
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

    /// The TCP socket that listens for connections to `local`, in one namespace or any: the closest fit.
    pub(crate) fn find_listener(&self, local: SocketAddr, net: Option<Gva>) -> Result<Option<Gva>, Fault> {
        let tables = self.listener_tables(&self.namespaces()?)?;
        self.closest(&tables, local, None, net)
    }

    /// The UDP socket that takes what `remote` sends to `local`, in any namespace; without `remote`, what
    /// anybody sends.
    pub(crate) fn find_udp(
        &self,
        local: SocketAddr,
        remote: Option<SocketAddr>,
    ) -> Result<Option<Gva>, Fault> {
        let namespaces = self.namespaces()?;
        let tables = self.udp_tables(&namespaces)?;
        let local = canonical(local);
        let (mut sockets, mut best) = (Vec::new(), None);
        for &net in &namespaces {
            // The slot of a port in a namespace needs no secret.
            let mix = self.reader.u32(net.at(self.layout.net.hash_mix))?;
            for table in &tables {
                sockets.extend(self.bucket(table, u32::from(local.port()).wrapping_add(mix))?);
            }
        }
        for sock in sockets {
            self.consider(sock, local, remote.map(canonical), None, &mut best)?;
        }
        Ok(best.map(|(_, sock)| sock))
    }

    fn closest(
        &self,
        tables: &[SocketTable],
        local: SocketAddr,
        remote: Option<SocketAddr>,
        net: Option<Gva>,
    ) -> Result<Option<Gva>, Fault> {
        let (local, mut best) = (canonical(local), None);
        for table in tables {
            for sock in self.sockets_in(table)? {
                self.consider(sock, local, remote, net, &mut best)?;
            }
        }
        Ok(best.map(|(_, sock)| sock))
    }

    /// Makes `sock` the `best` if it takes what is sent to `local` and fits closer than what was best.
    fn consider(
        &self,
        sock: Gva,
        local: SocketAddr,
        remote: Option<SocketAddr>,
        net: Option<Gva>,
        best: &mut Option<(u8, Gva)>,
    ) -> Result<(), Fault> {
        let Some(common) = self.common(sock)? else { return Ok(()) };
        if net.is_some_and(|net| net != common.net) {
            return Ok(());
        }
        let (_, own_remote) = common.ends();
        let is_connected = own_remote.port() != 0;
        if is_connected && remote != Some(own_remote) {
            return Ok(());
        }
        if let Some(fit) = common.accepts(local) {
            let fit = fit + if is_connected { CONNECTED_FIT } else { 0 };
            if best.is_none_or(|(other, _)| fit > other) {
                *best = Some((fit, sock));
            }
        }
        Ok(())
    }
}

/// A connected socket fits closer than any other.
const CONNECTED_FIT: u8 = 4;
