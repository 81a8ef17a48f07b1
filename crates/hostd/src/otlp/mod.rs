// SPDX-License-Identifier: Apache-2.0
//! The tracing thread: flows that are over and were traced, as spans over OTLP/HTTP to one collector.
//!
//! Spans wait in a ring of [`QUEUED_MAX`] and go in batches of [`BATCH_SPANS_MAX`]. A batch that the collector cannot take
//! now is sent again, with pauses that double, [`TRIES_MAX`] times in all; meanwhile the ring fills. What does not fit, what
//! the collector rejects and what it never takes is counted as lost. Nobody ever waits for this thread.

mod message;
mod span;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::admin::SpanStats;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use model::Moment;
use prost::Message;
use vswitch::FlowEvent;

use crate::clock;
use crate::funnel::FunnelCounts;
use message::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, InstrumentationScope, KeyValue, Resource,
    ResourceSpans, ScopeSpans, Span,
};

/// Flows waiting to be told of; more are lost.
pub const QUEUED_MAX: usize = 8192;
/// Spans of one request.
pub const BATCH_SPANS_MAX: usize = 512;
/// How long a span may wait for others to share its request.
const LINGER: Duration = Duration::from_secs(1);
/// How often a batch is sent before it is lost.
const TRIES_MAX: u32 = 6;
/// The pause before a batch is sent again; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause, whatever the collector asks for.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How much of an answer is read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracesConfig {
    /// The collector's URL for traces: plain HTTP.
    pub endpoint: String,
    /// Resource attribute `service.name`.
    pub service_name: String,
    /// Resource attribute `host.name`.
    pub host_name: String,
    /// How long the collector may take for a request.
    pub timeout: Duration,
}

/// What has become of spans so far.
#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    lost: AtomicU64,
}

/// Where flows go that are over.
#[derive(Debug)]
pub struct Spans {
    ring: Option<Sender<FlowEvent>>,
    counts: Arc<Counts>,
    before: Arc<FunnelCounts>,
}

/// A view of what became of spans.
#[derive(Debug)]
pub struct SpanNumbers {
    counts: Arc<Counts>,
    before: Arc<FunnelCounts>,
}

impl Spans {
    /// Starts the thread, if there is a collector. Events come through the funnel with these counts.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(config: Option<TracesConfig>, before: Arc<FunnelCounts>) -> io::Result<Self> {
        let counts = Arc::new(Counts::default());
        let mut ring = None;
        if let Some(config) = config {
            let (sender, events) = crossbeam_channel::bounded(QUEUED_MAX);
            let exporter = Exporter::new(config, Arc::clone(&counts));
            std::thread::Builder::new().name("traces".into()).spawn(move || exporter.run(&events))?;
            ring = Some(sender);
        }
        Ok(Self { ring, counts, before })
    }

    /// Takes what happened to a flow, if a span follows from it.
    pub fn offer(&self, event: &FlowEvent) {
        if !event.tells_span() {
            return;
        }
        let taken = self.ring.as_ref().is_some_and(|ring| ring.try_send(event.clone()).is_ok());
        self.counts.lost.fetch_add(u64::from(!taken), Ordering::Relaxed);
    }

    /// What will have become of them.
    pub fn numbers(&self) -> SpanNumbers {
        SpanNumbers { counts: Arc::clone(&self.counts), before: Arc::clone(&self.before) }
    }
}

impl SpanNumbers {
    /// As clients see them; `lost` were so in the switch.
    pub fn stats(&self, lost: u64) -> SpanStats {
        let lost = lost + self.before.spans_lost.load(Ordering::Relaxed);
        SpanStats {
            exported: self.counts.exported.load(Ordering::Relaxed),
            lost: lost + self.counts.lost.load(Ordering::Relaxed),
        }
    }
}

/// What a collector says to a batch.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It has taken all but so many.
    Taken { rejected: u64 },
    /// It may take them later, perhaps after a time that it names.
    Later { reason: String, after: Option<Duration> },
    /// It will never take them.
    Never { reason: String },
}

