// SPDX-License-Identifier: Apache-2.0
//! The knobs.

use std::time::Duration;

use model::{BitRate, MacAddr};

use crate::{DnsConfig, FlowState};

/// What a host can move unless its settings say so.
const CAPACITY_DEFAULT: BitRate = match BitRate::new(10_000_000_000) {
    Some(rate) => rate,
    None => panic!("a legal rate"),
};

/// How the switch behaves, fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchConfig {
    /// The Ethernet address of every subnet's virtual gateway. Default: 02:00:5e:00:01:01.
    pub gateway_mac: MacAddr,
    /// Secret seed of the flow table's hash. Draw it at random, and give a successor that inherits the table
    /// the same one: slots written under another are dropped.
    pub hash_seed: u64,
    /// Most live flows that one port may have opened. Default: 65,536. At zero a port opens none.
    pub flows_per_port_max: u32,
    /// Most connections that one port may have opened and that are not complete, as those of a scan or a SYN
    /// flood. Default: 4,096. At zero a port opens no connection.
    pub half_open_per_port_max: u32,
    /// Most connections towards one port that are not complete. Default: 16,384, more than one port can open.
    /// At zero nobody connects to any port.
    pub half_open_per_target_max: u32,
    /// Most live flows that one port may have opened under an external address, each of which takes a port of it.
    /// Default: 16,384. At zero no machine gets out.
    pub external_per_port_max: u32,
    /// Most packets of one port of which pieces are still to come; the oldest is forgotten for a new one.
    /// Default: 64. At zero only first pieces pass.
    pub fragmented_per_port_max: usize,
    /// How long after the first piece of a packet the others may come. Default: 5 seconds.
    pub fragment_timeout: Duration,
    /// Most ICMP errors sent to one port in a second. Default: 100. At zero none is sent.
    pub errors_per_second_max: u32,
    /// Most denials of one port reported as events in a second. Default: 100. At zero none is reported.
    pub denials_per_second_max: u32,
    /// Most events of flows that one port has opened that are marked to be logged in a second, where rules ask for that.
    /// Default: 100. At zero none is.
    pub logged_per_second_max: u32,
    /// Most flows in the table that one port has opened and that are traced, where rules ask for that; more are only counted.
    /// Default: 4,096. At zero only denials are traced.
    pub traced_per_port_max: u32,
    /// Most flows in the table that one port has opened and whose application protocol is still to be told, where rules ask
    /// for that. Where they name protocols, no more are opened; others are not told, and counted. Default: 4,096. At
    /// zero no flow is looked at.
    pub undecided_per_port_max: u32,
    /// How often others are told of a flow that goes on, if it moves anything. Default: 5 minutes.
    pub ongoing_told_every: Duration,
    /// How long a DHCP lease lasts, in whole seconds. Default: one hour.
    pub dhcp_lease: Duration,
    /// Whether and how names are answered. Default: they are, without upstreams.
    pub dns: Option<DnsConfig>,
    /// What the host can move, in both directions together: reservations are parts of it. Default: 10 Gbit/s.
    pub capacity: BitRate,
    /// How long flows are remembered.
    pub timeouts: Timeouts,
}

impl SwitchConfig {
    /// The defaults, with a seed.
    #[must_use]
    pub fn new(hash_seed: u64) -> Self {
        Self {
            gateway_mac: MacAddr([0x02, 0x00, 0x5e, 0x00, 0x01, 0x01]),
            hash_seed,
            flows_per_port_max: 65_536,
            half_open_per_port_max: 4096,
            half_open_per_target_max: 16_384,
            external_per_port_max: 16_384,
            fragmented_per_port_max: 64,
            fragment_timeout: Duration::from_secs(5),
            errors_per_second_max: 100,
            denials_per_second_max: 100,
            logged_per_second_max: 100,
            traced_per_port_max: 4096,
            undecided_per_port_max: 4096,
            ongoing_told_every: Duration::from_secs(300),
            dhcp_lease: Duration::from_secs(3600),
            dns: Some(DnsConfig::default()),
            capacity: CAPACITY_DEFAULT,
            timeouts: Timeouts::default(),
        }
    }
}

/// How long a flow may be idle in each state, at millisecond resolution, up to 24 days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A TCP handshake that is not complete. Default: one minute.
    pub handshake: Duration,
    /// An open TCP connection. Default: one day.
    pub established: Duration,
    /// A TCP connection that one end has closed. Default: two minutes.
    pub half_closed: Duration,
    /// A TCP connection that both ends have closed, or one has reset. Default: 30 seconds.
    pub closed: Duration,
    /// A flow that policy reset; its late segments are answered with resets. Default: 30 seconds.
    pub reset: Duration,
    /// A denied flow other than TCP; it is judged anew after that. Default: 5 seconds.
    pub refused: Duration,
    /// A flow other than TCP that nobody has answered. Default: 30 seconds.
    pub one_way: Duration,
    /// A flow other than TCP in both directions. Default: two minutes.
    pub two_way: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(60),
            established: Duration::from_secs(86_400),
            half_closed: Duration::from_secs(120),
            closed: Duration::from_secs(30),
            reset: Duration::from_secs(30),
            refused: Duration::from_secs(5),
            one_way: Duration::from_secs(30),
            two_way: Duration::from_secs(120),
        }
    }
}

/// How long flows may be idle, in milliseconds, by their state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdleLimits([u32; FlowState::ALL.len() + 1]);

impl IdleLimits {
    pub(crate) fn new(timeouts: &Timeouts) -> Self {
        let mut limits = [0; FlowState::ALL.len() + 1];
        for state in FlowState::ALL {
            let limit = match state {
                FlowState::SynSent | FlowState::SynReceived => timeouts.handshake,
                FlowState::Established => timeouts.established,
                FlowState::InitiatorClosed | FlowState::ResponderClosed => timeouts.half_closed,
                FlowState::Closed => timeouts.closed,
                FlowState::Reset => timeouts.reset,
                FlowState::Refused => timeouts.refused,
                FlowState::OneWay => timeouts.one_way,
                FlowState::TwoWay => timeouts.two_way,
            };
            let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
            limits[state as usize] = limit_ms.min(u32::MAX / 2);
        }
        Self(limits)
    }

    #[inline]
    pub(crate) fn of(&self, state: FlowState) -> u32 {
        self.0[state as usize]
    }
}
