// SPDX-License-Identifier: Apache-2.0
//! The exporting thread: flows that are over, and now and then those that go on, as IPFIX to one collector.
//!
//! Over UDP a record may get lost without anybody knowing, as RFC 7011 section 10.3 warns; templates are repeated.
//! Over TCP the thread connects for as long as it takes, and takes no records meanwhile: they wait in the ring,
//! then add up there ([`crate::funnel`]). Records of a message that could not be sent are counted as lost.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::admin::RecordStats;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use ipfix::{Direction, Encoder, End, EndReason, Event, Message, Record};
use model::{Action, Judgement, Moment, Spoken};
use vswitch::{FlowChange, FlowEnd, FlowEvent, FlowState};

use crate::clock;
use crate::funnel::{Funnel, FunnelCounts};

/// Flows waiting to be exported; more are added up.
pub const QUEUED_MAX: usize = 65_536;
/// How long a record may wait for others to share its message.
const LINGER: Duration = Duration::from_millis(500);
/// Time for connecting, and for a collector to take a message.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause before the next try to connect.
const RECONNECT: Duration = Duration::from_secs(1);

/// Where and how to export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportConfig {
    /// The collector.
    pub collector: SocketAddr,
    /// How to reach it.
    pub transport: Transport,
    /// The observation domain that our records are of.
    pub domain: u32,
    /// The enterprise number of our own elements.
    pub enterprise: u32,
    /// How often templates are repeated over UDP.
    pub template_refresh: Duration,
}

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What has been exported so far.
#[derive(Debug, Default)]
pub struct Exported {
    /// Records sent.
    pub records: AtomicU64,
    /// Flows in records that could not be sent.
    pub lost: AtomicU64,
}

/// What became of the records of flows, on their whole way.
#[derive(Debug)]
pub struct Records {
    funnels: Vec<Arc<FunnelCounts>>,
    exported: Option<Arc<Exported>>,
}

impl Records {
    /// Records that go through a first funnel.
    pub fn new(first: Arc<FunnelCounts>) -> Self {
        Self { funnels: vec![first], exported: None }
    }

    /// Starts exporting, if there is a collector; returns where to put the flows.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn export(&mut self, config: Option<ExportConfig>) -> io::Result<Option<Funnel>> {
        let Some(config) = config else { return Ok(None) };
        let (ring, flows) = crossbeam_channel::bounded(QUEUED_MAX);
        let funnel = Funnel::new(ring);
        self.funnels.push(funnel.counts());
        self.exported = Some(start(config, flows)?);
        Ok(Some(funnel))
    }

    /// As clients see them; `lost` were so before they came here.
    pub fn stats(&self, lost: u64) -> RecordStats {
        let sum = |of: fn(&FunnelCounts) -> &AtomicU64| -> u64 {
            self.funnels.iter().map(|counts| of(counts).load(Ordering::Relaxed)).sum()
        };
        let exported = |of: fn(&Exported) -> &AtomicU64| {
            self.exported.as_ref().map_or(0, |exported| of(exported).load(Ordering::Relaxed))
        };
        RecordStats {
            exported: exported(|exported| &exported.records),
            merged: sum(|counts| &counts.merged),
            lost: lost + sum(|counts| &counts.lost) + exported(|exported| &exported.lost),
        }
    }
}

/// Starts the thread.
fn start(config: ExportConfig, flows: Receiver<FlowEvent>) -> io::Result<Arc<Exported>> {
    let exported = Arc::new(Exported::default());
    let encoder = Encoder::new(config.domain, config.enterprise, ipfix::DATAGRAM_BYTES);
    let refreshed = clock::now();
    let mut exporter = Exporter {
        config,
        encoder,
        wire: None,
        refreshed,
        flows_pending: 0,
        exported: Arc::clone(&exported),
    };
    std::thread::Builder::new().name("export".into()).spawn(move || exporter.run(&flows))?;
    Ok(exported)
}

