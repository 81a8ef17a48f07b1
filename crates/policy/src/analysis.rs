// SPDX-License-Identifier: Apache-2.0
//! What is valid and yet looks wrong.

use std::fmt;

use model::{Action, Mode, RuleId};

use crate::clause::{Clause, Peers, ProcessMatch, Rule};
use crate::crossing::Callers;
use crate::judge::{CompiledPolicy, TenantRules};

/// Most pairs of an Allow and a Deny that are compared, which bounds the time to a second or so.
const PAIRS_MAX: usize = 1_000_000;

/// Something that is valid and yet looks wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// An entry of a rule selects no machine that exists.
    SelectsNothing {
        /// The rule.
        rule: RuleId,
        /// The entry, such as `from[0]`; an absent list counts as one entry.
        entry: String,
    },
    /// Whatever the rule allows, another denies.
    Shadowed {
        /// The rule without effect.
        rule: RuleId,
        /// The one that denies it all.
        by: RuleId,
    },
    /// A Deny that names a process in a tenant whose default is Allow: what is not known passes it, unless other
    /// policies deny that.
    UnknownPasses {
        /// The rule.
        rule: RuleId,
    },
    /// The rule traces flows, and nobody takes the spans.
    TracesNowhere {
        /// The rule.
        rule: RuleId,
    },
    /// There are too many rules to compare each Allow with each Deny; some were left out.
    NotCompared {
        /// Number of pairs left out.
        pairs: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SelectsNothing { rule, entry } => {
                write!(f, "policy `{rule}`: `{entry}` selects no virtual machine")
            }
            Self::Shadowed { rule, by } => {
                write!(f, "policy `{rule}` has no effect: `{by}` denies all that it allows")
            }
            Self::UnknownPasses { rule } => write!(
                f,
                "policy `{rule}` denies a process by name, but the tenant's default is Allow: a process that is not known passes"
            ),
            Self::TracesNowhere { rule } => write!(
                f,
                "policy `{rule}` traces flows, but the daemon's settings name no collector (`traces.endpoint`): all spans are lost"
            ),
            Self::NotCompared { pairs } => {
                write!(f, "{pairs} pairs of policies were not compared for shadowing: there are too many")
            }
        }
    }
}

impl CompiledPolicy {
    /// Everything that looks wrong, tenant by tenant.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut pairs_left = PAIRS_MAX;
        let mut pairs_skipped = 0;
        for rule in &self.infrastructure.rules {
            selects_nothing(&rule.rule, &mut warnings);
        }
        for tenant in &self.tenants {
            for rule in &tenant.flow_rules.rules {
                selects_nothing(&rule.rule, &mut warnings);
            }
            for rule in &tenant.rules {
                selects_nothing(rule, &mut warnings);
                unknown_passes(tenant, rule, &mut warnings);
            }
            pairs_skipped += shadowed(tenant, &mut pairs_left, &mut warnings);
        }
        for rule in self.crossings.of_callers() {
            let Callers::Own(clauses) = &rule.callers else { continue };
            let nobody = clauses.iter().zip(0..).filter(|(clause, _)| clause.peers.is_nobody());
            for (_, index) in nobody {
                let warning =
                    Warning::SelectsNothing { rule: rule.id.clone(), entry: format!("from[{index}]") };
                // A policy that is about its own tenant, too, has been asked.
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
        }
        if pairs_skipped > 0 {
            warnings.push(Warning::NotCompared { pairs: pairs_skipped });
        }
        warnings
    }

    /// The rules that trace flows, for [`Warning::TracesNowhere`]: whether anybody takes the spans is not policy's to know.
    pub fn tracing(&self) -> impl Iterator<Item = &RuleId> {
        let inner = self.tenants.iter().map(|tenant| &tenant.flow_rules);
        let rules = std::iter::once(&self.infrastructure).chain(inner).flat_map(|rules| &rules.rules);
        rules.filter(|rule| rule.insertion.trace.is_some()).map(|rule| &rule.insertion.rule)
    }
}

fn selects_nothing(rule: &Rule, warnings: &mut Vec<Warning>) {
    let from = rule.from.iter().enumerate().filter(|(_, clause)| clause.peers.is_nobody());
    let to = rule.to.iter().enumerate().filter(|(_, clause)| clause.peers.is_nobody());
    let entries =
        from.map(|(index, _)| format!("from[{index}]")).chain(to.map(|(index, _)| format!("to[{index}]")));
    warnings.extend(entries.map(|entry| Warning::SelectsNothing { rule: rule.id.clone(), entry }));
}

fn unknown_passes(tenant: &TenantRules, rule: &Rule, warnings: &mut Vec<Warning>) {
    let denies = rule.action == Action::Deny && rule.mode == Mode::Enforce;
    let names_process = rule
        .from
        .iter()
        .chain(&rule.to)
        .any(|clause| clause.process.as_ref().is_some_and(ProcessMatch::is_for_known));
    if tenant.default_action == Action::Allow && denies && names_process {
        warnings.push(Warning::UnknownPasses { rule: rule.id.clone() });
    }
}

/// Compares each Allow with each Deny of a tenant; returns how many pairs it had no budget for.
fn shadowed(tenant: &TenantRules, pairs_left: &mut usize, warnings: &mut Vec<Warning>) -> usize {
    let enforced = |action| {
        let wanted = move |rule: &&Rule| rule.mode == Mode::Enforce && rule.action == action;
        tenant.rules.iter().filter(wanted)
    };
    let denies: Vec<&Rule> = enforced(Action::Deny).collect();
    let mut skipped = 0;
    for allow in enforced(Action::Allow) {
        if *pairs_left < denies.len() {
            skipped += denies.len();
            continue;
        }
        *pairs_left -= denies.len();
        if let Some(deny) = denies.iter().find(|deny| covers(deny, allow)) {
            warnings.push(Warning::Shadowed { rule: allow.id.clone(), by: deny.id.clone() });
        }
    }
    skipped
}

/// Whether `deny` surely matches all that `allow` matches: each entry lies within one of `deny`'s.
/// Entries that only together cover another are not recognised.
fn covers(deny: &Rule, allow: &Rule) -> bool {
    let selects = |clauses: &[Clause]| clauses.iter().any(|clause| !clause.peers.is_nobody());
    let within = |inner: &[Clause], outer: &[Clause]| {
        inner.iter().all(|inner| outer.iter().any(|outer| clause_within(inner, outer)))
    };
    selects(&allow.from)
        && selects(&allow.to)
        && within(&allow.from, &deny.from)
        && within(&allow.to, &deny.to)
}

fn clause_within(inner: &Clause, outer: &Clause) -> bool {
    let peers = match (&inner.peers, &outer.peers) {
        (Peers::Machines(inner), Peers::Machines(outer)) => inner.vms.is_subset(&outer.vms),
        (Peers::Network(inner), Peers::Network(outer)) => outer.includes(inner),
        (Peers::Domain(inner), Peers::Domain(outer)) => inner == outer,
        _ => false,
    };
    let ports = outer.ports.is_empty()
        || (!inner.ports.is_empty()
            && inner.ports.iter().all(|inner| outer.ports.iter().any(|outer| outer.includes(*inner))));
    peers && ports && process_within(inner.process.as_ref(), outer.process.as_ref())
}

fn process_within(inner: Option<&ProcessMatch>, outer: Option<&ProcessMatch>) -> bool {
    outer.is_none() || inner == outer
}
