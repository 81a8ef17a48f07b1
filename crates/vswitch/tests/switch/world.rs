// SPDX-License-Identifier: Apache-2.0
//! Two tenants that use the same addresses, a policy of a few rules, and frames between them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use model::{
    Action, AppProtocols, Attribution, Confidence, Counted, Detour, Directory, ExternalNetwork, FlowQuery,
    Generation, Insertion, Inventory, Judge, Judgement, Level, Limit, MacAddr, Moment, Needs, Nic, NicRef,
    NoServices, Part, Process, Protocol, Qos, RuleId, Sample, ServiceFlags, Snapshot, SocketMode, Tenant, Vm,
    VmIndex, VmRef,
};
use packet::emit::Link;
use packet::{Addresses, Head, Network, Packet, Tcp, TcpFlags, Transport, emit};
use vswitch::{
    Answers, DropReason, FlowChange, FlowEvent, FlowRecord, FlowSlot, Frame, PortId, Switch, SwitchConfig,
    Uplink, Verdict,
};

pub const ACK: TcpFlags = TcpFlags::ACK;
pub const FIN: TcpFlags = TcpFlags::FIN;
pub const RST: TcpFlags = TcpFlags::RST;
pub const SYN: TcpFlags = TcpFlags::SYN;

/// Ports of the machines, in the order of [`MACHINES`].
pub const WEB: PortId = PortId(0);
pub const API: PortId = PortId(1);
pub const DB: PortId = PortId(2);
pub const OTHER_WEB: PortId = PortId(3);
pub const OTHER_API: PortId = PortId(4);
/// The port that leads outside.
pub const UPLINK: PortId = PortId(5);

pub const MACHINES: [(&str, &[&str]); 5] = [
    ("acme/web", &["10.0.0.11/24", "fd00::11/64"]),
    ("acme/api", &["10.0.0.12/24", "fd00::12/64"]),
    ("acme/db", &["10.0.1.13/24"]),
    ("globex/web", &["10.0.0.11/24"]),
    ("globex/api", &["10.0.0.12/24"]),
];

pub fn mac(port: PortId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, port.0 as u8 + 1])
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The first IPv4 address behind a port.
pub fn v4(port: PortId) -> IpAddr {
    ip(MACHINES[usize::from(port.0)].1[0].split('/').next().unwrap())
}

/// The IPv6 address behind a port.
pub fn v6(port: PortId) -> IpAddr {
    ip(MACHINES[usize::from(port.0)].1[1].split('/').next().unwrap())
}

pub fn nic(port: PortId) -> NicRef {
    let vm = MACHINES[usize::from(port.0)].0.parse().unwrap();
    NicRef { vm, nic: "net0".parse().unwrap() }
}

/// A rule for tests: what is `None` matches anything.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub to_port: Option<u16>,
    pub from_exe: Option<&'static str>,
    pub to_exe: Option<&'static str>,
    /// What the destination outside was found under.
    pub to_name: Option<&'static str>,
}

/// The first rule that matches decides; each is named by its position.
#[derive(Clone, Debug)]
pub struct Rules {
    pub default: Action,
    pub rules: Vec<(Rule, Action)>,
    /// Flows to this port go to another machine, by its position in [`MACHINES`], and port.
    pub detour: Option<(u16, Detour)>,
    /// Flows to this port are copied to a machine.
    pub mirror: Option<(u16, VmIndex)>,
    /// Flows to this port are logged.
    pub log: Option<u16>,
    /// Flows to this port are limited.
    pub limit: Option<(u16, Limit)>,
    /// So many of the flows to this port are traced.
    pub trace: Option<(u16, Sample)>,
    /// Flows to these ports have a part of the limits that they meet.
    pub parts: Vec<(u16, Part)>,
    /// What flows to these ports must meet.
    pub demands: Vec<(u16, ServiceFlags)>,
    /// In flows to this port it is told what is spoken, which must be one of these.
    pub layer7: Option<(u16, Option<AppProtocols>)>,
}

impl Rules {
    pub fn always(default: Action) -> Self {
        Self {
            default,
            rules: Vec::new(),
            detour: None,
            mirror: None,
            log: None,
            limit: None,
            trace: None,
            parts: Vec::new(),
            demands: Vec::new(),
            layer7: None,
        }
    }

