// SPDX-License-Identifier: Apache-2.0
//! A flow as a span.
//!
//! Attributes are those of OpenTelemetry's semantic conventions where there are any (`source.*`, `destination.*`,
//! `network.*`, `error.type`), else `meshvisor.*`. A span is of kind *internal*, for it is neither end's own view. What
//! the trace was sampled by stands in its state (`ot=th:`), so that a collector can tell how many flows it stands for.

use std::net::IpAddr;

use model::{AppProtocol, Attribution, Moment, Protocol, Sample, Spoken};
use vswitch::{FlowChange, FlowEnd, FlowEvent, FlowRecord, FlowState, FlowTrace};

use super::message::{Event, KIND_INTERNAL, KeyValue, STATUS_ERROR, Span, Status, Value};

/// Sampled, with a random trace identifier (W3C trace context level 2), and known to have no remote parent.
const FLAGS: u32 = 0x103;

/// The span of a flow that is over, if it is traced; `unix_ns` gives the time of day of a moment.
pub fn span(event: &FlowEvent, unix_ns: impl Fn(Moment) -> u64) -> Option<Span> {
    let FlowEvent { record, .. } = event;
    let trace = record.trace.as_ref()?;
    let (end, error) = ending(event, trace);
    let mut attributes = Attributes::default();
    attributes.network(record);
    for (side, flow_end) in [("source", &record.initiator), ("destination", &record.responder)] {
        attributes.end(side, flow_end);
    }
    attributes.decision(record);
    attributes.endpoint(record);
    attributes.add("meshvisor.end", end);
    if !trace.whole {
        attributes.add("meshvisor.partial", true);
    }
    if let Some((kind, _)) = &error {
        attributes.add("error.type", *kind);
    }
    let moments = [("connect", trace.connected), ("first_byte", trace.answered)];
    let moments = moments.into_iter().filter_map(|(name, moment)| Some((name, moment?)));
    Some(Span {
        trace_id: trace.id.to_be_bytes().to_vec(),
        span_id: span_id(trace.id).to_vec(),
        trace_state: format!("ot=th:{}", threshold(trace.sample)),
        name: name(record),
        kind: KIND_INTERNAL,
        start_time_unix_nano: unix_ns(record.opened),
        end_time_unix_nano: unix_ns(ended(event, trace)),
        attributes: attributes.0,
        events: moments
            .map(|(name, moment)| Event { time_unix_nano: unix_ns(moment), name: name.to_owned() })
            .collect(),
        status: error.map(|(_, message)| Status { message, code: STATUS_ERROR }),
        flags: FLAGS,
    })
}

/// One that follows from the trace's: there is one span of a trace.
fn span_id(trace: u128) -> [u8; 8] {
    let halves = (trace >> 64) as u64 ^ (trace as u64).rotate_left(32);
    halves.max(1).to_be_bytes()
}

/// The sampling threshold as OpenTelemetry writes it: 14 hexadecimal digits without the zeros at their end.
fn threshold(sample: Sample) -> String {
    let digits = format!("{:014x}", sample.threshold());
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() { "0".to_owned() } else { digits.to_owned() }
}

/// Few different ones: the protocol, and the service or machine that was called.
fn name(record: &FlowRecord) -> String {
    let protocol = record.tuple.protocol;
    let called = record.judgement.as_ref().and_then(|judgement| judgement.via.as_ref());
    match (called, &record.responder.nic) {
        (Some(service), _) => format!("{protocol} {service}"),
        (None, Some(nic)) => format!("{protocol} {}", nic.vm),
        (None, None) => format!("{protocol} outside"),
    }
}

/// When the flow was over: that both ends have closed is known exactly, that it has fallen idle only later.
fn ended(event: &FlowEvent, trace: &FlowTrace) -> Moment {
    let record = &event.record;
    let last = match event.change {
        FlowChange::Denied | FlowChange::Reset => event.at,
        FlowChange::Opened | FlowChange::Ongoing | FlowChange::Closed => {
            trace.closed.unwrap_or(record.last_seen)
        }
    };
    // When a frame was seen last is known to the millisecond only.
    [Some(record.opened), trace.connected, trace.answered].into_iter().flatten().fold(last, Moment::max)
}

