// SPDX-License-Identifier: Apache-2.0
//! What addresses were found under, for rules that name domains.
//!
//! Learned only from answers that our own upstreams have given to questions of the tenant's machines, and only for names that
//! a rule lets the asker reach. What a machine hears elsewhere, or says itself, teaches nobody anything.
//!
//! An address keeps a name for as long as the answer said, at least [`TIME_MIN`] (machines keep answers, too, and open
//! connections a little later), at most [`TIME_MAX`]. Each tenant has at most [`ADDRESSES_MAX`] addresses of [`NAMES_MAX`]
//! names each; what expires first makes room.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::{Name as Domain, RData};
use model::{Moment, Name};

/// Most addresses of one tenant.
const ADDRESSES_MAX: usize = 4096;
/// Most names of one address.
const NAMES_MAX: usize = 8;
/// Most addresses that are taken from one answer.
const TAKEN_MAX: usize = 64;
/// Most aliases that are followed in one answer.
const ALIASES_MAX: usize = 16;
/// Shortest and longest time that a name is kept.
const TIME_MIN: Duration = Duration::from_secs(60);
const TIME_MAX: Duration = Duration::from_secs(86_400);

/// A name that a tenant's machines have found an address under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The tenant.
    pub tenant: Name,
    /// The address.
    pub address: IpAddr,
    /// The name, in small letters, without a dot at the end.
    pub name: Arc<str>,
    /// When it counts no longer.
    pub expires: Moment,
}

/// What was learned.
#[derive(Debug, Default)]
pub(crate) struct Learned(HashMap<Name, HashMap<IpAddr, Vec<Known>>>);

/// A name of an address.
#[derive(Clone, Debug)]
struct Known {
    name: Arc<str>,
    expires: Moment,
}

impl Learned {
    /// Takes in that addresses were found under a name.
    pub(super) fn learn(&mut self, now: Moment, tenant: &Name, name: &str, found: &[(IpAddr, Duration)]) {
        let known = self.0.entry(tenant.clone()).or_default();
        let name: Arc<str> = name.into();
        for (address, time) in found.iter().take(TAKEN_MAX) {
            if known.len() >= ADDRESSES_MAX && !known.contains_key(address) {
                make_room(known, now);
            }
            let names = known.entry(*address).or_default();
            let before = names.iter().find(|known| known.name == name).map(|known| known.expires);
            names.retain(|known| known.expires > now && known.name != name);
            if names.len() >= NAMES_MAX
                && let Some(first) = (0..names.len()).min_by_key(|position| names[*position].expires)
            {
                names.swap_remove(first);
            }
            // Whoever has the longer-lived answer goes by it.
            let expires = now.after((*time).clamp(TIME_MIN, TIME_MAX)).max(before.unwrap_or(now));
            names.push(Known { name: Arc::clone(&name), expires });
        }
    }

    /// The names that a tenant's machines have found an address under.
    pub(crate) fn names(&self, now: Moment, tenant: &Name, address: IpAddr) -> Vec<Arc<str>> {
        let known = self.0.get(tenant).and_then(|known| known.get(&address)).map_or(&[][..], Vec::as_slice);
        known.iter().filter(|known| known.expires > now).map(|known| Arc::clone(&known.name)).collect()
    }

    /// Everything that is known still.
    pub(super) fn all(&self, now: Moment) -> impl Iterator<Item = Found> + '_ {
        let addresses =
            self.0.iter().flat_map(|(tenant, known)| known.iter().map(move |found| (tenant, found)));
        addresses.flat_map(move |(tenant, (address, names))| {
            names.iter().filter(move |known| known.expires > now).map(|known| Found {
                tenant: tenant.clone(),
                address: *address,
                name: Arc::clone(&known.name),
                expires: known.expires,
            })
        })
    }

    /// Forgets tenants that are gone.
    pub(super) fn keep_tenants(&mut self, is_there: impl Fn(&Name) -> bool) {
        self.0.retain(|tenant, _| is_there(tenant));
    }
}

/// Forgets what has expired, or else what expires first.
fn make_room(known: &mut HashMap<IpAddr, Vec<Known>>, now: Moment) {
    known.retain(|_, names| names.iter().any(|known| known.expires > now));
    if known.len() < ADDRESSES_MAX {
        return;
    }
    let last = |names: &Vec<Known>| names.iter().map(|known| known.expires).max();
    let first =
        known.iter().min_by_key(|(address, names)| (last(names), **address)).map(|(address, _)| *address);
    first.map(|address| known.remove(&address));
}