    pub fn but(mut self, rule: Rule, action: Action) -> Self {
        self.rules.push((rule, action));
        self
    }
}

fn is_exe(attribution: Option<&Attribution>, exe: Option<&str>) -> bool {
    exe.is_none_or(|exe| {
        attribution.and_then(|a| a.process.as_ref()).and_then(|p| p.exe.as_deref()) == Some(exe)
    })
}

impl Judge for Rules {
    fn needs(&self, query: &FlowQuery<'_>) -> Needs {
        let could = |rule: &&(Rule, Action)| rule.0.to_port.is_none_or(|p| p == query.tuple.destination_port);
        let mut needs = Needs::default();
        for (rule, _) in self.rules.iter().filter(could) {
            needs.source |= rule.from_exe.is_some();
            needs.destination |= rule.to_exe.is_some();
        }
        let proven = self.insert(query).iter().any(|own| own.services.has(ServiceFlags::AUTHENTICATE));
        needs.source |= proven && query.source.vm.is_some();
        needs.destination |= proven && query.destination.vm.is_some();
        needs
    }

    fn judge(&self, query: &FlowQuery<'_>) -> Judgement {
        let hit = self.rules.iter().position(|(rule, _)| {
            rule.to_port.is_none_or(|port| port == query.tuple.destination_port)
                && is_exe(query.source.attribution, rule.from_exe)
                && is_exe(query.destination.attribution, rule.to_exe)
                && rule.to_name.is_none_or(|name| query.names.iter().any(|own| **own == *name))
        });
        let (action, name) = match hit {
            Some(index) => (self.rules[index].1, index.to_string()),
            None => (self.default, "default".to_owned()),
        };
        let decided_by = RuleId(format!("test/{name}").into());
        Judgement { inserted: self.insert(query), ..Judgement::new(action, decided_by) }
    }

    fn names_domain(&self, _: VmIndex, name: &str) -> bool {
        self.rules.iter().any(|(rule, _)| rule.to_name == Some(name))
    }

    fn detour(&self, query: &FlowQuery<'_>) -> Option<Detour> {
        self.detour.filter(|(port, _)| *port == query.tuple.destination_port).map(|(_, detour)| detour)
    }

    fn insert(&self, query: &FlowQuery<'_>) -> Vec<Arc<Insertion>> {
        let is = |port: u16| port == query.tuple.destination_port;
        let insertion = |services: ServiceFlags, mirror| {
            let rule = RuleId(format!("test/{services}").into());
            Insertion { mirror, ..Insertion::new(rule, Level::Tenant, services) }
        };
        let limit = self
            .limit
            .filter(|(port, _)| is(*port))
            .map(|(_, limit)| limit.insertion(&RuleId("test/limit".into()), Level::Tenant, Counted::EachWay));
        let mirror = self.mirror.filter(|(port, _)| is(*port));
        let mirror = mirror.map(|(_, vm)| Arc::new(insertion(ServiceFlags::MIRROR, Some(vm))));
        let log = self.log.filter(|port| is(*port)).map(|_| Arc::new(insertion(ServiceFlags::LOG, None)));
        let trace = self.trace.filter(|(port, _)| is(*port)).map(|(_, sample)| {
            Arc::new(Insertion { trace: Some(sample), ..insertion(ServiceFlags::TRACE, None) })
        });
        let parts = self.parts.iter().filter(|(port, _)| is(*port)).map(|(port, part)| {
            let rule = RuleId(format!("test/part-{port}").into());
            Insertion::of_service(rule, Level::Tenant, None, Some(*part)).expect("it has a part")
        });
        let demands = self.demands.iter().filter(|(port, _)| is(*port));
        let demands = demands.map(|(_, services)| Arc::new(insertion(*services, None)));
        let layer7 = self
            .layer7
            .filter(|(port, _)| is(*port))
            .map(|(_, protocols)| Arc::new(Insertion { protocols, ..insertion(ServiceFlags::LAYER7, None) }));
        let added = limit.into_iter().chain(mirror).chain(log).chain(trace).chain(parts);
        added.chain(demands).chain(layer7).collect()
    }
}

