// SPDX-License-Identifier: Apache-2.0
//! Why is, or would be, a flow allowed or refused?
//!
//! The newest such flow that was really seen gives the identities; the policy in force now gives the rules.
//! Without such a flow, or about another executable, the question is hypothetical.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::admin::{EndpointStatus, ExplainedRule, Explanation, Mode, Refusal};
use model::{
    Attribution, Confidence, FiveTuple, FlowQuery, Inventory, NicRef, OfferIndex, Party, Process, Protocol,
    Snapshot, VmIndex, VmRef,
};
use vswitch::{EndpointRecord, FlowRecord, Found, reviewed};

use super::view::{self, refusal};
use crate::clock;
use crate::flowlog::FlowLog;
use crate::mesh::Published;

/// A question, its names resolved.
#[derive(Debug)]
pub struct WhyQuestion {
    from: VmIndex,
    from_id: VmRef,
    source: IpAddr,
    to: Target,
    protocol: Protocol,
    exe: Option<String>,
}

/// Whom a question is about.
#[derive(Debug)]
struct Target {
    /// As the sender names it: perhaps a virtual address.
    address: SocketAddr,
    /// Its machine, perhaps one of several of a service; `None` when it is outside.
    vm: Option<VmIndex>,
    /// The service with that virtual address.
    via: Option<OfferIndex>,
    /// What the sender's tenant has found it under, if it is outside.
    names: Vec<Arc<str>>,
}

impl WhyQuestion {
    /// Resolves the names of a question against what is in force, and those of the world outside against what the
    /// sender's tenant has found.
    ///
    /// # Errors
    /// When the destination leads nowhere from there.
    pub fn resolve(
        published: &Published,
        from_id: VmRef,
        (to, found): (&str, &[Found]),
        protocol: &str,
        exe: Option<&str>,
    ) -> Result<Self, Refusal> {
        let inventory = &published.snapshot.inventory;
        let from = inventory.find(&from_id).expect("the caller has looked it up");
        let protocol = parse_protocol(protocol)?;
        let to = target(published, &from_id, (to, found), protocol)?;
        let same_family = |own: &IpAddr| own.is_ipv4() == to.address.is_ipv4();
        let source = addresses(inventory, from).find(same_family).ok_or_else(|| {
            refusal(
                &format!("`{from_id}` has no address of that family"),
                "name the destination by another address",
            )
        })?;
        Ok(Self { from, from_id, source, to, protocol, exe: exe.map(str::to_owned) })
    }

    /// Whether a flow is one that the question is about.
    fn fits(&self, record: &FlowRecord) -> bool {
        let tuple = &record.tuple;
        let exe = || record.initiator.attribution.as_ref()?.process.as_ref()?.exe.as_deref();
        record.initiator.nic.as_ref().is_some_and(|nic: &NicRef| nic.vm == self.from_id)
            && tuple.protocol == self.protocol
            && tuple.destination == self.to.address.ip()
            && tuple.destination_port == self.to.address.port()
            && self.exe.as_deref().is_none_or(|wanted| exe() == Some(wanted))
    }

    /// Where packets to the address go.
    fn delivered(&self, inventory: &Inventory, to: Option<VmIndex>) -> IpAddr {
        let own = self.to.address.ip();
        let alike = |address: &IpAddr| address.is_ipv4() == own.is_ipv4();
        let endpoint = to.filter(|_| self.to.via.is_some());
        endpoint.and_then(|vm| addresses(inventory, vm).find(alike)).unwrap_or(own)
    }

