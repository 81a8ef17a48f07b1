// SPDX-License-Identifier: Apache-2.0
//! The thread and upstreams of ours, on real sockets.

use std::io::{Read, Write};
use std::net::TcpListener;

use crossbeam_channel::unbounded;
use hickory_proto::op::{MessageType, OpCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name as Domain, RData, Record, RecordType};
use vswitch::PortId;

use super::*;

const WAIT: Duration = Duration::from_secs(20);

/// What an upstream does with a question: any number of messages back.
type Manner = fn(Message) -> Vec<Message>;

/// An upstream that answers over UDP, and over TCP at the same port; tells of each question.
fn upstream(datagrams: Manner, streams: Manner) -> (SocketAddr, Receiver<Query>) {
    let (told, heard) = unbounded();
    // Both at one port: another may have the second, so some are tried.
    let (socket, listener) = (0..64)
        .find_map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let listener = TcpListener::bind(socket.local_addr().unwrap()).ok()?;
            Some((socket, listener))
        })
        .unwrap();
    let address = socket.local_addr().unwrap();
    let telling = told.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok((len, from)) = socket.recv_from(&mut bytes) {
            let question = Message::from_vec(&bytes[..len]).unwrap();
            let _ = telling.send(question.queries[0].clone());
            for answer in datagrams(question) {
                socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
            }
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut bytes = vec![0; u16::from_be_bytes(len).into()];
            stream.read_exact(&mut bytes).unwrap();
            let question = Message::from_vec(&bytes).unwrap();
            let _ = told.send(question.queries[0].clone());
            for answer in streams(question) {
                let bytes = answer.to_vec().unwrap();
                stream.write_all(&[&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()).unwrap();
            }
        }
    });
    (address, heard)
}

fn answer(question: &Message, last_octet: u8) -> Message {
    let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    message.add_query(question.queries[0].clone());
    let data = RData::A(A([192, 0, 2, last_octet].into()));
    message.add_answer(Record::from_rdata(question.queries[0].name().clone(), 300, data));
    message
}

fn good(question: Message) -> Vec<Message> {
    vec![answer(&question, 1)]
}

fn silent(_: Message) -> Vec<Message> {
    Vec::new()
}

fn failing(question: Message) -> Vec<Message> {
    let mut message = answer(&question, 9);
    message.answers.clear();
    message.metadata.response_code = ResponseCode::ServFail;
    vec![message]
}

fn truncated(question: Message) -> Vec<Message> {
    vec![answer(&question, 9).truncate()]
}

/// Wrong in every way that another could be who does not see the question, then right.
fn spoofed(question: Message) -> Vec<Message> {
    let mut number = answer(&question, 9);
    number.metadata.id = number.metadata.id.wrapping_add(1);
    let mut name = answer(&question, 9);
    name.queries[0].set_name(Domain::from_ascii("other.example.").unwrap());
    let mut kind = answer(&question, 9);
    kind.queries[0].set_query_type(RecordType::AAAA);
    vec![number, name, kind, answer(&question, 1)]
}

/// The thread, and the poll cores' side of it.
struct Bench {
    dns: DnsHandle,
    replies: Receiver<DnsReply>,
    asked: u64,
}

impl Bench {
    fn with(upstreams: &[SocketAddr]) -> Self {
        Self::waiting(upstreams, Duration::from_millis(300))
    }

    /// With this much time for each upstream.
    fn waiting(upstreams: &[SocketAddr], timeout: Duration) -> Self {
        let (told, replies) = unbounded();
        let addresses = upstreams.to_vec();
        let upstreams = Upstreams { addresses, timeout, cache_entries: 16 };
        let dns = start(upstreams, move |reply| drop(told.send(reply))).unwrap();
        Self { dns, replies, asked: 0 }
    }

    fn asks(&mut self, tenant: &str, name: &str) -> DnsTicket {
        self.asked += 1;
        let ticket = DnsTicket { port: PortId(0), number: self.asked };
        let query = Query::query(Domain::from_ascii(name).unwrap(), RecordType::A);
        let tenant = tenant.parse().unwrap();
        let question = DnsQuestion { ticket, tenant, query, dnssec_ok: false, checking_disabled: false };
        self.dns.ask(question).unwrap();
        ticket
    }

