// SPDX-License-Identifier: Apache-2.0
//! A collector of OpenTelemetry's traces: rotel, which `cargo xtask test` puts below `target`.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::guests;
use crate::process::Process;

/// A running collector that writes down what it receives.
#[derive(Debug)]
pub struct Collector {
    _process: Process,
    log: PathBuf,
    address: SocketAddr,
}

/// A span as the collector has read it; numbers and texts are in its own words.
#[derive(Clone, Debug, Default)]
pub struct ReadSpan {
    /// In hexadecimal.
    pub trace_id: String,
    /// The span's name.
    pub name: String,
    /// `STATUS_CODE_UNSET`, `STATUS_CODE_ERROR`, ...
    pub status: String,
    /// What the status says.
    pub message: String,
    /// Nanoseconds since 1970.
    pub start_ns: u64,
    /// Nanoseconds since 1970.
    pub end_ns: u64,
    /// Of the span, and of the resource that it is of.
    pub attributes: Vec<(String, String)>,
    /// Names and times.
    pub events: Vec<(String, u64)>,
}

impl ReadSpan {
    /// The value of an attribute, without the name of its type.
    #[must_use]
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

impl Collector {
    /// The program, if it has been installed.
    #[must_use]
    pub fn program() -> Option<PathBuf> {
        Some(guests::collector()).filter(|program| program.is_file())
    }

    /// Starts one on loopback with its log in `dir`. It listens a moment later.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(program: &Path, dir: &Path) -> Result<Self> {
        // Whoever binds to port 0 first may know the number; the collector takes it right after.
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()));
        let [http, grpc] = ports;
        let (address, grpc) = (http.context("find a free port")?, grpc.context("find a free port")?);
        let log = dir.join("collector.log");
        let process = Process::start(program, log.clone(), |command| {
            command.args(["start", "--exporter", "blackhole"]);
            command.args(["--debug-log", "traces", "--debug-log-verbosity", "detailed"]);
            command.arg("--otlp-http-endpoint").arg(address.to_string());
            command.arg("--otlp-grpc-endpoint").arg(grpc.to_string());
            command.arg("--pid-file").arg(dir.join("collector.pid"));
        })?;
        Ok(Self { _process: process, log, address })
    }

    /// Where it takes OTLP over HTTP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All spans that it has written down whole.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn spans(&self) -> Result<Vec<ReadSpan>> {
        let text = fs::read_to_string(&self.log).context("read the collector's log")?;
        Ok(read(&text))
    }
}

/// Reads what the collector writes down, as
///
/// ```text
/// Resource attributes:
///      -> host.name: Str(host-7)
/// Span #0
///     Trace ID       : 5b8efff798038103d269b63300000007
///     Name           : tcp acme/api
/// Start time: 1544712660000000000
/// Attributes:
///      -> source.port: Int(7)
/// Events:
/// SpanEvent #0
///      -> Name: connect
///      -> Timestamp: 1544712660000000000
/// ```
fn read(text: &str) -> Vec<ReadSpan> {
    let (mut spans, mut resource): (Vec<ReadSpan>, Vec<(String, String)>) = Default::default();
    let mut section = "";
    for line in text.lines() {
        let line = line.trim();
        let (key, value) = line.split_once(':').map_or((line, ""), |(key, value)| (key.trim(), value.trim()));
        match (line.strip_prefix("-> "), spans.last_mut()) {
            (None, _) if line == "Resource attributes:" => (section, resource) = ("resource", Vec::new()),
            (None, _) if line.starts_with("Span #") => {
                spans.push(ReadSpan { attributes: resource.clone(), ..ReadSpan::default() });
            }
            (None, _) if line == "Attributes:" || line == "Events:" => section = line,
            (None, Some(span)) => match key {
                "Trace ID" => span.trace_id = value.to_owned(),
                "Name" => span.name = value.to_owned(),
                "Status code" => span.status = value.to_owned(),
                "Status message" => span.message = value.to_owned(),
                "Start time" => span.start_ns = value.parse().unwrap_or_default(),
                "End time" => span.end_ns = value.parse().unwrap_or_default(),
                _ => {}
            },
            (Some(pair), span) => {
                let Some((key, value)) = pair.split_once(": ") else { continue };
                match (section, span) {
                    ("resource", _) => resource.push((key.to_owned(), plain(value))),
                    ("Attributes:", Some(span)) => span.attributes.push((key.to_owned(), plain(value))),
                    (_, Some(span)) if key == "Name" => span.events.push((value.to_owned(), 0)),
                    (_, Some(span)) if key == "Timestamp" => {
                        if let Some((_, time)) = span.events.last_mut() {
                            *time = value.parse().unwrap_or_default();
                        }
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    spans
}

/// `Str(x)` and `Int(7)` without the name of their type; others as they are.
fn plain(value: &str) -> String {
    let inner = ["Str(", "Int("].iter().find_map(|kind| value.strip_prefix(kind)?.strip_suffix(')'));
    inner.unwrap_or(value).to_owned()
}
