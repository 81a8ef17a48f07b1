// SPDX-License-Identifier: Apache-2.0
//! Names of the mesh, asked for over TCP.

use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use model::{Level, Protocol};
use packet::{Tcp, TcpFlags, emit};
use proptest::prelude::*;
use vswitch::{DnsReply, DropReason, PortId, Verdict};

use crate::names::*;
use crate::world::*;

const PSH: TcpFlags = TcpFlags::PSH;

fn names() -> Names {
    let ports = vec![tcp_port(1, 1000)];
    let all = [WEB, API, DB, OTHER_WEB, OTHER_API];
    Names::new(vec![Entry { ports, ..entry("api", Level::Tenant, &all) }])
}

/// A guest's end of a connection to the resolver.
struct Client {
    from: PortId,
    l4_port: u16,
    sequence: u32,
    expected: u32,
    window: u16,
    /// What has come.
    received: Vec<u8>,
}

impl Client {
    fn new(from: PortId, l4_port: u16) -> Self {
        Self { from, l4_port, sequence: 1000, expected: 0, window: 0xffff, received: Vec::new() }
    }

    fn segment(&self, flags: TcpFlags, sequence: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.l4_port.to_be_bytes());
        bytes.extend_from_slice(&53_u16.to_be_bytes());
        bytes.extend_from_slice(&sequence.to_be_bytes());
        bytes.extend_from_slice(&self.expected.to_be_bytes());
        bytes.extend_from_slice(&[0x50, flags.0]);
        bytes.extend_from_slice(&self.window.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 0]);
        bytes.extend_from_slice(data);
        let addresses = between(v4(self.from), ip(RESOLVER));
        emit::ip(gateway_link(self.from), addresses, Protocol::Tcp, 64, &bytes)
    }

    /// Sends a segment, takes in what comes back, and tells the last of that.
    #[track_caller]
    fn sends(&mut self, world: &mut World<'_>, flags: TcpFlags, data: &[u8]) -> Option<Tcp> {
        let frame = self.segment(flags, self.sequence, data);
        assert_eq!(world.offer(self.from, &frame), Verdict::Answered);
        let counted = u32::from(flags.has(SYN)) + u32::from(flags.has(FIN));
        self.sequence = self.sequence.wrapping_add(data.len() as u32 + counted);
        self.takes(world)
    }

    /// Takes in what has come, in order.
    #[track_caller]
    fn takes(&mut self, world: &mut World<'_>) -> Option<Tcp> {
        let mut last = None;
        for frame in world.emitted(self.from) {
            let tcp = segment(&frame);
            assert_eq!((tcp.source_port, tcp.destination_port), (53, self.l4_port));
            if tcp.flags.has(SYN) {
                self.expected = tcp.sequence;
            }
            if tcp.sequence == self.expected {
                self.received.extend_from_slice(&frame[frame.len() - tcp.payload_len_bytes..]);
                self.expected = tcp.sequence_end();
            }
            last = Some(tcp);
        }
        last
    }

    #[track_caller]
    fn connects(&mut self, world: &mut World<'_>) {
        let answer = self.sends(world, SYN, &[]).unwrap();
        assert_eq!((answer.flags, answer.acknowledgment), (SYN | ACK, self.sequence));
        assert_eq!(self.sends(world, ACK, &[]), None, "nothing is said to an acknowledgment");
    }

    /// The answers that have come, the last of which must be whole.
    #[track_caller]
    fn answers(&mut self) -> Vec<Message> {
        let (mut rest, mut answers) = (self.received.as_slice(), Vec::new());
        while let Some((len, data)) = rest.split_first_chunk::<2>() {
            let (answer, others) = data.split_at(u16::from_be_bytes(*len).into());
            answers.push(Message::from_vec(answer).unwrap());
            rest = others;
        }
        self.received.clear();
        answers
    }
}

fn framed(question: &Message) -> Vec<u8> {
    let bytes = question.to_vec().unwrap();
    [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()
}

fn asked() -> Vec<u8> {
    framed(&question("api.mesh.internal.", RecordType::SRV))
}

#[test]
fn a_question_is_asked_and_answered_whole_and_the_connection_ends() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, deny(), names());
    let mut client = Client::new(WEB, 4000);
    client.connects(&mut world);
    let last = client.sends(&mut world, PSH | ACK, &asked()).unwrap();
    assert_eq!((last.flags, last.acknowledgment), (PSH | ACK, client.sequence));
    let answers = client.answers();
    assert_eq!((answers.len(), answers[0].answers.len()), (1, 16));
    assert!(!answers[0].metadata.truncation, "there is room over TCP, with or without EDNS");
    // Several in one segment, one in several.
    let two = [asked(), asked()].concat();
    client.sends(&mut world, PSH | ACK, &two);
    assert_eq!(client.answers().len(), 2);
    for byte in asked() {
        client.sends(&mut world, PSH | ACK, &[byte]);
    }
    assert_eq!(client.answers().len(), 1);
    let last = client.sends(&mut world, FIN | ACK, &[]).unwrap();
    assert_eq!((last.flags, last.acknowledgment), (FIN | ACK, client.sequence));
    assert_eq!(client.sends(&mut world, ACK, &[]), None);
    let stray = client.segment(ACK, client.sequence, &[]);
    world.drops(WEB, &stray, DropReason::NoConnection);
    assert_eq!(world.switch.flows().count(), 0);
}

