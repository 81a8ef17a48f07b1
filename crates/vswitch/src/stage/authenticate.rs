// SPDX-License-Identifier: Apache-2.0
//! Authentication: a flow passes only if it is proven who is behind both of its ends.
//!
//! Which machine an end is needs no proof: its port is its name, and it cannot send as another. A process is proven when
//! its descriptor table holds the socket, and nobody else could have sent the frame:
//!
//! - of who has opened the flow, when the socket was reached from the very descriptor that carried the frame
//!   ([`Confidence::Descriptor`]). For TCP the guest's own tables do as well ([`Confidence::Table`]), since no two sockets
//!   share a connection; a datagram could be anybody's who writes that port into it.
//! - of whom it is for, when it is the one that listens there, or holds the connection. A guest's tables are all that
//!   can say so.
//!
//! What is outside the mesh cannot prove anything.

use model::{Confidence, End, FlowQuery, Insertion, Party, Protocol, ServiceFlags, Spoken, Unmet, Unproven};

use super::Stage;
use crate::FlowSlots;

pub(crate) struct Authenticate;

impl<S: FlowSlots> Stage<S> for Authenticate {
    const FLAG: ServiceFlags = ServiceFlags::AUTHENTICATE;

    fn unmet(query: &FlowQuery<'_>, _: Option<Spoken>, _: &Insertion) -> Option<Unmet> {
        let sends = match query.tuple.protocol {
            Protocol::Tcp => Confidence::Table,
            _ => Confidence::Descriptor,
        };
        let ends =
            [(End::Source, query.source, sends), (End::Destination, query.destination, Confidence::Table)];
        ends.into_iter().find_map(|(end, party, least)| Some(Unmet::Unproven(end, unproven(party, least)?)))
    }
}

/// What is known of an end instead of a process with this confidence or a better one.
fn unproven(party: Party<'_>, least: Confidence) -> Option<Unproven> {
    if party.vm.is_none() {
        return Some(Unproven::Outside);
    }
    let Some(attribution) = party.attribution else { return Some(Unproven::Nothing) };
    match attribution.unknown {
        Some(reason) => Some(Unproven::Unknown(reason)),
        None if attribution.process.is_none() => Some(Unproven::Unsure(Confidence::Unknown)),
        None => (attribution.confidence < least).then_some(Unproven::Unsure(attribution.confidence)),
    }
}
