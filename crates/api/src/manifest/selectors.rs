// SPDX-License-Identifier: Apache-2.0
//! Selectors and ports, which read the same wherever they are written.

use std::collections::BTreeMap;

use model::{Cidr, Glob, Outcome, PortMatch, PortRange, ProcessSelector, Protocol, VmSelector, Workload};

use super::fields::{Field, Fields, quote};

/// Most labels on a resource or in a selector.
const LABELS_MAX: usize = 64;

/// Longest label key, in bytes: a DNS prefix, a slash and a name, as in Kubernetes.
const LABEL_KEY_BYTES_MAX: usize = 317;

/// Longest label value, in bytes, as in Kubernetes.
const LABEL_VALUE_BYTES_MAX: usize = 63;

/// Digits of a container's id.
const CONTAINER_ID_CHARS: usize = 64;

/// The kinds of answer to the question who acts.
const OUTCOMES: [(&str, Outcome); 3] = [
    (Outcome::Known.as_str(), Outcome::Known),
    (Outcome::Unknown.as_str(), Outcome::Unknown),
    (Outcome::Unattributed.as_str(), Outcome::Unattributed),
];

/// Most ports in one list.
const PORTS_MAX: usize = 64;

/// The protocols that can be named, most usual first.
const PROTOCOLS: [(&str, Protocol); 4] =
    [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("ICMP", Protocol::Icmp), ("ICMPv6", Protocol::Icmpv6)];

/// Reads a field that may be absent: `Some(None)` if it is, `None` if it is wrong.
pub(super) fn maybe<'a, T>(
    field: Option<Field<'a>>,
    read: impl FnOnce(&Field<'a>) -> Option<T>,
) -> Option<Option<T>> {
    match field {
        None => Some(None),
        Some(field) => read(&field).map(Some),
    }
}

/// Reads a map that is a selector and nothing else.
pub(super) fn workload(field: &Field<'_>) -> Option<Workload> {
    let mut fields = field.fields()?;
    let workload = workload_in(&mut fields);
    let empty = fields.given(&["vm", "process"]).is_empty();
    fields.finish();
    if empty {
        let help = "give `vm`, `process` or both; `vm: {}` means every machine";
        return field.refuse("the selector is empty", help);
    }
    workload
}

/// Reads the selector's part of a map; absent parts select everything.
pub(super) fn workload_in(fields: &mut Fields<'_>) -> Option<Workload> {
    let vm = maybe(fields.optional("vm"), vm);
    let process = maybe(fields.optional("process"), process);
    Some(Workload { vm: vm?.unwrap_or_default(), process: process? })
}

/// Reads a map that selects machines.
pub(super) fn vm(field: &Field<'_>) -> Option<VmSelector> {
    let mut fields = field.fields()?;
    let name = maybe(fields.optional("name"), Field::parse);
    let labels = maybe(fields.optional("labels"), labels);
    fields.finish();
    Some(VmSelector { name: name?, labels: labels?.unwrap_or_default() })
}

fn process(field: &Field<'_>) -> Option<ProcessSelector> {
    let mut fields = field.fields()?;
    let name = maybe(fields.optional("name"), process_name);
    let exe = maybe(fields.optional("exe"), exe);
    let unit = maybe(fields.optional("unit"), unit);
    let container = maybe(fields.optional("container"), container);
    let user = maybe(fields.optional("user"), Field::parse);
    let uid = maybe(fields.optional("uid"), |uid| uid.integer(0..=u32::MAX));
    let attribution = maybe(fields.optional("attribution"), |outcome| outcome.one_of(&OUTCOMES));
    let given = fields.given(&["name", "exe", "unit", "container", "user", "uid"]);
    fields.finish();
    let attribution: Option<Outcome> = attribution?;
    if let Some(contradiction) = given.iter().find(|key| !can_be_known(attribution, key)) {
        return field.refuse(
            format!(
                "nothing that is {} has a known `{contradiction}`",
                attribution.map_or("", Outcome::as_str)
            ),
            "leave one of the two out",
        );
    }
    if given.is_empty() && attribution.is_none() {
        return field.refuse(
            "the process selector is empty",
            "give one or more of name, exe, unit, container, user, uid, attribution; or leave `process` out to mean \
             the whole machine",
        );
    }
    Some(ProcessSelector {
        name: name?,
        exe: exe?,
        unit: unit?,
        container: container?,
        user: user?,
        uid: uid?,
        attribution,
    })
}

/// Whether an end that got this kind of answer can have a known `key`: where no process is known, its socket may
/// still be, and what that tells.
fn can_be_known(attribution: Option<Outcome>, key: &str) -> bool {
    match attribution {
        None | Some(Outcome::Known) => true,
        Some(Outcome::Unknown) => !["name", "exe"].contains(&key),
        Some(Outcome::Unattributed) => false,
    }
}

