// SPDX-License-Identifier: Apache-2.0
//! Names that are not the mesh's: who may ask, and what becomes of the answers.

use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use model::{Action, Level};
use vswitch::{DnsQuestion, DnsReply, FlowSlot, SwitchConfig, Verdict};

use crate::names::*;
use crate::world::*;

const NAME: &str = "www.example.com.";

pub fn with_upstreams() -> SwitchConfig {
    let mut config = config();
    config.dns.as_mut().unwrap().has_upstreams = true;
    config
}

fn world(memory: &mut [FlowSlot], rules: Rules) -> World<'_> {
    let mut world = World::with_config(memory, with_upstreams(), rules.clone());
    world.install_services(rules, Names::new(vec![entry("api", Level::Tenant, &[WEB])]));
    world
}

/// Allows questions about names outside.
fn dns_only() -> Rules {
    deny().but(Rule { to_port: Some(53), ..Rule::default() }, Action::Allow)
}

impl World<'_> {
    /// Asks somebody outside, which must lead to a question for an upstream.
    #[track_caller]
    pub fn asks_outside(&mut self, from: vswitch::PortId, question: &Message) -> DnsQuestion {
        let frame = datagram_to(from, ip("8.8.8.8"), question);
        assert_eq!(self.offer(from, &frame), Verdict::Answered);
        self.emits_nothing();
        let mut questions: Vec<_> = self.switch.dns_questions().collect();
        assert_eq!(questions.len(), 1);
        questions.remove(0)
    }

    pub fn replies(&mut self, question: &DnsQuestion, message: Option<Message>) {
        self.switch.dns_reply(self.now, DnsReply { ticket: question.ticket, message });
    }
}

fn found() -> Message {
    let mut message = Message::error_msg(4711, OpCode::Query, ResponseCode::NoError);
    let address = RData::A(A([192, 0, 2, 7].into()));
    message.add_answer(Record::from_rdata(domain(NAME), 300, address));
    message
}

#[test]
fn an_allowed_question_is_passed_on_and_its_answer_comes_back() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, dns_only());
    let asked = question(NAME, RecordType::A);
    let forwarded = world.asks_outside(OTHER_WEB, &asked);
    assert_eq!((forwarded.tenant.as_str(), &forwarded.query), ("globex", &asked.queries[0]));
    world.replies(&forwarded, Some(found()));
    let answer = answer_in(&world.emitted_one(OTHER_WEB), ip("8.8.8.8"));
    assert_eq!((answer.metadata.id, &answer.queries), (77, &asked.queries));
    assert_eq!(answer.answers, found().answers);
    assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);
    // Once only.
    world.replies(&forwarded, Some(found()));
    world.emits_nothing();
    assert_eq!(world.switch.flows().count(), 0);
}

#[test]
fn names_of_the_mesh_are_never_asked_for_outside() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, allow());
    for name in ["api.mesh.internal.", "xyz.tenant.mesh.internal.", "xyz.", "9.0.97.100.in-addr.arpa."] {
        let frame = datagram_to(DB, ip("8.8.8.8"), &question(name, RecordType::A));
        assert_eq!(world.offer(DB, &frame), Verdict::Answered);
        assert_eq!(world.switch.dns_questions().count(), 0, "{name}");
        let answer = answer_in(&world.emitted_one(DB), ip("8.8.8.8"));
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn whom_policy_does_not_let_ask_is_refused() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, deny());
    let answer = world.asks(WEB, &question_with_edns(NAME, RecordType::A, 1232));
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    assert_eq!(world.switch.dns_questions().count(), 0);
    // By process, where the rules name one.
    world.install(only_from("/usr/bin/curl"));
    let frame = datagram_to(WEB, ip(RESOLVER), &question(NAME, RecordType::A));
    assert!(matches!(world.offer(WEB, &frame), Verdict::Ask(_)));
    assert_eq!(world.offer_as(WEB, &frame, process("/usr/bin/nc"), None), Verdict::Answered);
    assert_eq!(world.switch.dns_questions().count(), 0);
    assert_eq!(world.emitted(WEB).len(), 1);
    assert_eq!(world.offer_as(WEB, &frame, process("/usr/bin/curl"), None), Verdict::Answered);
    assert_eq!(world.switch.dns_questions().count(), 1);
    let counters = world.switch.counters();
    assert_eq!((counters.names_refused, counters.names_forwarded, counters.names_answered), (2, 1, 0));
}

#[test]
fn no_answer_is_a_failure_that_says_so() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, dns_only());
    let forwarded = world.asks_outside(WEB, &question(NAME, RecordType::A));
    world.replies(&forwarded, None);
    let answer = answer_in(&world.emitted_one(WEB), ip("8.8.8.8"));
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn an_answer_that_is_too_long_says_so_and_comes_over_tcp() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, dns_only());
    let mut long = found();
    for number in 0..40 {
        let text = TXT::new(vec![format!("{number} {}", "x".repeat(100))]);
        long.add_answer(Record::from_rdata(domain(NAME), 300, RData::TXT(text)));
    }
    let forwarded = world.asks_outside(WEB, &question_with_edns(NAME, RecordType::ANY, 4096));
    world.replies(&forwarded, Some(long));
    let answer = answer_in(&world.emitted_one(WEB), ip("8.8.8.8"));
    assert!(answer.metadata.truncation && answer.answers.is_empty(), "{answer}");
}

#[test]
fn questions_that_wait_are_bounded_per_port_and_in_time() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, dns_only());
    let frame = datagram_to(WEB, ip("8.8.8.8"), &question(NAME, RecordType::A));
    for _ in 0..64 {
        assert_eq!(world.offer(WEB, &frame), Verdict::Answered);
    }
    let waiting: Vec<_> = world.switch.dns_questions().collect();
    assert_eq!((waiting.len(), world.switch.emissions().count()), (64, 0));
    assert_eq!(world.offer(WEB, &frame), Verdict::Answered);
    let answer = answer_in(&world.emitted_one(WEB), ip("8.8.8.8"));
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(world.switch.dns_questions().count(), 0);
    world.asks_outside(DB, &question(NAME, RecordType::A));
    world.pass_time(Duration::from_secs(16));
    world.asks_outside(WEB, &question(NAME, RecordType::A));
    world.replies(&waiting[0], Some(found()));
    world.emits_nothing();
}

#[test]
fn an_answer_for_a_card_that_is_gone_reaches_nobody() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, dns_only());
    let forwarded = world.asks_outside(WEB, &question(NAME, RecordType::A));
    world.install_machines(dns_only(), &MACHINES[1..]);
    world.install(dns_only());
    world.replies(&forwarded, Some(found()));
    world.emits_nothing();
}

#[test]
fn a_name_server_of_the_mesh_is_asked_itself() {
    let mut memory = memory(64);
    let mut world = world(&mut memory, allow());
    world.forwards(WEB, &datagram_to(WEB, v4(API), &question(NAME, RecordType::A)), API);
    world.connect(WEB, API, 53);
}
