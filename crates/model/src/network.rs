// SPDX-License-Identifier: Apache-2.0
//! What lies outside the mesh and how a tenant reaches it.

use std::net::IpAddr;

use crate::{Cidr, Name, Protocol};

/// Networks that a tenant's machines reach through an interface of the host, under addresses that mean something
/// there. Several networks, of several tenants, may share an interface and even an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalNetwork {
    /// The tenant that owns it.
    pub tenant: Name,
    /// Its name within the tenant.
    pub name: Name,
    /// The TAP interface of the host through which it is reached.
    pub interface: String,
    /// What is reached through it; of two that contain an address, the one with the longer prefix is meant.
    pub reaches: Vec<Cidr>,
    /// What machines appear as there; a family without an address is not reached.
    pub addresses: Vec<IpAddr>,
    /// What of the tenant is offered there.
    pub published: Vec<Published>,
}

/// A port of an external address that stands for one of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Published {
    /// One of the network's addresses.
    pub address: IpAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port out there.
    pub port: u16,
    /// The machine; its first address of the same family is meant.
    pub vm: Name,
    /// The machine's port.
    pub vm_port: u16,
}
