// SPDX-License-Identifier: Apache-2.0
//! Who in a machine talks to whom: the switch's flows joined with the guest's sockets.
//!
//! The wire tells what was carried. The process is the one found when the flow was judged, else the one that
//! holds the flow's socket now, else, for inbound flows, the one that listens on the port now; which of these it
//! was is stated. Guests behind address translation of their own have flows without a socket.
//!
//! That one conversation feeds another is concluded from time alone: a process opened the outbound flow while
//! the inbound one was live. Flows are looked at in pairs only within one process.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use api::admin::{Conversation, DataFlow, Direction, Feed, FeedConfidence, Process, ToldBy};
use model::{Moment, Protocol, VmRef};
use vswitch::FlowRecord;

/// The question, and all that is known.
pub struct DataFlowQuestion<'a> {
    /// The machine.
    pub vm: &'a VmRef,
    /// Flows with the machine at one end.
    pub records: &'a [FlowRecord],
    /// The guest's sockets; none when it is not understood.
    pub sockets: &'a vmi::SocketDetails,
    /// The guest's processes.
    pub processes: &'a [model::Process],
}

/// A flow as the machine sees it.
struct Leg<'a> {
    record: &'a FlowRecord,
    key: Key,
    process: Option<model::Process>,
    told_by: ToldBy,
    rtt_us: Option<u32>,
}

/// What flows of one conversation have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Process id and start time.
    process: Option<(u32, u64)>,
    direction: Direction,
    protocol: Protocol,
    peer: IpAddr,
    port: u16,
}

/// The guest's sockets by what a frame tells of them.
struct SocketIndex<'a> {
    connections: HashMap<(Protocol, SocketAddr, SocketAddr), &'a vmi::SocketDetail>,
    /// TCP listeners and UDP sockets that are not connected, by port.
    servers: HashMap<(Protocol, u16), &'a vmi::SocketDetail>,
    processes: HashMap<u32, &'a model::Process>,
}

impl DataFlowQuestion<'_> {
    /// Conversations, the one with most bytes first, and what feeds what.
    pub fn answer(&self, now: Moment) -> DataFlow {
        let index = SocketIndex::new(self.sockets, self.processes);
        let directions = [Direction::Inbound, Direction::Outbound];
        let pairs = self.records.iter().flat_map(|record| directions.map(|direction| (record, direction)));
        let legs: Vec<Leg<'_>> =
            pairs.filter_map(|(record, direction)| self.leg(record, direction, &index)).collect();
        let mut conversations: BTreeMap<&Key, Conversation> = BTreeMap::new();
        for leg in &legs {
            conversations.entry(&leg.key).or_insert_with(|| leg.conversation()).add(leg, now);
        }
        let mut conversations: Vec<(&Key, Conversation)> = conversations.into_iter().collect();
        conversations
            .sort_by_key(|(_, talk)| std::cmp::Reverse(talk.sent_bytes.saturating_add(talk.received_bytes)));
        let places: BTreeMap<&Key, usize> =
            conversations.iter().enumerate().map(|(at, (key, _))| (*key, at)).collect();
        let feeds = feeds(&legs).into_iter().map(|((inbound, outbound), confidence)| Feed {
            inbound: places[inbound],
            outbound: places[outbound],
            confidence,
        });
        let mut feeds: Vec<Feed> = feeds.collect();
        feeds.sort_by_key(|feed| (std::cmp::Reverse(feed.confidence), feed.inbound, feed.outbound));
        DataFlow { feeds, conversations: conversations.into_iter().map(|(_, talk)| talk).collect() }
    }

    /// The flow as seen from the machine, if it was opened in that direction. One between two cards of the
    /// machine is seen twice.
    fn leg<'a>(
        &self,
        record: &'a FlowRecord,
        direction: Direction,
        index: &SocketIndex<'_>,
    ) -> Option<Leg<'a>> {
        let tuple = &record.tuple;
        let source = SocketAddr::new(tuple.source, tuple.source_port);
        let destination = SocketAddr::new(tuple.destination, tuple.destination_port);
        let (end, local, remote) = match direction {
            Direction::Inbound => (&record.responder, destination, source),
            Direction::Outbound => (&record.initiator, source, destination),
        };
        let is_carried = record.judgement.as_ref().is_none_or(|j| j.action == model::Action::Allow);
        if end.nic.as_ref().map(|nic| &nic.vm) != Some(self.vm) || !is_carried {
            return None;
        }
        let socket = index.connections.get(&(tuple.protocol, local, remote)).copied();
        let server = index.servers.get(&(tuple.protocol, local.port())).copied();
        let server = server.filter(|_| direction == Direction::Inbound);
        let judged = end.attribution.as_ref().and_then(|found| found.process.clone());
        let owner =
            |detail: Option<&vmi::SocketDetail>| detail.and_then(|detail| index.owner(detail)).cloned();
        let (process, told_by) = if let Some(process) = judged {
            (Some(process), ToldBy::Verdict)
        } else if let Some(process) = owner(socket) {
            (Some(process), ToldBy::Socket)
        } else if let Some(process) = owner(server) {
            (Some(process), ToldBy::Listener)
        } else {
            (None, ToldBy::Nothing)
        };
        let key = Key {
            process: process.as_ref().map(|process| (process.pid, process.start_time_ns)),
            direction,
            protocol: tuple.protocol,
            peer: remote.ip(),
            port: destination.port(),
        };
        let rtt_us = socket.and_then(|detail| detail.tcp).map(|tcp| tcp.rtt_us).filter(|&rtt| rtt > 0);
        Some(Leg { record, key, process, told_by, rtt_us })
    }
}

