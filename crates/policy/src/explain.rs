// SPDX-License-Identifier: Apache-2.0
//! Why: each rule that may speak for a flow held against it, in words.

use std::fmt::{self, Display};

use model::{Action, Attribution, FlowQuery, Insertion, Level, Mode, PortMatch, RuleId, ServiceFlags};

use crate::clause::{Clause, End, Peers, Rule};
use crate::crossing::{CallRule, Callers};
use crate::insertion::FlowRule;
use crate::judge::CompiledPolicy;

/// One rule held against one flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTrace {
    /// The rule.
    pub rule: RuleId,
    /// The level that it speaks for.
    pub level: Level,
    /// What it decides; nothing, if it only adds services.
    pub action: Option<Action>,
    /// Whether it decides or only reports.
    pub mode: Mode,
    /// The place of a flow policy among those of its level.
    pub order: Option<u32>,
    /// What a flow policy adds, in words.
    pub adds: Vec<String>,
    /// Whether it matches.
    pub matched: bool,
    /// What matched, or else which parts did not. May repeat the guest's own text, which whoever
    /// prints it has to escape.
    pub why: String,
}

impl RuleTrace {
    /// Of an access policy, and why it matches or does not.
    fn new(rule: &RuleId, (action, mode): (Action, Mode), story: Result<String, String>) -> Self {
        Self {
            rule: rule.clone(),
            level: Level::Tenant,
            action: Some(action),
            mode,
            order: None,
            adds: Vec::new(),
            matched: story.is_ok(),
            why: story.unwrap_or_else(|miss| miss),
        }
    }
}

impl CompiledPolicy {
    /// Holds every rule that may speak for a flow against it: from the infrastructure inwards, the flow policies of
    /// a level in their order, the tenant's access policies behind those of its level, in the order of their files.
    /// Between tenants there are only the infrastructure's; see [`CompiledPolicy::explain_call`] for calls to services.
    #[must_use]
    pub fn explain(&self, query: &FlowQuery<'_>) -> Vec<RuleTrace> {
        let tenant = self.tenant_of(query);
        let own = tenant.map_or(&[][..], |tenant| &tenant.flow_rules.rules);
        let inner = own.partition_point(|rule| rule.insertion.level <= Level::Tenant);
        let (outer, inner) = own.split_at(inner);
        let access = tenant.map_or(&[][..], |tenant| &tenant.rules);
        let outer = self.infrastructure.rules.iter().chain(outer);
        outer
            .map(|rule| self.flow_trace(rule, query))
            .chain(access.iter().map(|rule| self.trace(rule, query)))
            .chain(inner.iter().map(|rule| self.flow_trace(rule, query)))
            .collect()
    }

    /// The same for a call from one tenant to an infrastructure service of another, `tenant/name`: the owner's policies
    /// come before the caller's.
    #[must_use]
    pub fn explain_call(&self, service: &RuleId, query: &FlowQuery<'_>) -> Vec<RuleTrace> {
        let (tenant, sides) = self.sides(service, query);
        let calls = sides.flat_map(|side| &side.rules).map(|rule| self.call_trace(rule, tenant, query));
        let outer = self.infrastructure.rules.iter().map(|rule| self.flow_trace(rule, query));
        outer.chain(calls).collect()
    }

    fn call_trace(&self, rule: &CallRule, tenant: usize, query: &FlowQuery<'_>) -> RuleTrace {
        let end = self.named("source", End::source(query));
        let story = match &rule.callers {
            Callers::Tenants(tenants) if rule.matches(tenant, query) => {
                let named = tenants.contains(&Some(tenant));
                Ok(format!(
                    "{end} is of {}",
                    if named { "a tenant that is selected" } else { "another tenant" }
                ))
            }
            Callers::Tenants(_) => Err(format!("{end} is of no tenant that is selected")),
            Callers::Own(_) => match rule.own_clauses(query).collect::<Vec<_>>().as_slice() {
                [] => Err(format!("{end} is not selected")),
                selecting => end.story(selecting),
            },
        };
        RuleTrace::new(&rule.id, (rule.action, rule.mode), story)
    }

    fn flow_trace(&self, rule: &FlowRule, query: &FlowQuery<'_>) -> RuleTrace {
        let Insertion { level, order, denies, .. } = *rule.insertion;
        let mut trace = self.trace(&rule.rule, query);
        if trace.matched && !rule.is_in_scope(query) {
            trace.matched = false;
            trace.why = format!("neither end belongs to what its {level} level is about");
        }
        let redirects = rule.detour.is_some().then(|| "redirect".to_owned());
        RuleTrace {
            level,
            action: denies.then_some(Action::Deny),
            order: Some(order),
            adds: added(&rule.insertion).chain(redirects).collect(),
            ..trace
        }
    }

    fn trace(&self, rule: &Rule, query: &FlowQuery<'_>) -> RuleTrace {
        let source = self.source(rule, query);
        let destination = self.destination(rule, query);
        let story = match (source, destination) {
            (Ok(source), Ok(destination)) => Ok(format!("{source}; {destination}")),
            (Err(source), Err(destination)) => Err(format!("{source}; {destination}")),
            (Err(miss), Ok(_)) | (Ok(_), Err(miss)) => Err(miss),
        };
        RuleTrace::new(&rule.id, (rule.action, rule.mode), story)
    }

