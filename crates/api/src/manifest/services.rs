// SPDX-License-Identifier: Apache-2.0
//! Services: whom they exist for, where they are, how calls to them are spread.

use std::net::IpAddr;
use std::time::Duration;

use model::{Audience, Balancing, HealthCheck, Level, Method, Name, PortMatch, Protocol, Service, Share};

use super::fields::{Field, Fields};
use super::qos;
use super::registry::Kind;
use super::resources::{Metadata, Resources};
use super::selectors::{self, PortList, maybe};

/// The levels under the names that documents carry.
pub(super) const LEVELS: [(&str, Level); 4] = [
    ("infrastructure", Level::Infrastructure),
    ("tenant", Level::Tenant),
    ("application", Level::Application),
    ("instance", Level::Instance),
];

/// Longest version, in bytes: as long as a label's value.
const VERSION_BYTES_MAX: usize = 63;

/// Most shares of one service.
const SHARES_MAX: usize = 32;

/// Greatest weight of a share.
const WEIGHT_MAX: u32 = 1_000_000;

/// Longest slow start and longest first ejection, in milliseconds: an hour.
const TIME_MS_MAX: u32 = 3_600_000;

/// Shortest time between two checks, and shortest time-out, in milliseconds: so often the switch looks after them.
const CHECK_MS_MIN: u32 = 100;

/// Most outcomes in a row that decide what is thought of an endpoint.
const CHECKS_IN_A_ROW_MAX: u32 = 100;

impl<'a> Resources<'a> {
    pub(super) fn service(&mut self, metadata: Metadata, spec: &mut Fields<'a>) -> Option<Service> {
        let selector = spec.required("selector").and_then(|selector| selectors::workload(&selector));
        let ports = spec.required("ports").and_then(|ports| selectors::ports(&ports, PortList::Offered));
        let hostname = maybe(spec.optional("hostname"), Field::parse::<Name>);
        let version = maybe(spec.optional("version"), version);
        let audience = self.audience(&metadata.tenant, spec, "visibleTo");
        let addresses = maybe(spec.optional("addresses"), addresses);
        let balancing = maybe(spec.optional("balancing"), balancing);
        let limit = maybe(spec.optional("limit"), qos::limit);
        let part = qos::part(spec);
        let ports = ports?;
        let health = maybe(spec.optional("health"), |field| health(field, &ports));
        let service = Service::new(metadata.tenant, metadata.name, selector?, ports);
        Some(Service {
            hostname: hostname?.unwrap_or(service.hostname),
            version: version?,
            audience: audience?,
            addresses: addresses?.unwrap_or_default(),
            balancing: balancing?.unwrap_or_default(),
            limit: limit?,
            part: part?,
            health: health?,
            ..service
        })
    }

    /// Reads the level and what belongs to it: an application for the inner two, and for the innermost a subset under
    /// the name `subset_key`.
    pub(super) fn audience(
        &mut self,
        tenant: &Name,
        spec: &mut Fields<'a>,
        subset_key: &'static str,
    ) -> Option<Audience> {
        let level = maybe(spec.optional("level"), |level| level.one_of(&LEVELS));
        let application = self.reference(Kind::Application, tenant, spec.optional("application"));
        let subset = maybe(spec.optional(subset_key), selectors::workload);
        let level = level?.unwrap_or(Level::Tenant);
        match (level, application?, subset?) {
            (Level::Infrastructure, None, None) => Some(Audience::Everyone),
            (Level::Tenant, None, None) => Some(Audience::Tenant),
            (Level::Application, Some(application), None) => Some(Audience::Application(application)),
            (Level::Instance, Some(application), Some(subset)) => Some(Audience::Subset(application, subset)),
            _ => spec.owner().refuse(
                format!("`application` and `{subset_key}` do not fit level `{level}`"),
                format!(
                    "application level needs `application`, instance level needs `application` and \
                     `{subset_key}`, the outer levels need neither"
                ),
            ),
        }
    }
}

fn version(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || text.len() > VERSION_BYTES_MAX || !text.chars().all(legal) {
        return field.refuse("not a version", "use 1 to 63 letters, digits and any of - _ .");
    }
    Some(text.to_owned())
}

/// Reads virtual addresses: at most one of each family.
fn addresses(field: &Field<'_>) -> Option<Vec<IpAddr>> {
    let read: Vec<_> = field.items(2)?.iter().map(address).collect();
    let addresses = read.into_iter().collect::<Option<Vec<IpAddr>>>()?;
    if let [one, other] = addresses.as_slice()
        && one.is_ipv4() == other.is_ipv4()
    {
        return field.refuse("two addresses of one family", "give at most one IPv4 and one IPv6 address");
    }
    Some(addresses)
}

