// SPDX-License-Identifier: Apache-2.0
//! One socket: its ends, its state, and how it is told to the outside.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::Protocol;

use crate::core::Core;
use crate::error::Fault;
use crate::memory::{Gva, is_described};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Bit of `skc_flags`: no descriptor refers to the socket any more (`SOCK_DEAD`).
const FLAG_DEAD: u64 = 1;
/// The part that every kind of socket has (`struct sock_common`) ends before this; 136 bytes in practice.
const COMMON_BYTES: usize = 192;

/// A socket in one of the guest's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// This end, as the guest itself shows it: a v4 connection of a v6 socket is `::ffff:192.0.2.1`.
    pub local: SocketAddr,
    /// The other end; unspecified and port zero for one that listens or is not connected.
    pub remote: SocketAddr,
    /// State; UDP sockets are [`SocketState::Established`] if connected, else [`SocketState::Close`].
    pub state: SocketState,
    /// Its creator's user id; absent for connection requests and in TIME_WAIT.
    pub uid: Option<u32>,
    /// Inode of its descriptor, as `/proc/PID/fd` shows it; absent when no descriptor refers to it.
    pub inode: Option<u64>,
    /// Inode of its network namespace, as `/proc/PID/ns/net` shows it.
    pub netns_inode: u32,
    /// Every descriptor that refers to it.
    pub owners: Vec<Owner>,
}

/// A descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The process.
    pub pid: u32,
    /// The number of the descriptor.
    pub fd: u32,
}

/// State of a socket: those of TCP (RFC 9293, section 3.3.2), and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are those of the standard")]
pub enum SocketState {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    /// A connection request that has not become a socket yet.
    Request,
}

impl SocketState {
    /// From the kernel's number (`include/net/tcp_states.h`).
    fn from_kernel(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::Request,
            _ => return None,
        })
    }

    /// The word shown to users, as `ss` has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Established => "estab",
            Self::SynSent => "syn-sent",
            Self::SynReceived | Self::Request => "syn-recv",
            Self::FinWait1 => "fin-wait-1",
            Self::FinWait2 => "fin-wait-2",
            Self::TimeWait => "time-wait",
            Self::Close => "unconn",
            Self::CloseWait => "close-wait",
            Self::LastAck => "last-ack",
            Self::Listen => "listen",
            Self::Closing => "closing",
        }
    }

    /// Whether the kernel's object is a whole socket; others are shorter.
    pub(crate) fn is_whole(self) -> bool {
        !matches!(self, Self::TimeWait | Self::Request)
    }
}

impl fmt::Display for SocketState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What every kind of socket has, from one copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Common {
    pub(crate) state: SocketState,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// The namespace, by address.
    pub(crate) net: Gva,
    /// Hash of the four ends by which it was entered into the table of connections.
    pub(crate) hash: u32,
    pub(crate) is_v6_only: bool,
    /// No descriptor refers to it any more.
    pub(crate) is_dead: bool,
}

impl Common {
    /// Both ends, v4-mapped addresses as v4.
    pub(crate) fn ends(&self) -> (SocketAddr, SocketAddr) {
        (canonical(self.local), canonical(self.remote))
    }

    /// Whether, by its local end, it may take what is sent to `local` (canonical), and how closely it fits.
    pub(crate) fn accepts(&self, local: SocketAddr) -> Option<u8> {
        let own = canonical(self.local);
        if own.port() != local.port() {
            return None;
        }
        match (own.ip(), local.ip()) {
            (own, wanted) if own == wanted => Some(2),
            (IpAddr::V4(own), IpAddr::V4(_)) if own.is_unspecified() => Some(1),
            (IpAddr::V6(own), IpAddr::V6(_)) if own.is_unspecified() => Some(1),
            (IpAddr::V6(own), IpAddr::V4(_)) if own.is_unspecified() && !self.is_v6_only => Some(0),
            _ => None,
        }
    }
}

/// `end` with a v4-mapped address as v4, and without scope.
pub(crate) fn canonical(end: SocketAddr) -> SocketAddr {
    SocketAddr::new(end.ip().to_canonical(), end.port())
}

impl Core {
    /// Reads what every kind of socket has; `None` for other address families.
    ///
    /// # Errors
    /// When it has no state a socket can have, or cannot be read.
    pub(crate) fn common(&self, sock: Gva) -> Result<Option<Common>, Fault> {
        let layout = &self.layout.sock;
        let copy = Copy(self.reader.array(sock)?);
        let family = u16::from_le_bytes(copy.at(layout.family)?);
        let local_port = u16::from_le_bytes(copy.at(layout.num)?);
        let remote_port = u16::from_be_bytes(copy.at(layout.dport)?);
        let (local, remote): (IpAddr, IpAddr) = match family {
            AF_INET => (
                Ipv4Addr::from(copy.at::<4>(layout.rcv_saddr)?).into(),
                Ipv4Addr::from(copy.at::<4>(layout.daddr)?).into(),
            ),
            AF_INET6 => (
                Ipv6Addr::from(copy.at::<16>(layout.v6_rcv_saddr)?).into(),
                Ipv6Addr::from(copy.at::<16>(layout.v6_daddr)?).into(),
            ),
            _ => return Ok(None),
        };
        let [state] = copy.at(layout.state)?;
        let state = SocketState::from_kernel(state).ok_or(Fault::Inconsistent)?;
        let bits = self.layout.sock_ipv6only_bits;
        let [v6_only_byte] = if is_described(bits) { copy.at(bits / 8)? } else { [0] };
        Ok(Some(Common {
            state,
            local: SocketAddr::new(local, local_port),
            remote: SocketAddr::new(remote, remote_port),
            net: Gva(u64::from_le_bytes(copy.at_if_described(layout.net)?)),
            hash: u32::from_le_bytes(copy.at_if_described(layout.hash)?),
            is_v6_only: v6_only_byte >> (bits % 8) & 1 == 1,
            is_dead: state.is_whole()
                && u64::from_le_bytes(copy.at_if_described(layout.flags)?) & FLAG_DEAD != 0,
        }))
    }