    /// Why the source matches, or why not.
    fn source(&self, rule: &Rule, query: &FlowQuery<'_>) -> Result<String, String> {
        let end = self.named("source", End::source(query));
        let selecting: Vec<_> = rule.source_clauses(query).collect();
        if selecting.is_empty() {
            return Err(format!("{end} is not selected"));
        }
        end.story(&selecting)
    }

    /// Why the destination matches, or why not.
    fn destination(&self, rule: &Rule, query: &FlowQuery<'_>) -> Result<String, String> {
        let end = self.named("destination", End::destination(query));
        let tuple = query.tuple;
        let port =
            port_text(PortMatch { ports: Some(tuple.destination_port.into()), protocol: tuple.protocol });
        let mut selecting = rule.to.iter().filter(|clause| clause.peers.include(&end.end)).peekable();
        if selecting.peek().is_none() {
            return Err(format!("{end} is not selected"));
        }
        let covering: Vec<_> = rule.destination_clauses(query).collect();
        if covering.is_empty() {
            let mut ports: Vec<String> =
                selecting.flat_map(|clause| clause.ports.iter().copied().map(port_text)).collect();
            ports.dedup();
            return Err(format!("port {port} is not among {}", ports.join(", ")));
        }
        end.story(&covering).map(|story| format!("{story} on {port}"))
    }

    fn named<'a>(&'a self, role: &'static str, end: End<'a>) -> NamedEnd<'a> {
        NamedEnd { role, vm: end.party.vm.map(|vm| self.vm(vm).name.as_str()), end }
    }
}

/// What a rule adds, in words.
fn added(insertion: &Insertion) -> impl Iterator<Item = String> {
    ServiceFlags::ALL.into_iter().filter(|(flag, _)| insertion.services.has(*flag)).map(|(flag, word)| {
        let sample = insertion.trace.filter(|_| flag == ServiceFlags::TRACE);
        let protocols = insertion.protocols.filter(|_| flag == ServiceFlags::LAYER7);
        match (sample, protocols) {
            (Some(sample), _) => format!("{word} {sample}"),
            (_, Some(protocols)) => format!("{word} {protocols}"),
            _ => word.to_owned(),
        }
    })
}

/// An end of a flow with the words for it.
struct NamedEnd<'a> {
    role: &'static str,
    vm: Option<&'a str>,
    end: End<'a>,
}

impl Display for NamedEnd<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vm {
            Some(vm) => write!(f, "{} VM {vm}", self.role),
            None => write!(f, "{} {}", self.role, self.end.address),
        }
    }
}

impl NamedEnd<'_> {
    /// Whether one of the entries that select the end fits the process there, and in which words.
    fn story(&self, selecting: &[&Clause]) -> Result<String, String> {
        let attribution = self.end.party.attribution;
        let selected = |clause: &Clause| match &clause.peers {
            Peers::Machines(_) => format!("{self} is selected"),
            Peers::Network(network) => format!("{} {} is in {network}", self.role, self.end.address),
            Peers::Domain(domain) => format!("{} {} is {domain}", self.role, self.end.address),
        };
        if let Some(clause) = selecting.iter().find(|clause| clause.process.is_none()) {
            return Ok(selected(clause));
        }
        let mut wanted = selecting.iter().filter_map(|clause| Some((clause, clause.process.as_ref()?)));
        if let Some((clause, process)) = wanted.clone().find(|(_, process)| process.matches(attribution)) {
            return Ok(format!("{} and its process has {process}", selected(clause)));
        }
        let wanted: Vec<String> = wanted.by_ref().map(|(_, process)| process.to_string()).collect();
        Err(format!("{} process is {}, not {}", self.role, process_text(attribution), wanted.join(" or ")))
    }
}

/// What is known of a process.
fn process_text(attribution: Option<&Attribution>) -> String {
    let Some(attribution) = attribution else { return "unknown".to_owned() };
    let fact = |label: &str, value: Option<&dyn Display>| value.map(|value| format!("{label} {value}"));
    let process = attribution.process.as_ref();
    let (uid, user) = (attribution.uid(), attribution.user());
    let (unit, container) = (attribution.unit(), attribution.container());
    let facts = [
        fact("name", process.map(|p| &p.name as &dyn Display)),
        fact("exe", process.and_then(|p| p.exe.as_ref()).map(|exe| exe as &dyn Display)),
        fact("unit", unit.as_ref().map(|unit| unit as &dyn Display)),
        fact("container", container.as_ref().map(|container| container as &dyn Display)),
        fact("user", user.as_ref().map(|user| user as &dyn Display)),
        fact("uid", uid.as_ref().map(|uid| uid as &dyn Display)),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    match (process, attribution.unknown) {
        (Some(_), _) => facts.join(", "),
        (None, Some(reason)) if facts.is_empty() => format!("{} ({reason})", attribution.outcome()),
        (None, _) if facts.is_empty() => "unknown".to_owned(),
        (None, _) => format!("unknown but for its socket's {}", facts.join(", ")),
    }
}

fn port_text(port: PortMatch) -> String {
    use model::Protocol::{Tcp, Udp};
    match port {
        PortMatch { ports: Some(ports), protocol: protocol @ (Tcp | Udp) } => format!("{protocol}/{ports}"),
        PortMatch { protocol, .. } => protocol.to_string(),
    }
}
