// SPDX-License-Identifier: Apache-2.0
//! Layouts of what sockets count, and of sockets beside TCP and UDP.

use crate::btf::Structures;
use crate::error::TypesError;
use crate::layout::Gaps;

offsets! {
    /// Connections that wait to be accepted.
    Backlog of "sock" { len: "sk_ack_backlog", max: "sk_max_ack_backlog" }
}
offsets! {
    /// What TCP counts; a socket and its TCP part begin at the same address.
    TcpSock of "tcp_sock" {
        srtt: "srtt_us", retransmits: "total_retrans", sent: "bytes_sent", acked: "bytes_acked",
        received: "bytes_received",
    }
}
offsets! {
    /// The table of raw sockets of one address family.
    RawHashinfo of "raw_hashinfo" { buckets: "ht" }
}
offsets! {
    /// The packet sockets of a network namespace.
    NetPacket of "net" { sockets: "packet.sklist" }
}
offsets! {
    /// A packet socket; it begins with what every socket has.
    PacketSock of "packet_sock" { protocol: "num", device: "ifindex" }
}

/// All of it; what a kernel lacks is absent from views.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    pub(crate) backlog: Option<Backlog>,
    pub(crate) tcp: Option<TcpSock>,
    pub(crate) raw: Option<RawHashinfo>,
    pub(crate) net_packet: Option<NetPacket>,
    pub(crate) packet: Option<PacketSock>,
}

impl Transport {
    pub(crate) fn resolve(types: &Structures<'_>, gaps: &mut Gaps) -> Self {
        Self {
            backlog: gaps.whole("accept queues", Backlog::resolve(types)),
            tcp: gaps.whole("TCP counters", TcpSock::resolve(types)),
            raw: gaps.whole("raw sockets", RawHashinfo::resolve(types)),
            net_packet: gaps.whole("packet sockets", NetPacket::resolve(types)),
            packet: gaps.whole("packet sockets", PacketSock::resolve(types)),
        }
    }
}