    /// The socket as it is told, owners aside.
    pub(crate) fn socket(&self, sock: Gva, common: &Common, protocol: Protocol) -> Result<Socket, Fault> {
        let (mut uid, mut inode) = (None, None);
        if common.state.is_whole() {
            uid = self.sock_uid(sock)?;
            inode = self.inode_of(sock)?;
        }
        Ok(Socket {
            protocol,
            local: common.local,
            remote: common.remote,
            state: common.state,
            uid,
            inode,
            netns_inode: self.netns_inode(common.net)?,
            owners: Vec::new(),
        })
    }

    /// User id of a whole socket's creator, as far as it is known.
    pub(crate) fn sock_uid(&self, sock: Gva) -> Result<Option<u32>, Fault> {
        let offset = self.layout.sock.uid;
        if is_described(offset) { self.reader.u32(sock.at(offset)).map(Some) } else { Ok(None) }
    }

    /// Inode of a network namespace; zero if it is not known.
    pub(crate) fn netns_inode(&self, net: Gva) -> Result<u32, Fault> {
        let offset = self.layout.net.inode;
        if is_described(offset) && is_described(self.layout.sock.net) {
            self.reader.u32(net.at(offset))
        } else {
            Ok(0)
        }
    }

    /// Inode of the descriptor of a whole socket, if any refers to it.
    pub(crate) fn inode_of(&self, sock: Gva) -> Result<Option<u64>, Fault> {
        let (alloc, inode) = (&self.layout.socket_alloc, &self.layout.inode);
        if ![self.layout.sock.socket, alloc.socket, alloc.inode, inode.number].into_iter().all(is_described) {
            return Ok(None);
        }
        let socket = self.reader.pointer(sock.at(self.layout.sock.socket))?;
        if socket.is_null() {
            return Ok(None);
        }
        let layout = &self.layout.socket_alloc;
        let vfs_inode = socket.container(layout.socket).at(layout.inode);
        self.reader.u64(vfs_inode.at(self.layout.inode.number)).map(Some)
    }
}

/// A private copy of the start of a socket.
struct Copy([u8; COMMON_BYTES]);

impl Copy {
    fn at<const N: usize>(&self, offset_bytes: u32) -> Result<[u8; N], Fault> {
        let rest = self.0.get(offset_bytes as usize..);
        rest.and_then(|rest| rest.first_chunk().copied()).ok_or(Fault::Inconsistent)
    }
}

impl Copy {
    /// As [`Self::at`]; zeros where the kernel does not describe the member.
    fn at_if_described<const N: usize>(&self, offset_bytes: u32) -> Result<[u8; N], Fault> {
        if is_described(offset_bytes) { self.at(offset_bytes) } else { Ok([0; N]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(local: &str, is_v6_only: bool) -> Common {
        let local: SocketAddr = local.parse().unwrap();
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let state = SocketState::Listen;
        Common { state, local, remote: any, net: Gva(0), hash: 0, is_v6_only, is_dead: false }
    }

    #[test]
    fn listeners_accept_by_address_wildcard_and_dual_stack() {
        for (own, v6_only, wanted, fit) in [
            ("10.0.0.1:80", false, "10.0.0.1:80", Some(2)),
            ("[::ffff:10.0.0.1]:80", false, "10.0.0.1:80", Some(2)),
            ("0.0.0.0:80", false, "10.0.0.1:80", Some(1)),
            ("[::]:80", false, "[fd00::1]:80", Some(1)),
            ("[::]:80", false, "10.0.0.1:80", Some(0)),
            ("[::]:80", true, "10.0.0.1:80", None),
            ("0.0.0.0:80", false, "[fd00::1]:80", None),
            ("10.0.0.2:80", false, "10.0.0.1:80", None),
            ("0.0.0.0:81", false, "10.0.0.1:80", None),
        ] {
            assert_eq!(bound(own, v6_only).accepts(wanted.parse().unwrap()), fit, "{own} {wanted}");
        }
    }

    #[test]
    fn only_known_states_are_states() {
        let known = (0..=255).filter_map(SocketState::from_kernel).count();
        assert_eq!(known, 12);
        assert_eq!(SocketState::from_kernel(0), None);
    }
}
