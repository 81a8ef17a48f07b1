// SPDX-License-Identifier: Apache-2.0
//! Answers the requests of the admin socket from what the other threads know.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use api::admin::{
    CoreStatus, Flow, IntrospectionState, NameStats, Nic, NicState, PolicyStatus, PollStats, PortMoved,
    PortStatus, Process, Refusal, Request, Response, Service, Status, Vm,
};
use crossbeam_channel::{Receiver, Sender};
use model::{NicRef, Protocol, VmRef};
use vhost_port::ChainFault;
use vswitch::{EndpointRecord, FlowEvent, FlowRecord};

use super::dataflow::DataFlowQuestion;
use super::inside;
use super::threats::{self, Connection};
use super::times::ViewTimes;
use super::view::{self, refusal};
use super::why::WhyQuestion;
use crate::clock;
use crate::export::Records;
use crate::flowlog::FlowLog;
use crate::introspect::{Introspection, State};
use crate::mesh::Mesh;
use crate::otlp::SpanNumbers;
use crate::poll::{Command, CoreId, CoreNumbers, ENDPOINTS_MAX, Numbers, PollHandle};
use crate::ports::Ports;

/// Everything that can be asked.
pub struct Desk {
    mesh: Arc<Mesh>,
    introspection: Arc<Introspection>,
    ports: Arc<Ports>,
    poll: PollHandle,
    flow_log: Arc<FlowLog>,
    records: Records,
    spans: SpanNumbers,
    started: Instant,
    /// Whether guests are inspected for threats.
    inspected: bool,
    views: ViewTimes,
}

type Answer = Result<Response, Refusal>;

impl Desk {
    /// A desk that knows these.
    pub fn new(
        inspected: bool,
        mesh: Arc<Mesh>,
        introspection: Arc<Introspection>,
        ports: Arc<Ports>,
        poll: PollHandle,
        (flow_log, records, spans): (Arc<FlowLog>, Records, SpanNumbers),
    ) -> Self {
        Self {
            mesh,
            introspection,
            ports,
            poll,
            flow_log,
            records,
            spans,
            started: Instant::now(),
            inspected,
            views: ViewTimes::default(),
        }
    }

    /// Answers anything but [`Request::FlowWatch`].
    pub fn answer(&self, request: &Request) -> Response {
        let answer = match request {
            Request::VmList => Ok(self.vms()),
            Request::VmProcesses { vm } => self.processes(vm),
            Request::VmSockets { vm } => self.sockets(vm),
            Request::VmProcessDetails { vm } => self.process_details(vm),
            Request::VmSocketDetails { vm } => self.socket_details(vm),
            Request::VmCpu { vm } => self.cpu(vm),
            Request::VmFlows { vm } => self.data_flow(vm),
            Request::VmThreats { vm } => self.threats(vm),
            Request::FlowList { vm } => self.flows(vm.as_deref()),
            Request::FlowWatch { .. } => Err(refusal("a watch is not one answer", "")),
            Request::ServiceList => self.services(),
            Request::Why { from, to, protocol, exe } => self.why(from, to, protocol, exe.as_deref()),
            Request::PortMove { nic, core } => self.move_port(nic, core),
            Request::Status => self.status(),
            Request::PolicyStatus => Ok(self.policy_status()),
        };
        answer.unwrap_or_else(Response::Error)
    }

    /// The stream for [`Request::FlowWatch`], with the machine that was named.
    ///
    /// # Errors
    /// When there is no such machine.
    pub fn watch(&self, vm: Option<&str>) -> Result<(Option<VmRef>, Receiver<Arc<FlowEvent>>), Refusal> {
        let vm = vm.map(|vm| self.known(vm)).transpose()?;
        Ok((vm, self.flow_log.watch()))
    }

