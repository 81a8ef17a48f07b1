// SPDX-License-Identifier: Apache-2.0
//! What a DNS name is about, as far as the mesh is concerned.
//!
//! ```text
//! NAME.instance.mesh.internal             a service of one level (app, tenant, infra likewise)
//! NAME.mesh.internal, NAME                the innermost service of that name
//! _tcp.NAME..., _PORT._tcp.NAME...        its ports, for SRV
//! D.C.B.A.in-addr.arpa, ... .ip6.arpa     who has a virtual address
//! ```

use std::net::IpAddr;

use hickory_proto::rr::Name as Domain;
use model::{Level, Name, Protocol};

/// The labels of the zone that all levels' zones lie in, from the root.
const APEX: [&str; 2] = ["internal", "mesh"];

/// What a name is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A zone of the mesh: the one of all levels, or of one.
    Zone(Option<Level>),
    /// A service, or some of its ports.
    Service {
        hostname: Name,
        /// Absent in short names.
        level: Option<Level>,
        ports: Option<Ports>,
        /// Nothing but the label: it may also be a name of somebody else's.
        bare: bool,
    },
    /// A name that nothing in this zone can have.
    Nothing(Option<Level>),
    /// The address whose name is asked for.
    Address(IpAddr),
    /// None of the mesh's.
    Foreign,
}

/// Which ports of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub protocol: Protocol,
    /// The label before the protocol's, without its underscore.
    pub label: Option<String>,
}

impl Subject {
    /// Reads a name. Letter case means nothing.
    pub(super) fn of(name: &Domain) -> Self {
        // A name has at most 127 labels.
        let mut labels: Vec<String> = Vec::with_capacity(usize::from(name.num_labels()));
        for label in name.iter() {
            let Ok(label) = std::str::from_utf8(label) else { return Self::outside(name) };
            labels.push(label.to_ascii_lowercase());
        }
        match labels.as_slice() {
            [inner @ .., second, first] if [first, second] == APEX => Self::inside(inner),
            [label] => match label.parse() {
                Ok(hostname) => Self::Service { hostname, level: None, ports: None, bare: true },
                Err(_) => Self::Foreign,
            },
            [.., arpa] if arpa == "arpa" => address(name).map_or(Self::Foreign, Self::Address),
            _ => Self::Foreign,
        }
    }

    /// A name with a label that no service can have.
    fn outside(name: &Domain) -> Self {
        let labels: Vec<&[u8]> = name.iter().rev().take(APEX.len()).collect();
        let ours = labels.len() == APEX.len()
            && labels.iter().zip(APEX).all(|(label, own)| label.eq_ignore_ascii_case(own.as_bytes()));
        if ours { Self::Nothing(None) } else { Self::Foreign }
    }

    /// A name below the zone of all levels.
    fn inside(labels: &[String]) -> Self {
        let zone = |label: &str| Level::ALL.into_iter().find(|level| level.zone() == label);
        let (labels, level) = match labels {
            [] => return Self::Zone(None),
            [label] if zone(label).is_some() => return Self::Zone(zone(label)),
            // What is before a level's label is in its zone, unless it is a port of a service called so.
            [rest @ .., last] => match zone(last).filter(|_| !rest[rest.len() - 1].starts_with('_')) {
                Some(level) => (rest, Some(level)),
                None => (labels, None),
            },
        };
        let (hostname, ports) = match labels {
            [hostname] => (hostname, None),
            [protocol, hostname] => (hostname, Some((None, protocol))),
            [label, protocol, hostname] => (hostname, Some((Some(label), protocol))),
            _ => return Self::Nothing(level),
        };
        let ports = match ports {
            None => None,
            Some((label, protocol)) => match ports_of(label.map(String::as_str), protocol) {
                Some(ports) => Some(ports),
                None => return Self::Nothing(level),
            },
        };
        match hostname.parse() {
            Ok(hostname) => Self::Service { hostname, level, ports, bare: false },
            Err(_) => Self::Nothing(level),
        }
    }
}

fn ports_of(label: Option<&str>, protocol: &str) -> Option<Ports> {
    let protocol = match protocol {
        "_tcp" => Protocol::Tcp,
        "_udp" => Protocol::Udp,
        _ => return None,
    };
    let label = match label {
        Some(label) => Some(label.strip_prefix('_')?.to_owned()),
        None => None,
    };
    Some(Ports { protocol, label })
}

