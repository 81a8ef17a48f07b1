// SPDX-License-Identifier: Apache-2.0
//! The thread that watches who listens at the endpoints of services.
//!
//! An endpoint is in while somebody listens on every port of its service: for a service that names a process, that
//! process; for one that does not, anybody. Of a range of ports the first stands for all. So a service may be defined by
//! what listens alone (`vm: {}` and a process), and its endpoints come and go as processes do. How many connections
//! wait to be accepted is told with it, of several ports that of the fullest. Only changes are told.
//!
//! Bounds: [`LOOKS_MAX`] listeners are looked up every [`PERIOD`]; with more endpoints than that, each waits for
//! its turn. A guest that is not understood offers what names no process, and nothing else.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use model::{
    AcceptQueue, Attribution, Endpoint, Generation, Listener, Offer, OfferIndex, Protocol, RuleId, Snapshot,
    UnknownReason, VmRef,
};

use crate::introspect::Introspection;
use crate::mesh::Mesh;
use crate::poll::{Command, PollHandle};

/// Time between two rounds.
const PERIOD: Duration = Duration::from_millis(40);

/// Most listeners looked up in a round: each takes some ten microseconds.
const LOOKS_MAX: usize = 256;

/// Starts the thread. It lives as long as the process.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(mesh: &Arc<Mesh>, introspection: &Arc<Introspection>, poll: &PollHandle) -> io::Result<()> {
    let mesh = Arc::clone(mesh);
    let mut watch = Watch {
        introspection: Arc::clone(introspection),
        poll: poll.clone(),
        generation: Generation::default(),
        told: HashMap::new(),
        next: 0,
    };
    std::thread::Builder::new().name("presence".into()).spawn(move || {
        loop {
            std::thread::sleep(PERIOD);
            watch.round(&mesh.published().snapshot);
        }
    })?;
    Ok(())
}

struct Watch {
    introspection: Arc<Introspection>,
    poll: PollHandle,
    generation: Generation,
    /// What the switch was told in this generation.
    told: HashMap<(RuleId, VmRef), Listener>,
    /// The endpoint, of all services' together, that the next round begins with.
    next: usize,
}

impl Watch {
    fn round(&mut self, snapshot: &Snapshot) {
        if self.generation != snapshot.generation {
            self.generation = snapshot.generation;
            self.told.clear();
        }
        let indexes = (0..).map(OfferIndex).zip(snapshot.services.offers());
        let all: Vec<_> = indexes
            .flat_map(|(index, offer)| offer.endpoints.iter().map(move |endpoint| (index, offer, endpoint)))
            .collect();
        let mut looks = 0;
        for step in 0..all.len() {
            let (index, offer, endpoint) = all[(self.next + step) % all.len()];
            looks += offer.ports.len();
            if looks > LOOKS_MAX.max(offer.ports.len()) {
                self.next = (self.next + step) % all.len();
                return;
            }
            let vm = &snapshot.inventory.vm(endpoint.vm).id;
            if let Some(listener) = self.look(snapshot, (index, offer), endpoint, vm) {
                self.tell(offer, vm, listener);
            }
        }
    }

    /// Who offers the service at an endpoint now; `None` when the guest changed too fast to be read.
    fn look(
        &self,
        snapshot: &Snapshot,
        (index, offer): (OfferIndex, &Offer),
        endpoint: &Endpoint,
        vm: &VmRef,
    ) -> Option<Listener> {
        let mut fullest: Option<AcceptQueue> = None;
        let address = endpoint.v4.map(IpAddr::V4).or(endpoint.v6.map(IpAddr::V6))?;
        for port in &offer.ports {
            let (protocol, Some(ports)) = (port.protocol, port.ports) else { continue };
            let (listener, queue) = self.listener(vm, SocketAddr::new(address, ports.first()), protocol);
            match listener.unknown {
                Some(UnknownReason::Inconsistent | UnknownReason::TimedOut) => return None,
                Some(UnknownReason::NoSocket) => return Some(Listener::Absent),
                _ if !snapshot.services.listens(index, &listener) => return Some(Listener::Absent),
                _ => {}
            }
            let both = fullest.zip(queue).map(|(one, other)| one.fuller(other));
            fullest = both.or(fullest).or(queue);
        }
        Some(Listener::Present { queue: fullest })
    }

    fn listener(
        &self,
        vm: &VmRef,
        local: SocketAddr,
        protocol: Protocol,
    ) -> (Attribution, Option<AcceptQueue>) {
        let found =
            self.introspection.with(vm, |state, _| state.look(|guest| guest.listener(local, protocol)));
        found.flatten().unwrap_or_else(|| (Attribution::unknown(UnknownReason::NotAttached), None))
    }

    fn tell(&mut self, offer: &Offer, vm: &VmRef, listener: Listener) {
        let key = (offer.id.clone(), vm.clone());
        if self.told.insert(key, listener) != Some(listener) {
            tracing::debug!(service = %offer.id, %vm, ?listener, "endpoint looked at");
            self.poll.send(Command::Listening { service: offer.id.clone(), vm: vm.clone(), listener });
        }
    }
}