/// A way to the collector.
enum Wire {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Wire {
    fn open(config: &ExportConfig) -> io::Result<Self> {
        match config.transport {
            Transport::Udp => {
                let any = if config.collector.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(config.collector)?;
                Ok(Self::Udp(socket))
            }
            Transport::Tcp => {
                let stream = TcpStream::connect_timeout(&config.collector, PATIENCE)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Udp(socket) => socket.send(message).map(drop),
            Self::Tcp(stream) => stream.write_all(message),
        }
    }
}

struct Exporter {
    config: ExportConfig,
    encoder: Encoder,
    wire: Option<Wire>,
    /// When templates were last sent.
    refreshed: Moment,
    /// Flows in the message at hand.
    flows_pending: u64,
    exported: Arc<Exported>,
}

impl Exporter {
    fn run(&mut self, flows: &Receiver<FlowEvent>) {
        let mut reported = false;
        loop {
            match Wire::open(&self.config) {
                Ok(wire) => {
                    tracing::info!(collector = %self.config.collector, "exporting flows");
                    reported = false;
                    self.encoder.restart();
                    self.wire = Some(wire);
                    if self.serve(flows).is_none() {
                        return;
                    }
                }
                Err(error) if !reported => {
                    tracing::warn!(collector = %self.config.collector, %error, "collector not reached");
                    reported = true;
                }
                Err(_) => {}
            }
            std::thread::park_timeout(RECONNECT);
        }
    }

    /// Exports until the way to the collector breaks; `None` when there will be no more flows.
    fn serve(&mut self, flows: &Receiver<FlowEvent>) -> Option<()> {
        while self.wire.is_some() {
            let event = if self.flows_pending == 0 {
                flows.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                flows.recv_timeout(LINGER)
            };
            match event {
                Ok(event) => self.export(&event),
                Err(RecvTimeoutError::Timeout) => self.finish(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.finish();
                    return None;
                }
            }
        }
        Some(())
    }

    fn export(&mut self, event: &FlowEvent) {
        let now = clock::now();
        if self.config.transport == Transport::Udp
            && now.since(self.refreshed) >= self.config.template_refresh
        {
            self.refreshed = now;
            self.encoder.expire_templates();
        }
        let unix = unix_ms();
        let texts = Texts::of(event);
        let record = record(event, &texts, |then| unix.saturating_sub(millis(now.since(then))));
        let full = self.encoder.push(&record, seconds(unix));
        if let Some(message) = full {
            self.send(&message);
        }
        self.flows_pending += event.flows;
    }

    /// Sends what there is.
    fn finish(&mut self) {
        if let Some(message) = self.encoder.take(seconds(unix_ms())) {
            self.send(&message);
        }
    }