    fn vms(&self) -> Response {
        let published = self.mesh.published();
        let status = self.ports.status();
        let inventory = &published.snapshot.inventory;
        let vms = inventory.vms().map(|(index, vm)| {
            let nics = vm.nics.iter().map(|nic| {
                let card = NicRef { vm: vm.id.clone(), nic: nic.name.clone() };
                let port = status.get(&card).map(|(_, status)| status);
                let state = match port {
                    Some(port) if port.running => NicState::Running,
                    Some(port) if port.connected => NicState::Connected,
                    _ => NicState::Waiting,
                };
                let features = port.map(|port| view::features(port.features));
                let mut shown = Nic::new(nic, state, features.unwrap_or_default());
                shown.socket = self.ports.socket_path(nic).display().to_string();
                shown
            });
            Vm {
                tenant: vm.id.tenant.to_string(),
                name: vm.id.name.to_string(),
                nics: nics.collect(),
                qos: inventory.qos(index).into(),
                introspection: self.introspection_of(&vm.id),
            }
        });
        Response::Vms(vms.collect())
    }

    fn introspection_of(&self, vm: &VmRef) -> api::admin::Introspection {
        let shown = self.introspection.with(vm, |state, memory| {
            let resident_bytes =
                memory.map(|memory| memory.extents().iter().map(|run| run.end - run.start).sum());
            let (state, kernel, reason, attach_ms) = match state {
                State::Waiting => (IntrospectionState::Waiting, None, None, None),
                State::Attaching => (IntrospectionState::Attaching, None, None, None),
                State::Attached { guest, took } => {
                    let kernel = guest.kernel().release.clone();
                    let gaps: Vec<String> = guest.gaps().iter().map(ToString::to_string).collect();
                    let reason = (!gaps.is_empty()).then(|| gaps.join("; "));
                    (IntrospectionState::Attached, Some(kernel), reason, Some(took.as_secs_f64() * 1e3))
                }
                State::Failed(reason) => (IntrospectionState::Failed, None, Some(reason.clone()), None),
            };
            api::admin::Introspection { state, kernel, reason, attach_ms, resident_bytes }
        });
        shown.unwrap_or(api::admin::Introspection {
            state: IntrospectionState::Waiting,
            kernel: None,
            reason: None,
            attach_ms: None,
            resident_bytes: None,
        })
    }

    fn processes(&self, vm: &str) -> Answer {
        let processes = self.look_inside(vm, "processes", |guest| guest.processes())?;
        Ok(Response::Processes(processes.iter().map(Process::from).collect()))
    }

    fn sockets(&self, vm: &str) -> Answer {
        let (sockets, processes) =
            self.look_inside(vm, "sockets", |guest| Ok((guest.sockets()?, guest.processes()?)))?;
        let name = names(processes);
        Ok(Response::Sockets(sockets.iter().map(|socket| view::socket(socket, &name)).collect()))
    }

    fn process_details(&self, vm: &str) -> Answer {
        let processes = self.look_inside(vm, "process-details", |guest| guest.process_details())?;
        Ok(Response::ProcessDetails(processes.into_iter().map(inside::process).collect()))
    }

    fn socket_details(&self, vm: &str) -> Answer {
        let (sockets, processes) = self
            .look_inside(vm, "socket-details", |guest| Ok((guest.socket_details()?, guest.processes()?)))?;
        Ok(Response::SocketDetails(inside::sockets(&sockets, names(processes))))
    }

    fn cpu(&self, vm: &str) -> Answer {
        let (sample, now) = self.look_inside(vm, "cpu", |guest| Ok((guest.cpu_sample()?, clock::now())))?;
        Ok(Response::Cpu(Box::new(inside::cpu(sample, now))))
    }

    /// The wire's flows joined with what the guest tells of them, which may be nothing.
    fn data_flow(&self, vm: &str) -> Answer {
        let id = self.known(vm)?;
        let records = self.newest_records(Some(&id))?;
        let inside = self.look_inside(vm, "flows", |guest| Ok((guest.socket_details()?, guest.processes()?)));
        let (sockets, processes) = inside.unwrap_or_default();
        let flow = DataFlowQuestion { vm: &id, records: &records, sockets: &sockets, processes: &processes };
        Ok(Response::DataFlow(Box::new(flow.answer(clock::now()))))
    }

