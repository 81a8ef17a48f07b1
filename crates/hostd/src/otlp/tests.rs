// SPDX-License-Identifier: Apache-2.0
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};

use model::{Judgement, RuleId, Sample};
use testkit::claim::{await_that, skip};
use testkit::collector::Collector;
use vswitch::{Choice, FlowChange, FlowState, FlowTrace};

use super::*;
use crate::flowlog::tests::event;

/// A call that was answered and closed; its source port is in its trace's identifier.
fn closed(source_port: u16) -> FlowEvent {
    let mut event = event(source_port);
    event.change = FlowChange::Closed;
    let record = &mut event.record;
    let now = clock::now();
    let at = |ms: u64| Moment(now.0 - 1_000_000_000 + ms * 1_000_000);
    (record.opened, record.last_seen, record.state) = (at(0), at(90), FlowState::Closed);
    record.trace = Some(FlowTrace {
        id: 0x5b8e_fff7_9803_8103_d269_b633_0000_0000 + u128::from(source_port),
        sample: Sample::ALL,
        whole: true,
        connected: Some(at(20)),
        answered: Some(at(50)),
        closed: Some(at(91)),
    });
    record.choice = Some(Choice { retries: 1, ..Choice::default() });
    record.judgement = Some(Arc::new(Judgement {
        via: Some(RuleId("acme/api".into())),
        ..Judgement::new(model::Action::Allow, RuleId("acme/web-to-api".into()))
    }));
    event
}

fn config(collector: SocketAddr) -> TracesConfig {
    TracesConfig {
        endpoint: format!("http://{collector}/v1/traces"),
        service_name: "meshvisor-hostd".into(),
        host_name: "host-7".into(),
        timeout: Duration::from_secs(10),
    }
}

#[test]
fn a_real_collector_reads_the_spans() {
    let Some(program) = Collector::program() else {
        return skip("a_real_collector_reads_the_spans", "there is no collector of traces");
    };
    let dir = testkit::scratch::Scratch::new("otlp").unwrap();
    let collector = Collector::start(&program, dir.path()).unwrap();
    let spans = Spans::start(Some(config(collector.address())), Arc::default()).unwrap();
    (1..=600).for_each(|port| spans.offer(&closed(port)));
    let (opened, denied) = (FlowChange::Opened, FlowChange::Denied);
    for (port, change) in [(601, opened), (602, denied)] {
        spans.offer(&FlowEvent { change, ..closed(port) });
    }
    await_that("all is exported", || spans.numbers().stats(0).exported == 601);
    await_that("the collector has read all", || collector.spans().unwrap().len() == 601);
    let read = collector.spans().unwrap();
    let call = read.iter().find(|span| span.attribute("source.port") == Some("602")).unwrap();
    assert_eq!(call.status, "STATUS_CODE_ERROR");
    assert_eq!(call.attribute("error.type"), Some("denied"));
    let call = read.iter().find(|span| span.attribute("source.port") == Some("7")).unwrap();
    assert_eq!(call.trace_id, "5b8efff798038103d269b63300000007");
    assert_eq!((call.name.as_str(), call.status.as_str()), ("tcp acme/api", ""));
    for (key, value) in [
        ("service.name", "meshvisor-hostd"),
        ("host.name", "host-7"),
        ("network.transport", "tcp"),
        ("destination.address", "127.0.0.1"),
        ("destination.port", "80"),
        ("meshvisor.rule", "acme/web-to-api"),
        ("meshvisor.endpoint.why", "maglev, hash of the flow, retry 1"),
    ] {
        assert_eq!(call.attribute(key), Some(value), "{key} of {call:?}");
    }
    let since_start = |ns: u64| (ns - call.start_ns) / 1_000_000;
    let events: Vec<_> = call.events.iter().map(|(name, ns)| (name.as_str(), since_start(*ns))).collect();
    assert_eq!((events, since_start(call.end_ns)), (vec![("connect", 20), ("first_byte", 50)], 91));
}

/// Answers requests one after the other as told, and hands over how many spans each had.
fn answering(answers: Vec<(&'static str, Vec<u8>)>) -> (SocketAddr, std::thread::JoinHandle<Vec<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        let mut seen = Vec::new();
        for (status, answer) in answers {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(&stream);
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let line = line.trim_end().to_ascii_lowercase();
                if let Some(text) = line.strip_prefix("content-length: ") {
                    length = text.parse().unwrap();
                }
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
            seen.push(request.resource_spans[0].scope_spans[0].spans.len());
            write!(
                &stream,
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            )
            .unwrap();
            (&stream).write_all(&answer).unwrap();
        }
        seen
    };
    (address, std::thread::spawn(serve))
}

/// Exports so many flows in one batch; spans that were exported and lost.
fn export(address: SocketAddr, flows: u16) -> (u64, u64) {
    let (ring, events) = crossbeam_channel::bounded(QUEUED_MAX);
    (1..=flows).for_each(|port| ring.send(closed(port)).unwrap());
    drop(ring);
    let counts = Arc::new(Counts::default());
    let exporter =
        Exporter { pause: Duration::from_millis(1), ..Exporter::new(config(address), Arc::clone(&counts)) };
    exporter.run(&events);
    (counts.exported.load(Ordering::Relaxed), counts.lost.load(Ordering::Relaxed))
}

#[test]
fn what_cannot_be_taken_now_is_sent_again_and_what_is_rejected_is_counted() {
    let partly = ExportTraceServiceResponse {
        partial_success: Some(message::ExportTracePartialSuccess {
            rejected_spans: 2,
            error_message: "too old".into(),
        }),
    };
    let (address, server) = answering(vec![
        ("503 Service Unavailable", Vec::new()),
        ("429 Too Many Requests\r\nRetry-After: 0", Vec::new()),
        ("200 OK", partly.encode_to_vec()),
    ]);
    assert_eq!(export(address, 5), (3, 2));
    assert_eq!(server.join().unwrap(), [5, 5, 5]);
    let (address, server) = answering(vec![("400 Bad Request", Vec::new())]);
    assert_eq!(export(address, 5), (0, 5));
    assert_eq!(server.join().unwrap(), [5], "what is wrong is not sent again");
    let (address, server) = answering(vec![("502 Bad Gateway", Vec::new()); TRIES_MAX as usize]);
    assert_eq!(export(address, 5), (0, 5));
    assert_eq!(server.join().unwrap(), [5; TRIES_MAX as usize]);
    let (address, server) =
        answering(vec![("200 OK", b"not protobuf \xff".to_vec()), ("200 OK", Vec::new())]);
    assert_eq!(export(address, BATCH_SPANS_MAX as u16 + 1), (BATCH_SPANS_MAX as u64 + 1, 0));
    assert_eq!(server.join().unwrap(), [BATCH_SPANS_MAX, 1]);
}

#[test]
fn a_collector_that_is_silent_or_absent_holds_up_nobody_and_every_loss_is_counted() {
    const BEYOND: usize = 3000;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let spans = Spans::start(Some(config(silent.local_addr().unwrap())), Arc::default()).unwrap();
    for number in 0..QUEUED_MAX + BEYOND {
        spans.offer(&closed(number as u16));
    }
    // The thread may have taken one batch out of the ring.
    let lost = spans.numbers().stats(0).lost as usize;
    assert!((BEYOND - BATCH_SPANS_MAX..=BEYOND).contains(&lost), "{lost}");

    let nobody = Spans::start(None, Arc::default()).unwrap();
    nobody.offer(&closed(1));
    nobody.offer(&event(2));
    assert_eq!(nobody.numbers().stats(7), SpanStats { exported: 0, lost: 8 });
}
