// SPDX-License-Identifier: Apache-2.0
//! What exists: tenants, virtual machines and their network cards.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::{Cidr, ExternalNetwork, Insertion, MacAddr, Name, NicRef, Protocol, Qos, VmRef};

/// Who listens on a network card's vhost-user socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketMode {
    /// We listen and the VMM connects: QEMU's `server=off`, the default.
    #[default]
    Listen,
    /// The VMM listens and we connect: QEMU's `server=on`.
    Connect,
}

/// A tenant: an address space of its own and a default for what no rule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// The tenant's name.
    pub name: Name,
    /// What happens to a flow that no rule matches.
    pub default_action: crate::Action,
}

/// A network card of a virtual machine: one switch port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The card's name within its machine.
    pub name: Name,
    /// The vhost-user socket; relative paths are below the daemon's socket directory.
    pub socket: PathBuf,
    /// Who listens on the socket.
    pub socket_mode: SocketMode,
    /// The card's Ethernet address; frames from any other are spoofed.
    pub mac: MacAddr,
    /// The card's addresses with their subnets; packets from any other are spoofed. The first IPv4
    /// address is the one handed out by DHCP.
    pub addresses: Vec<Cidr>,
    /// Largest IP packet, in bytes.
    pub mtu_bytes: u16,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Owner and name.
    pub id: VmRef,
    /// Labels that selectors match.
    pub labels: BTreeMap<String, String>,
    /// Its network cards.
    pub nics: Vec<Nic>,
}

/// Position of a machine in its snapshot's [`Inventory`]; meaningless in any other snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmIndex(pub u32);

/// Everything that exists, checked for contradictions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    tenants: Vec<Tenant>,
    vms: Vec<Vm>,
    by_name: HashMap<VmRef, VmIndex>,
    networks: Vec<ExternalNetwork>,
    qos: HashMap<VmIndex, Qos>,
    limits: HashMap<VmIndex, Arc<Insertion>>,
}

/// A contradiction in an inventory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    /// Two tenants of one name.
    #[error("tenant `{0}` is defined twice")]
    TenantTwice(Name),
    /// Two machines of one name in one tenant.
    #[error("virtual machine `{0}` is defined twice")]
    VmTwice(VmRef),
    /// A machine of a tenant that does not exist.
    #[error("virtual machine `{0}` belongs to a tenant that is not defined")]
    NoTenant(VmRef),
    /// Two cards of one name in one machine.
    #[error("network card `{0}` is defined twice")]
    NicTwice(NicRef),
    /// An address held twice within one tenant.
    #[error("address {address} of `{nic}` is already held by another network card of the tenant")]
    AddressTwice {
        /// The second holder.
        nic: NicRef,
        /// The address.
        address: IpAddr,
    },
    /// An Ethernet address held twice within one tenant.
    #[error("Ethernet address {mac} of `{nic}` is already held by another network card of the tenant")]
    MacTwice {
        /// The second holder.
        nic: NicRef,
        /// The Ethernet address.
        mac: MacAddr,
    },
    /// A group address cannot be a card's own.
    #[error("Ethernet address {mac} of `{nic}` is a multicast address")]
    MacMulticast {
        /// The card.
        nic: NicRef,
        /// The Ethernet address.
        mac: MacAddr,
    },
    /// An external network of a tenant that does not exist, or two of one name.
    #[error("external network `{tenant}/{name}` belongs to nobody or is defined twice")]
    Network {
        /// Whose it would be.
        tenant: Name,
        /// Its name.
        name: Name,
    },
    /// A port of an external address that stands for two, for no machine of the tenant, or is not the network's.
    #[error("external network `{tenant}/{name}` cannot publish {address} port {port}")]
    Publishes {
        /// Whose network.
        tenant: Name,
        /// Which network.
        name: Name,
        /// The address out there.
        address: IpAddr,
        /// The port out there.
        port: u16,
    },
    /// One socket for two cards.
    #[error("socket {socket:?} of `{nic}` already serves another network card")]
    SocketTwice {
        /// The second user.
        nic: NicRef,
        /// The path.
        socket: PathBuf,
    },
}

