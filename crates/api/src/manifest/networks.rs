// SPDX-License-Identifier: Apache-2.0
//! External networks.

use std::net::IpAddr;

use model::{Cidr, ExternalNetwork, Name, Protocol, Published};

use super::fields::{Field, Fields, quote};
use super::registry::Kind;
use super::resources::{Metadata, Resources};
use super::selectors::{self, maybe};

/// Longest name of an interface, in bytes (`IFNAMSIZ` less the terminator).
const INTERFACE_BYTES_MAX: usize = 15;

/// Most networks, addresses or published ports of one external network.
const ITEMS_MAX: usize = 64;

impl<'a> Resources<'a> {
    pub(super) fn external_network(
        &mut self,
        metadata: Metadata,
        spec: &mut Fields<'a>,
    ) -> Option<ExternalNetwork> {
        let interface = spec.required("interface").and_then(|field| interface(&field));
        let reaches = spec.required("reaches").and_then(|field| all(&field, selectors::network));
        let addresses = spec.required("addresses").and_then(|field| all(&field, external_address));
        let known = addresses.clone().unwrap_or_default();
        let published = maybe(spec.optional("publish"), |field| {
            let items = field.items(ITEMS_MAX)?;
            let read: Vec<_> =
                items.iter().map(|item| self.published(&metadata.tenant, &known, item)).collect();
            read.into_iter().collect::<Option<Vec<_>>>()
        });
        let (reaches, addresses): (Vec<Cidr>, Vec<IpAddr>) = (reaches?, addresses?);
        let unserved =
            reaches.iter().find(|cidr| !addresses.iter().any(|a| a.is_ipv4() == cidr.address().is_ipv4()));
        if let Some(cidr) = unserved {
            return spec.owner().refuse(
                format!("{cidr} cannot be reached: there is no address of its family"),
                "add one to `addresses`",
            );
        }
        Some(ExternalNetwork {
            interface: interface?,
            reaches,
            addresses,
            published: published?.unwrap_or_default(),
            tenant: metadata.tenant,
            name: metadata.name,
        })
    }

    fn published(&mut self, tenant: &Name, known: &[IpAddr], field: &Field<'a>) -> Option<Published> {
        let mut fields = field.fields()?;
        let address = fields.required("address").and_then(|field| {
            let address: IpAddr = field.parse()?;
            let is_own = known.contains(&address);
            is_own.then_some(address).or_else(|| field.refuse("it is not among `addresses`", ""))
        });
        let port = fields.required("port").and_then(|port| port.integer(1..=u16::MAX));
        let protocol = maybe(fields.optional("protocol"), |protocol| {
            protocol.one_of(&[("TCP", Protocol::Tcp), ("UDP", Protocol::Udp)])
        });
        let vm = fields.required("vm");
        let vm = self.reference(Kind::VirtualMachine, tenant, vm);
        let vm_port = maybe(fields.optional("vmPort"), |port| port.integer(1..=u16::MAX));
        fields.finish();
        let port = port?;
        Some(Published {
            address: address?,
            protocol: protocol?.unwrap_or(Protocol::Tcp),
            port,
            vm: vm??,
            vm_port: vm_port?.unwrap_or(port),
        })
    }
}

/// Reads a list that is not empty.
fn all<T>(field: &Field<'_>, read: impl Fn(&Field<'_>) -> Option<T>) -> Option<Vec<T>> {
    let items = field.items(ITEMS_MAX)?;
    if items.is_empty() {
        return field.refuse("the list is empty", "");
    }
    let read: Vec<_> = items.iter().map(read).collect();
    read.into_iter().collect()
}

fn interface(field: &Field<'_>) -> Option<String> {
    let name = field.text()?;
    let legal = |c: char| c.is_ascii_graphic() && !"/:%".contains(c);
    if name.is_empty() || name.len() > INTERFACE_BYTES_MAX || !name.chars().all(legal) {
        return field.refuse(
            format!("no interface can be named `{}`", quote(name)),
            "use 1 to 15 letters, digits and any of - _ .",
        );
    }
    Some(name.to_owned())
}

fn external_address(field: &Field<'_>) -> Option<IpAddr> {
    let address: IpAddr = field.parse()?;
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return field.refuse(format!("{address} cannot be anybody's own address"), "");
    }
    Some(address)
}
