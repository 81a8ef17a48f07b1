// SPDX-License-Identifier: Apache-2.0
//! Encryption, in the sense of other meshes' strict modes: frames of the flow never leave the host in the clear.
//!
//! Between two machines of the host frames go from memory to memory, and so do copies for a collector, which is a machine
//! as well. Every other way leads through an interface of the host, where nothing encrypts them yet: such a flow is
//! denied. A tunnel between hosts will be the other way to meet this.

use model::{End, FlowQuery, Insertion, ServiceFlags, Spoken, Unmet};

use super::Stage;
use crate::FlowSlots;

pub(crate) struct Encrypt;

impl<S: FlowSlots> Stage<S> for Encrypt {
    const FLAG: ServiceFlags = ServiceFlags::ENCRYPT;

    fn unmet(query: &FlowQuery<'_>, _: Option<Spoken>, _: &Insertion) -> Option<Unmet> {
        let ends = [(End::Source, query.source), (End::Destination, query.destination)];
        ends.into_iter().find(|(_, party)| party.vm.is_none()).map(|(end, _)| Unmet::InTheClear(end))
    }
}