struct Exporter {
    config: TracesConfig,
    agent: ureq::Agent,
    counts: Arc<Counts>,
    pause: Duration,
}

impl Exporter {
    fn new(config: TracesConfig, counts: Arc<Counts>) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(config.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            // The settings alone say where spans go.
            .proxy(None)
            .user_agent(concat!("meshvisor-hostd/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { config, agent: agent.into(), counts, pause: PAUSE }
    }

    fn run(&self, events: &Receiver<FlowEvent>) {
        let mut reported = false;
        while let Some(batch) = gather(events) {
            let spans = batch.len() as u64;
            let body = self.request(batch).encode_to_vec();
            let (lost, trouble) = match self.deliver(&body) {
                Answer::Taken { rejected: 0 } => (0, None),
                Answer::Taken { rejected } => (rejected.min(spans), Some("it rejected spans".to_owned())),
                Answer::Later { reason, .. } | Answer::Never { reason } => (spans, Some(reason)),
            };
            self.counts.lost.fetch_add(lost, Ordering::Relaxed);
            self.counts.exported.fetch_add(spans - lost, Ordering::Relaxed);
            let collector = &self.config.endpoint;
            match &trouble {
                Some(reason) if !reported => tracing::warn!(%collector, reason, lost, "spans are lost"),
                None if reported => tracing::info!(%collector, "spans are taken again"),
                _ => {}
            }
            reported = trouble.is_some();
        }
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let scope =
            InstrumentationScope { name: "meshvisor".into(), version: env!("CARGO_PKG_VERSION").into() };
        let attributes = vec![
            KeyValue::new("service.name", self.config.service_name.as_str()),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("host.name", self.config.host_name.as_str()),
        ];
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes }),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
            }],
        }
    }

    /// Sends a batch, as often as that makes sense.
    fn deliver(&self, body: &[u8]) -> Answer {
        let mut pause = self.pause;
        for _ in 1..TRIES_MAX {
            match self.send(body) {
                Answer::Later { after, .. } => {
                    std::thread::sleep(after.unwrap_or(pause).min(PAUSE_MAX));
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                answer => return answer,
            }
        }
        self.send(body)
    }

    /// One request, as the OTLP specification says how answers are to be read (1.x, "OTLP/HTTP response").
    fn send(&self, body: &[u8]) -> Answer {
        let request = self.agent.post(&self.config.endpoint).content_type("application/x-protobuf");
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => return Answer::Later { reason: error.to_string(), after: None },
        };
        let status = response.status();
        if status.is_success() {
            let answer = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
            // It has taken them, whatever else it says.
            let said = answer.ok().and_then(|bytes| ExportTraceServiceResponse::decode(&bytes[..]).ok());
            let rejected = said.and_then(|said| said.partial_success).map_or(0, |part| part.rejected_spans);
            return Answer::Taken { rejected: u64::try_from(rejected).unwrap_or(0) };
        }
        let reason = format!("it answers {status}");
        if !matches!(status.as_u16(), 429 | 502 | 503 | 504) {
            return Answer::Never { reason };
        }
        let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        Answer::Later { reason, after: after.map(Duration::from_secs) }
    }
}

/// Waits for a flow, and for those that follow soon; `None` when there will be no more.
fn gather(events: &Receiver<FlowEvent>) -> Option<Vec<Span>> {
    let mut batch = Vec::new();
    let first = events.recv().ok()?;
    let began = clock::now();
    let mut next = Ok(first);
    loop {
        match next {
            Ok(event) => {
                let (now, unix) = (clock::now(), nanos(clock::unix()));
                let unix_ns = |then: Moment| unix.saturating_sub(nanos(now.since(then)));
                batch.extend(span::span(&event, unix_ns));
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Some(batch),
        }
        if batch.len() >= BATCH_SPANS_MAX {
            return Some(batch);
        }
        next = events.recv_timeout(LINGER.saturating_sub(clock::now().since(began)));
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