    fn threats(&self, vm: &str) -> Answer {
        if !self.inspected {
            let help = "set `threats = true` below [introspection] in the settings";
            return Err(refusal("guests are not inspected for threats", help));
        }
        let (findings, coverage) =
            self.look_inside(vm, "threats", |guest| Ok((guest.threats(), guest.coverage())))?;
        let mut shown = threats::shown(&findings, coverage, crate::inspect::clock());
        shown.findings.extend(self.without_socket(vm)?.iter().map(threats::unattributed));
        Ok(Response::Threats(Box::new(shown)))
    }

    /// Connections that go on although the guest has no socket for them. One that merely ends meanwhile would
    /// look so once: it has to send again.
    fn without_socket(&self, vm: &str) -> Result<Vec<Connection>, Refusal> {
        let id = self.known(vm)?;
        let lack = |connections: Vec<Connection>| {
            self.look_inside(vm, "threats", |guest| {
                let mut lacks =
                    |c: &Connection| guest.has_socket(c.local, c.remote, Protocol::Tcp) == Ok(false);
                Ok(connections.into_iter().filter(|c| lacks(c)).collect::<Vec<_>>())
            })
        };
        let before = lack(threats::connections(&self.records()?, &id))?;
        if before.is_empty() {
            return Ok(before);
        }
        std::thread::sleep(threats::SECOND_LOOK);
        lack(threats::still_sending(&before, &threats::connections(&self.records()?, &id)))
    }

    fn look_inside<R>(
        &self,
        vm: &str,
        view: &'static str,
        look: impl FnOnce(&mut vmi::Guest) -> Result<R, vmi::ViewError>,
    ) -> Result<R, Refusal> {
        let vm = self.known(vm)?;
        let look = |guest: &mut vmi::Guest| self.views.timed(view, || look(guest));
        let seen = self.introspection.with(&vm, |state, _| match (state.look(look), &*state) {
            (Some(Ok(seen)), _) => Ok(seen),
            (Some(Err(error)), _) => Err(refusal(&telemetry::Chain(&error).to_string(), "try again")),
            (None, State::Failed(reason)) => {
                let reason = format!("the kernel of `{vm}` was not understood: {reason}");
                Err(refusal(&reason, "its flows carry the machine's own identity"))
            }
            (None, State::Waiting) => Err(refusal(&format!("`{vm}` is not running"), "start it")),
            (None, State::Attaching | State::Attached { .. }) => {
                Err(refusal(&format!("the kernel of `{vm}` is being looked for"), "try again"))
            }
        });
        seen.unwrap_or_else(|| Err(refusal(&format!("`{vm}` has no open port"), "see the daemon's log")))
    }

    fn flows(&self, vm: Option<&str>) -> Answer {
        let vm = vm.map(|vm| self.known(vm)).transpose()?;
        let records = self.newest_records(vm.as_ref())?;
        let now = clock::now();
        Ok(Response::Flows(records.iter().map(|record| view::flow(record, now)).collect()))
    }

    /// The flows that were seen last, of one machine or of all; as many as one answer holds.
    fn newest_records(&self, vm: Option<&VmRef>) -> Result<Vec<FlowRecord>, Refusal> {
        let mut records = self.records()?;
        records.retain(|record| view::concerns(record, vm));
        records.sort_by_key(|record| std::cmp::Reverse(record.last_seen));
        records.truncate(Flow::LISTED_MAX);
        Ok(records)
    }

    fn records(&self) -> Result<Vec<FlowRecord>, Refusal> {
        self.ask(Command::Flows)
    }

    /// What a poll core answers.
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, Refusal> {
        self.poll.ask(command).map_err(|error| refusal(&error.to_string(), "see the daemon's log"))
    }

    /// All services, as many as have endpoints that the switch tells of.
    fn services(&self) -> Answer {
        let records = self.endpoints()?;
        let published = self.mesh.published();
        let mut endpoints: HashMap<_, Vec<_>> = HashMap::new();
        for record in &records {
            endpoints.entry(&record.service).or_default().push(view::endpoint(record));
        }
        let offers = published.snapshot.services.offers().iter().take(ENDPOINTS_MAX);
        let services = offers.map(|offer| Service {
            name: offer.id.to_string(),
            level: offer.level.to_string(),
            addresses: vec![offer.v4.into(), offer.v6.into()],
            endpoints: endpoints.remove(&offer.id).unwrap_or_default(),
        });
        Ok(Response::Services(services.collect()))
    }

