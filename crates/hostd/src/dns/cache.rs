// SPDX-License-Identifier: Apache-2.0
//! Answers of upstreams, kept for as long as they say.
//!
//! Each tenant has a part of its own: what one has asked, or how fast it is answered, tells another nothing, and nobody
//! can push out another's answers. A part holds at most so many answers; what expires first makes room.
//!
//! Positive answers are kept for the shortest time to live of their records, at most [`POSITIVE_MAX`]; negative ones
//! as RFC 2308 says, at most [`NEGATIVE_MAX`]. Failures, truncated answers and those longer than
//! [`MESSAGE_LEN_BYTES_MAX`] are not kept.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name as Domain, RData, Record, RecordType};
use model::{Moment, Name};

/// Longest time that an answer is kept.
const POSITIVE_MAX: Duration = Duration::from_secs(86_400);
/// Longest time that a negative answer is kept (RFC 2308 section 5).
const NEGATIVE_MAX: Duration = Duration::from_secs(3600);
/// Longest answer that is kept, in bytes on the wire.
pub const MESSAGE_LEN_BYTES_MAX: usize = 4096;

/// What an answer is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Letter case means nothing.
    pub name: Domain,
    pub kind: RecordType,
    pub dnssec_ok: bool,
    pub checking_disabled: bool,
}

#[derive(Debug)]
pub struct Cache {
    entries_max: usize,
    parts: HashMap<Name, Part>,
}

/// One tenant's answers.
#[derive(Debug, Default)]
struct Part {
    entries: HashMap<Key, Entry>,
    /// When each expires, numbered so that no two are at the same place.
    expiries: BTreeMap<(Moment, u64), Key>,
    last_number: u64,
}

#[derive(Debug)]
struct Entry {
    message: Message,
    stored: Moment,
    place: (Moment, u64),
}

impl Cache {
    /// A cache of at most so many answers of each tenant.
    pub fn new(entries_max: usize) -> Self {
        Self { entries_max, parts: HashMap::new() }
    }

    /// The answer, with the time to live that it has left.
    pub fn find(&self, now: Moment, tenant: &Name, key: &Key) -> Option<Message> {
        let entry = self.parts.get(tenant)?.entries.get(key)?;
        if entry.place.0 <= now {
            return None;
        }
        let mut message = entry.message.clone();
        let age_s = u32::try_from(now.since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        for record in records_mut(&mut message) {
            record.ttl = record.ttl.saturating_sub(age_s);
        }
        Some(message)
    }

    /// Keeps an answer that was `len_bytes` long, if it may be kept.
    pub fn keep(&mut self, now: Moment, tenant: &Name, key: Key, message: &Message, len_bytes: usize) {
        let time = time_to_live(message).filter(|time| !time.is_zero());
        let Some(time) = time.filter(|_| len_bytes <= MESSAGE_LEN_BYTES_MAX && self.entries_max > 0) else {
            return;
        };
        let part = self.parts.entry(tenant.clone()).or_default();
        part.remove(&key);
        if part.entries.len() >= self.entries_max
            && let Some((_, first)) = part.expiries.pop_first()
        {
            part.entries.remove(&first);
        }
        part.last_number += 1;
        let place = (now.after(time), part.last_number);
        part.expiries.insert(place, key.clone());
        part.entries.insert(key, Entry { message: message.clone(), stored: now, place });
    }

    /// Forgets what has expired.
    pub fn purge(&mut self, now: Moment) {
        self.parts.retain(|_, part| {
            while part.expiries.first_key_value().is_some_and(|((expires, _), _)| *expires <= now) {
                if let Some((_, key)) = part.expiries.pop_first() {
                    part.entries.remove(&key);
                }
            }
            !part.entries.is_empty()
        });
    }
}

impl Part {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.expiries.remove(&entry.place);
        }
    }
}

fn records_mut(message: &mut Message) -> impl Iterator<Item = &mut Record> {
    message.answers.iter_mut().chain(&mut message.authorities).chain(&mut message.additionals)
}

