// SPDX-License-Identifier: Apache-2.0
//! Sockets that a process holds but no table has, packet sockets that nobody holds, and devices that take
//! frames for others.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use model::Protocol;

use crate::core::Core;
use crate::error::Fault;
use crate::guest::Guest;
use crate::memory::{Gva, is_described};
use crate::socket::{Common, Owner, SocketState};

use super::finding::{Certainty, FindingKind};
use super::layout::IntegrityLayout;
use super::suspects::Suspect;

/// `IPPROTO_TCP`.
const TCP: u16 = 6;
/// `IPPROTO_UDP`.
const UDP: u16 = 17;
/// `IFF_PROMISC`.
const PROMISCUOUS: u32 = 0x100;
/// Most packet sockets of a namespace walked.
const PACKET_SOCKETS_MAX: usize = 4096;
/// Most network devices of a namespace looked at.
const DEVICES_MAX: usize = 4096;
/// `IFNAMSIZ`.
const DEVICE_NAME_BYTES: usize = 16;

impl Core {
    /// Sockets that hide or that nobody holds, and devices that take frames for others.
    pub(super) fn network_suspects(&self, layout: &IntegrityLayout) -> Result<Vec<Suspect>, Fault> {
        if !self.can_tell_owners() || !is_described(self.layout.sock.node) {
            return Ok(Vec::new());
        }
        let owners = self.socket_owners()?;
        let mut suspects = self.capture_suspects(layout, &owners)?;
        suspects.extend(self.socket_suspects(layout, owners)?);
        Ok(suspects)
    }

    /// Sockets that must be in a table, by what they say themselves, and are in none.
    fn socket_suspects(
        &self,
        layout: &IntegrityLayout,
        owners: HashMap<Gva, Vec<Owner>>,
    ) -> Result<Vec<Suspect>, Fault> {
        let Some(protocol) = layout.sock_protocol else { return Ok(Vec::new()) };
        // A socket in a state that has to be in a table, before and after the tables are read, was in one.
        let mut held = Vec::new();
        for (sock, owners) in owners {
            if let Some((protocol, common)) = self.must_be_in_table(sock, protocol)? {
                held.push((sock, protocol, common, owners));
            }
        }
        let namespaces = self.namespaces()?;
        let tables = [
            self.connection_tables(&namespaces)?,
            self.listener_tables(&namespaces)?,
            self.udp_tables(&namespaces)?,
        ];
        if tables.iter().any(Vec::is_empty) {
            // What is in a table that is not known would seem to be in none.
            return Ok(Vec::new());
        }
        let mut entered = HashSet::new();
        for table in tables.iter().flatten() {
            entered.extend(self.entries(table)?);
        }
        let mut suspects = Vec::new();
        for (sock, kind, common, owners) in held {
            let still = || self.must_be_in_table(sock, protocol) == Ok(Some((kind, common)));
            if !entered.contains(&sock) && still() {
                let pids: Vec<String> =
                    owners.iter().map(|owner| format!("{} (fd {})", owner.pid, owner.fd)).collect();
                let (local, remote) = common.ends();
                let evidence = format!(
                    "{kind} socket {local} to {remote}, held by process {}, is in no table of sockets",
                    pids.join(", ")
                );
                let (kind, certainty) = (FindingKind::HiddenSocket, Certainty::Certain);
                suspects.push(Suspect { kind, certainty, address: sock.0, evidence });
            }
        }
        Ok(suspects)
    }

    fn must_be_in_table(&self, sock: Gva, protocol: u32) -> Result<Option<(Protocol, Common)>, Fault> {
        let Some(common) = self.common(sock)? else { return Ok(None) };
        let established = common.state == SocketState::Established;
        let is_bound = common.local.port() != 0;
        Ok(match u16::from_le_bytes(self.reader.array(sock.at(protocol))?) {
            TCP if is_bound && (established || common.state == SocketState::Listen) => {
                Some((Protocol::Tcp, common))
            }
            UDP if is_bound && established => Some((Protocol::Udp, common)),
            _ => None,
        })
    }

    /// Packet sockets that nobody holds, and devices that take frames for others.
    fn capture_suspects(
        &self,
        layout: &IntegrityLayout,
        owners: &HashMap<Gva, Vec<Owner>>,
    ) -> Result<Vec<Suspect>, Fault> {
        let mut suspects = Vec::new();
        for net in self.namespaces()? {
            if let Some(layout) = &layout.packet_sockets {
                let mut node = self.reader.pointer(net.at(layout.list))?;
                for _ in 0..PACKET_SOCKETS_MAX {
                    if node.is_null() {
                        break;
                    }
                    let sock = node.container(self.layout.sock.node);
                    if !owners.contains_key(&sock) {
                        let (kind, certainty) = (FindingKind::PacketSocket, Certainty::Likely);
                        let evidence = "packet socket that no process holds".to_owned();
                        suspects.push(Suspect { kind, certainty, address: sock.0, evidence });
                    }
                    node = self.reader.pointer(node)?;
                }
            }
            let (Some(layout), Some(devices)) = (&layout.device_flags, &self.layout.devices) else {
                continue;
            };
            for entry in self.list(net.at(self.layout.net.devices), DEVICES_MAX)? {
                let device = entry.container(devices.net_device.list);
                let takes_all = self.reader.u32(device.at(layout.flags))? & PROMISCUOUS != 0;
                // Ports of bridges and the like take everything by nature, and hand it on.
                if takes_all && self.reader.pointer(device.at(layout.handler))?.is_null() {
                    let name = self.reader.text(device.at(layout.name), DEVICE_NAME_BYTES)?;
                    let evidence = format!("network device `{name}` takes frames for others");
                    let (kind, certainty) = (FindingKind::Promiscuous, Certainty::Possible);
                    suspects.push(Suspect { kind, certainty, address: device.0, evidence });
                }
            }
        }
        Ok(suspects)
    }
}

impl Guest {
    /// Whether the guest has a socket for traffic seen on the wire with these ends, `local` being the guest's.
    ///
    /// False for a connection that carries frames means that they come from a packet or raw socket, from the
    /// kernel itself, from behind the guest (it forwards), or from a socket that hides.
    ///
    /// # Errors
    /// When the tables could not be read.
    pub fn has_socket(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        protocol: Protocol,
    ) -> Result<bool, crate::ViewError> {
        let owner = self.connection_owner(local, remote, protocol);
        match owner.unknown {
            Some(model::UnknownReason::NoSocket) => Ok(false),
            Some(model::UnknownReason::Inconsistent) => Err(crate::ViewError::Inconsistent),
            Some(model::UnknownReason::NotAttached) => Err(crate::ViewError::Gone),
            _ => Ok(true),
        }
    }
}
