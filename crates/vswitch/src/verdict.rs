// SPDX-License-Identifier: Apache-2.0
//! What the switch answers about a frame.

use std::fmt;
use std::sync::Arc;

use model::{Attribution, FiveTuple, Moment};

use crate::PortId;

/// What is to be done with a frame.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Deliver it, as rewritten, to this port.
    Forward(PortId),
    /// The switch has answered it: consume it, and deliver the emissions.
    Answered,
    /// Consume it. An answer to the sender may be among the emissions.
    Drop(DropReason),
    /// Copy more of the frame, up to [`crate::HEAD_LEN_BYTES_MAX`], and ask again. Nothing has changed.
    NeedMore,
    /// Keep it, and ask again with the same frame at this time: it exceeds a limit. Nothing has changed but
    /// [`crate::Frame::departs`]. Frames of the same flow that came after it are to be offered after it.
    Hold(Moment),
    /// Find out who is behind the flow and ask again with the same frame. Nothing has changed.
    Ask(Question),
}

/// Who must be known before a frame can be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The end that opened the flow.
    pub initiator: Option<Ask>,
    /// The end it was opened to.
    pub responder: Option<Ask>,
}

/// One end of a flow to be found in its guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whose guest.
    pub port: PortId,
    /// Where to look.
    pub how: How,
    /// The flow as that guest names it: its own end is the source.
    pub tuple: FiveTuple,
}

/// How to find one end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// Through the descriptor of this very frame.
    Frame,
    /// As an open TCP connection with this tuple; for other protocols, as the socket bound to its source.
    Connection,
    /// As a socket that listens on, or is bound to, the tuple's source.
    Listener,
}

/// What was found out. An end that was asked for and is absent here counts as unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// The end that opened the flow.
    pub initiator: Option<Arc<Attribution>>,
    /// The end it was opened to.
    pub responder: Option<Arc<Attribution>>,
}

/// Declares [`DropReason`] with the word shown to users for each.
macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// Why a frame was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// All reasons, in the order of their positions in [`crate::Counters`].
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word shown to users.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// The port is not in the inventory.
    NoPort = "no-port",
    /// Longer than any IP packet.
    TooLong = "too-long",
    /// A header is cut off or contradicts the frame.
    Malformed = "malformed",
    /// The virtio-net header contradicts the frame.
    BadOffload = "bad-offload",
    /// Neither ARP nor IP.
    EtherType = "ether-type",
    /// The Ethernet source is not the card's.
    SpoofedMac = "spoofed-mac",
    /// The network source is not one of the card's addresses.
    SpoofedAddress = "spoofed-address",
    /// A piece of a packet for the switch itself, or of an ICMP message other than echo.
    Fragment = "fragment",
    /// A later piece of a packet whose first piece did not come, was not forwarded or is too long ago.
    FragmentUnknown = "fragment-unknown",
    /// A piece of a packet that does not come after the one before it.
    FragmentOverlap = "fragment-overlap",
    /// A first piece of a packet that does not hold the whole transport header.
    TinyFragment = "tiny-fragment",
    /// Sent to all of a subnet.
    Broadcast = "broadcast",
    /// Sent to a group.
    Multicast = "multicast",
    /// An ARP, neighbour discovery, DHCP or DNS message that needs no answer.
    NothingToAnswer = "nothing-to-answer",
    /// DHCP for a card that has no IPv4 address.
    NoLease = "no-lease",
    /// The sender asks for names more often than it may.
    DnsRate = "dns-rate",
    /// An ICMP message that is neither echo nor an error about a known flow.
    IcmpKind = "icmp-kind",
    /// Nobody of the tenant has the destination address.
    NoEndpoint = "no-endpoint",
    /// No endpoint of the service is in.
    NoBackend = "no-backend",
    /// Who listens at the endpoint could not be read: the next try asks again.
    UnreadListener = "unread-listener",
    /// An endpoint refused the connection, which another will get.
    Redirected = "redirected",
    /// The destination is the sender's own card.
    ToSelf = "to-self",
    /// The middle of a conversation of which no start was seen.
    NoConnection = "no-connection",
    /// A TCP segment with flags that mean nothing where it comes.
    TcpFlags = "tcp-flags",
    /// A TCP segment that no window of its connection admits.
    OutOfWindow = "out-of-window",
    /// A reset that its receiver would not even challenge.
    BadReset = "bad-reset",
    /// The sender has as many half-open connections as it may have.
    HalfOpenQuota = "half-open-quota",
    /// The receiver has as many half-open connections as it may have.
    HalfOpenTarget = "half-open-target",
    /// Policy denies the flow.
    Denied = "denied",
    /// A segment from which it cannot be told what is spoken, where rules name that: not the next one, in pieces, before its
    /// turn, or in other words than before.
    ProtocolUntold = "protocol-untold",
    /// The sender has as many flows of which it is not told what is spoken as it may have.
    UndecidedQuota = "undecided-quota",
    /// The connection was reset because policy has changed.
    Reset = "reset",
    /// The sender has as many flows as it may have.
    PortQuota = "port-quota",
    /// The sender has as many flows under external addresses as it may have.
    ExternalQuota = "external-quota",
    /// All ports of the external address that were tried are taken.
    NoExternalPort = "no-external-port",
    /// The flow table has no room and nothing idle to evict.
    TableFull = "table-full",
    /// Routed once too often.
    TtlExpired = "ttl-expired",
    /// Too long for the switch to answer.
    Unanswerable = "unanswerable",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
