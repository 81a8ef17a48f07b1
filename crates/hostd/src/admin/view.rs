// SPDX-License-Identifier: Apache-2.0
//! From the engines' words to the admin protocol's.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use api::admin::{
    AcceptQueue, ClassStatus, EndpointStatus, Flow, FlowService, Latency, LimitStatus, Party, Refusal,
    Socket, SocketOwner, Verdict,
};
use hdrhistogram::Histogram;
use model::{BitRate, EndpointState, Judgement, Moment, RuleId, ServiceFlags, VmRef};
use vhost_port::Features;
use vswitch::{ClassRecord, EndpointRecord, FlowEnd, FlowRecord, FlowState, MeterRecord};

/// Why a request cannot be answered, and what to do about it.
pub fn refusal(reason: &str, help: &str) -> Refusal {
    Refusal { reason: reason.into(), help: help.into() }
}

/// Whether the machine is at one end of the flow; without a machine, always.
pub fn concerns(record: &FlowRecord, vm: Option<&VmRef>) -> bool {
    let is_end = |end: &FlowEnd| end.nic.as_ref().map(|nic| &nic.vm) == vm;
    vm.is_none() || is_end(&record.initiator) || is_end(&record.responder)
}

/// A flow as clients see it.
pub fn flow(record: &FlowRecord, now: Moment) -> Flow {
    let tuple = &record.tuple;
    let party = |end: &FlowEnd, address, port| {
        Party::new(end.nic.as_ref().map(|nic| &nic.vm), address, port, end.attribution.as_deref())
    };
    let judgement = record.judgement.as_deref();
    let verdict = judgement.map_or(Verdict::Allow, |judgement| judgement.action.into());
    let age_ms = |then: Moment| u64::try_from(now.since(then).as_millis()).unwrap_or(u64::MAX);
    Flow {
        id: id(record),
        protocol: tuple.protocol.to_string(),
        speaks: record.spoken.map(|spoken| spoken.to_string()),
        source: party(&record.initiator, tuple.source, tuple.source_port),
        destination: party(&record.responder, tuple.destination, tuple.destination_port),
        verdict,
        decided_by: judgement.map_or("not judged since the restart".into(), |j| j.decided_by.to_string()),
        because: judgement.and_then(because),
        matched: judgement.map_or(Vec::new(), |j| j.matched.iter().map(ToString::to_string).collect()),
        audited: judgement
            .map_or(Vec::new(), |j| j.audited.iter().map(|(rule, _)| rule.to_string()).collect()),
        services: judgement.map_or(Vec::new(), |judgement| own_services(record, judgement)),
        generation: record.generation.0,
        state: record.state.to_string(),
        packets: record.initiator.sent_frames + record.responder.sent_frames,
        bytes: record.initiator.sent_bytes + record.responder.sent_bytes,
        first_seen_ms: age_ms(record.opened),
        last_seen_ms: age_ms(record.last_seen),
        reason: match record.state {
            FlowState::Reset => Some("reset".into()),
            _ if verdict == Verdict::Deny => Some("denied".into()),
            _ => None,
        },
    }
}

/// What a flow did not meet of what a service demands, in words.
pub fn because(judgement: &Judgement) -> Option<String> {
    judgement.unmet.map(|unmet| unmet.to_string())
}

/// The services that this very flow has: whether it is traced depends on more than rules.
fn own_services(record: &FlowRecord, judgement: &Judgement) -> Vec<FlowService> {
    let mut services = services(judgement);
    let trace = ServiceFlags::TRACE.to_string();
    services.retain(|service| service.service != trace || record.trace.is_some());
    services
}

/// The services of a flow with what set the flag of each, in the order in which they run.
pub fn services(judgement: &Judgement) -> Vec<FlowService> {
    let mut services = Vec::new();
    for (flag, word) in ServiceFlags::ALL {
        let mut add = |rule: &RuleId, place: Option<(model::Level, u32)>| {
            let (level, order) = place.unzip();
            let level = level.map(|level| level.to_string());
            services.push(FlowService { service: word.to_owned(), rule: rule.to_string(), level, order });
        };
        match flag {
            ServiceFlags::DISCOVERY | ServiceFlags::BALANCE => {
                judgement.via.iter().for_each(|service| add(service, None));
            }
            ServiceFlags::AUTHORIZE => add(&judgement.decided_by, None),
            _ => {}
        }
        for insertion in judgement.inserted.iter().filter(|insertion| insertion.services.has(flag)) {
            add(&insertion.rule, Some((insertion.level, insertion.order)));
        }
    }
    services
}

/// A number for the flow: the same each time it is shown, small enough for every JSON reader (53 bits).
fn id(record: &FlowRecord) -> u64 {
    let mut hasher = DefaultHasher::new();
    (record.initiator.port, record.tuple, record.opened).hash(&mut hasher);
    hasher.finish() >> 11
}