    fn endpoints(&self) -> Result<Vec<EndpointRecord>, Refusal> {
        self.ask(Command::Endpoints)
    }

    fn why(&self, from: &str, to: &str, protocol: &str, exe: Option<&str>) -> Answer {
        let published = self.mesh.published();
        let from = self.known(from)?;
        let mut found = self.ask(Command::Found)?;
        found.retain(|found| found.tenant == from.tenant);
        found.sort_by_key(|found| found.address);
        let question = WhyQuestion::resolve(&published, from, (to, &found), protocol, exe)?;
        let seen = (self.records()?, &*self.endpoints()?);
        let explanation = question.answer(&published, seen, &self.flow_log);
        Ok(Response::Explanation(Box::new(explanation)))
    }

    fn status(&self) -> Answer {
        let numbers =
            self.poll.numbers().map_err(|error| refusal(&error.to_string(), "see the daemon's log"))?;
        let published = self.mesh.published();
        let cards = self.ports.status();
        let counted = numbers.cores.iter().flatten().flat_map(|core| &core.ports);
        let ports = counted.filter_map(|(id, counters)| {
            let (card, _) = cards.iter().find(|(_, (port, _))| port == id)?;
            Some(PortStatus {
                nic: card.to_string(),
                outbound_frames: counters.received_frames,
                outbound_bytes: counters.received_bytes,
                inbound_frames: counters.sent_frames,
                inbound_bytes: counters.sent_bytes,
                dropped_frames: counters.chain_faults.iter().sum(),
                core: self.poll.core_of(*id).map_or_else(String::new, |core| self.poll.name(core)),
            })
        });
        let mut ports: Vec<_> = ports.collect();
        ports.sort_by(|a, b| a.nic.cmp(&b.nic));
        Ok(Response::Status(Box::new(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            generation: published.snapshot.generation.0,
            policy_errors: published.refused,
            uptime_ms: age_ms(self.started),
            flows: numbers.switch.flows as u64,
            ports,
            drops: drops(&numbers),
            cores: self.cores(&numbers),
            poll: PollStats {
                rounds: numbers.sum(|core| core.rounds),
                busy_rounds: numbers.sum(|core| core.busy_rounds),
                sleeps: numbers.sum(|core| core.sleeps),
                frames: numbers.sum(|core| core.frames),
                interactive: view::latency(&numbers.times(|core| &core.gaps)),
            },
            limits: numbers.switch.meters.iter().map(view::limit).collect(),
            names: NameStats {
                answered: numbers.switch.counters.names_answered,
                forwarded: numbers.switch.counters.names_forwarded,
                refused: numbers.switch.counters.names_refused,
            },
            attribution: view::latency(&numbers.times(|core| &core.waits)),
            lookup: view::latency(&numbers.times(|core| &core.lookups)),
            views: self.views.shown(),
            records: self.records.stats(numbers.switch.counters.events_lost),
            spans: self.spans.stats(numbers.switch.counters.traces_lost),
        })))
    }

    fn move_port(&self, nic: &str, core: &str) -> Answer {
        let cards = self.ports.status();
        let Some((card, (port, _))) = cards.iter().find(|(card, _)| card.to_string() == nic) else {
            let help = "name it as tenant/vm/nic; `meshctl status` lists all";
            return Err(refusal(&format!("there is no port `{}`", nic.escape_debug()), help));
        };
        let Some(id) = self.poll.named(core) else {
            let help = "`meshctl status` lists all; their number is `poll.cores` in the settings";
            return Err(refusal(&format!("there is no poll core `{}`", core.escape_debug()), help));
        };
        self.poll.place(*port, id);
        Ok(Response::PortMoved(PortMoved { nic: card.to_string(), core: self.poll.name(id) }))
    }

    fn cores(&self, numbers: &Numbers) -> Vec<CoreStatus> {
        let core = |(index, numbers): (u8, &Option<CoreNumbers>)| {
            let shown = CoreStatus {
                core: self.poll.name(CoreId(index)),
                busy_permille: self.poll.busy_permille(CoreId(index)),
                ..CoreStatus::default()
            };
            match numbers {
                None => shown,
                Some(numbers) => CoreStatus {
                    answers: true,
                    ports: numbers.ports.len() as u64,
                    frames: numbers.frames,
                    handed_over: numbers.handed_over,
                    link_full: numbers.link_full,
                    ..shown
                },
            }
        };
        (0..).zip(&numbers.cores).map(core).collect()
    }

    fn policy_status(&self) -> Response {
        let published = self.mesh.published();
        Response::PolicyStatus(Box::new(PolicyStatus {
            generation: published.snapshot.generation.0,
            source: self.mesh.source_name(),
            age_ms: age_ms(published.since),
            resources: published.resources.iter().map(|(k, n)| ((*k).to_owned(), *n as u64)).collect(),
            warnings: published.warnings.iter().map(ToString::to_string).collect(),
            errors: published.refused,
        }))
    }

    fn known(&self, vm: &str) -> Result<VmRef, Refusal> {
        let published = self.mesh.published();
        let inventory = &published.snapshot.inventory;
        match vm.parse::<VmRef>() {
            Ok(id) if inventory.find(&id).is_some() => Ok(id),
            _ => {
                let names: Vec<_> = inventory.vms().take(8).map(|(_, vm)| vm.id.to_string()).collect();
                let help = format!("name it as tenant/vm, for example {}", names.join(", "));
                Err(refusal(&format!("there is no virtual machine `{}`", vm.escape_debug()), &help))
            }
        }
    }
}

