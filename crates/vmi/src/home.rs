// SPDX-License-Identifier: Apache-2.0
//! Whose an address is: the network namespaces that hold it.
//!
//! Several namespaces may have sockets with equal ends, and a listener on the unspecified address fits every
//! address; but what is sent to an address reaches only a namespace that holds it. Of several that do, older ones
//! come first: whoever makes a namespace of his own and gives it an address that is in use takes nothing over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::core::Core;
use crate::error::Fault;
use crate::layout::network::Addresses;
use crate::memory::{Gva, is_described};

/// Most network devices of a namespace looked at.
pub(crate) const DEVICES_MAX: usize = 4096;
/// Most addresses of one family on one device looked at.
const ADDRESSES_MAX: usize = 1024;

impl Core {
    /// The namespaces that hold `address` (canonical), older ones first; all of them if none is known to.
    pub(crate) fn homes(&self, address: IpAddr) -> Result<Vec<Gva>, Fault> {
        let all = self.namespaces()?;
        let Some(layout) = &self.layout.network.addresses else { return Ok(all) };
        let mut homes = Vec::new();
        for &net in &all {
            if self.holds_address(layout, net, address)? {
                homes.push(net);
            }
        }
        Ok(if homes.is_empty() { all } else { homes })
    }

    fn holds_address(&self, layout: &Addresses, net: Gva, address: IpAddr) -> Result<bool, Fault> {
        for device in self.devices(net)? {
            let holds = match address {
                IpAddr::V4(address) => self.has_v4(layout, device, address)?,
                IpAddr::V6(address) => self.has_v6(layout, device, address)?,
            };
            if holds {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The network devices of a namespace.
    pub(crate) fn devices(&self, net: Gva) -> Result<Vec<Gva>, Fault> {
        let Some(layout) = self.layout.devices.as_ref().filter(|_| is_described(self.layout.net.devices))
        else {
            return Ok(Vec::new());
        };
        let entries = self.list(net.at(self.layout.net.devices), DEVICES_MAX)?;
        Ok(entries.into_iter().map(|entry| entry.container(layout.net_device.list)).collect())
    }

    fn has_v4(&self, layout: &Addresses, device: Gva, address: Ipv4Addr) -> Result<bool, Fault> {
        let part = self.reader.pointer(device.at(layout.device.v4))?;
        if part.is_null() {
            return Ok(false);
        }
        let mut entry = self.reader.pointer(part.at(layout.in_device.addresses))?;
        for _ in 0..ADDRESSES_MAX {
            if entry.is_null() {
                return Ok(false);
            }
            if self.reader.array(entry.at(layout.in_ifaddr.local))? == address.octets() {
                return Ok(true);
            }
            entry = self.reader.pointer(entry.at(layout.in_ifaddr.next))?;
        }
        Err(Fault::Inconsistent)
    }

    fn has_v6(&self, layout: &Addresses, device: Gva, address: Ipv6Addr) -> Result<bool, Fault> {
        let part = self.reader.pointer(device.at(layout.device.v6))?;
        if part.is_null() {
            return Ok(false);
        }
        for entry in self.list(part.at(layout.inet6_dev.addresses), ADDRESSES_MAX)? {
            let held = entry.container(layout.inet6_ifaddr.list).at(layout.inet6_ifaddr.address);
            if self.reader.array(held)? == address.octets() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