/// How the flow has ended, and what was wrong with that, if something was: its kind, and in words.
fn ending(event: &FlowEvent, trace: &FlowTrace) -> (&'static str, Option<(&'static str, String)>) {
    let record = &event.record;
    let decided = |verb: &str| {
        let judgement = record.judgement.as_ref();
        let by = judgement.map_or_else(String::new, |judgement| judgement.decided_by.to_string());
        let unmet = judgement.and_then(|judgement| judgement.unmet);
        let because = unmet.map(|unmet| format!(", because {unmet}")).unwrap_or_default();
        format!("{verb} by {by} of generation {}{because}", record.generation)
    };
    let reset = |end: &FlowEnd| end.sent_flags.has(packet::TcpFlags::RST);
    let failed = |end, kind, words: &str| (end, Some((kind, words.to_owned())));
    match (event.change, record.state) {
        (FlowChange::Denied, _) => ("denied", Some(("denied", decided("denied")))),
        (FlowChange::Reset, _) => ("policy", Some(("policy", decided("ended")))),
        _ if reset(&record.responder) && trace.whole && trace.connected.is_none() => {
            failed("refused", "refused", "whom it was for has refused it")
        }
        _ if reset(&record.responder) => failed("reset", "reset", "reset by whom it was for"),
        _ if reset(&record.initiator) => failed("reset", "reset", "reset by who opened it"),
        (_, FlowState::SynSent) => failed("timeout", "timeout", "nobody has answered"),
        (_, FlowState::SynReceived) => failed("timeout", "timeout", "the handshake was not completed"),
        (_, FlowState::Closed) => ("closed", None),
        _ => ("idle", None),
    }
}

/// Attributes in the order in which they were added.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, key: &str, value: impl Into<Value>) {
        self.0.push(KeyValue::new(key, value));
    }

    fn add_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        self.0.extend(value.map(|value| KeyValue::new(key, value)));
    }

    /// What was said on the wire.
    fn network(&mut self, record: &FlowRecord) {
        let tuple = &record.tuple;
        self.add("network.transport", tuple.protocol.to_string());
        self.add("network.type", if tuple.source.is_ipv4() { "ipv4" } else { "ipv6" });
        // HTTP/1.x and 2 are versions of one protocol.
        let (spoken, version) = match record.spoken {
            Some(Spoken::Known(AppProtocol::Http2)) => (Some("http"), Some("2")),
            Some(Spoken::Known(protocol)) => (Some(protocol.as_str()), None),
            _ => (None, None),
        };
        self.add_some("network.protocol.name", spoken);
        self.add_some("network.protocol.version", version);
        let has_ports = matches!(tuple.protocol, Protocol::Tcp | Protocol::Udp);
        let mut end = |side: &str, address: IpAddr, port: u16| {
            self.add(&format!("{side}.address"), address.to_string());
            self.add_some(&format!("{side}.port"), has_ports.then_some(u64::from(port)));
        };
        end("source", tuple.source, tuple.source_port);
        end("destination", tuple.destination, tuple.destination_port);
        end("network.peer", record.delivered.ip(), record.delivered.port());
        for (way, end) in [("sent", &record.initiator), ("received", &record.responder)] {
            self.add(&format!("meshvisor.{way}.bytes"), end.sent_bytes);
            self.add(&format!("meshvisor.{way}.frames"), end.sent_frames);
        }
    }

    /// Who one of the ends is.
    fn end(&mut self, side: &str, end: &FlowEnd) {
        let mut add =
            |key: &str, value: Option<Value>| self.add_some(&format!("meshvisor.{side}.{key}"), value);
        add("vm", end.nic.as_ref().map(|nic| nic.vm.to_string().into()));
        let Some(is) = end.attribution.as_deref() else { return };
        let process = is.process.as_ref();
        add("process", process.map(|process| process.exe.as_ref().unwrap_or(&process.name).as_str().into()));
        add("pid", process.map(|process| u64::from(process.pid).into()));
        add("user", is.user().map(Into::into));
        add("uid", is.uid().map(|uid| u64::from(uid).into()));
        add("unit", is.unit().map(Into::into));
        add("container", is.container().map(Into::into));
        add("inside", is.inner.map(|inner| inner.to_string().into()));
        add("attribution", Some(attribution(is).into()));
    }

    /// What policy has said, and which services the flow had.
    fn decision(&mut self, record: &FlowRecord) {
        let Some(judgement) = &record.judgement else { return };
        self.add("meshvisor.verdict", judgement.action.to_string());
        self.add("meshvisor.rule", judgement.decided_by.to_string());
        self.add("meshvisor.rules", judgement.matched.iter().map(ToString::to_string).collect::<Value>());
        if !judgement.audited.is_empty() {
            let audited = judgement.audited.iter().map(|(rule, action)| format!("{rule} ({action})"));
            self.add("meshvisor.rules.audited", audited.collect::<Value>());
        }
        self.add("meshvisor.generation", record.generation.0);
        let flags = judgement.services().words().map(str::to_owned);
        self.add("meshvisor.flags", flags.collect::<Value>());
        self.add_some("meshvisor.service", judgement.via.as_ref().map(ToString::to_string));
    }

    /// Who was chosen to serve it, and why.
    fn endpoint(&mut self, record: &FlowRecord) {
        let Some(choice) = &record.choice else { return };
        self.add_some("meshvisor.endpoint", record.responder.nic.as_ref().map(|nic| nic.vm.to_string()));
        self.add("meshvisor.endpoint.why", choice.to_string());
        self.add("meshvisor.endpoint.retries", u64::from(choice.retries));
    }
}

/// How sure it is who an end is, or why it is not known.
fn attribution(is: &Attribution) -> String {
    match is.unknown {
        Some(reason) => format!("{} ({reason})", is.outcome()),
        None => is.confidence.to_string(),
    }
}
