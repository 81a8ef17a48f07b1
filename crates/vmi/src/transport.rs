// SPDX-License-Identifier: Apache-2.0
//! What sockets count, and sockets beside TCP and UDP: raw ones and packet sockets.

use std::collections::HashMap;

use crate::core::Core;
use crate::error::{Fault, ViewError};
use crate::guest::Guest;
use crate::memory::Gva;
use crate::reader::VIEW_READS_MAX;
use crate::socket::{Common, Owner, Socket, SocketState};
use model::{AcceptQueue, Protocol};

/// `srtt_us` is kept in eighths (Linux, `tcp_rtt_estimator`).
const SRTT_SHIFT: u32 = 3;
/// Descriptors by the socket that they refer to.
type Owners = HashMap<Gva, Vec<Owner>>;

/// Every socket of the guest, with what it counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketDetails {
    /// TCP, UDP and raw sockets.
    pub internet: Vec<SocketDetail>,
    /// Sockets that take frames past the network layers.
    pub packet: Vec<PacketSocket>,
}

/// An internet socket with what it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketDetail {
    /// The socket. The local port of a raw one is the number of its protocol, as the guest itself has it.
    pub socket: Socket,
    /// Takes and sends IP packets past TCP and UDP.
    pub is_raw: bool,
    /// Connections that wait to be accepted; of TCP listeners only.
    pub accept_queue: Option<AcceptQueue>,
    /// What TCP counts; absent for listeners, in TIME_WAIT and for requests.
    pub tcp: Option<TcpCounters>,
}

/// What TCP counts for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpCounters {
    /// Smoothed round-trip time in microseconds; zero until it was measured.
    pub rtt_us: u32,
    /// Segments sent again, ever.
    pub retransmits: u32,
    /// Bytes of data sent, repeated ones included.
    pub sent_bytes: u64,
    /// Bytes of data that the peer has acknowledged; a SYN or FIN counts as one.
    pub acked_bytes: u64,
    /// Bytes of data received in order; the same holds.
    pub received_bytes: u64,
}

/// A socket that takes frames past the network layers, as `tcpdump` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketSocket {
    /// EtherType that it takes; 3 (`ETH_P_ALL`) takes all, zero none.
    pub ether_type: u16,
    /// Number of the network device that it is bound to; zero for all.
    pub device: u32,
    /// Its creator's user id.
    pub uid: u32,
    /// Inode of its descriptor; absent when no descriptor refers to it.
    pub inode: Option<u64>,
    /// Inode of its network namespace.
    pub netns_inode: u32,
    /// Every descriptor that refers to it.
    pub owners: Vec<Owner>,
}

impl Guest {
    /// Every TCP, UDP, raw and packet socket of all network namespaces, with owners and counters.
    ///
    /// Raw and packet sockets are missing where the kernel does not describe them.
    ///
    /// # Errors
    /// As [`Guest::sockets`].
    pub fn socket_details(&self) -> Result<SocketDetails, ViewError> {
        self.core().query(VIEW_READS_MAX, Core::socket_details)
    }
}

impl Core {
    fn socket_details(&self) -> Result<SocketDetails, Fault> {
        let namespaces = self.namespaces()?;
        let mut owners = self.socket_owners()?;
        let mut internet = Vec::new();
        for (sock, socket) in self.sockets_at(&namespaces, &mut owners)? {
            let is_tcp = socket.protocol == Protocol::Tcp;
            let is_listener = is_tcp && socket.state == SocketState::Listen;
            let is_connection = is_tcp && !is_listener && socket.state.is_whole();
            internet.push(SocketDetail {
                accept_queue: if is_listener { self.accept_queue(sock)? } else { None },
                tcp: if is_connection { self.tcp_counters(sock)? } else { None },
                is_raw: false,
                socket,
            });
        }
        internet.extend(if_readable(self.raw_sockets(&mut owners))?);
        Ok(SocketDetails { internet, packet: if_readable(self.packet_sockets(&namespaces, &mut owners))? })
    }

    fn raw_sockets(&self, owners: &mut Owners) -> Result<Vec<SocketDetail>, Fault> {
        let mut sockets = Vec::new();
        for table in self.raw_tables() {
            for sock in self.entries(&table)? {
                if let Some(common) = self.common(sock)? {
                    let socket = self.raw_socket(sock, &common, owners)?;
                    sockets.push(SocketDetail { socket, is_raw: true, accept_queue: None, tcp: None });
                }
            }
        }
        Ok(sockets)
    }

    /// What waits at a listener to be accepted; `None` where the kernel does not describe that.
    pub(crate) fn accept_queue(&self, sock: Gva) -> Result<Option<AcceptQueue>, Fault> {
        let Some(layout) = &self.layout.transport.backlog else { return Ok(None) };
        let (len, max) = (self.reader.u32(sock.at(layout.len))?, self.reader.u32(sock.at(layout.max))?);
        Ok(Some(AcceptQueue { len, max }))
    }

    fn tcp_counters(&self, sock: Gva) -> Result<Option<TcpCounters>, Fault> {
        let Some(layout) = &self.layout.transport.tcp else { return Ok(None) };
        Ok(Some(TcpCounters {
            rtt_us: self.reader.u32(sock.at(layout.srtt))? >> SRTT_SHIFT,
            retransmits: self.reader.u32(sock.at(layout.retransmits))?,
            sent_bytes: self.reader.u64(sock.at(layout.sent))?,
            acked_bytes: self.reader.u64(sock.at(layout.acked))?,
            received_bytes: self.reader.u64(sock.at(layout.received))?,
        }))
    }

    fn raw_socket(&self, sock: Gva, common: &Common, owners: &mut Owners) -> Result<Socket, Fault> {
        let [_, number] = common.local.port().to_be_bytes();
        let protocol = Protocol::from(number);
        let owners = owners.remove(&sock).unwrap_or_default();
        Ok(Socket { owners, ..self.socket(sock, common, protocol)? })
    }

    fn packet_sockets(&self, namespaces: &[Gva], owners: &mut Owners) -> Result<Vec<PacketSocket>, Fault> {
        let transport = &self.layout.transport;
        let (Some(list), Some(layout)) = (&transport.net_packet, &transport.packet) else {
            return Ok(Vec::new());
        };
        let mut sockets = Vec::new();
        for net in namespaces {
            let netns_inode = self.reader.u32(net.at(self.layout.net.inode))?;
            for sock in self.sockets_from(net.at(list.sockets))? {
                sockets.push(PacketSocket {
                    ether_type: u16::from_be_bytes(self.reader.array(sock.at(layout.protocol))?),
                    device: self.reader.u32(sock.at(layout.device))?,
                    uid: self.reader.u32(sock.at(self.layout.sock.uid))?,
                    inode: self.inode_of(sock)?,
                    netns_inode,
                    owners: owners.remove(&sock).unwrap_or_default(),
                });
            }
        }
        Ok(sockets)
    }
}

/// What could be read, or nothing where this kernel has something else in its place.
fn if_readable<T>(read: Result<Vec<T>, Fault>) -> Result<Vec<T>, Fault> {
    match read {
        Err(Fault::Unmapped | Fault::Inconsistent) => Ok(Vec::new()),
        other => other,
    }
}