impl<'a> SocketIndex<'a> {
    fn new(sockets: &'a vmi::SocketDetails, processes: &'a [model::Process]) -> Self {
        let (mut connections, mut servers) = (HashMap::new(), HashMap::new());
        for detail in sockets.internet.iter().filter(|detail| !detail.is_raw) {
            let socket = &detail.socket;
            let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
            if socket.remote.port() == 0 {
                servers.insert((socket.protocol, socket.local.port()), detail);
            } else {
                let ends = (socket.protocol, canonical(socket.local), canonical(socket.remote));
                connections.insert(ends, detail);
            }
        }
        Self { connections, servers, processes: processes.iter().map(|p| (p.pid, p)).collect() }
    }

    /// The oldest process that holds a socket.
    fn owner(&self, detail: &vmi::SocketDetail) -> Option<&'a model::Process> {
        detail.socket.owners.iter().find_map(|owner| self.processes.get(&owner.pid).copied())
    }
}

impl Leg<'_> {
    /// A conversation of no flows yet.
    fn conversation(&self) -> Conversation {
        let peer = match self.key.direction {
            Direction::Inbound => &self.record.initiator,
            Direction::Outbound => &self.record.responder,
        };
        Conversation {
            process: self.process.as_ref().map(Process::from),
            told_by: self.told_by,
            direction: self.key.direction,
            protocol: self.key.protocol.to_string(),
            peer: self.key.peer,
            peer_vm: peer.nic.as_ref().map(|nic| nic.vm.to_string()),
            port: self.key.port,
            flows: 0,
            sent_frames: 0,
            sent_bytes: 0,
            received_frames: 0,
            received_bytes: 0,
            rtt_us: None,
            first_seen_ms: 0,
            last_seen_ms: u64::MAX,
        }
    }

    /// Whether the flow was live at a moment.
    fn is_live_at(&self, moment: Moment) -> bool {
        self.record.opened <= moment && moment <= self.record.last_seen
    }
}

