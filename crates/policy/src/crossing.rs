// SPDX-License-Identifier: Apache-2.0
//! Calls from one tenant to an infrastructure service of another, and what the policies of both say about them.
//!
//! The owner's policies select callers by their tenants, the caller's select the service, and their own machines and
//! processes as ever. Each side decides for itself, and both must let a call pass: on a side, a matching Deny wins; a
//! side that allows some callers denies all others; a side that says nothing lets everybody pass. So no policy makes
//! anything reachable that was not, and policies in audit mode change nothing.
//!
//! Work per call grows with the policies of both sides about this one service.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use model::{Action, FlowQuery, Mode, Name, RuleId};

use crate::clause::{Clause, End};

/// Whom one side's policy selects.
#[derive(Clone, Debug)]
pub(crate) enum Callers {
    /// The owner's: another tenant, by position; `None` is any other.
    Tenants(Arc<[Option<usize>]>),
    /// The caller's own: any of these entries.
    Own(Arc<[Clause]>),
}

/// One side's policy about calls to one service.
#[derive(Clone, Debug)]
pub(crate) struct CallRule {
    pub(crate) id: RuleId,
    pub(crate) action: Action,
    pub(crate) mode: Mode,
    pub(crate) callers: Callers,
}

impl CallRule {
    /// The entries of a caller's own policy that select the machine.
    pub(crate) fn own_clauses(&self, query: &FlowQuery<'_>) -> impl Iterator<Item = &Clause> {
        let end = End::source(query);
        let clauses = match &self.callers {
            Callers::Tenants(_) => &[][..],
            Callers::Own(clauses) => clauses,
        };
        clauses.iter().filter(move |clause| clause.peers.include(&end))
    }

    /// Whether a call by a machine of the tenant at this position matches.
    pub(crate) fn matches(&self, tenant: usize, query: &FlowQuery<'_>) -> bool {
        match &self.callers {
            Callers::Tenants(tenants) => {
                tenants.iter().any(|one| one.is_none_or(|position| position == tenant))
            }
            Callers::Own(_) => {
                self.own_clauses(query).any(|clause| clause.process_fits(query.source.attribution))
            }
        }
    }

    /// Whether the caller's process decides whether it matches.
    pub(crate) fn needs_process(&self, query: &FlowQuery<'_>) -> bool {
        let mut clauses = self.own_clauses(query).peekable();
        clauses.peek().is_some() && clauses.all(|clause| clause.process.is_some())
    }
}

/// What one side says about calls to one service, in the order of its files.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) rules: Vec<CallRule>,
    /// What denies whom no Allow matches, once there is one.
    pub(crate) others: RuleId,
}

impl Side {
    /// A policy that names a service twice says it once.
    fn add(&mut self, rule: CallRule) {
        if self.rules.last().is_none_or(|last| last.id != rule.id) {
            self.rules.push(rule);
        }
    }

    /// Whether some are allowed, and so all others denied.
    pub(crate) fn is_closed(&self) -> bool {
        self.rules.iter().any(|rule| (rule.mode, rule.action) == (Mode::Enforce, Action::Allow))
    }
}

/// What all policies say about calls between tenants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Crossings {
    /// By service, what its owner says.
    owners: HashMap<RuleId, Side>,
    /// By service and the position of a caller's tenant, what that says.
    callers: BTreeMap<RuleId, BTreeMap<usize, Side>>,
}

impl Crossings {
    /// Adds what the owner of a service says.
    pub(crate) fn of_owner(&mut self, service: &RuleId, rule: CallRule) {
        let others = RuleId(format!("{service}/(callers)").into());
        let side = self.owners.entry(service.clone()).or_insert_with(|| Side { rules: Vec::new(), others });
        side.add(rule);
    }

    /// Adds what a tenant says about its own calls to another's service.
    pub(crate) fn of_caller(&mut self, service: &RuleId, (tenant, name): (usize, &Name), rule: CallRule) {
        let others = RuleId(format!("{name}/(calls to {service})").into());
        let sides = self.callers.entry(service.clone()).or_default();
        sides.entry(tenant).or_insert_with(|| Side { rules: Vec::new(), others }).add(rule);
    }

    /// What is said about calls to a service from a tenant, by its owner first.
    pub(crate) fn sides(&self, service: &RuleId, tenant: usize) -> impl Iterator<Item = &Side> {
        let caller = self.callers.get(service).and_then(|sides| sides.get(&tenant));
        self.owners.get(service).into_iter().chain(caller)
    }

    /// All that tenants say about their own calls.
    pub(crate) fn of_callers(&self) -> impl Iterator<Item = &CallRule> {
        self.callers.values().flat_map(BTreeMap::values).flat_map(|side| &side.rules)
    }
}