/// A socket as clients see it; `name` gives the name of a process.
pub fn socket(socket: &vmi::Socket, name: impl Fn(u32) -> String) -> Socket {
    Socket {
        protocol: socket.protocol.to_string(),
        state: socket.state.as_str().to_owned(),
        local: socket.local.to_string(),
        remote: socket.remote.to_string(),
        uid: socket.uid,
        inode: socket.inode,
        netns: Some(socket.netns_inode.into()),
        owners: socket
            .owners
            .iter()
            .map(|owner| SocketOwner { pid: owner.pid, name: name(owner.pid), fd: owner.fd })
            .collect(),
    }
}

/// An endpoint of a service as clients see it.
pub fn endpoint(record: &EndpointRecord) -> EndpointStatus {
    let left = match record.state {
        EndpointState::Ejected { left } => Some(left),
        _ => None,
    };
    EndpointStatus {
        vm: record.vm.to_string(),
        state: record.state.as_str().to_owned(),
        left_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        flows: record.flows,
        accept_queue: record.queue.map(|queue| AcceptQueue { len: queue.len, max: queue.max }),
    }
}

/// A limit as clients see it.
pub fn limit(meter: &MeterRecord) -> LimitStatus {
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    LimitStatus {
        name: meter.name.to_string(),
        answers: meter.answers,
        limit_bits_per_second: meter.limit.bits_per_second(),
        bits_per_second: meter.bits_per_second,
        frames: meter.frames,
        bytes: meter.bytes,
        held_frames: meter.held_frames,
        held_mean_us: us(meter.held) / meter.held_frames.max(1),
        held_max_us: us(meter.held_max),
        classes: meter.classes.iter().map(class).collect(),
    }
}

fn class(class: &ClassRecord) -> ClassStatus {
    ClassStatus {
        name: class.name.to_string(),
        shares: class.part.shares,
        reserved_bits_per_second: class.part.reservation.map(BitRate::bits_per_second),
        bits_per_second: class.bits_per_second,
        bytes: class.bytes,
        held_frames: class.held_frames,
    }
}

/// Waits as clients see them; `waits` is in nanoseconds.
pub fn latency(waits: &Histogram<u64>) -> Latency {
    let us = |ns: u64| ns.div_ceil(1000);
    Latency {
        count: waits.len(),
        p50_us: us(waits.value_at_quantile(0.5)),
        p99_us: us(waits.value_at_quantile(0.99)),
        max_us: us(waits.max()),
    }
}

/// Names of virtio features, as the specification writes them (virtio 1.3, sections 5.1.3 and 6).
pub fn features(features: Features) -> Vec<String> {
    const NAMES: [(Features, &str); 19] = [
        (Features::CSUM, "NET_F_CSUM"),
        (Features::GUEST_CSUM, "NET_F_GUEST_CSUM"),
        (Features::MTU, "NET_F_MTU"),
        (Features::GUEST_TSO4, "NET_F_GUEST_TSO4"),
        (Features::GUEST_TSO6, "NET_F_GUEST_TSO6"),
        (Features::HOST_TSO4, "NET_F_HOST_TSO4"),
        (Features::HOST_TSO6, "NET_F_HOST_TSO6"),
        (Features::MRG_RXBUF, "NET_F_MRG_RXBUF"),
        (Features::MQ, "NET_F_MQ"),
        (Features::GUEST_USO4, "NET_F_GUEST_USO4"),
        (Features::GUEST_USO6, "NET_F_GUEST_USO6"),
        (Features::HOST_USO, "NET_F_HOST_USO"),
        (Features::LOG_ALL, "VHOST_F_LOG_ALL"),
        (Features::INDIRECT_DESC, "F_INDIRECT_DESC"),
        (Features::EVENT_IDX, "F_EVENT_IDX"),
        (Features::VERSION_1, "F_VERSION_1"),
        (Features::RING_PACKED, "F_RING_PACKED"),
        (Features::IN_ORDER, "F_IN_ORDER"),
        (Features::PROTOCOL_FEATURES, "PROTOCOL_FEATURES"),
    ];
    NAMES.iter().filter(|(feature, _)| features.has(*feature)).map(|(_, name)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::{Action, Insertion, Level, Sample};
    use vswitch::FlowTrace;

    use super::*;
    use crate::flowlog::tests::event;

    #[test]
    fn a_flow_that_is_not_sampled_is_not_shown_as_traced() {
        let mut record = event(1).record;
        let insertion = Insertion {
            trace: Some(Sample::ALL),
            ..Insertion::new(RuleId("acme/watch".into()), Level::Tenant, ServiceFlags::TRACE)
        };
        record.judgement = Some(Arc::new(Judgement {
            inserted: vec![Arc::new(insertion)],
            ..Judgement::new(Action::Allow, RuleId("acme/web".into()))
        }));
        let shown = |record: &FlowRecord| {
            let services = flow(record, Moment(0)).services.into_iter();
            services.map(|service| format!("{} by {}", service.service, service.rule)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&record), ["authorize by acme/web"]);
        let (id, sample, whole) = (1, Sample::ALL, true);
        record.trace = Some(FlowTrace { id, sample, whole, connected: None, answered: None, closed: None });
        assert_eq!(shown(&record), ["trace by acme/watch", "authorize by acme/web"]);
    }
}