/// A process found in a guest.
pub fn process(exe: &str) -> Option<Arc<Attribution>> {
    let process = Process { pid: 1, exe: Some(exe.to_owned()), ..Process::default() };
    Some(Arc::new(Attribution {
        process: Some(process),
        socket_uid: None,
        socket_user: None,
        socket_cgroup: None,
        socket_netns: None,
        inner: None,
        confidence: Confidence::Descriptor,
        unknown: None,
    }))
}

pub fn inventory(machines: &[(&str, &[&str])]) -> Inventory {
    let tenant = |name: &str| Tenant { name: name.parse().unwrap(), default_action: Action::Deny };
    let vm = |(index, (id, addresses)): (usize, &(&str, &[&str]))| Vm {
        id: id.parse().unwrap(),
        labels: Default::default(),
        nics: vec![Nic {
            name: "net0".parse().unwrap(),
            socket: format!("{index}.sock").into(),
            socket_mode: SocketMode::Listen,
            mac: mac(PortId(index as u16)),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            mtu_bytes: 1450,
        }],
    };
    let vms = machines.iter().enumerate().map(vm).collect();
    Inventory::new(vec![tenant("acme"), tenant("globex")], vms).unwrap()
}

pub fn memory(slots: usize) -> Vec<FlowSlot> {
    vec![FlowSlot::FREE; slots]
}

pub fn config() -> SwitchConfig {
    SwitchConfig::new(0x5eed)
}

pub struct World<'a> {
    pub switch: Switch<&'a mut [FlowSlot]>,
    pub now: Moment,
    generation: Generation,
    networks: Vec<ExternalNetwork>,
    qos: Vec<(VmRef, Qos)>,
}

impl<'a> World<'a> {
    pub fn new(memory: &'a mut [FlowSlot], rules: Rules) -> Self {
        Self::with_config(memory, config(), rules)
    }

    pub fn with_config(memory: &'a mut [FlowSlot], config: SwitchConfig, rules: Rules) -> Self {
        let switch = Switch::new(config, memory);
        let (now, networks, qos) = (Moment(1_000_000_000_000), Vec::new(), Vec::new());
        let mut world = Self { switch, now, generation: Generation(0), networks, qos };
        world.install(rules);
        world
    }

    /// Puts a policy in force.
    pub fn install(&mut self, rules: Rules) {
        self.install_machines(rules, &MACHINES);
    }

    /// As [`World::new`], with services.
    pub fn with_services(
        memory: &'a mut [FlowSlot],
        rules: Rules,
        services: impl Directory + 'static,
    ) -> Self {
        let mut world = Self::new(memory, rules.clone());
        world.install_services(rules, services);
        world
    }

    /// Puts a policy and services in force.
    pub fn install_services(&mut self, rules: Rules, services: impl Directory + 'static) {
        self.install_all(rules, &MACHINES, Arc::new(services));
    }

    /// Puts a policy and other machines in force; the ports keep their meaning.
    pub fn install_machines(&mut self, rules: Rules, machines: &[(&str, &[&str])]) {
        self.install_all(rules, machines, Arc::new(NoServices));
    }

    fn install_all(&mut self, rules: Rules, machines: &[(&str, &[&str])], services: Arc<dyn Directory>) {
        self.generation = self.generation.next();
        let inventory = inventory(machines).with_networks(self.networks.clone()).unwrap();
        let inventory = inventory.with_qos(self.qos.clone());
        let snapshot = Snapshot { generation: self.generation, inventory, judge: Arc::new(rules), services };
        let ports: Vec<_> = (0..5).map(|index| (PortId(index), nic(PortId(index)))).collect();
        let uplink = Uplink { id: UPLINK, interface: "tap0".to_owned(), mac: mac(UPLINK) };
        self.switch.install(self.now, Arc::new(snapshot), &ports, &[uplink]);
    }

    /// Puts a policy in force under which the machine at a port gets so much of the host.
    pub fn install_qos(&mut self, rules: Rules, given: &[(PortId, Qos)]) {
        self.qos = given.iter().map(|(port, qos)| (nic(*port).vm, *qos)).collect();
        self.install(rules);
    }