#[test]
fn what_is_lost_either_way_is_sent_again() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, deny(), names());
    let mut client = Client::new(WEB, 4000);
    // The answer to the SYN is lost.
    let syn = client.segment(SYN, client.sequence, &[]);
    assert_eq!(world.offer(WEB, &syn), Verdict::Answered);
    let lost = segment(&world.emitted_one(WEB));
    client.connects(&mut world);
    assert_eq!(client.expected, lost.sequence.wrapping_add(1), "the same connection");
    // The answer is lost, and the question comes again.
    let question = client.segment(PSH | ACK, client.sequence, &asked());
    assert_eq!(world.offer(WEB, &question), Verdict::Answered);
    assert!(world.emitted(WEB).len() == 1);
    assert_eq!(world.offer(WEB, &question), Verdict::Answered);
    assert_eq!(segment(&world.emitted_one(WEB)).payload_len_bytes, 0, "known, and acknowledged");
    client.sequence = client.sequence.wrapping_add(asked().len() as u32);
    world.pass_time(Duration::from_millis(200));
    world.tick();
    assert_eq!(client.takes(&mut world), None, "not yet");
    world.pass_time(Duration::from_millis(60));
    world.tick();
    client.takes(&mut world);
    assert_eq!(client.answers().len(), 1);
    // A segment that is not next is not taken.
    let ahead = client.segment(PSH | ACK, client.sequence.wrapping_add(1), &asked());
    assert_eq!(world.offer(WEB, &ahead), Verdict::Answered);
    assert_eq!(segment(&world.emitted_one(WEB)).acknowledgment, client.sequence);
    client.sends(&mut world, PSH | ACK, &asked());
    assert_eq!(client.answers().len(), 1);
    // Nobody answers any more.
    for _ in 0..100 {
        world.pass_time(Duration::from_secs(1));
        world.tick();
        assert!(world.switch.emissions().count() <= 1);
    }
    let late = client.segment(ACK, client.sequence, &[]);
    world.drops(WEB, &late, DropReason::NoConnection);
}

#[test]
fn a_small_window_is_kept_to() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, deny(), names());
    let mut client = Client::new(WEB, 4000);
    client.window = 100;
    client.connects(&mut world);
    client.sends(&mut world, PSH | ACK, &asked());
    assert_eq!(client.received.len(), 100);
    client.window = 0;
    assert_eq!(client.sends(&mut world, ACK, &[]), None);
    // A closed window is tried with one byte now and then.
    world.pass_time(Duration::from_millis(300));
    world.tick();
    assert_eq!(client.takes(&mut world).unwrap().payload_len_bytes, 1);
    client.window = 60_000;
    client.sends(&mut world, ACK, &[]);
    assert_eq!(client.answers().len(), 1);
}

#[test]
fn connections_of_one_port_are_bounded_and_the_idlest_goes() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, deny(), names());
    let mut clients: Vec<Client> = (0..17).map(|number| Client::new(WEB, 4000 + number)).collect();
    for client in &mut clients[..16] {
        world.pass_time(Duration::from_millis(1));
        client.connects(&mut world);
    }
    clients[0].sends(&mut world, PSH | ACK, &asked());
    clients[16].connects(&mut world);
    let idlest = clients[1].segment(PSH | ACK, clients[1].sequence, &asked());
    world.drops(WEB, &idlest, DropReason::NoConnection);
    assert!(segment(&world.emitted_one(WEB)).flags.has(RST));
    clients[2].sends(&mut world, PSH | ACK, &asked());
    assert_eq!(clients[2].answers().len(), 1);
}

#[test]
fn what_is_no_question_gets_an_error_or_ends_the_connection() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, deny(), names());
    let mut client = Client::new(WEB, 4000);
    client.connects(&mut world);
    let mut garbled = asked();
    garbled[2 + 5] = 9;
    client.sends(&mut world, PSH | ACK, &garbled);
    assert_eq!(client.answers()[0].metadata.response_code, ResponseCode::FormErr);
    let reset = client.sends(&mut world, PSH | ACK, &[0xff; 40]).unwrap();
    assert!(reset.flags.has(RST), "65,535 bytes are no question");

    let mut client = Client::new(WEB, 4001);
    client.connects(&mut world);
    let off = client.segment(RST, client.sequence.wrapping_add(1), &[]);
    assert_eq!(world.offer(WEB, &off), Verdict::Answered);
    client.sends(&mut world, PSH | ACK, &asked());
    assert_eq!(client.answers().len(), 1, "a reset that is not exact means nothing");
    client.sends(&mut world, RST, &[]);
    let late = client.segment(PSH | ACK, client.sequence, &asked());
    world.drops(WEB, &late, DropReason::NoConnection);
}

