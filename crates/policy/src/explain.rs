// SPDX-License-Identifier: Apache-2.0
//! Why: each rule of the tenant held against one flow, in words.

use std::fmt::Display;

use model::{Action, Attribution, FlowQuery, Mode, Party, PortMatch, RuleId};

use crate::clause::{ProcessMatch, Rule};
use crate::judge::CompiledPolicy;

/// One rule held against one flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTrace {
    /// The rule.
    pub rule: RuleId,
    /// What it does.
    pub action: Action,
    /// Whether it decides or only reports.
    pub mode: Mode,
    /// Whether it matches.
    pub matched: bool,
    /// What matched, or else which parts did not. May repeat the guest's own text, which whoever
    /// prints it has to escape.
    pub why: String,
}

impl CompiledPolicy {
    /// Holds every rule of the tenant against a flow, in the order of their files. Between tenants
    /// there is no rule to hold.
    #[must_use]
    pub fn explain(&self, query: &FlowQuery<'_>) -> Vec<RuleTrace> {
        let Some(tenant) = self.tenant_of(query) else { return Vec::new() };
        tenant.rules.iter().map(|rule| self.trace(rule, query)).collect()
    }

    fn trace(&self, rule: &Rule, query: &FlowQuery<'_>) -> RuleTrace {
        let source = self.source(rule, query);
        let destination = self.destination(rule, query);
        let matched = source.is_ok() && destination.is_ok();
        let why = match (source, destination) {
            (Ok(source), Ok(destination)) => format!("{source}; {destination}"),
            (Err(source), Err(destination)) => format!("{source}; {destination}"),
            (Err(miss), Ok(_)) | (Ok(_), Err(miss)) => miss,
        };
        RuleTrace { rule: rule.id.clone(), action: rule.action, mode: rule.mode, matched, why }
    }

    /// Why the source matches, or why not.
    fn source(&self, rule: &Rule, query: &FlowQuery<'_>) -> Result<String, String> {
        let name = &self.vm(query.source.vm).name;
        let processes: Vec<_> = rule.source_clauses(query).map(|clause| clause.process.as_ref()).collect();
        if processes.is_empty() {
            return Err(format!("source VM {name} is not selected"));
        }
        process_story("source", name, &processes, query.source)
    }

    /// Why the destination matches, or why not.
    fn destination(&self, rule: &Rule, query: &FlowQuery<'_>) -> Result<String, String> {
        let name = &self.vm(query.destination.vm).name;
        let tuple = query.tuple;
        let port = port_text(PortMatch { port: Some(tuple.destination_port), protocol: tuple.protocol });
        let selecting = rule.to.iter().filter(|clause| clause.selects(query.destination.vm));
        let mut ports: Vec<String> =
            selecting.clone().flat_map(|clause| clause.ports.iter().copied().map(port_text)).collect();
        if selecting.count() == 0 {
            return Err(format!("destination VM {name} is not selected"));
        }
        let processes: Vec<_> =
            rule.destination_clauses(query).map(|clause| clause.process.as_ref()).collect();
        if processes.is_empty() {
            ports.dedup();
            return Err(format!("port {port} is not among {}", ports.join(", ")));
        }
        process_story("destination", name, &processes, query.destination)
            .map(|story| format!("{story} on {port}"))
    }
}

/// Whether one of the entries that select a machine fits the process there, and in which words.
fn process_story(
    end: &str,
    vm: &str,
    wanted: &[Option<&ProcessMatch>],
    party: Party<'_>,
) -> Result<String, String> {
    let attribution = party.attribution;
    if wanted.contains(&None) {
        return Ok(format!("{end} VM {vm} is selected"));
    }
    let mut wanted = wanted.iter().flatten();
    if let Some(process) = wanted.clone().find(|process| process.matches(attribution)) {
        return Ok(format!("{end} VM {vm} is selected and its process has {process}"));
    }
    let wanted: Vec<String> = wanted.by_ref().map(ToString::to_string).collect();
    Err(format!("{end} process is {}, not {}", process_text(attribution), wanted.join(" or ")))
}

/// What is known of a process.
fn process_text(attribution: Option<&Attribution>) -> String {
    let Some(attribution) = attribution else { return "unknown".to_owned() };
    let fact = |label: &str, value: Option<&dyn Display>| value.map(|value| format!("{label} {value}"));
    let process = attribution.process.as_ref();
    let (uid, unit) = (attribution.uid(), attribution.unit());
    let facts = [
        fact("name", process.map(|p| &p.name as &dyn Display)),
        fact("exe", process.and_then(|p| p.exe.as_ref()).map(|exe| exe as &dyn Display)),
        fact("unit", unit.as_ref().map(|unit| unit as &dyn Display)),
        fact("uid", uid.as_ref().map(|uid| uid as &dyn Display)),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    match (process, attribution.unknown) {
        (Some(_), _) => facts.join(", "),
        (None, Some(reason)) if facts.is_empty() => format!("unknown ({reason})"),
        (None, _) if facts.is_empty() => "unknown".to_owned(),
        (None, _) => format!("unknown but for its socket's {}", facts.join(", ")),
    }
}

fn port_text(port: PortMatch) -> String {
    use model::Protocol::{Tcp, Udp};
    match port {
        PortMatch { port: Some(port), protocol: protocol @ (Tcp | Udp) } => format!("{protocol}/{port}"),
        PortMatch { protocol, .. } => protocol.to_string(),
    }
}