    /// Puts a policy in force and these networks outside.
    pub fn install_networks(&mut self, rules: Rules, networks: Vec<ExternalNetwork>) {
        self.networks = networks;
        self.install(rules);
    }

    pub fn pass_time(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    /// Sweeps all flows.
    pub fn tick(&mut self) {
        self.switch.tick(self.now, usize::MAX);
    }

    pub fn offer(&mut self, port: PortId, frame: &[u8]) -> Verdict {
        self.switch.process(self.now, port, &mut Frame::copy_of(frame), None)
    }

    pub fn offer_as(
        &mut self,
        port: PortId,
        frame: &[u8],
        initiator: Option<Arc<Attribution>>,
        responder: Option<Arc<Attribution>>,
    ) -> Verdict {
        let answers = Answers { initiator, responder };
        self.switch.process(self.now, port, &mut Frame::copy_of(frame), Some(&answers))
    }

    /// The frame must be forwarded; how it leaves.
    #[track_caller]
    pub fn forwards(&mut self, port: PortId, bytes: &[u8], to: PortId) -> Frame {
        let mut frame = Frame::copy_of(bytes);
        assert_eq!(self.switch.process(self.now, port, &mut frame, None), Verdict::Forward(to));
        frame
    }

    #[track_caller]
    pub fn drops(&mut self, port: PortId, frame: &[u8], reason: DropReason) {
        let before = self.switch.counters().drops(reason);
        assert_eq!(self.offer(port, frame), Verdict::Drop(reason));
        assert_eq!(self.switch.counters().drops(reason), before + 1);
    }

    /// Drains the frames of the switch's own; all must be for `port`.
    #[track_caller]
    pub fn emitted(&mut self, port: PortId) -> Vec<Vec<u8>> {
        let emissions: Vec<_> = self.switch.emissions().collect();
        assert!(emissions.iter().all(|emission| emission.port == port), "{emissions:?}");
        emissions.into_iter().map(|emission| emission.frame).collect()
    }

    /// The one frame that was emitted.
    #[track_caller]
    pub fn emitted_one(&mut self, port: PortId) -> Vec<u8> {
        let mut frames = self.emitted(port);
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.remove(0)
    }

    #[track_caller]
    pub fn emits_nothing(&mut self) {
        assert_eq!(self.switch.emissions().count(), 0);
    }

    pub fn events(&mut self) -> Vec<FlowEvent> {
        self.switch.events().collect()
    }

    pub fn changes(&mut self) -> Vec<FlowChange> {
        self.switch.events().map(|event| event.change).collect()
    }

    /// The only flow.
    #[track_caller]
    pub fn flow(&self) -> FlowRecord {
        let mut flows: Vec<_> = self.switch.flows().collect();
        assert_eq!(flows.len(), 1, "{flows:?}");
        flows.remove(0)
    }

    /// Opens a TCP connection from `from` to `to`, whose initial sequence numbers are 1000 and 5000.
    #[track_caller]
    pub fn connect(&mut self, from: PortId, to: PortId, l4_port: u16) -> Dialogue {
        let dialogue = Dialogue::new(from, to, 40_000, l4_port);
        self.forwards(from, &dialogue.out(SYN, 1000, 0, 0), to);
        self.forwards(to, &dialogue.back(SYN | ACK, 5000, 1001, 0), from);
        self.forwards(from, &dialogue.out(ACK, 1001, 5001, 0), to);
        dialogue
    }
}

/// One TCP connection's ends.
#[derive(Clone, Copy, Debug)]
pub struct Dialogue {
    pub from: PortId,
    pub to: PortId,
    pub ports: (u16, u16),
}

impl Dialogue {
    pub fn new(from: PortId, to: PortId, source_port: u16, destination_port: u16) -> Self {
        Self { from, to, ports: (source_port, destination_port) }
    }

    /// A segment from the initiator.
    pub fn out(&self, flags: TcpFlags, sequence: u32, acknowledgment: u32, len: usize) -> Vec<u8> {
        let addresses = between(v4(self.from), v4(self.to));
        tcp(link(self.from, self.to), addresses, self.ports, flags, (sequence, acknowledgment), len)
    }