impl Inventory {
    /// Checks and indexes. Sockets are compared as written.
    ///
    /// # Errors
    /// The first contradiction found, in the order given.
    pub fn new(tenants: Vec<Tenant>, vms: Vec<Vm>) -> Result<Self, InventoryError> {
        let mut names = HashSet::new();
        for tenant in &tenants {
            if !names.insert(&tenant.name) {
                return Err(InventoryError::TenantTwice(tenant.name.clone()));
            }
        }
        let mut by_name = HashMap::new();
        let mut claims = Claims::default();
        for (index, vm) in vms.iter().enumerate() {
            if !names.contains(&vm.id.tenant) {
                return Err(InventoryError::NoTenant(vm.id.clone()));
            }
            let index = VmIndex(u32::try_from(index).expect("an inventory has fewer than 2^32 machines"));
            if by_name.insert(vm.id.clone(), index).is_some() {
                return Err(InventoryError::VmTwice(vm.id.clone()));
            }
            for nic in &vm.nics {
                claims.claim(vm, nic)?;
            }
        }
        let (qos, limits) = (HashMap::new(), HashMap::new());
        Ok(Self { tenants, vms, by_name, networks: Vec::new(), qos, limits })
    }

    /// The same inventory with what lies outside of it.
    ///
    /// # Errors
    /// The first contradiction found, in the order given.
    pub fn with_networks(self, networks: Vec<ExternalNetwork>) -> Result<Self, InventoryError> {
        let mut names = HashSet::new();
        let mut taken: HashSet<(&str, IpAddr, Protocol, u16)> = HashSet::new();
        for network in &networks {
            let (tenant, name) = (&network.tenant, &network.name);
            if self.tenant(tenant).is_none() || !names.insert((tenant, name)) {
                return Err(InventoryError::Network { tenant: tenant.clone(), name: name.clone() });
            }
            for published in &network.published {
                let &crate::Published { address, protocol, port, .. } = published;
                let vm = VmRef { tenant: tenant.clone(), name: published.vm.clone() };
                let good = network.addresses.contains(&address)
                    && matches!(protocol, Protocol::Tcp | Protocol::Udp)
                    && self.find(&vm).is_some()
                    && taken.insert((&network.interface, address, protocol, port));
                if !good {
                    let (tenant, name) = (tenant.clone(), name.clone());
                    return Err(InventoryError::Publishes { tenant, name, address, port });
                }
            }
        }
        Ok(Self { networks, ..self })
    }

    /// The same inventory, in which machines have these parts of the host's capacity; machines that do not exist are
    /// left out.
    #[must_use]
    pub fn with_qos(self, given: impl IntoIterator<Item = (VmRef, Qos)>) -> Self {
        let found = |(id, qos): (VmRef, Qos)| Some((self.find(&id)?, qos));
        let qos: HashMap<VmIndex, Qos> = given.into_iter().filter_map(found).collect();
        let limited = qos.iter().filter_map(|(index, qos)| Some((*index, qos.limit?)));
        let limits = limited.map(|(index, limit)| (index, limit.of_machine(&self.vm(index).id, index)));
        Self { limits: limits.collect(), qos, ..self }
    }

    /// A machine's part of the host's capacity.
    #[must_use]
    pub fn qos(&self, vm: VmIndex) -> Qos {
        self.qos.get(&vm).copied().unwrap_or_default()
    }

    /// What a machine's limit adds to its flows.
    #[must_use]
    pub fn limit(&self, vm: VmIndex) -> Option<&Arc<Insertion>> {
        self.limits.get(&vm)
    }

    /// What lies outside, in the order given.
    #[must_use]
    pub fn networks(&self) -> &[ExternalNetwork] {
        &self.networks
    }

    /// All tenants, in the order given.
    #[must_use]
    pub fn tenants(&self) -> &[Tenant] {
        &self.tenants
    }

    /// The tenant of that name.
    #[must_use]
    pub fn tenant(&self, name: &Name) -> Option<&Tenant> {
        self.tenants.iter().find(|tenant| tenant.name == *name)
    }

    /// All machines with their positions.
    pub fn vms(&self) -> impl ExactSizeIterator<Item = (VmIndex, &Vm)> {
        self.vms.iter().enumerate().map(|(index, vm)| (VmIndex(index as u32), vm))
    }

    /// The machine at a position of this inventory.
    ///
    /// # Panics
    /// When the position comes from another snapshot: a bug.
    #[must_use]
    pub fn vm(&self, index: VmIndex) -> &Vm {
        &self.vms[index.0 as usize]
    }

    /// The machine of that name.
    #[must_use]
    pub fn find(&self, id: &VmRef) -> Option<VmIndex> {
        self.by_name.get(id).copied()
    }
}

