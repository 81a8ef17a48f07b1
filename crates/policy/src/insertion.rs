// SPDX-License-Identifier: Apache-2.0
//! Flow policies, compiled: which services are added to a flow, by which rules, in which order.

use std::sync::Arc;

use model::{Detour, FlowQuery, Insertion, Needs, Party, ServiceFlags};

use crate::classifier::Classifier;
use crate::clause::{Clause, End, Rule};

/// A flow policy, compiled.
#[derive(Clone, Debug)]
pub(crate) struct FlowRule {
    /// Which flows; its action means nothing.
    pub(crate) rule: Rule,
    /// What one of the flow's ends must be all of. Empty at the outer two levels.
    pub(crate) scope: Box<[Clause]>,
    pub(crate) insertion: Arc<Insertion>,
    pub(crate) detour: Option<Detour>,
}

impl FlowRule {
    /// Whether the flow has an end that the rule may speak for.
    pub(crate) fn is_in_scope(&self, query: &FlowQuery<'_>) -> bool {
        let belongs = |end: End<'_>| {
            let attribution = end.party.attribution;
            self.scope.iter().all(|clause| clause.peers.include(&end) && clause.process_fits(attribution))
        };
        self.scope.is_empty() || belongs(End::source(query)) || belongs(End::destination(query))
    }

    pub(crate) fn matches(&self, query: &FlowQuery<'_>) -> bool {
        self.rule.matches(query) && self.is_in_scope(query)
    }

    fn scope_names_process(&self) -> bool {
        self.scope.iter().any(|clause| clause.process.is_some())
    }

    /// Whether there are flows for which it needs a process.
    fn asks(&self) -> bool {
        self.rule.names_process()
            || self.scope_names_process()
            || self.insertion.services.has(ServiceFlags::AUTHENTICATE)
    }

    /// Which processes decide whether a flow that the classifier found this rule for matches it, or must be proven if it
    /// does.
    fn needs(&self, query: &FlowQuery<'_>) -> Needs {
        let could_belong = |end: End<'_>| self.scope.iter().all(|clause| clause.peers.include(&end));
        let source = could_belong(End::source(query));
        let destination = could_belong(End::destination(query));
        let own = self.rule.needs(query);
        if !source && !destination {
            return Needs::default();
        }
        let proves = self.insertion.services.has(ServiceFlags::AUTHENTICATE) && self.rule.could_match(query);
        if proves {
            let is_machine = |party: Party<'_>| party.vm.is_some();
            return Needs { source: is_machine(query.source), destination: is_machine(query.destination) };
        }
        let asks = self.scope_names_process();
        Needs { source: own.source || asks && source, destination: own.destination || asks && destination }
    }
}

/// The flow policies of a tenant, or those of the infrastructure, which see all tenants' flows.
#[derive(Clone, Debug)]
pub(crate) struct FlowRules {
    /// From the outermost level inwards, in order.
    pub(crate) rules: Vec<FlowRule>,
    classifier: Classifier,
    /// Finds those alone that ask for processes.
    asking: Classifier,
}

impl FlowRules {
    /// Rules in the order of their files.
    pub(crate) fn new(mut rules: Vec<FlowRule>) -> Self {
        rules.sort_by_key(|rule| (rule.insertion.level, rule.insertion.order));
        let placed = || rules.iter().enumerate();
        let classifier = Classifier::new(placed().map(|(place, rule)| (place, &rule.rule)));
        let asking = placed().filter(|(_, rule)| rule.asks()).map(|(place, rule)| (place, &rule.rule));
        Self { classifier, asking: Classifier::new(asking), rules }
    }

    /// The rules that match, in order.
    pub(crate) fn matching(&self, query: &FlowQuery<'_>) -> impl Iterator<Item = &FlowRule> {
        self.classifier.among(&self.rules, query).filter(move |rule| rule.matches(query))
    }

    pub(crate) fn needs(&self, query: &FlowQuery<'_>) -> Needs {
        self.asking.among(&self.rules, query).map(|rule| rule.needs(query)).fold(
            Needs::default(),
            |all, own| Needs {
                source: all.source || own.source,
                destination: all.destination || own.destination,
            },
        )
    }
}
