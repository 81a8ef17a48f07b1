// SPDX-License-Identifier: Apache-2.0
//! A port: the card or the interface behind it, and what is on its link.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::RandomState;
use model::{Cidr, MacAddr, NicRef, VmIndex};

use crate::PortId;
use crate::qos::Turn;

/// Longest prefixes that leave room for a gateway beside a host.
pub(crate) const GATEWAY_PREFIX_BITS_MAX: (u8, u8) = (30, 126);

/// The gateway on every link with IPv6 addresses.
pub(crate) const LINK_LOCAL_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Whom DHCP answers come from on a link that has no gateway.
const LINK_LOCAL_SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);

/// A subnet that a card is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subnet {
    pub cidr: Cidr,
    /// The first host address, unless the prefix leaves no room for one.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway is the switch itself and not a machine.
    pub gateway_is_virtual: bool,
}

/// What is behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// A card of a machine.
    Card { nic: NicRef, vm: VmIndex, tenant: usize },
    /// Whatever an interface of the host leads to; these addresses are not there but ours.
    Outside { interface: String, ours: Vec<IpAddr> },
}

/// A card that is in the inventory, or an interface of the host, and has a port.
#[derive(Debug)]
pub(crate) struct Port {
    pub behind: Behind,
    pub mac: MacAddr,
    pub mtu_bytes: u16,
    pub subnets: Vec<Subnet>,
    /// What it may do when its frames are taken up.
    pub turn: Turn,
}

impl Port {
    /// The card behind it.
    pub(crate) fn nic(&self) -> Option<&NicRef> {
        match &self.behind {
            Behind::Card { nic, .. } => Some(nic),
            Behind::Outside { .. } => None,
        }
    }

    /// The machine behind it.
    pub(crate) fn vm(&self) -> Option<VmIndex> {
        match self.behind {
            Behind::Card { vm, .. } => Some(vm),
            Behind::Outside { .. } => None,
        }
    }

    /// The tenant of the machine behind it.
    pub(crate) fn tenant(&self) -> Option<usize> {
        match self.behind {
            Behind::Card { tenant, .. } => Some(tenant),
            Behind::Outside { .. } => None,
        }
    }

    /// Whether packets from this address may come in here.
    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        match &self.behind {
            Behind::Card { .. } => self.subnets.iter().any(|subnet| subnet.cidr.address() == address),
            Behind::Outside { ours, .. } => {
                let special = address.is_unspecified() || address.is_multicast() || address.is_loopback();
                !special && !ours.contains(&address)
            }
        }
    }

    /// Whether frames from this Ethernet address may come in here: outside, the host may be a bridge.
    #[inline]
    pub(crate) fn sends_as(&self, mac: MacAddr) -> bool {
        self.mac == mac || matches!(self.behind, Behind::Outside { .. })
    }

    /// Whether this address is on the card's link.
    pub(crate) fn is_on_link(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.cidr.contains(address))
    }

    /// Whether the switch itself answers for this address on the card's link.
    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        let of_subnet = |subnet: &Subnet| subnet.gateway_is_virtual && subnet.gateway == Some(address);
        self.subnets.iter().any(of_subnet)
            || address == IpAddr::V6(LINK_LOCAL_GATEWAY)
                && self.subnets.iter().any(|s| s.cidr.address().is_ipv6())
    }

    /// Whether this address means everybody on the card's link.
    pub(crate) fn is_broadcast(&self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else { return false };
        let of_subnet = |subnet: &Subnet| match subnet.cidr.address() {
            IpAddr::V4(own) if subnet.cidr.prefix_len_bits() <= GATEWAY_PREFIX_BITS_MAX.0 => {
                let host_bits = u32::MAX >> subnet.cidr.prefix_len_bits();
                address.to_bits() == own.to_bits() | host_bits
            }
            _ => false,
        };
        address.is_broadcast() || self.subnets.iter().any(of_subnet)
    }

    /// The subnet of the address that DHCP hands out.
    pub(crate) fn lease(&self) -> Option<(Ipv4Addr, &Subnet)> {
        self.subnets.iter().find_map(|subnet| match subnet.cidr.address() {
            IpAddr::V4(address) => Some((address, subnet)),
            IpAddr::V6(_) => None,
        })
    }

    /// Whom DHCP answers come from.
    pub(crate) fn dhcp_server(&self) -> Ipv4Addr {
        match self.lease().and_then(|(_, subnet)| subnet.gateway) {
            Some(IpAddr::V4(gateway)) => gateway,
            _ => LINK_LOCAL_SERVER,
        }
    }

    /// The gateway that speaks for the network to `address`, of the same family.
    pub(crate) fn gateway_towards(&self, address: IpAddr) -> Option<IpAddr> {
        let same = |gateway: &IpAddr| gateway.is_ipv4() == address.is_ipv4();
        self.subnets.iter().filter_map(|subnet| subnet.gateway).find(same)
    }
}

/// Who holds which address of which tenant. Guests choose what is looked up here, but not what is in it.
pub(crate) type Endpoints = HashMap<(usize, IpAddr), PortId, RandomState>;