/// The address of a reverse name (RFC 1035 section 3.5, RFC 3596 section 2.5) that names a whole one.
fn address(name: &Domain) -> Option<IpAddr> {
    let network = name.parse_arpa_name().ok()?;
    (network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
}

/// The name of a service in its level's zone.
pub(super) fn full_name(hostname: &Name, level: Level) -> Domain {
    domain(&[hostname.as_str(), level.zone(), APEX[1], APEX[0]])
}

/// The name of a zone of the mesh.
pub(super) fn zone_name(level: Option<Level>) -> Domain {
    match level {
        Some(level) => domain(&[level.zone(), APEX[1], APEX[0]]),
        None => domain(&[APEX[1], APEX[0]]),
    }
}

/// A name of labels that are known to be legal.
pub(super) fn domain(labels: &[&str]) -> Domain {
    Domain::from_labels(labels.iter().map(|label| label.as_bytes())).expect("legal labels")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(hostname: &str, level: Option<Level>) -> Subject {
        Subject::Service { hostname: hostname.parse().unwrap(), level, ports: None, bare: false }
    }

    fn port(label: Option<&str>, protocol: Protocol, level: Option<Level>) -> Subject {
        let ports = Some(Ports { protocol, label: label.map(str::to_owned) });
        Subject::Service { hostname: "api".parse().unwrap(), level, ports, bare: false }
    }

    #[test]
    fn names_are_about_services_zones_addresses_or_not_ours() {
        let (tenant, application) = (Some(Level::Tenant), Some(Level::Application));
        for (name, subject) in [
            ("mesh.internal.", Subject::Zone(None)),
            ("Tenant.Mesh.INTERNAL.", Subject::Zone(tenant)),
            ("api.tenant.mesh.internal.", service("api", tenant)),
            ("API.app.mesh.internal.", service("api", application)),
            ("api.mesh.internal.", service("api", None)),
            ("app.tenant.mesh.internal.", service("app", tenant)),
            ("_tcp.api.mesh.internal.", port(None, Protocol::Tcp, None)),
            ("_tcp.api.tenant.mesh.internal.", port(None, Protocol::Tcp, tenant)),
            ("_8080._udp.api.tenant.mesh.internal.", port(Some("8080"), Protocol::Udp, tenant)),
            ("_sctp.api.tenant.mesh.internal.", Subject::Nothing(tenant)),
            ("8080._tcp.api.tenant.mesh.internal.", Subject::Nothing(tenant)),
            ("a.b.api.tenant.mesh.internal.", Subject::Nothing(tenant)),
            ("a_b.mesh.internal.", Subject::Nothing(None)),
            ("www.example.com.", Subject::Foreign),
            ("internal.", {
                let hostname = "internal".parse().unwrap();
                Subject::Service { hostname, level: None, ports: None, bare: true }
            }),
            ("mesh.internal.example.", Subject::Foreign),
            (".", Subject::Foreign),
            ("4.3.2.1.in-addr.arpa.", Subject::Address([1, 2, 3, 4].into())),
            ("3.2.1.in-addr.arpa.", Subject::Foreign),
            ("x.4.3.2.1.in-addr.arpa.", Subject::Foreign),
        ] {
            assert_eq!(Subject::of(&Domain::from_ascii(name).unwrap()), subject, "{name}");
        }
    }

    #[test]
    fn labels_that_are_no_text_are_nothing_in_our_zones() {
        let odd = |rest: &[&str]| {
            let labels = [&b"\xff"[..]].into_iter().chain(rest.iter().map(|label| label.as_bytes()));
            Subject::of(&Domain::from_labels(labels).unwrap())
        };
        assert_eq!(odd(&["mesh", "Internal"]), Subject::Nothing(None));
        assert_eq!(odd(&["example"]), Subject::Foreign);
    }

    #[test]
    fn a_reverse_name_of_ipv6_reads_back() {
        let address: IpAddr = "fd6d:6573:6800:1::2a".parse().unwrap();
        let IpAddr::V6(v6) = address else { panic!() };
        let labels: Vec<String> =
            v6.octets().iter().rev().flat_map(|o| [o & 15, o >> 4]).map(|n| format!("{n:x}")).collect();
        let name = Domain::from_ascii(format!("{}.ip6.arpa.", labels.join("."))).unwrap();
        assert_eq!(Subject::of(&name), Subject::Address(address));
    }
}
