// SPDX-License-Identifier: Apache-2.0
//! The ports of a snapshot and the address spaces of its tenants.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use model::{BitRate, Cidr, Name, NicRef, Snapshot, VmIndex};

use crate::PortId;
use crate::balance::Choice;
use crate::dns::PortDns;
use crate::fragment::Fragments;
use crate::outside::{Outside, Uplink};
use crate::port::{Behind, Endpoints, GATEWAY_PREFIX_BITS_MAX, Port, Subnet};
use crate::qos::{Turn, turns};
use crate::rate::Rate;
use crate::recent::Recent;

/// Largest packet that goes out, in bytes; the host's interface has the usual MTU.
const MTU_BYTES: u16 = 1500;

/// What a port does over time, whatever the snapshot.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortState {
    /// Live flows that the port has opened.
    pub flows: u32,
    /// Connections it has opened that are not complete.
    pub half_open: u32,
    /// Connections towards it that are not complete.
    pub half_open_towards: u32,
    /// Live flows it has opened that go out under an external address.
    pub translated: u32,
    /// Flows in the table that it has opened and that are traced.
    pub traced: u32,
    /// Flows in the table that it has opened and whose application protocol is not told for good.
    pub undecided: u32,
    /// Packets of it of which pieces are still to come.
    pub fragments: Fragments,
    /// ICMP errors sent to it.
    pub errors: Rate,
    /// Denials of it that were reported.
    pub denials: Rate,
    /// Events of flows it has opened that were marked to be logged.
    pub logged: Rate,
    /// Which endpoints were chosen for frames of it that wait for answers.
    pub choices: Recent<(u64, Choice)>,
    /// How many endpoints flows of it were sent to in vain that are to be opened again.
    pub failures: Recent<u8>,
    /// What it asks about names.
    pub dns: PortDns,
}

/// All ports of a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    by_id: Vec<Option<Arc<Port>>>,
    endpoints: Endpoints,
    pub(crate) outside: Outside,
}

impl Ports {
    /// The ports of the cards that the snapshot knows; others are left out.
    pub(crate) fn new(
        snapshot: &Snapshot,
        numbered: &[(PortId, NicRef)],
        uplinks: &[Uplink],
        capacity: BitRate,
    ) -> Self {
        let tenants: HashMap<_, _> = snapshot
            .inventory
            .tenants()
            .iter()
            .zip(0..)
            .map(|(tenant, index)| (&tenant.name, index))
            .collect();
        let mut endpoints = Endpoints::default();
        let mut found = Vec::new();
        for (id, nic) in numbered {
            let Some(index) = snapshot.inventory.find(&nic.vm) else { continue };
            let vm = snapshot.inventory.vm(index);
            let Some(card) = vm.nics.iter().find(|card| card.name == nic.nic) else { continue };
            let Some(tenant) = tenants.get(&nic.vm.tenant) else { continue };
            found.push((*id, nic, index, *tenant, card));
            for cidr in &card.addresses {
                endpoints.insert((*tenant, cidr.address()), *id);
            }
        }
        let ids = found.iter().map(|(id, ..)| *id).chain(uplinks.iter().map(|uplink| uplink.id));
        let len = ids.map(|id| usize::from(id.0) + 1).max().unwrap_or(0);
        let held = held_addresses(snapshot);
        let mut by_id = vec![None; len];
        let qos: Vec<_> = found.iter().map(|(_, _, vm, ..)| snapshot.inventory.qos(*vm)).collect();
        let turns = turns(&qos, capacity);
        for ((id, nic, vm, tenant, card), turn) in found.into_iter().zip(turns) {
            let subnet = |cidr: &Cidr| {
                let gateway = first_host(cidr);
                let gateway_is_virtual =
                    gateway.is_some_and(|gateway| !held.contains(&(&nic.vm.tenant, gateway)));
                Subnet { cidr: *cidr, gateway, gateway_is_virtual }
            };
            by_id[usize::from(id.0)] = Some(Arc::new(Port {
                behind: Behind::Card { nic: nic.clone(), vm, tenant },
                mac: card.mac,
                mtu_bytes: card.mtu_bytes,
                subnets: card.addresses.iter().map(subnet).collect(),
                turn,
            }));
        }
        for uplink in uplinks {
            by_id[usize::from(uplink.id.0)] = Some(Arc::new(outside(uplink, snapshot)));
        }
        let outside = Outside::new(snapshot, uplinks, &tenants, &endpoints);
        Self { by_id, endpoints, outside }
    }

    #[inline]
    pub(crate) fn port(&self, id: PortId) -> Option<&Arc<Port>> {
        self.by_id.get(usize::from(id.0))?.as_ref()
    }

    /// The ports of a machine.
    pub(crate) fn of_machine(&self, vm: VmIndex) -> impl Iterator<Item = (PortId, &Arc<Port>)> {
        let ports = self.by_id.iter().zip(0..).filter_map(|(port, id)| Some((PortId(id), port.as_ref()?)));
        ports.filter(move |(_, port)| port.vm() == Some(vm))
    }

    /// Who holds an address in a tenant's address space.
    pub(crate) fn endpoint(&self, tenant: usize, address: IpAddr) -> Option<PortId> {
        self.endpoints.get(&(tenant, address)).copied()
    }

    /// Whether the port stands for the same card or interface in both.
    pub(crate) fn same_card(&self, other: &Self, id: PortId) -> bool {
        match (self.port(id).map(|port| &port.behind), other.port(id).map(|port| &port.behind)) {
            (Some(Behind::Card { nic: a, .. }), Some(Behind::Card { nic: b, .. })) => a == b,
            (Some(Behind::Outside { interface: a, .. }), Some(Behind::Outside { interface: b, .. })) => {
                a == b
            }
            _ => false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }
}

/// The port of an interface of the host.
fn outside(uplink: &Uplink, snapshot: &Snapshot) -> Port {
    let networks = snapshot.inventory.networks().iter().filter(|network| uplink.leads_to(network));
    let ours = networks.flat_map(|network| network.addresses.iter().copied()).collect();
    let behind = Behind::Outside { interface: uplink.interface.clone(), ours };
    Port { behind, mac: uplink.mac, mtu_bytes: MTU_BYTES, subnets: Vec::new(), turn: Turn::default() }
}

/// What the machines of each tenant hold, with or without a port here.
fn held_addresses(snapshot: &Snapshot) -> HashSet<(&Name, IpAddr)> {
    let cards =
        snapshot.inventory.vms().flat_map(|(_, vm)| vm.nics.iter().map(move |nic| (&vm.id.tenant, nic)));
    cards.flat_map(|(tenant, nic)| nic.addresses.iter().map(move |cidr| (tenant, cidr.address()))).collect()
}

/// The first host address of a subnet that has room for a gateway.
fn first_host(cidr: &Cidr) -> Option<IpAddr> {
    let bits = cidr.prefix_len_bits();
    match cidr.address() {
        IpAddr::V4(address) if bits <= GATEWAY_PREFIX_BITS_MAX.0 => {
            let network = address.to_bits() & !(u32::MAX >> bits);
            Some(Ipv4Addr::from_bits(network | 1).into())
        }
        IpAddr::V6(address) if bits <= GATEWAY_PREFIX_BITS_MAX.1 => {
            let network = address.to_bits() & !(u128::MAX >> bits);
            Some(Ipv6Addr::from_bits(network | 1).into())
        }
        _ => None,
    }
}