/// A name as rules name it: in small letters, without a dot at the end. `None` for one that is no text.
pub(super) fn plain(name: &Domain) -> Option<String> {
    let labels: Result<Vec<&str>, _> = name.iter().map(std::str::from_utf8).collect();
    let labels = labels.ok().filter(|labels| labels.iter().all(|label| !label.contains('.')))?;
    Some(labels.join(".").to_ascii_lowercase())
}

/// The addresses that an answer finds for a name, through its aliases, and for how long each.
pub(super) fn found(name: &Domain, answer: &Message) -> Vec<(IpAddr, Duration)> {
    let mut owners = vec![name.clone()];
    for _ in 0..ALIASES_MAX {
        let last = &owners[owners.len() - 1];
        let alias = answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *last => Some(target.0.clone()),
            _ => None,
        });
        match alias.filter(|alias| !owners.contains(alias)) {
            Some(alias) => owners.push(alias),
            None => break,
        }
    }
    let of_name = answer.answers.iter().filter(|record| owners.contains(&record.name));
    let addresses = of_name.filter_map(|record| {
        let address: IpAddr = match &record.data {
            RData::A(address) => address.0.into(),
            RData::AAAA(address) => address.0.into(),
            _ => return None,
        };
        Some((address, Duration::from_secs(record.ttl.into())))
    });
    addresses.take(TAKEN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{OpCode, ResponseCode};
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    const NOW: Moment = Moment(1_000_000_000_000);

    fn tenant() -> Name {
        "acme".parse().unwrap()
    }

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn names_are_kept_for_their_time_and_a_little_longer_if_that_is_short() {
        let mut learned = Learned::default();
        for (number, time_s, kept_s) in [(1, 0, 60), (2, 300, 300), (3, u64::from(u32::MAX), 86_400)] {
            learned.learn(NOW, &tenant(), "a.example", &[(address(number), seconds(time_s))]);
            let names = |at| learned.names(NOW.after(seconds(at)), &tenant(), address(number)).len();
            assert_eq!((names(kept_s - 1), names(kept_s)), (1, 0), "{time_s}");
        }
        learned.learn(NOW, &tenant(), "a.example", &[(address(2), seconds(100))]);
        assert_eq!(learned.names(NOW.after(seconds(299)), &tenant(), address(2)).len(), 1);
        assert!(learned.names(NOW, &"globex".parse().unwrap(), address(2)).is_empty());
        learned.keep_tenants(|_| false);
        assert!(learned.names(NOW, &tenant(), address(2)).is_empty());
    }

    #[test]
    fn addresses_and_names_are_bounded_and_what_expires_first_goes() {
        let mut learned = Learned::default();
        for number in 0..=ADDRESSES_MAX as u32 {
            let time = seconds(if number == 7 { 100 } else { 200 });
            learned.learn(NOW, &tenant(), "a.example", &[(address(number), time)]);
        }
        let known = |learned: &Learned, number| !learned.names(NOW, &tenant(), address(number)).is_empty();
        assert!(!known(&learned, 7) && known(&learned, 0) && known(&learned, ADDRESSES_MAX as u32));
        for number in 0..20 {
            let name = format!("n{number}.example");
            learned.learn(NOW, &tenant(), &name, &[(address(1), seconds(1000 - number))]);
        }
        let names = learned.names(NOW, &tenant(), address(1));
        assert_eq!(names.len(), NAMES_MAX);
        assert!(names.iter().any(|name| &**name == "n0.example"));
    }

    #[test]
    fn addresses_are_found_through_aliases_of_the_name_and_of_nothing_else() {
        let domain = |name: &str| Domain::from_ascii(name).unwrap();
        let mut answer = Message::error_msg(1, OpCode::Query, ResponseCode::NoError);
        let mut add = |name: &str, data| {
            answer.add_answer(Record::from_rdata(domain(name), 60, data));
        };
        let a = |number: u8| RData::A(A([192, 0, 2, number].into()));
        let alias = |to: &str| RData::CNAME(CNAME(domain(to)));
        add("WWW.example.", alias("x.cdn.example."));
        add("x.cdn.example.", alias("y.cdn.example."));
        add("y.cdn.example.", alias("www.example."));
        add("y.cdn.example.", a(1));
        add("other.example.", a(2));
        let found: Vec<IpAddr> =
            found(&domain("www.example."), &answer).into_iter().map(|(address, _)| address).collect();
        assert_eq!(found, [IpAddr::from([192, 0, 2, 1])]);
    }

    #[test]
    fn names_are_read_as_rules_name_them() {
        assert_eq!(
            plain(&Domain::from_ascii("WWW.Example.COM.").unwrap()).as_deref(),
            Some("www.example.com")
        );
        let odd = Domain::from_labels([&b"a.b"[..], b"com"]).unwrap();
        assert_eq!(plain(&odd), None, "a dot within a label is no border");
    }
}