/// How long an answer may be kept; `None` if not at all.
fn time_to_live(message: &Message) -> Option<Duration> {
    let found = matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    if !found || message.metadata.truncation {
        return None;
    }
    let shortest = |records: &[Record]| records.iter().map(|record| record.ttl).min();
    let positive = message.metadata.response_code == ResponseCode::NoError && !message.answers.is_empty();
    if positive {
        let seconds = shortest(&message.answers)?;
        return Some(Duration::from_secs(seconds.into()).min(POSITIVE_MAX));
    }
    let soa = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    })?;
    // An alias that leads nowhere lives no longer than itself.
    let seconds = shortest(&message.answers).map_or(soa, |alias| alias.min(soa));
    Some(Duration::from_secs(seconds.into()).min(NEGATIVE_MAX))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::{A, SOA};
    use proptest::prelude::*;

    use super::*;

    const START: Moment = Moment(1_000_000_000_000);

    fn domain(name: &str) -> Domain {
        Domain::from_ascii(name).unwrap()
    }

    fn key(name: &str) -> Key {
        Key { name: domain(name), kind: RecordType::A, dnssec_ok: false, checking_disabled: false }
    }

    fn tenant(name: &str) -> Name {
        name.parse().unwrap()
    }

    fn positive(ttls: &[u32]) -> Message {
        let mut message = Message::error_msg(1, OpCode::Query, ResponseCode::NoError);
        for ttl in ttls {
            let data = RData::A(A([192, 0, 2, 1].into()));
            message.add_answer(Record::from_rdata(domain("a.example."), *ttl, data));
        }
        message
    }

    fn negative(code: ResponseCode, ttl: u32, minimum: u32) -> Message {
        let mut message = Message::error_msg(1, OpCode::Query, code);
        let root = Domain::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, minimum);
        message.add_authority(Record::from_rdata(root, ttl, RData::SOA(soa)));
        message
    }

    fn after(seconds: u64) -> Moment {
        START.after(Duration::from_secs(seconds))
    }

    #[test]
    fn answers_are_kept_for_as_long_as_they_say() {
        for (message, seconds) in [
            (positive(&[300, 60, 100]), 60),
            (positive(&[u32::MAX]), 86_400),
            (positive(&[0]), 0),
            (negative(ResponseCode::NXDomain, 900, 30), 30),
            (negative(ResponseCode::NoError, 20, 30), 20),
            (negative(ResponseCode::NXDomain, 90_000, 90_000), 3600),
            (Message::error_msg(1, OpCode::Query, ResponseCode::NXDomain), 0),
            (negative(ResponseCode::ServFail, 300, 300), 0),
            (negative(ResponseCode::Refused, 300, 300), 0),
        ] {
            let mut cache = Cache::new(8);
            cache.keep(START, &tenant("acme"), key("a.example."), &message, 100);
            let found = |at| cache.find(at, &tenant("acme"), &key("A.EXAMPLE.")).is_some();
            assert_eq!(found(START), seconds > 0, "{message}");
            assert!(seconds == 0 || found(after(seconds - 1)), "{message}");
            assert!(!found(after(seconds)), "{message}");
        }
        let mut truncated = positive(&[300]);
        truncated.metadata.truncation = true;
        let mut cache = Cache::new(8);
        cache.keep(START, &tenant("acme"), key("a."), &truncated, 100);
        cache.keep(START, &tenant("acme"), key("b."), &positive(&[300]), MESSAGE_LEN_BYTES_MAX + 1);
        assert_eq!(cache.find(START, &tenant("acme"), &key("a.")), None);
        assert_eq!(cache.find(START, &tenant("acme"), &key("b.")), None);
    }

    #[test]
    fn the_time_that_is_left_shrinks() {
        let mut cache = Cache::new(8);
        cache.keep(START, &tenant("acme"), key("a."), &positive(&[300, 60]), 100);
        let found = cache.find(after(50), &tenant("acme"), &key("a.")).unwrap();
        let left: Vec<u32> = found.answers.iter().map(|record| record.ttl).collect();
        assert_eq!(left, [250, 10]);
    }

    #[test]
    fn tenants_know_nothing_of_each_others_answers() {
        let mut cache = Cache::new(1);
        cache.keep(START, &tenant("acme"), key("a."), &positive(&[300]), 100);
        assert_eq!(cache.find(START, &tenant("globex"), &key("a.")), None);
        cache.keep(START, &tenant("globex"), key("b."), &positive(&[300]), 100);
        assert!(cache.find(START, &tenant("acme"), &key("a.")).is_some(), "pushed out by another tenant's");
        let other = Key { dnssec_ok: true, ..key("a.") };
        assert_eq!(cache.find(START, &tenant("acme"), &other), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a list of all that was ever kept: never more than fits, never what has expired, and what is pushed
        /// out is what expires first.
        #[test]
        fn a_full_cache_loses_what_expires_first(
            steps in prop::collection::vec((0..6_u8, 1..50_u32, 0..5_u64), 1..60),
        ) {
            let (mut cache, acme) = (Cache::new(3), tenant("acme"));
            let mut model: Vec<(u8, u64)> = Vec::new();
            let mut now_s = 0;
            for (name, ttl, pause) in steps {
                now_s += pause;
                cache.keep(after(now_s), &acme, key(&format!("n{name}.")), &positive(&[ttl]), 100);
                model.retain(|(own, _)| *own != name);
                if model.len() >= 3 {
                    let first = (0..model.len()).min_by_key(|at| model[*at].1).unwrap();
                    model.remove(first);
                }
                model.push((name, now_s + u64::from(ttl)));
                if pause == 0 {
                    cache.purge(after(now_s));
                    model.retain(|(_, expires)| *expires > now_s);
                }
                for name in 0..6 {
                    let kept = model.iter().any(|(own, expires)| *own == name && *expires > now_s);
                    let found = cache.find(after(now_s), &acme, &key(&format!("n{name}."))).is_some();
                    prop_assert_eq!(found, kept);
                }
            }
        }
    }
}