/// Gives the name of a process by its id; empty if there is none any more.
fn names(processes: Vec<model::Process>) -> impl Fn(u32) -> String {
    let names: HashMap<u32, String> = processes.into_iter().map(|p| (p.pid, p.name)).collect();
    move |pid| names.get(&pid).cloned().unwrap_or_default()
}

fn age_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Frames dropped, by reason.
fn drops(numbers: &Numbers) -> BTreeMap<String, u64> {
    let verdicts = numbers.switch.counters.drops_by_reason();
    let verdicts = verdicts.map(|(reason, count)| (reason.to_string(), count));
    let losses = [
        ("undelivered", numbers.sum(|core| core.undelivered)),
        ("link-full", numbers.sum(|core| core.link_full)),
        ("attribution-not-ready", numbers.sum(|core| core.not_ready)),
        ("attribution-late", numbers.sum(|core| core.late)),
    ];
    let losses = losses.into_iter().map(|(reason, count)| (reason.to_owned(), count));
    let ports = numbers.cores.iter().flatten().flat_map(|core| &core.ports);
    let faults = ports.flat_map(|(_, counters)| ChainFault::ALL.into_iter().zip(counters.chain_faults));
    let faults = faults.map(|(fault, count)| (fault.to_string().replace(' ', "-"), count));
    let mut drops = BTreeMap::new();
    for (reason, count) in verdicts.chain(losses).chain(faults).filter(|(_, count)| *count > 0) {
        *drops.entry(reason).or_default() += count;
    }
    drops
}

#[cfg(test)]
mod tests {
    use vhost_port::PortCounters;
    use vswitch::PortId;

    use super::*;

    #[test]
    fn what_ports_refuse_is_told_by_its_reason() {
        let mut counters = PortCounters::default();
        counters.chain_faults[ChainFault::Direction as usize] = 2;
        let core = CoreNumbers {
            ports: [0, 1].map(|port| (PortId(port), counters)).into(),
            undelivered: 3,
            ..CoreNumbers::default()
        };
        let told = drops(&Numbers { cores: vec![Some(core), None], ..Numbers::default() });
        let told: Vec<(&str, u64)> = told.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
        assert_eq!(told, [("descriptor-of-the-wrong-direction", 4), ("undelivered", 3)]);
    }
}