    #[track_caller]
    fn hears(&self) -> (DnsTicket, Option<Message>) {
        let DnsReply { ticket, message } = self.replies.recv_timeout(WAIT).unwrap();
        (ticket, message)
    }

    /// Asks, and tells the last octet of the address that is found.
    #[track_caller]
    fn finds(&mut self, tenant: &str, name: &str) -> Option<u8> {
        let asked = self.asks(tenant, name);
        let (ticket, message) = self.hears();
        assert_eq!(ticket, asked);
        let message = message?;
        match message.answers.first().map(|record| &record.data) {
            Some(RData::A(address)) => Some(address.0.octets()[3]),
            _ => panic!("{message}"),
        }
    }
}

#[test]
fn what_was_answered_is_kept_for_its_tenant() {
    let (address, heard) = upstream(good, silent);
    let mut bench = Bench::with(&[address]);
    assert_eq!(bench.finds("acme", "www.example.com."), Some(1));
    assert_eq!(heard.try_iter().count(), 1);
    assert_eq!(bench.finds("acme", "WWW.example.com."), Some(1));
    assert_eq!(heard.try_iter().count(), 0, "it is known");
    assert_eq!(bench.finds("globex", "www.example.com."), Some(1));
    assert_eq!(heard.try_iter().count(), 1, "but not to others");
}

#[test]
fn an_upstream_that_is_silent_fails_or_is_not_there_leaves_it_to_the_next() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for first in [upstream(silent, silent).0, upstream(failing, silent).0, nobody] {
        let (second, _heard) = upstream(good, silent);
        assert_eq!(Bench::with(&[first, second]).finds("acme", "www.example.com."), Some(1));
    }
}

#[test]
fn what_no_upstream_knows_is_told() {
    let mut bench = Bench::with(&[upstream(silent, silent).0]);
    assert_eq!(bench.finds("acme", "www.example.com."), None);
    let mut bench = Bench::with(&[upstream(failing, silent).0]);
    bench.asks("acme", "www.example.com.");
    let (_, message) = bench.hears();
    assert_eq!(message.unwrap().metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn answers_to_other_questions_are_not_believed() {
    let (address, _heard) = upstream(spoofed, silent);
    assert_eq!(Bench::with(&[address]).finds("acme", "www.example.com."), Some(1));
}

#[test]
fn what_does_not_fit_a_datagram_is_asked_for_over_tcp() {
    let (address, heard) = upstream(truncated, good);
    assert_eq!(Bench::with(&[address]).finds("acme", "www.example.com."), Some(1));
    assert_eq!(heard.try_iter().count(), 2);
    // Over TCP, too, it must be the answer.
    let (address, _heard) = upstream(truncated, |question| spoofed(question)[..1].to_vec());
    assert_eq!(Bench::with(&[address]).finds("acme", "www.example.com."), None);
}

#[test]
fn questions_that_are_alike_are_asked_once() {
    fn slow(question: Message) -> Vec<Message> {
        std::thread::sleep(Duration::from_millis(100));
        good(question)
    }
    let (address, heard) = upstream(slow, silent);
    let mut bench = Bench::with(&[address]);
    let asked: Vec<DnsTicket> = (0..20).map(|_| bench.asks("acme", "www.example.com.")).collect();
    let mut answered: Vec<DnsTicket> = (0..20)
        .map(|_| {
            let (ticket, message) = bench.hears();
            assert!(message.is_some());
            ticket
        })
        .collect();
    answered.sort_by_key(|ticket| ticket.number);
    assert_eq!(answered, asked);
    assert_eq!(heard.try_iter().count(), 1);
}

#[test]
fn more_questions_than_there_are_places_are_turned_away_at_once() {
    let mut bench = Bench::waiting(&[upstream(silent, silent).0], Duration::from_secs(5));
    let many = IN_FLIGHT_MAX + 20;
    for number in 0..many {
        bench.asks("acme", &format!("n{number}.example.com."));
        // The queue to the thread is bounded, too.
        while bench.dns.questions.len() > QUEUED_MAX / 2 {
            std::thread::yield_now();
        }
    }
    let first: Vec<u64> = (0..20).map(|_| bench.hears().0.number).collect();
    assert_eq!(first, (IN_FLIGHT_MAX as u64 + 1..=many as u64).collect::<Vec<_>>());
}