    /// A segment from the responder.
    pub fn back(&self, flags: TcpFlags, sequence: u32, acknowledgment: u32, len: usize) -> Vec<u8> {
        Self { from: self.to, to: self.from, ports: (self.ports.1, self.ports.0) }.out(
            flags,
            sequence,
            acknowledgment,
            len,
        )
    }
}

/// The Ethernet addresses that a guest uses: its neighbour's on the same subnet, else the gateway's.
pub fn link(from: PortId, to: PortId) -> Link {
    let near = (from == DB) == (to == DB);
    Link { source: mac(from), destination: if near { mac(to) } else { config().gateway_mac } }
}

pub fn between(source: IpAddr, destination: IpAddr) -> Addresses {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Addresses::V4 { source, destination },
        (IpAddr::V6(source), IpAddr::V6(destination)) => Addresses::V6 { source, destination },
        _ => panic!("two families"),
    }
}

pub fn tcp(
    link: Link,
    addresses: Addresses,
    ports: (u16, u16),
    flags: TcpFlags,
    numbers: (u32, u32),
    len: usize,
) -> Vec<u8> {
    tcp_saying(link, addresses, ports, flags, numbers, &vec![b'x'; len])
}

pub fn tcp_saying(
    link: Link,
    addresses: Addresses,
    ports: (u16, u16),
    flags: TcpFlags,
    numbers: (u32, u32),
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend_from_slice(&ports.0.to_be_bytes());
    segment.extend_from_slice(&ports.1.to_be_bytes());
    segment.extend_from_slice(&numbers.0.to_be_bytes());
    segment.extend_from_slice(&numbers.1.to_be_bytes());
    segment.extend_from_slice(&[0x50, flags.0, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(payload);
    emit::ip(link, addresses, Protocol::Tcp, 64, &segment)
}

/// A datagram between two machines.
pub fn udp(from: PortId, to: PortId, ports: (u16, u16)) -> Vec<u8> {
    emit::udp(link(from, to), between(v4(from), v4(to)), ports, b"datagram")
}

/// An ICMP message between two machines.
pub fn icmp(from: PortId, to: PortId, message: &[u8]) -> Vec<u8> {
    emit::ip(link(from, to), between(v4(from), v4(to)), Protocol::Icmp, 64, message)
}

/// An ICMP echo request (8) or reply (0).
pub fn echo(from: PortId, to: PortId, kind: u8, id: u16) -> Vec<u8> {
    let [a, b] = id.to_be_bytes();
    icmp(from, to, &[kind, 0, 0, 0, a, b, 0, 1, b'p', b'i', b'n', b'g'])
}

/// A parsed frame.
#[track_caller]
pub fn parsed(frame: &[u8]) -> (packet::Ethernet, packet::Ip) {
    let packet = Packet::parse(Head::whole(frame)).unwrap();
    match packet.network {
        Network::Ip(ip) => (packet.ethernet, ip),
        other => panic!("not IP: {other:?}"),
    }
}

/// The TCP segment in a frame.
#[track_caller]
pub fn segment(frame: &[u8]) -> Tcp {
    match parsed(frame).1.transport {
        Transport::Tcp(tcp) => tcp,
        other => panic!("not TCP: {other:?}"),
    }
}

/// The type and code of the ICMP message in a frame.
#[track_caller]
pub fn icmp_kind(frame: &[u8]) -> (u8, u8) {
    match parsed(frame).1.transport {
        Transport::Icmp(icmp) => (icmp.kind, icmp.code),
        other => panic!("not ICMP: {other:?}"),
    }
}

pub fn allow() -> Rules {
    Rules::always(Action::Allow)
}

pub fn deny() -> Rules {
    Rules::always(Action::Deny)
}

/// Denies one layer-4 port, allows all else.
pub fn deny_port(port: u16) -> Rules {
    allow().but(Rule { to_port: Some(port), ..Rule::default() }, Action::Deny)
}

/// Allows one program as initiator, denies all else.
pub fn only_from(exe: &'static str) -> Rules {
    deny().but(Rule { from_exe: Some(exe), ..Rule::default() }, Action::Allow)
}