    /// Answers by the flows in the table, those remembered, and the policy in force.
    pub fn answer(
        &self,
        published: &Published,
        (live, endpoints): (Vec<FlowRecord>, &[EndpointRecord]),
        log: &FlowLog,
    ) -> Explanation {
        let live = live.into_iter().filter(|record| self.fits(record)).max_by_key(|record| record.opened);
        let logged = log.newest(|record| self.fits(record)).map(|event| event.record.clone());
        let seen = [live, logged].into_iter().flatten().max_by_key(|record| record.opened);

        let supposed = self.exe.as_deref().map(suppose);
        let (source, destination) = match &seen {
            Some(record) => (record.initiator.attribution.clone(), record.responder.attribution.clone()),
            None => (supposed.map(Arc::new), None),
        };
        let inventory = &published.snapshot.inventory;
        let redirected = seen
            .as_ref()
            .filter(|_| self.to.via.is_some())
            .and_then(|record| inventory.find(&record.responder.nic.as_ref()?.vm));
        let to = redirected.or(self.to.vm);
        let delivered = self.delivered(inventory, to);
        let tuple = FiveTuple {
            source: self.source,
            destination: delivered,
            source_port: seen.as_ref().map_or(0, |record| record.tuple.source_port),
            destination_port: self.to.address.port(),
            protocol: self.protocol,
        };
        let query = FlowQuery {
            tuple,
            source: Party { vm: Some(self.from), attribution: source.as_deref() },
            destination: Party { vm: to, attribution: destination.as_deref() },
            names: &self.to.names,
        };
        let spoken = seen.as_ref().and_then(|record| record.spoken);
        let judgement = reviewed(&query, spoken, published.snapshot.judge(&query, self.to.via));
        let traces = match published.snapshot.crosses(&query, self.to.via) {
            Some(service) => published.policy.explain_call(service, &query),
            None => published.policy.explain(&query),
        };
        let rules = traces.into_iter().map(|trace| ExplainedRule {
            rule: trace.rule.to_string(),
            level: trace.level.to_string(),
            order: trace.order,
            action: trace.action.map(Into::into),
            adds: trace.adds,
            mode: match trace.mode {
                model::Mode::Enforce => Mode::Enforce,
                model::Mode::Audit => Mode::Audit,
            },
            matched: trace.matched,
            why: trace.why,
        });
        Explanation {
            hypothetical: seen.is_none(),
            flow: seen.map(|record| view::flow(&record, clock::now())),
            rules: rules.collect(),
            services: view::services(&judgement),
            endpoints: self.endpoints(published, endpoints),
            verdict: judgement.action.into(),
            decided_by: judgement.decided_by.to_string(),
            because: view::because(&judgement),
            generation: published.snapshot.generation.0,
        }
    }

    /// How the endpoints fare of the service that is called.
    fn endpoints(&self, published: &Published, all: &[EndpointRecord]) -> Vec<EndpointStatus> {
        let called = self.to.via.map(|via| &published.snapshot.services.offer(via).id);
        let of_service = all.iter().filter(|record| Some(&record.service) == called);
        of_service.map(view::endpoint).collect()
    }
}

/// What would be known of a process that runs this executable, and nothing more.
fn suppose(exe: &str) -> Attribution {
    let name = exe.rsplit('/').next().unwrap_or(exe).chars().take(15).collect();
    let process = Process { name, exe: Some(exe.to_owned()), ..Process::default() };
    Attribution {
        process: Some(process),
        socket_uid: None,
        socket_user: None,
        socket_cgroup: None,
        socket_netns: None,
        inner: None,
        confidence: Confidence::Table,
        unknown: None,
    }
}

fn parse_protocol(text: &str) -> Result<Protocol, Refusal> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "icmp" => Ok(Protocol::Icmp),
        "icmpv6" => Ok(Protocol::Icmpv6),
        _ => Err(refusal(
            &format!("`{}` is not a protocol", text.escape_debug()),
            "use tcp, udp, icmp or icmpv6",
        )),
    }
}

fn addresses(inventory: &Inventory, vm: VmIndex) -> impl Iterator<Item = IpAddr> {
    inventory.vm(vm).nics.iter().flat_map(|nic| &nic.addresses).map(|cidr| cidr.address())
}