/// Adds a flow to its conversation.
trait Add {
    fn add(&mut self, leg: &Leg<'_>, now: Moment);
}

impl Add for Conversation {
    fn add(&mut self, leg: &Leg<'_>, now: Moment) {
        let (own, other) = match leg.key.direction {
            Direction::Inbound => (&leg.record.responder, &leg.record.initiator),
            Direction::Outbound => (&leg.record.initiator, &leg.record.responder),
        };
        let age_ms = |then: Moment| u64::try_from(now.since(then).as_millis()).unwrap_or(u64::MAX);
        self.flows += 1;
        self.sent_frames = self.sent_frames.saturating_add(own.sent_frames);
        self.sent_bytes = self.sent_bytes.saturating_add(own.sent_bytes);
        self.received_frames = self.received_frames.saturating_add(other.sent_frames);
        self.received_bytes = self.received_bytes.saturating_add(other.sent_bytes);
        self.told_by = self.told_by.max(leg.told_by);
        self.rtt_us = self.rtt_us.into_iter().chain(leg.rtt_us).min();
        self.first_seen_ms = self.first_seen_ms.max(age_ms(leg.record.opened));
        self.last_seen_ms = self.last_seen_ms.min(age_ms(leg.record.last_seen));
    }
}

/// Which inbound conversation feeds which outbound one, and how surely.
fn feeds<'a>(legs: &'a [Leg<'_>]) -> BTreeMap<(&'a Key, &'a Key), FeedConfidence> {
    let mut inbound: HashMap<(u32, u64), Vec<&Leg<'_>>> = HashMap::new();
    for leg in legs.iter().filter(|leg| leg.key.direction == Direction::Inbound) {
        if let Some(process) = leg.key.process {
            inbound.entry(process).or_default().push(leg);
        }
    }
    let mut feeds = BTreeMap::new();
    for leg in legs.iter().filter(|leg| leg.key.direction == Direction::Outbound) {
        let Some(callers) = leg.key.process.and_then(|process| inbound.get(&process)) else { continue };
        let mut live: Vec<&Key> = Vec::new();
        for caller in callers.iter().filter(|caller| caller.is_live_at(leg.record.opened)) {
            if !live.contains(&&caller.key) {
                live.push(&caller.key);
            }
        }
        // One that was open before may have been kept for later callers.
        let later = callers.iter().filter(|caller| leg.is_live_at(caller.record.opened)).map(|c| &c.key);
        let confidence = match live.len() {
            1 => FeedConfidence::Likely,
            _ => FeedConfidence::Possible,
        };
        let fed = live.iter().map(|key| (*key, confidence));
        for (caller, confidence) in fed.chain(later.map(|key| (key, FeedConfidence::Possible))) {
            let known = feeds.entry((caller, &leg.key)).or_insert(confidence);
            *known = confidence.max(*known);
        }
    }
    feeds
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::{Attribution, Confidence, FiveTuple, Generation, NicRef};
    use vswitch::{FlowEnd, FlowState, PortId};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A flow between addresses; the machine `acme/api` has 10.0.0.2.
    fn flow(source: &str, destination: &str, opened_s: u64, last_seen_s: u64) -> FlowRecord {
        let (source, destination): (SocketAddr, SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        let end = |ip: IpAddr, sent_frames: u64| {
            let vm = match ip.to_string().as_str() {
                "10.0.0.1" => Some("acme/web"),
                "10.0.0.2" => Some("acme/api"),
                _ => None,
            };
            let nic = vm.map(|vm| NicRef { vm: vm.parse().unwrap(), nic: "net0".parse().unwrap() });
            let (attribution, sent_flags) = (None, packet::TcpFlags::default());
            let sent_bytes = sent_frames * 100;
            FlowEnd { port: PortId(0), nic, attribution, sent_frames, sent_bytes, sent_flags }
        };
        FlowRecord {
            tuple: FiveTuple {
                source: source.ip(),
                destination: destination.ip(),
                source_port: source.port(),
                destination_port: destination.port(),
                protocol: Protocol::Tcp,
            },
            delivered: destination,
            initiator: end(source.ip(), 2),
            responder: end(destination.ip(), 3),
            state: FlowState::Established,
            judgement: None,
            generation: Generation(1),
            opened: Moment(opened_s * SECOND),
            last_seen: Moment(last_seen_s * SECOND),
            rtt: None,
            choice: None,
            trace: None,
            told: None,
            spoken: None,
        }
    }

    fn socket(local: &str, remote: &str, pid: u32) -> vmi::SocketDetail {
        let (local, remote): (SocketAddr, SocketAddr) = (local.parse().unwrap(), remote.parse().unwrap());
        let is_listener = remote.port() == 0;
        let tcp =
            vmi::TcpCounters { rtt_us: 70, retransmits: 0, sent_bytes: 0, acked_bytes: 0, received_bytes: 0 };
        vmi::SocketDetail {
            socket: vmi::Socket {
                protocol: Protocol::Tcp,
                local,
                remote,
                state: if is_listener { vmi::SocketState::Listen } else { vmi::SocketState::Established },
                uid: None,
                inode: None,
                netns_inode: 1,
                owners: vec![vmi::Owner { pid, fd: 3 }],
            },
            is_raw: false,
            accept_queue: None,
            tcp: (!is_listener).then_some(tcp),
        }
    }

    fn ask(records: &[FlowRecord], sockets: Vec<vmi::SocketDetail>) -> DataFlow {
        let process = |pid| model::Process { pid, start_time_ns: 1, ..model::Process::default() };
        let question = DataFlowQuestion {
            vm: &"acme/api".parse().unwrap(),
            records,
            sockets: &vmi::SocketDetails { internet: sockets, packet: vec![] },
            processes: &[process(7), process(8)],
        };
        question.answer(Moment(100 * SECOND))
    }

    const LISTENER: (&str, &str) = ("0.0.0.0:8080", "0.0.0.0:0");

    #[test]
    fn flows_with_one_peer_are_one_conversation_and_directions_are_the_machines() {
        let records = [
            flow("10.0.0.1:1", "10.0.0.2:8080", 10, 20),
            flow("10.0.0.1:2", "10.0.0.2:8080", 30, 40),
            flow("10.0.0.2:3", "192.0.2.9:443", 50, 60),
        ];
        let told = ask(&records, vec![socket(LISTENER.0, LISTENER.1, 7)]);
        let [inbound, outbound] = &told.conversations[..] else { panic!("{told:?}") };
        assert_eq!((inbound.direction, inbound.flows, inbound.port), (Direction::Inbound, 2, 8080));
        assert_eq!((inbound.sent_frames, inbound.received_frames, inbound.received_bytes), (6, 4, 400));
        assert_eq!((inbound.peer_vm.as_deref(), inbound.told_by), (Some("acme/web"), ToldBy::Listener));
        assert_eq!((inbound.first_seen_ms, inbound.last_seen_ms), (90_000, 60_000));
        assert_eq!((outbound.direction, outbound.sent_frames), (Direction::Outbound, 2));
        assert_eq!((outbound.peer_vm.as_deref(), outbound.told_by), (None, ToldBy::Nothing));
    }

    #[test]
    fn process_is_told_by_verdict_then_socket_then_listener() {
        let mut record = flow("10.0.0.1:1", "10.0.0.2:8080", 10, 20);
        let listener = || socket(LISTENER.0, LISTENER.1, 7);
        let accepted = || socket("[::ffff:10.0.0.2]:8080", "[::ffff:10.0.0.1]:1", 8);
        let told = |record: &FlowRecord, sockets| {
            let told = ask(std::slice::from_ref(record), sockets).conversations.remove(0);
            (told.process.map(|process| process.pid), told.told_by, told.rtt_us)
        };
        assert_eq!(told(&record, vec![]), (None, ToldBy::Nothing, None));
        assert_eq!(told(&record, vec![listener()]), (Some(7), ToldBy::Listener, None));
        assert_eq!(told(&record, vec![listener(), accepted()]), (Some(8), ToldBy::Socket, Some(70)));
        record.responder.attribution = Some(Arc::new(Attribution {
            process: Some(model::Process { pid: 9, ..model::Process::default() }),
            socket_uid: None,
            socket_user: None,
            socket_cgroup: None,
            socket_netns: None,
            inner: None,
            confidence: Confidence::Table,
            unknown: None,
        }));
        assert_eq!(told(&record, vec![listener(), accepted()]), (Some(9), ToldBy::Verdict, Some(70)));
    }

    #[test]
    fn outbound_flow_is_fed_by_who_was_live_when_it_was_opened() {
        let out = ("10.0.0.2:5", "192.0.2.9:443");
        let caller = |from: &str, opened, last| flow(from, "10.0.0.2:8080", opened, last);
        let sockets = || vec![socket(LISTENER.0, LISTENER.1, 7), socket(out.0, out.1, 7)];
        let confidences = |records: &[FlowRecord], sockets| {
            ask(records, sockets).feeds.iter().map(|feed| feed.confidence).collect::<Vec<_>>()
        };
        use FeedConfidence::{Likely, Possible};
        let outbound = flow(out.0, out.1, 15, 16);
        let one = [caller("10.0.0.1:1", 10, 20), outbound.clone()];
        assert_eq!(confidences(&one, sockets()), [Likely]);
        let feed = ask(&one, sockets());
        assert_eq!(feed.conversations[feed.feeds[0].inbound].direction, Direction::Inbound);
        assert_eq!(feed.conversations[feed.feeds[0].outbound].direction, Direction::Outbound);
        let two = [caller("10.0.0.1:1", 10, 20), caller("192.0.2.1:1", 10, 20), outbound.clone()];
        assert_eq!(confidences(&two, sockets()), [Possible, Possible]);
        let over = [caller("10.0.0.1:1", 1, 2), outbound.clone()];
        assert_eq!(confidences(&over, sockets()), []);
        let kept = [caller("10.0.0.1:1", 20, 21), flow(out.0, out.1, 15, 30)];
        assert_eq!(confidences(&kept, sockets()), [Possible]);
        let others = vec![socket(LISTENER.0, LISTENER.1, 7), socket(out.0, out.1, 8)];
        assert_eq!(confidences(&one, others), []);
        assert_eq!(confidences(&one, vec![]), []);
    }
}
