// SPDX-License-Identifier: Apache-2.0
//! Messages read back by a reader that knows nothing but RFC 7011.

use std::collections::HashMap;
use std::net::IpAddr;

use ipfix::{Direction, Encoder, End, EndReason, Event, Message, Record, own};
use model::{FiveTuple, Protocol};

const DOMAIN: u32 = 7;
const ENTERPRISE: u32 = 32_473;
const REVERSE: u32 = 29_305;

fn record(v6: bool, port: u16, rule: &str) -> Record<'_> {
    let address = |text: &str| -> IpAddr { text.parse().unwrap() };
    let ends = if v6 { ["fd00::1", "fd00::2"] } else { ["10.0.0.1", "10.0.0.2"] };
    Record {
        tuple: FiveTuple {
            source: address(ends[0]),
            destination: address(ends[1]),
            source_port: port,
            destination_port: 80,
            protocol: Protocol::Tcp,
        },
        start_ms: 1_700_000_000_000,
        end_ms: 1_700_000_000_500,
        sent: Direction { packets: 6, bytes: 424, tcp_flags: 0x1b },
        answered: Direction { packets: 4, bytes: 5216, tcp_flags: 0x1a },
        event: Event::Deleted,
        reason: EndReason::EndOfFlow,
        source: End { interface: 3, vm: "acme/web", process: "/usr/bin/storefront", uid: Some(33) },
        destination: End { interface: 4, vm: "acme/api", process: "", uid: None },
        verdict: 1,
        rule,
        rules: "acme/a,acme/b",
        generation: 12,
        handshake_us: 850,
        flows: 1,
        application: "http",
    }
}

type Template = Vec<(u16, Option<u32>, u16)>;
type Data = HashMap<(u16, Option<u32>), Vec<u8>>;

/// A collector's end of a session.
#[derive(Default)]
struct Reader {
    templates: HashMap<u16, Template>,
    templates_seen: usize,
}

impl Reader {
    /// The sequence number and the data records of a message.
    fn read(&mut self, message: &[u8]) -> (u32, Vec<Data>) {
        let u16_at = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((u16_at(message, 0), usize::from(u16_at(message, 2))), (10, message.len()));
        assert_eq!((u32_at(message, 4), u32_at(message, 12)), (1_700_000_001, DOMAIN));
        let (mut rest, mut records) = (&message[16..], Vec::new());
        while !rest.is_empty() {
            let (number, len) = (u16_at(rest, 0), usize::from(u16_at(rest, 2)));
            let mut set = &rest[4..len];
            rest = &rest[len..];
            while !set.is_empty() {
                if number == 2 {
                    let (template, count) = (u16_at(set, 0), u16_at(set, 2));
                    set = &set[4..];
                    let mut fields = Vec::new();
                    for _ in 0..count {
                        let (element, len) = (u16_at(set, 0), u16_at(set, 2));
                        let own = element & 0x8000 != 0;
                        fields.push((element & 0x7fff, own.then(|| u32_at(set, 4)), len));
                        set = &set[if own { 8 } else { 4 }..];
                    }
                    self.templates.insert(template, fields);
                    self.templates_seen += 1;
                    continue;
                }
                let mut record = Data::new();
                for (element, enterprise, len) in &self.templates[&number] {
                    let len = if *len == u16::MAX {
                        let len = usize::from(set[0]);
                        assert!(len < 255, "one byte of length");
                        set = &set[1..];
                        len
                    } else {
                        usize::from(*len)
                    };
                    record.insert((*element, *enterprise), set[..len].to_vec());
                    set = &set[len..];
                }
                records.push(record);
            }
        }
        (u32_at(message, 8), records)
    }
}