/// What has been taken so far, while an inventory is checked.
#[derive(Default)]
struct Claims<'a> {
    nics: HashSet<(&'a VmRef, &'a Name)>,
    macs: HashSet<(&'a Name, MacAddr)>,
    addresses: HashSet<(&'a Name, IpAddr)>,
    sockets: HashSet<&'a PathBuf>,
}

impl<'a> Claims<'a> {
    fn claim(&mut self, vm: &'a Vm, nic: &'a Nic) -> Result<(), InventoryError> {
        let id = || NicRef { vm: vm.id.clone(), nic: nic.name.clone() };
        if !self.nics.insert((&vm.id, &nic.name)) {
            return Err(InventoryError::NicTwice(id()));
        }
        if nic.mac.is_multicast() {
            return Err(InventoryError::MacMulticast { nic: id(), mac: nic.mac });
        }
        if !self.macs.insert((&vm.id.tenant, nic.mac)) {
            return Err(InventoryError::MacTwice { nic: id(), mac: nic.mac });
        }
        for cidr in &nic.addresses {
            if !self.addresses.insert((&vm.id.tenant, cidr.address())) {
                return Err(InventoryError::AddressTwice { nic: id(), address: cidr.address() });
            }
        }
        if !self.sockets.insert(&nic.socket) {
            return Err(InventoryError::SocketTwice { nic: id(), socket: nic.socket.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Action;

    fn tenant(name: &str) -> Tenant {
        Tenant { name: name.parse().unwrap(), default_action: Action::Deny }
    }

    fn vm(id: &str, last: u8, address: &str) -> Vm {
        Vm {
            id: id.parse().unwrap(),
            labels: BTreeMap::new(),
            nics: vec![Nic {
                name: "net0".parse().unwrap(),
                socket: format!("{}.sock", id.replace('/', "-")).into(),
                socket_mode: SocketMode::Listen,
                mac: MacAddr([2, 0, 0, 0, 0, last]),
                addresses: vec![address.parse().unwrap()],
                mtu_bytes: 1500,
            }],
        }
    }

    #[test]
    fn external_ports_stand_for_one_machine_of_their_tenant() {
        let published = |port, vm: &str| crate::Published {
            address: "192.0.2.1".parse().unwrap(),
            protocol: Protocol::Tcp,
            port,
            vm: vm.parse().unwrap(),
            vm_port: 80,
        };
        let network = |name: &str, published| ExternalNetwork {
            tenant: "acme".parse().unwrap(),
            name: name.parse().unwrap(),
            interface: "tap0".into(),
            reaches: vec!["0.0.0.0/0".parse().unwrap()],
            addresses: vec!["192.0.2.1".parse().unwrap()],
            published,
        };
        let with = |networks| {
            let vms = vec![vm("acme/a", 1, "10.0.0.1/24")];
            Inventory::new(vec![tenant("acme")], vms).unwrap().with_networks(networks)
        };
        let good = vec![network("x", vec![published(1, "a")]), network("y", vec![published(2, "a")])];
        assert_eq!(with(good.clone()).unwrap().networks(), good);
        let twice = vec![network("x", vec![published(1, "a")]), network("y", vec![published(1, "a")])];
        assert!(matches!(with(twice), Err(InventoryError::Publishes { port: 1, .. })));
        let nobody = vec![network("x", vec![published(1, "b")])];
        assert!(matches!(with(nobody), Err(InventoryError::Publishes { .. })));
        let same_name = vec![network("x", Vec::new()), network("x", Vec::new())];
        assert!(matches!(with(same_name), Err(InventoryError::Network { .. })));
    }

    #[test]
    fn tenants_may_overlap_but_a_tenant_may_not_overlap_itself() {
        let tenants = || vec![tenant("acme"), tenant("globex")];
        let apart = vec![vm("acme/a", 1, "10.0.0.1/24"), vm("globex/a", 1, "10.0.0.1/24")];
        let inventory = Inventory::new(tenants(), apart).unwrap();
        assert_eq!(inventory.find(&"globex/a".parse().unwrap()), Some(VmIndex(1)));

        let same_address = vec![vm("acme/a", 1, "10.0.0.1/24"), vm("acme/b", 2, "10.0.0.1/8")];
        assert!(matches!(Inventory::new(tenants(), same_address), Err(InventoryError::AddressTwice { .. })));
        let same_mac = vec![vm("acme/a", 1, "10.0.0.1/24"), vm("acme/b", 1, "10.0.0.2/24")];
        assert!(matches!(Inventory::new(tenants(), same_mac), Err(InventoryError::MacTwice { .. })));
        let nobody = vec![vm("initech/a", 1, "10.0.0.1/24")];
        assert!(matches!(Inventory::new(tenants(), nobody), Err(InventoryError::NoTenant(_))));
    }
}
