// SPDX-License-Identifier: Apache-2.0
//! What is measured: each case is a load, what the switch is told, and whom it is compared with.

/// One case.
pub struct Case {
    /// Its name in the output.
    pub name: &'static str,
    /// What the guests do.
    pub load: Load,
    /// What our switch is told.
    pub ours: Program,
    /// Who takes turns with it.
    pub peer: Peer,
    pub unit: &'static str,
}

impl Case {
    /// Whether it is a time or an effort that is measured.
    pub fn is_less_better(&self) -> bool {
        matches!(self.load, Load::Hop | Load::Idle { .. })
    }
}

/// What the guests do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Two guests send as fast as they can, each frame of another flow. Measured in frames per second, or in bits.
    Stream {
        frame_bytes: usize,
        flows: usize,
        /// Properties of the guests' cards, such as `packed_vq=1`.
        card: &'static str,
        in_bits: bool,
    },
    /// One guest opens flows as fast as it can; counted by the switch's own table.
    NewFlows { flows: usize },
    /// One guest asks for names of services as fast as it can, each in turn. Measured in answers per second.
    Questions { names: usize },
    /// One frame goes round and round: the time of one hop.
    Hop,
    /// Guests that do nothing: the processor time that the switch takes.
    Idle { vms: usize },
}

impl Load {
    /// How many flows it is of.
    pub fn flows(self) -> usize {
        match self {
            Self::Stream { flows, .. } | Self::NewFlows { flows } => flows,
            Self::Hop => 1,
            Self::Idle { .. } | Self::Questions { .. } => 0,
        }
    }
}

/// What a switch is told to do. Ours tracks connections and asks policy whatever it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Whatever comes in at one port goes out at the other; the peer decides nothing.
    Forward,
    /// As `Forward`, but for frames with another's address: both guests of [`Load::Hop`] begin with the same one, so that one
    /// frame is left.
    Hop,
    /// Connections are tracked, new ones allowed.
    Track,
    /// As many rules as that, which match nobody's ports, are in the way.
    Acl { rules: usize },
    /// The first guest calls the second by a service's virtual address.
    Service,
    /// The third and the fourth guest are of latency class `Interactive`.
    Interactive,
    /// As many services have a name.
    Names { services: usize },
}

/// Who takes turns with our switch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Nobody,
    /// Open vSwitch with DPDK.
    Ovs(Program),
    /// Our own, told something else.
    Ourselves(Program),
}

pub const fn stream(frame_bytes: usize, flows: usize) -> Load {
    Load::Stream { frame_bytes, flows, card: "", in_bits: false }
}

const ACL_10K: Program = Program::Acl { rules: 10_000 };
const TRACK: Peer = Peer::Ovs(Program::Track);

/// All cases, in the order of the output.
pub const CASES: [Case; 12] = [
    mpps("conntrack_64B_10k_flows", stream(64, 10_000), Program::Track, TRACK),
    mpps(
        "conntrack_64B_10k_flows_packed",
        Load::Stream { frame_bytes: 64, flows: 10_000, card: "packed_vq=1", in_bits: false },
        Program::Track,
        TRACK,
    ),
    mpps("conntrack_1500B_10k_flows", stream(1500, 10_000), Program::Track, TRACK),
    mpps("acl10k_64B_10k_flows", stream(64, 10_000), ACL_10K, Peer::Ovs(ACL_10K)),
    mpps("acl10k_64B_100k_flows", stream(64, 100_000), ACL_10K, Peer::Ovs(ACL_10K)),
    mpps("acl_flatness", stream(64, 10_000), ACL_10K, Peer::Ourselves(Program::Acl { rules: 1 })),
    mpps("forward_64B_10k_flows", stream(64, 10_000), Program::Forward, Peer::Ovs(Program::Forward)),
    mpps("flows_1M_64B", stream(64, 1_000_000), Program::Track, TRACK),
    Case {
        name: "new_flows_per_s",
        load: Load::NewFlows { flows: 1_000_000 },
        ours: Program::Track,
        peer: TRACK,
        unit: "1/s",
    },
    Case {
        name: "hop_latency_us",
        load: Load::Hop,
        ours: Program::Hop,
        peer: Peer::Ovs(Program::Hop),
        unit: "us",
    },
    Case {
        name: "superframe_64KiB_gbps",
        load: Load::Stream { frame_bytes: 65_000, flows: 8, card: "", in_bits: true },
        ours: Program::Track,
        peer: Peer::Nobody,
        unit: "Gbit/s",
    },
    Case {
        name: "idle_cpu_percent_8_vms",
        load: Load::Idle { vms: 8 },
        ours: Program::Track,
        peer: Peer::Nobody,
        unit: "percent",
    },
];

pub const fn mpps(name: &'static str, load: Load, ours: Program, peer: Peer) -> Case {
    Case { name, load, ours, peer, unit: "Mpps" }
}

/// A rule that matches addresses of the traffic and none of its ports.
pub struct AclRule {
    /// Length of the source's prefix.
    pub source_bits: u8,
    /// Length of the destination's prefix, within `10.0.0.0/16`.
    pub destination_bits: u8,
    /// The rest of the destination, of which the prefix is kept.
    pub destination: u16,
    /// The first port, a multiple of `ports`.
    pub port: u16,
    /// How many ports: a power of two.
    pub ports: u16,
}

/// Ports from here on are none of the traffic's.
const ACL_PORT_MIN: u16 = 0xf400;

/// The rules of [`Program::Acl`], the same in every run: prefixes of all lengths; of three rules two are about one port,
/// between those of the traffic, so that whether a frame matches takes a look at all of its port, and one is about a
/// range.
pub fn acl(rules: usize) -> impl Iterator<Item = AclRule> {
    let mut state = 7_u64;
    let mut random = move |bound: u64| {
        // Knuth's linear congruence; its high bits are good enough.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    (0..rules).map(move |_| {
        let (port, ports) = if random(3) > 0 {
            // Odd; the traffic's are even.
            (1025 + 2 * random(30_000) as u16, 1)
        } else {
            let ports = 1 << [2, 4, 6][random(3) as usize];
            (ACL_PORT_MIN + random(u64::from((u16::MAX - ACL_PORT_MIN) / ports)) as u16 * ports, ports)
        };
        AclRule {
            source_bits: random(33) as u8,
            destination_bits: 16 + random(17) as u8,
            destination: random(1 << 16) as u16,
            port,
            ports,
        }
    })
}
