// SPDX-License-Identifier: Apache-2.0
//! Anything a guest may send to port 53, over UDP and over TCP: no panic, and what comes back is well-formed, for the
//! sender, and never about a service that it does not see. Upstreams answer with anything, too.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use model::{
    Action, Audience, Generation, Inventory, MacAddr, Moment, Name, Nic, NicRef, PolicySet, PortMatch,
    Protocol, Ranges, Service, Snapshot, SocketMode, Tenant, Vm, Workload,
};
use packet::emit::{Link, Segment, Stream};
use packet::{Addresses, Head, Network, Packet, TcpFlags, Transport, emit};
use vswitch::{DnsConfig, DnsReply, FlowSlot, Frame, PortId, Switch, SwitchConfig};

/// Steps of one run.
const STEPS_MAX: usize = 32;
const PORT: PortId = PortId(0);
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fuzz_target!(|bytes: &[u8]| {
    let mut run = Run::new();
    let mut rest = bytes;
    for _ in 0..STEPS_MAX {
        let Some(([kind, len], data)) = rest.split_first_chunk::<2>() else { break };
        let (data, others) = data.split_at(usize::from(*len).min(data.len()));
        rest = others;
        run.step(*kind, data);
    }
});

struct Run {
    switch: Switch<Vec<FlowSlot>>,
    now: Moment,
    resolver: Ipv4Addr,
    hidden: Ipv4Addr,
    /// The guest's next sequence number, and the next that it expects.
    numbers: (u32, u32),
}

impl Run {
    fn new() -> Self {
        let mut config = SwitchConfig::new(1);
        config.dns = Some(DnsConfig { has_upstreams: true, ..DnsConfig::default() });
        let resolver = DnsConfig::default().resolver;
        let mut switch = Switch::new(config, vec![FlowSlot::FREE; 64]);
        let (snapshot, hidden) = snapshot();
        let now = Moment(1_000_000_000);
        let nic = NicRef { vm: "acme/web".parse().unwrap(), nic: name("net0") };
        switch.install(now, Arc::new(snapshot), &[(PORT, nic)], &[]);
        Self { switch, now, resolver, hidden, numbers: (1, 0) }
    }

    fn step(&mut self, kind: u8, data: &[u8]) {
        self.now = self.now.after(Duration::from_millis(u64::from(kind >> 4) * 40));
        let link = Link { source: MAC, destination: MacAddr([2, 0, 0x5e, 0, 1, 1]) };
        let addresses = Addresses::V4 { source: OWN, destination: self.resolver };
        let frame = match kind & 7 {
            0..=2 => emit::udp(link, addresses, (4000, 53), data),
            3 => {
                let Some((flags, data)) = data.split_first() else { return };
                self.segment(link, addresses, TcpFlags(*flags), data)
            }
            4 => self.segment(link, addresses, TcpFlags::SYN, &[]),
            5 => self.segment(link, addresses, TcpFlags::ACK, data),
            6 => {
                // A question of this length, as TCP frames it.
                let framed = [&(data.len() as u16).to_be_bytes(), data].concat();
                self.segment(link, addresses, TcpFlags::ACK, &framed)
            }
            _ => return self.answer(data),
        };
        let _ = self.switch.process(self.now, PORT, &mut Frame::copy_of(&frame), None);
        self.switch.tick(self.now, 8);
        self.look();
    }

    fn segment(&mut self, link: Link, addresses: Addresses, flags: TcpFlags, data: &[u8]) -> Vec<u8> {
        let (sequence, acknowledgment) = self.numbers;
        let segment = Segment { source_port: 4000, destination_port: 53, sequence, acknowledgment, flags };
        self.numbers.0 = sequence.wrapping_add(data.len() as u32 + u32::from(flags.has(TcpFlags::SYN)));
        emit::tcp_data(link, addresses, segment, Stream { window: 500, ..Stream::default() }, data)
    }

    /// The upstreams' answers to all that was asked so far.
    fn answer(&mut self, data: &[u8]) {
        let questions: Vec<_> = self.switch.dns_questions().collect();
        for question in questions {
            let message = hickory_proto::op::Message::from_vec(data).ok();
            self.switch.dns_reply(self.now, DnsReply { ticket: question.ticket, message });
        }
        self.look();
    }

    fn look(&mut self) {
        for emission in self.switch.emissions().collect::<Vec<_>>() {
            assert_eq!(emission.port, PORT);
            let packet = Packet::parse(Head::whole(&emission.frame)).expect("our own frame is well-formed");
            assert_eq!(packet.ethernet.destination, MAC);
            let Network::Ip(ip) = packet.network else { panic!("not IP") };
            assert_eq!(ip.addresses.destination(), IpAddr::V4(OWN));
            match ip.transport {
                Transport::Tcp(tcp) if !tcp.flags.has(TcpFlags::RST) => {
                    self.numbers.1 = tcp.sequence_end();
                }
                Transport::Udp(udp) => {
                    let answer = &emission.frame[udp.payload_offset..ip.end];
                    let hidden = self.hidden.octets();
                    assert!(answer.len() <= 1472, "longer than the link");
                    let shown = hickory_proto::op::Message::from_vec(answer).is_ok_and(|answer| {
                        answer.metadata.authoritative
                            && answer.answers.iter().any(|record| {
                                matches!(record.data, hickory_proto::rr::RData::A(a) if a.0.octets() == hidden)
                            })
                    });
                    assert!(!shown, "told of a service that is not there for the asker");
                }
                _ => {}
            }
        }
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A machine of one tenant, a service that it sees, and one of another tenant; the latter's address.
fn snapshot() -> (Snapshot, Ipv4Addr) {
    let tenants =
        ["acme", "globex"].map(|tenant| Tenant { name: name(tenant), default_action: Action::Allow });
    let vm = Vm {
        id: "acme/web".parse().unwrap(),
        labels: Default::default(),
        nics: vec![Nic {
            name: name("net0"),
            socket: "web.sock".into(),
            socket_mode: SocketMode::Listen,
            mac: MAC,
            addresses: vec!["10.0.0.1/24".parse().unwrap()],
            mtu_bytes: 1500,
        }],
    };
    let inventory = Inventory::new(tenants.to_vec(), vec![vm]).unwrap();
    let ports = vec![PortMatch { ports: Some(80.into()), protocol: Protocol::Tcp }];
    let service = |tenant: &str, called: &str| Service {
        audience: Audience::Tenant,
        ..Service::new(name(tenant), name(called), Workload::default(), ports.clone())
    };
    let services = vec![service("acme", "a"), service("globex", "b")];
    let set = PolicySet { services, ..PolicySet::default() };
    let services = policy::catalogue(&inventory, &set, &Ranges::default()).unwrap();
    let judge = Arc::new(policy::compile(&inventory, &set).unwrap());
    let hidden = model::Directory::offers(&services)[1].v4;
    let services = Arc::new(services);
    (Snapshot { generation: Generation::default().next(), inventory, judge, services }, hidden)
}