fn messages(encoder: &mut Encoder, records: &[Record<'_>]) -> Vec<Message> {
    let mut messages: Vec<Message> =
        records.iter().filter_map(|record| encoder.push(record, 1_700_000_001)).collect();
    messages.extend(encoder.take(1_700_000_001));
    messages
}

#[test]
fn every_fact_of_a_flow_reads_back() {
    let mut encoder = Encoder::new(DOMAIN, ENTERPRISE, ipfix::DATAGRAM_BYTES);
    let sent = messages(&mut encoder, &[record(false, 40_000, "acme/a"), record(true, 40_001, "acme/b")]);
    let (sequence, records) = Reader::default().read(&sent[0].bytes);
    assert_eq!((sent.len(), sequence, sent[0].records, records.len()), (1, 0, 2, 2));
    let [v4, v6] = records.as_slice() else { panic!("two records") };
    for (element, value) in [
        ((8, None), &[10, 0, 0, 1][..]),
        ((12, None), &[10, 0, 0, 2]),
        ((7, None), &40_000_u16.to_be_bytes()),
        ((11, None), &80_u16.to_be_bytes()),
        ((4, None), &[6]),
        ((6, None), &[0, 0x1b]),
        ((6, Some(REVERSE)), &[0, 0x1a]),
        ((2, None), &6_u64.to_be_bytes()),
        ((1, None), &424_u64.to_be_bytes()),
        ((2, Some(REVERSE)), &4_u64.to_be_bytes()),
        ((1, Some(REVERSE)), &5216_u64.to_be_bytes()),
        ((152, None), &1_700_000_000_000_u64.to_be_bytes()),
        ((153, None), &1_700_000_000_500_u64.to_be_bytes()),
        ((233, None), &[2]),
        ((136, None), &[3]),
        ((own::SOURCE_VM, Some(ENTERPRISE)), b"acme/web"),
        ((own::DESTINATION_VM, Some(ENTERPRISE)), b"acme/api"),
        ((own::SOURCE_PROCESS, Some(ENTERPRISE)), b"/usr/bin/storefront"),
        ((own::DESTINATION_PROCESS, Some(ENTERPRISE)), b""),
        ((own::SOURCE_UID, Some(ENTERPRISE)), &33_u32.to_be_bytes()),
        ((own::DESTINATION_UID, Some(ENTERPRISE)), &[0xff; 4]),
        ((own::VERDICT, Some(ENTERPRISE)), &[1]),
        ((own::RULE, Some(ENTERPRISE)), b"acme/a"),
        ((own::RULES, Some(ENTERPRISE)), b"acme/a,acme/b"),
        ((own::GENERATION, Some(ENTERPRISE)), &12_u64.to_be_bytes()),
        ((own::HANDSHAKE_US, Some(ENTERPRISE)), &850_u32.to_be_bytes()),
        ((own::FLOWS, Some(ENTERPRISE)), &1_u64.to_be_bytes()),
        ((96, None), b"http"),
    ] {
        assert_eq!(v4[&element], value, "{element:?}");
    }
    assert_eq!(v6[&(27, None)][..2], [0xfd, 0]);
    assert_eq!(v6[&(28, None)].len(), 16);
}

#[test]
fn messages_are_short_and_count_the_records_before_them() {
    let mut encoder = Encoder::new(DOMAIN, ENTERPRISE, ipfix::DATAGRAM_BYTES);
    let records: Vec<_> = (0..100).map(|port| record(port % 3 == 0, port, "acme/a")).collect();
    let (mut reader, mut before) = (Reader::default(), 0);
    for message in messages(&mut encoder, &records) {
        assert!(message.bytes.len() <= ipfix::DATAGRAM_BYTES);
        let (sequence, records) = reader.read(&message.bytes);
        assert_eq!((sequence, records.len()), (before, message.records as usize));
        for record in records {
            assert_eq!(record[&(7, None)], (before as u16).to_be_bytes());
            before += 1;
        }
    }
    assert_eq!((before, reader.templates_seen), (100, 2));
}

#[test]
fn templates_are_repeated_when_they_expire_and_in_a_new_session() {
    let mut encoder = Encoder::new(DOMAIN, ENTERPRISE, ipfix::DATAGRAM_BYTES);
    let flow = [record(false, 1, "acme/a")];
    let mut reader = Reader::default();
    let mut read = |encoder: &mut Encoder| {
        let message = messages(encoder, &flow).remove(0);
        let (sequence, records) = reader.read(&message.bytes);
        assert_eq!(records.len(), 1);
        (sequence, reader.templates_seen)
    };
    assert_eq!([read(&mut encoder), read(&mut encoder)], [(0, 1), (1, 1)]);
    encoder.expire_templates();
    assert_eq!(read(&mut encoder), (2, 2));
    encoder.restart();
    assert_eq!(read(&mut encoder), (0, 3));
}

#[test]
fn long_texts_are_cut_between_characters() {
    let long = "é".repeat(400);
    let mut encoder = Encoder::new(DOMAIN, ENTERPRISE, ipfix::DATAGRAM_BYTES);
    let message = messages(&mut encoder, &[record(false, 1, &long)]).remove(0);
    let (_, records) = Reader::default().read(&message.bytes);
    assert_eq!(records[0][&(own::RULE, Some(ENTERPRISE))], "é".repeat(127).as_bytes());
}
