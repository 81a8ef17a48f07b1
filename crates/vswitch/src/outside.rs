// SPDX-License-Identifier: Apache-2.0
//! What lies outside the mesh: routes of each tenant, its addresses there, and what it publishes.

use std::collections::HashMap;
use std::net::IpAddr;

use model::{Cidr, ExternalNetwork, MacAddr, Name, Protocol, Snapshot, VmRef};

use crate::PortId;
use crate::port::Endpoints;

/// A port that leads out of the mesh, through an interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its number.
    pub id: PortId,
    /// The interface, as external networks name it.
    pub interface: String,
    /// The Ethernet address of the host there, which is the next hop for all that goes out.
    pub mac: MacAddr,
}

impl Uplink {
    pub(crate) fn leads_to(&self, network: &ExternalNetwork) -> bool {
        network.interface == self.interface
    }
}

/// A way out for one tenant.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    reaches: Cidr,
    pub output: PortId,
    /// Of the family of `reaches`; not empty.
    pub addresses: Vec<IpAddr>,
}

/// A machine's port that an external one stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    pub tenant: usize,
    pub output: PortId,
    pub address: IpAddr,
    pub l4_port: u16,
}

/// An external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Front {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub l4_port: u16,
}

/// All ways out and in.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    /// By tenant, the longest prefixes first.
    routes: HashMap<usize, Vec<Route>>,
    published: HashMap<(PortId, Front), Backend>,
}

impl Outside {
    pub(crate) fn new(
        snapshot: &Snapshot,
        uplinks: &[Uplink],
        tenants: &HashMap<&Name, usize>,
        endpoints: &Endpoints,
    ) -> Self {
        let mut outside = Self::default();
        for network in snapshot.inventory.networks() {
            let Some(uplink) = uplinks.iter().find(|uplink| uplink.leads_to(network)) else { continue };
            let Some(tenant) = tenants.get(&network.tenant).copied() else { continue };
            let routes = outside.routes.entry(tenant).or_default();
            routes.extend(network.reaches.iter().filter_map(|reaches| route(network, *reaches, uplink.id)));
            for published in &network.published {
                let front = Front {
                    address: published.address,
                    protocol: published.protocol,
                    l4_port: published.port,
                };
                let vm = VmRef { tenant: network.tenant.clone(), name: published.vm.clone() };
                let backend = address_like(snapshot, &vm, front.address).and_then(|address| {
                    let output = *endpoints.get(&(tenant, address))?;
                    Some(Backend { tenant, output, address, l4_port: published.vm_port })
                });
                outside.published.extend(backend.map(|backend| ((uplink.id, front), backend)));
            }
        }
        for routes in outside.routes.values_mut() {
            routes.sort_by_key(|route| std::cmp::Reverse(route.reaches.prefix_len_bits()));
        }
        outside
    }

    /// A tenant's way to an address.
    pub(crate) fn route(&self, tenant: usize, to: IpAddr) -> Option<&Route> {
        self.routes.get(&tenant)?.iter().find(|route| route.reaches.contains(to))
    }

    /// What an external port stands for, when asked for from outside at `ingress`.
    pub(crate) fn backend(&self, ingress: PortId, front: Front) -> Option<Backend> {
        self.published.get(&(ingress, front)).copied()
    }

    /// What an external port of the tenant's own stands for, when a machine of the tenant asks for it.
    pub(crate) fn own_backend(&self, tenant: usize, front: Front) -> Option<Backend> {
        let outputs = self.routes.get(&tenant)?.iter().map(|route| route.output);
        outputs.filter_map(|uplink| self.backend(uplink, front)).find(|backend| backend.tenant == tenant)
    }
}

fn route(network: &ExternalNetwork, reaches: Cidr, output: PortId) -> Option<Route> {
    let family = reaches.address().is_ipv4();
    let addresses: Vec<_> = network.addresses.iter().copied().filter(|a| a.is_ipv4() == family).collect();
    (!addresses.is_empty()).then_some(Route { reaches, output, addresses })
}

/// The machine's first address of the family of `like`.
fn address_like(snapshot: &Snapshot, vm: &VmRef, like: IpAddr) -> Option<IpAddr> {
    let vm = snapshot.inventory.vm(snapshot.inventory.find(vm)?);
    let mut addresses = vm.nics.iter().flat_map(|nic| &nic.addresses).map(Cidr::address);
    addresses.find(|address| address.is_ipv4() == like.is_ipv4())
}