    fn send(&mut self, message: &Message) {
        let flows = std::mem::take(&mut self.flows_pending);
        let Some(wire) = &mut self.wire else { return };
        match wire.send(&message.bytes) {
            Ok(()) => drop(self.exported.records.fetch_add(message.records.into(), Ordering::Relaxed)),
            Err(error) => {
                self.exported.lost.fetch_add(flows, Ordering::Relaxed);
                // Nobody listens there at the moment: the next datagram may find somebody.
                if self.config.transport == Transport::Tcp {
                    tracing::warn!(collector = %self.config.collector, %error, "collector lost");
                    self.wire = None;
                }
            }
        }
    }
}

/// The texts that a record borrows.
struct Texts {
    vms: [String; 2],
    rules: String,
}

impl Texts {
    fn of(event: &FlowEvent) -> Self {
        let record = &event.record;
        let vm = |end: &FlowEnd| end.nic.as_ref().map(|nic| nic.vm.to_string()).unwrap_or_default();
        Self {
            vms: [vm(&record.initiator), vm(&record.responder)],
            rules: record.judgement.as_deref().map(rules).unwrap_or_default(),
        }
    }
}

/// All rules that matched, those in audit mode in parentheses.
fn rules(judgement: &Judgement) -> String {
    let enforced = judgement.matched.iter().map(ToString::to_string);
    let audited = judgement.audited.iter().map(|(rule, _)| format!("({rule})"));
    enforced.chain(audited).collect::<Vec<_>>().join(",")
}

/// A flow as collectors are told of it; `unix_ms` gives the time of day of a moment.
fn record<'a>(event: &'a FlowEvent, texts: &'a Texts, unix_ms: impl Fn(Moment) -> u64) -> Record<'a> {
    let flow = &event.record;
    let judgement = flow.judgement.as_deref();
    let direction = |end: &FlowEnd| Direction {
        packets: end.sent_frames,
        bytes: end.sent_bytes,
        tcp_flags: end.sent_flags.0,
    };
    let end = |end: &'a FlowEnd, vm: &'a str| {
        let process = end.attribution.as_ref().and_then(|is| is.process.as_ref());
        End {
            interface: end.port.0.into(),
            vm,
            process: process.map_or("", |process| process.exe.as_deref().unwrap_or(&process.name)),
            uid: end.attribution.as_ref().and_then(|is| is.uid()),
        }
    };
    Record {
        tuple: flow.tuple,
        start_ms: unix_ms(flow.opened),
        end_ms: unix_ms(flow.last_seen),
        sent: direction(&flow.initiator),
        answered: direction(&flow.responder),
        event: match event.change {
            FlowChange::Denied => Event::Denied,
            FlowChange::Ongoing => Event::Updated,
            FlowChange::Opened | FlowChange::Reset | FlowChange::Closed => Event::Deleted,
        },
        reason: match (event.change, flow.state) {
            (FlowChange::Denied | FlowChange::Reset, _) => EndReason::Forced,
            (FlowChange::Ongoing, _) => EndReason::Active,
            (_, FlowState::Closed) => EndReason::EndOfFlow,
            _ => EndReason::Idle,
        },
        source: end(&flow.initiator, &texts.vms[0]),
        destination: end(&flow.responder, &texts.vms[1]),
        verdict: judgement.map_or(0, |judgement| match judgement.action {
            Action::Allow => 1,
            Action::Deny => 2,
        }),
        rule: judgement.map_or("", |judgement| &judgement.decided_by.0),
        rules: &texts.rules,
        generation: flow.generation.0,
        handshake_us: flow.rtt.map_or(0, |rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX)),
        flows: event.flows,
        application: flow.spoken.map_or("", Spoken::as_str),
    }
}

fn unix_ms() -> u64 {
    millis(clock::unix())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds as IPFIX writes them: modulo 2^32.
fn seconds(unix_ms: u64) -> u32 {
    (unix_ms / 1000) as u32
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::net::TcpListener;
    use std::process::Command;

    use model::RuleId;
    use rustix::time::{ClockId, clock_gettime};
    use testkit::claim::{await_that, skip};
    use testkit::process::Process;
    use testkit::scratch::Scratch;
    use vswitch::Told;

    use super::*;
    use crate::flowlog::tests::event;

    fn closed(source_port: u16) -> FlowEvent {
        let mut event = event(source_port);
        event.change = FlowChange::Closed;
        event.record.initiator.sent_frames = 3;
        event.record.initiator.sent_bytes = 300;
        event.record.responder.sent_frames = 2;
        event.record.responder.sent_bytes = 2000;
        let rule = |name: &str| RuleId(name.into());
        event.record.judgement = Some(Arc::new(Judgement {
            matched: vec![rule("acme/web-to-api"), rule("acme/all")],
            audited: vec![(rule("acme/new"), Action::Deny)],
            ..Judgement::new(Action::Allow, rule("acme/web-to-api"))
        }));
        event
    }

    fn config(collector: SocketAddr, transport: Transport) -> ExportConfig {
        ExportConfig {
            collector,
            transport,
            domain: 1,
            enterprise: ipfix::DOCUMENTATION_ENTERPRISE,
            template_refresh: Duration::from_secs(60),
        }
    }

    /// What has arrived at a UDP socket and was not read: `rx_queue` of `proc_net_udp(5)`.
    fn unread_bytes(socket: SocketAddr) -> Option<u64> {
        let end = format!(":{:04X}", socket.port());
        let sockets = fs::read_to_string("/proc/net/udp").ok()?;
        let mut fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let own = fields.find(|fields| fields.get(1).is_some_and(|local| local.ends_with(&end)))?;
        u64::from_str_radix(own.get(4)?.split_once(':')?.1, 16).ok()
    }

    #[test]
    fn a_real_collector_reads_the_flows() {
        const COLLECTOR: &str = "/usr/bin/nfcapd";
        if !std::path::Path::new(COLLECTOR).exists() {
            return skip("a_real_collector_reads_the_flows", "nfdump is not installed");
        }
        let dir = Scratch::new("ipfix").unwrap();
        // Whoever binds to port 0 first may know the number; the collector takes it right after.
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = dir.join("nfcapd.log");
        let mut collector = Process::start(COLLECTOR.as_ref(), log.clone(), |command| {
            command.args(["-b", "127.0.0.1", "-p"]).arg(address.port().to_string());
            command.args(["-t", "3600", "-w"]).arg(dir.path());
        })
        .unwrap();
        await_that("the collector listens", || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("Startup"))
        });
        let mut records = Records::new(Arc::default());
        let mut funnel = records.export(Some(config(address, Transport::Udp))).unwrap().unwrap();
        for source_port in 1..=50 {
            funnel.offer(closed(source_port));
        }
        // One goes on for long: what it did since it was told of is told.
        let mut ongoing = closed(60);
        ongoing.change = FlowChange::Ongoing;
        let mut end = closed(60);
        end.record.initiator.sent_bytes += 150;
        end.record.told = Some(Told { at: ongoing.at, sent: [(3, 300), (2, 2000)] });
        end.record.leave_untold();
        [ongoing, end].into_iter().for_each(|event| funnel.offer(event));
        await_that("all is exported", || records.stats(0).exported == 52);
        await_that("the collector has read all", || unread_bytes(address) == Some(0));
        // It writes its file before it ends.
        collector.stop(Duration::from_secs(10)).unwrap();
        let dump = |arguments: &[&str]| {
            let shown = Command::new("nfdump").arg("-R").arg(dir.path()).arg("-q").args(arguments).output();
            String::from_utf8_lossy(&shown.unwrap().stdout).into_owned()
        };
        let shown = dump(&["-o", "csv"]);
        let log = fs::read_to_string(&log).unwrap_or_default();
        for source_port in 1..=50 {
            let ends = format!("127.0.0.1,127.0.0.1,{source_port},80,TCP");
            assert!(shown.contains(&ends), "no {ends} among\n{shown}\n{log}");
        }
        let long = dump(&["-o", "fmt:%byt", "src port 60"]);
        let mut bytes: Vec<&str> = long.split_whitespace().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, ["150", "300"], "{long}");
        assert!(!log.contains("Sequence Errors: 1"), "{log}");
    }

    #[test]
    fn five_thousand_flows_a_second_take_a_fifth_of_a_processor_and_none_is_lost() {
        const FLOWS: u64 = 25_000;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (ring, flows) = crossbeam_channel::bounded(QUEUED_MAX);
        let mut funnel = Funnel::new(ring);
        for number in 0..FLOWS {
            funnel.offer(closed(number as u16));
        }
        drop(funnel);
        let reader = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut header, mut sequence, mut messages) = ([0; 16], 0, 0);
            while stream.read_exact(&mut header).is_ok() {
                let mut body = vec![0; usize::from(u16::from_be_bytes([header[2], header[3]])) - 16];
                stream.read_exact(&mut body).unwrap();
                sequence = u32::from_be_bytes(header[8..12].try_into().unwrap());
                messages += 1;
            }
            (sequence, messages)
        });
        let exported = Arc::new(Exported::default());
        let config = config(address, Transport::Tcp);
        let mut exporter = Exporter {
            encoder: Encoder::new(1, 1, ipfix::DATAGRAM_BYTES),
            config,
            wire: None,
            refreshed: clock::now(),
            flows_pending: 0,
            exported: Arc::clone(&exported),
        };
        let cpu = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
        let before = cpu();
        exporter.run(&flows);
        let used = cpu() - before;
        drop(exporter);
        let (sequence, messages) = reader.join().unwrap();
        assert_eq!(exported.records.load(Ordering::Relaxed), FLOWS);
        assert!(u64::from(sequence) < FLOWS && messages > 1000, "{sequence} before the last of {messages}");
        let seconds = FLOWS as f64 / 5000.0;
        let share = used.as_secs_f64() / seconds;
        println!("{share:.3} of a processor at 5,000 flows a second");
        assert!(share < 0.2, "{share:.3} of a processor");
    }

    #[test]
    fn flows_wait_for_a_collector_that_is_late() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut records = Records::new(Arc::default());
        let mut funnel = records.export(Some(config(address, Transport::Tcp))).unwrap().unwrap();
        (1..=10).for_each(|port| funnel.offer(closed(port)));
        let listener = TcpListener::bind(address).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        await_that("all is exported", || records.stats(0).exported == 10);
        let mut version = [0; 2];
        stream.read_exact(&mut version).unwrap();
        assert_eq!((u16::from_be_bytes(version), records.stats(0).lost), (10, 0));
    }
}