/// `address:port`, `vm:port`, a service of the sender's tenant or, as `tenant/name`, of any, or `name:port` of something
/// outside.
fn target(
    published: &Published,
    from: &VmRef,
    (to, found): (&str, &[Found]),
    protocol: Protocol,
) -> Result<Target, Refusal> {
    let inventory = &published.snapshot.inventory;
    let nowhere = || {
        let reason = format!("`{}` leads nowhere from `{from}`", to.escape_debug());
        let help = "name an address:port, a vm:port or service of the same tenant, the tenant/name of a service, or the \
                    name:port of a server outside";
        refusal(&reason, help)
    };
    let of = |vm, address| Target { address, vm: Some(vm), via: None, names: Vec::new() };
    if let Ok(address) = to.parse::<SocketAddr>() {
        let services = &published.snapshot.services;
        if let Some(via) = services.at(address.ip()) {
            let endpoint = services.offer(via).endpoints.first().ok_or_else(nowhere)?;
            return Ok(Target { via: Some(via), ..of(endpoint.vm, address) });
        }
        let holds = |vm: &VmIndex| addresses(inventory, *vm).any(|own| own == address.ip());
        let of_tenant = inventory.vms().filter(|(_, vm)| vm.id.tenant == from.tenant).map(|(index, _)| index);
        return match of_tenant.into_iter().find(holds) {
            Some(vm) => Ok(of(vm, address)),
            None => outside(inventory, from, address, found).ok_or_else(nowhere),
        };
    }
    if let Some(called) = service_of(published, from, to, protocol) {
        return Ok(called);
    }
    let Some((host, port)) = to.rsplit_once(':') else {
        let name = to.parse().map_err(|_| nowhere())?;
        let service = published.policy.service(&from.tenant, &name).ok_or_else(nowhere)?;
        let port = service.ports.iter().find(|port| port.protocol == protocol).ok_or_else(nowhere)?;
        let vm = *service.vms.first().ok_or_else(nowhere)?;
        let port = port.ports.map_or(0, model::PortRange::first);
        let address = addresses(inventory, vm).next().ok_or_else(nowhere)?;
        return Ok(of(vm, SocketAddr::new(address, port)));
    };
    let port = port.parse().map_err(|_| nowhere())?;
    let vm = host.rsplit('/').next().unwrap_or(host).parse().ok();
    if let Some(vm) = vm.and_then(|name| inventory.find(&VmRef { tenant: from.tenant.clone(), name })) {
        let address = addresses(inventory, vm).next().ok_or_else(nowhere)?;
        return Ok(of(vm, SocketAddr::new(address, port)));
    }
    let domain = host.trim_end_matches('.').to_ascii_lowercase();
    if !domain.contains('.') {
        return Err(nowhere());
    }
    let mut alike = found.iter().filter(|found| *found.name == *domain);
    let known = alike.find_map(|one| outside(inventory, from, SocketAddr::new(one.address, port), found));
    known.ok_or_else(|| {
        let reason = format!("no machine of `{}` has found `{}` lately", from.tenant, domain.escape_debug());
        refusal(
            &reason,
            "look it up in a machine that a rule with this `fqdn` selects, or ask about an address",
        )
    })
}

/// A service of any tenant by its full name, `tenant/name`, at its virtual address.
fn service_of(published: &Published, from: &VmRef, to: &str, protocol: Protocol) -> Option<Target> {
    let Snapshot { inventory, services, .. } = &*published.snapshot;
    let (via, offer) = (0..).map(OfferIndex).zip(services.offers()).find(|(_, offer)| *offer.id.0 == *to)?;
    let port = offer.ports.iter().find(|port| port.protocol == protocol)?;
    let has_v4 = addresses(inventory, inventory.find(from)?).any(|own| own.is_ipv4());
    let address = if has_v4 { IpAddr::V4(offer.v4) } else { IpAddr::V6(offer.v6) };
    let address = SocketAddr::new(address, port.ports.map_or(0, model::PortRange::first));
    let vm = offer.endpoints.first()?.vm;
    Some(Target { address, vm: Some(vm), via: Some(via), names: Vec::new() })
}

/// Something that the sender's tenant reaches through an external network.
fn outside(inventory: &Inventory, from: &VmRef, address: SocketAddr, found: &[Found]) -> Option<Target> {
    let ip = address.ip();
    let mut networks = inventory.networks().iter().filter(|network| network.tenant == from.tenant);
    let reaches = networks.any(|network| {
        network.reaches.iter().any(|range| range.contains(ip))
            && network.addresses.iter().any(|own| own.is_ipv4() == ip.is_ipv4())
    });
    let names =
        found.iter().filter(|found| found.address == ip).map(|found| Arc::clone(&found.name)).collect();
    reaches.then_some(Target { address, vm: None, via: None, names })
}