#[test]
fn elsewhere_connections_to_port_53_are_flows() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, allow(), names());
    world.connect(WEB, API, 53);
}

#[test]
fn the_process_behind_each_question_counts() {
    let mut memory = memory(64);
    let inner = Entry { exe: Some("/bin/shop"), ..entry("api", Level::Instance, &[WEB]) };
    let mut world = World::with_services(&mut memory, deny(), Names::new(vec![inner]));
    let mut client = Client::new(WEB, 4000);
    client.connects(&mut world);
    let frame = client.segment(PSH | ACK, client.sequence, &framed(&question("api.", RecordType::A)));
    assert!(matches!(world.offer(WEB, &frame), Verdict::Ask(_)));
    world.emits_nothing();
    assert_eq!(world.offer_as(WEB, &frame, process("/bin/shop"), None), Verdict::Answered);
    client.takes(&mut world);
    assert_eq!(client.answers()[0].answers.len(), 1);
}

#[test]
fn another_card_at_the_same_port_has_no_part_in_its_connections() {
    let mut memory = memory(64);
    let mut world = World::with_services(&mut memory, deny(), names());
    let mut client = Client::new(WEB, 4000);
    client.connects(&mut world);
    world.install_machines(deny(), &MACHINES[1..]);
    world.install_services(deny(), names());
    let late = client.segment(PSH | ACK, client.sequence, &asked());
    world.drops(WEB, &late, DropReason::NoConnection);
}

#[test]
fn answers_of_others_come_when_they_come_and_the_end_waits_for_them() {
    let mut memory = memory(64);
    let mut config = config();
    config.dns.as_mut().unwrap().has_upstreams = true;
    let mut world = World::with_config(&mut memory, config, allow());
    world.install_services(allow(), names());
    let mut client = Client::new(WEB, 4000);
    client.connects(&mut world);
    let other = |id| {
        let mut question = question("www.example.com.", RecordType::A);
        question.metadata.id = id;
        framed(&question)
    };
    let both = [other(1), other(2), asked()].concat();
    client.sends(&mut world, PSH | ACK, &both);
    assert_eq!(client.answers().len(), 1, "ours is there at once");
    let last = client.sends(&mut world, FIN | ACK, &[]).unwrap();
    assert!(!last.flags.has(FIN), "there is more to come");
    let waiting: Vec<_> = world.switch.dns_questions().collect();
    for (position, question) in waiting.iter().enumerate().rev() {
        let message = Message::error_msg(0, OpCode::Query, ResponseCode::NoError);
        let now = world.now;
        world.switch.dns_reply(now, DnsReply { ticket: question.ticket, message: Some(message) });
        let last = client.takes(&mut world).unwrap();
        assert_eq!(last.flags.has(FIN), position == 0);
    }
    let ids: Vec<u16> = client.answers().iter().map(|answer| answer.metadata.id).collect();
    assert_eq!(ids, [2, 1]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// However questions are cut into segments, and whichever frames are lost either way, each is answered once and
    /// in order.
    #[test]
    fn answers_are_a_stream(
        cuts in prop::collection::vec(1..60_usize, 1..40),
        losses in prop::collection::vec(any::<bool>(), 200),
    ) {
        let mut memory = memory(64);
        let mut world = World::with_services(&mut memory, deny(), names());
        let mut client = Client::new(WEB, 4000);
        client.connects(&mut world);
        let ids: Vec<u16> = (1..=5).collect();
        let mut stream = Vec::new();
        for id in &ids {
            let mut question = question("api.mesh.internal.", RecordType::SRV);
            question.metadata.id = *id;
            stream.extend(framed(&question));
        }
        let start = client.sequence;
        let mut losses = losses.into_iter().chain(std::iter::repeat(false));
        // How far the switch has acknowledged.
        let mut acknowledged = 0;
        let mut cuts = cuts.iter().cycle();
        for _ in 0..600 {
            let done = acknowledged == stream.len();
            let end = (acknowledged + cuts.next().unwrap()).min(stream.len());
            let data = if done { &[][..] } else { &stream[acknowledged..end] };
            let frame = client.segment(PSH | ACK, start.wrapping_add(acknowledged as u32), data);
            if !losses.next().unwrap() {
                prop_assert_eq!(world.offer(WEB, &frame), Verdict::Answered);
            }
            world.pass_time(Duration::from_millis(40));
            world.tick();
            for frame in world.emitted(WEB) {
                if losses.next().unwrap() {
                    continue;
                }
                let tcp = segment(&frame);
                acknowledged = acknowledged.max(tcp.acknowledgment.wrapping_sub(start) as usize);
                if tcp.sequence == client.expected {
                    client.received.extend_from_slice(&frame[frame.len() - tcp.payload_len_bytes..]);
                    client.expected = tcp.sequence_end();
                }
            }
        }
        let answered: Vec<u16> = client.answers().iter().map(|answer| answer.metadata.id).collect();
        prop_assert_eq!(answered, ids);
    }
}