fn process_name(field: &Field<'_>) -> Option<String> {
    let name = field.text()?;
    if name.is_empty()
        || name.len() > ProcessSelector::NAME_LEN_BYTES_MAX
        || name.chars().any(char::is_control)
    {
        return field.refuse(
            format!("no process can be named `{}`", quote(name)),
            "the kernel keeps at most 15 bytes of a name; select by `exe` instead",
        );
    }
    Some(name.to_owned())
}

fn exe(field: &Field<'_>) -> Option<Glob> {
    let glob: Glob = field.parse()?;
    if !glob.as_str().starts_with(['/', '*', '?']) {
        return field.refuse("the path of an executable is absolute", "start it with / or *");
    }
    Some(glob)
}

fn unit(field: &Field<'_>) -> Option<Glob> {
    let glob: Glob = field.parse()?;
    if ![".service", ".scope", "*"].iter().any(|end| glob.as_str().ends_with(end)) {
        return field.refuse("no unit can match", "end it with .service, .scope or *");
    }
    Some(glob)
}

fn container(field: &Field<'_>) -> Option<Glob> {
    let glob: Glob = field.parse()?;
    let (text, wild) = (glob.as_str(), ['*', '?']);
    let is_possible = text.chars().all(|c| c.is_ascii_hexdigit() || wild.contains(&c))
        && (text.contains('*') || text.len() == CONTAINER_ID_CHARS);
    if !is_possible {
        return field.refuse(
            "no container can match",
            "give all 64 hexadecimal digits of its id, or the first and *",
        );
    }
    Some(glob)
}

/// Labels, with Kubernetes' alphabet: they are to be shown and compared anywhere.
pub(super) fn labels(field: &Field<'_>) -> Option<BTreeMap<String, String>> {
    let mut labels = Some(BTreeMap::new());
    for (key, value) in field.pairs(LABELS_MAX)? {
        let legal = |text: &str, extra: &str| {
            text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c) || extra.contains(c))
        };
        if key.is_empty() || key.len() > LABEL_KEY_BYTES_MAX || !legal(key, "/") {
            value.refuse::<()>(
                format!("`{}` is not a label key", quote(key)),
                "use 1 to 317 letters, digits and any of - _ . /",
            );
            labels = None;
            continue;
        }
        let text = value.text();
        let Some(text) = text.filter(|text| text.len() <= LABEL_VALUE_BYTES_MAX && legal(text, "")) else {
            if let Some(text) = text {
                value.refuse::<()>(
                    format!("`{}` is not a label value", quote(text)),
                    "use at most 63 letters, digits and any of - _ .",
                );
            }
            labels = None;
            continue;
        };
        if let Some(labels) = &mut labels {
            labels.insert(key.to_owned(), text.to_owned());
        }
    }
    labels
}

/// Reads a network: an address whose host bits are clear, so that nobody reads more or less into it.
pub(super) fn network(field: &Field<'_>) -> Option<Cidr> {
    let cidr: Cidr = field.parse()?;
    let network = cidr.network();
    if cidr != network {
        return field.refuse(format!("{cidr} names a host in its network"), format!("write {network}"));
    }
    Some(cidr)
}

/// Where ports are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortList {
    /// In a policy: a protocol alone means all of its ports.
    Matched,
    /// In a service: each port is one that is offered.
    Offered,
}

/// Reads a list of ports, which cannot be empty.
pub(super) fn ports(field: &Field<'_>, list: PortList) -> Option<Vec<PortMatch>> {
    let items = field.items(PORTS_MAX)?;
    if items.is_empty() {
        let help = match list {
            PortList::Matched => "leave `ports` out to mean all",
            PortList::Offered => "list at least one",
        };
        return field.refuse("an empty list of ports means none", help);
    }
    let read: Vec<_> = items.iter().map(|item| port(item, list)).collect();
    read.into_iter().collect()
}

fn port(field: &Field<'_>, list: PortList) -> Option<PortMatch> {
    let mut fields = field.fields()?;
    let port = maybe(fields.optional("port"), |port| port.integer(1..=u16::MAX));
    let last = maybe(fields.optional("endPort"), |port| port.integer(1..=u16::MAX));
    let protocol = maybe(fields.optional("protocol"), |protocol| protocol.one_of(&PROTOCOLS));
    let named = !fields.given(&["protocol"]).is_empty();
    fields.finish();
    let (port, last, protocol) = (port?, last?, protocol?.unwrap_or(Protocol::Tcp));
    let has_ports = matches!(protocol, Protocol::Tcp | Protocol::Udp);
    if !has_ports && (port.is_some() || last.is_some()) {
        return field.refuse(format!("{protocol} has no ports"), "leave `port` out");
    }
    if port.is_none() && (!named || last.is_some() || (has_ports && list == PortList::Offered)) {
        return field.refuse("field `port` is missing", "");
    }
    let range = |first| {
        PortRange::new(first, last.unwrap_or(first))
            .or_else(|| field.refuse("`endPort` is lower than `port`", "give the lower port first"))
    };
    let ports = match port {
        Some(first) => Some(range(first)?),
        None => None,
    };
    Some(PortMatch { ports, protocol })
}