fn address(field: &Field<'_>) -> Option<IpAddr> {
    let address: IpAddr = field.parse()?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || link_local {
        return field.refuse(format!("{address} cannot be a virtual address"), "use a routable one");
    }
    Some(address)
}

fn balancing(field: &Field<'_>) -> Option<Balancing> {
    let mut fields = field.fields()?;
    let time =
        |field: &Field<'_>| field.integer(0..=TIME_MS_MAX).map(|ms| Duration::from_millis(u64::from(ms)));
    let method = maybe(fields.optional("method"), |method| {
        method.one_of(&[("Maglev", Method::Maglev), ("LeastOutstanding", Method::LeastOutstanding)])
    });
    let affinity =
        maybe(fields.optional("affinity"), |word| word.one_of(&[("Client", true), ("None", false)]));
    let locality =
        maybe(fields.optional("locality"), |word| word.one_of(&[("Local", true), ("None", false)]));
    let shares = maybe(fields.optional("shares"), shares);
    let slow_start = maybe(fields.optional("slowStartMs"), time);
    let ejection = maybe(fields.optional("ejection"), |ejection| {
        let mut fields = ejection.fields()?;
        let failures = maybe(fields.optional("failures"), |failures| failures.integer(0..=1000_u32));
        let time = maybe(fields.optional("timeMs"), time);
        fields.finish();
        Some((failures?, time?))
    });
    fields.finish();
    let usual = Balancing::default();
    let (failures, ejection_time) = ejection?.unwrap_or_default();
    Some(Balancing {
        method: method?.unwrap_or_default(),
        shares: shares?.unwrap_or_default(),
        affinity: affinity?.unwrap_or(usual.affinity),
        local_first: locality?.unwrap_or(usual.local_first),
        slow_start: slow_start?.unwrap_or(usual.slow_start),
        ejection_failures: failures.unwrap_or(usual.ejection_failures),
        ejection_time: ejection_time.unwrap_or(usual.ejection_time),
    })
}

/// Reads how endpoints are tried on `ports`.
fn health(field: &Field<'_>, ports: &[PortMatch]) -> Option<HealthCheck> {
    let mut fields = field.fields()?;
    if let Some(http) = fields.optional("http") {
        let reason = "checks by HTTP are layer 7, which this daemon has no stage for";
        return http.refuse(reason, "use `tcp: {}`: a connection is tried, and taken back before it is used");
    }
    let tcp = fields.required("tcp").and_then(|tcp| tcp.fields()).map(Fields::finish);
    let usual = HealthCheck::default();
    let time = |field: &Field<'_>| {
        let ms = field.integer(CHECK_MS_MIN..=TIME_MS_MAX)?;
        Some(Duration::from_millis(u64::from(ms)))
    };
    let times = |field: &Field<'_>| field.integer(1..=CHECKS_IN_A_ROW_MAX);
    let interval = maybe(fields.optional("intervalMs"), time);
    let timeout = maybe(fields.optional("timeoutMs"), time);
    let unhealthy = maybe(fields.optional("unhealthy"), times);
    let healthy = maybe(fields.optional("healthy"), times);
    fields.finish();
    let (interval, timeout) = (interval?.unwrap_or(usual.interval), timeout?);
    let (unhealthy, healthy) = (unhealthy?.unwrap_or(usual.unhealthy), healthy?.unwrap_or(usual.healthy));
    tcp?;
    if timeout.is_some_and(|timeout| timeout > interval) {
        return field.refuse("`timeoutMs` is longer than `intervalMs`", "lower it, or raise that");
    }
    if !ports.iter().any(|port| port.protocol == Protocol::Tcp) {
        return field.refuse("the service has no TCP port that could be tried", "leave `health` out");
    }
    let timeout = timeout.unwrap_or(usual.timeout.min(interval));
    Some(HealthCheck { interval, timeout, unhealthy, healthy })
}

fn shares(field: &Field<'_>) -> Option<Vec<Share>> {
    let read: Vec<_> = field.items(SHARES_MAX)?.iter().map(share).collect();
    let shares = read.into_iter().collect::<Option<Vec<Share>>>()?;
    if !shares.is_empty() && shares.iter().all(|share| share.weight == 0) {
        return field.refuse("all shares are zero", "leave one greater than zero");
    }
    Some(shares)
}

fn share(field: &Field<'_>) -> Option<Share> {
    let mut fields = field.fields()?;
    let vm = fields.required("vm").and_then(|vm| selectors::vm(&vm));
    let weight = fields.required("weight").and_then(|weight| weight.integer(0..=WEIGHT_MAX));
    fields.finish();
    Some(Share { vm: vm?, weight: weight? })
}
