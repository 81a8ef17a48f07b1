// SPDX-License-Identifier: Apache-2.0
//! The question that the switch puts to policy once per flow, and the answer.

use std::fmt;
use std::sync::Arc;

use crate::insertion::added;
use crate::{
    Attribution, Directory, FiveTuple, Generation, Insertion, Inventory, Name, OfferIndex, Sample,
    ServiceFlags, Sight, Unmet, VmIndex,
};

/// What a rule, or the default, does with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The flow may pass.
    Allow,
    /// The flow is refused: a reset for TCP, "administratively prohibited" for others.
    Deny,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// A rule by its resource: `tenant/name`, or `tenant/default` for what no rule decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub Arc<str>);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Which end of a flow is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Who opened it.
    Source,
    /// Whom it is for.
    Destination,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// One end of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Party<'a> {
    /// The machine; `None` outside the mesh, where only the address in the flow's tuple is known.
    pub vm: Option<VmIndex>,
    /// The process behind the flow; `None` when nobody asked for it.
    pub attribution: Option<&'a Attribution>,
}

/// A flow to be judged, as its first packet shows it. At least one end is a machine.
#[derive(Clone, Copy, Debug)]
pub struct FlowQuery<'a> {
    /// As the initiator sent it.
    pub tuple: FiveTuple,
    /// Who opened the flow.
    pub source: Party<'a>,
    /// Whom it is for.
    pub destination: Party<'a>,
    /// The names that the destination's address was found under lately, if it is outside the mesh: in small letters,
    /// without a dot at the end.
    pub names: &'a [Arc<str>],
}

/// Which ends must be attributed before a flow can be judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Some rule that could apply names a process at the source.
    pub source: bool,
    /// Some rule that could apply names a process at the destination (who listens).
    pub destination: bool,
}

/// The answer to a [`FlowQuery`]. It always names what decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What is to happen.
    pub action: Action,
    /// The rule, or default, that decided.
    pub decided_by: RuleId,
    /// All enforced rules that matched, `decided_by` included unless it is the default.
    pub matched: Vec<RuleId>,
    /// Rules in audit mode that matched, with what they would have done.
    pub audited: Vec<(RuleId, Action)>,
    /// What rules that matched add to the flow, from the outermost level inwards, in order.
    pub inserted: Vec<Arc<Insertion>>,
    /// The service whose virtual address was called.
    pub via: Option<RuleId>,
    /// Why it is denied though rules allow it: what a service that `decided_by` adds demands.
    pub unmet: Option<Unmet>,
}

impl Judgement {
    /// An action that something decided by itself.
    #[must_use]
    pub fn new(action: Action, decided_by: RuleId) -> Self {
        let (matched, audited, inserted) = (Vec::new(), Vec::new(), Vec::new());
        Self { action, decided_by, matched, audited, inserted, via: None, unmet: None }
    }

    /// Denies an allowed flow for what it does not meet, in the name of the rule that demands it.
    #[must_use]
    pub fn denied_for(mut self, rule: RuleId, unmet: Unmet) -> Self {
        (self.action, self.unmet) = (Action::Deny, Some(unmet));
        self.matched.insert(0, rule.clone());
        self.decided_by = rule;
        self
    }

    /// The services of the flow: those that rules add, and those that came with the question.
    #[must_use]
    pub fn services(&self) -> ServiceFlags {
        let looked_up = match self.via {
            Some(_) => ServiceFlags::DISCOVERY | ServiceFlags::BALANCE,
            None => ServiceFlags::NONE,
        };
        ServiceFlags::AUTHORIZE | looked_up | added(&self.inserted)
    }

    /// Who gets copies of the flow's frames: the first that a rule names.
    #[must_use]
    pub fn mirror(&self) -> Option<VmIndex> {
        self.inserted.iter().find_map(|insertion| insertion.mirror)
    }

    /// Whether rules name what may be spoken in the flow.
    #[must_use]
    pub fn names_protocols(&self) -> bool {
        self.inserted.iter().any(|insertion| insertion.protocols.is_some())
    }

    /// Which part of such flows is traced: the greatest that a rule says.
    #[must_use]
    pub fn sample(&self) -> Option<Sample> {
        self.inserted.iter().filter_map(|insertion| insertion.trace).max()
    }
}

/// Another machine that a flow goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detour {
    /// The machine.
    pub vm: VmIndex,
    /// Its port; `None`: the one that was asked for.
    pub l4_port: Option<u16>,
}

/// Compiled policy: a pure function of the question.
pub trait Judge: fmt::Debug + Send + Sync {
    /// Which ends must be attributed before [`Judge::judge`] can tell rules about processes apart.
    /// The attributions in `query` are ignored.
    fn needs(&self, query: &FlowQuery<'_>) -> Needs;

    /// Decides. A missing attribution is read as *unknown*.
    fn judge(&self, query: &FlowQuery<'_>) -> Judgement;

    /// As [`Judge::needs`], for [`Judge::judge_call`].
    fn needs_of_call(&self, _service: &RuleId, query: &FlowQuery<'_>) -> Needs {
        self.needs(query)
    }

    /// Decides about a call from one tenant to an infrastructure service of another, `tenant/name`. Whoever says nothing
    /// about it lets it pass.
    fn judge_call(&self, service: &RuleId, query: &FlowQuery<'_>) -> Judgement {
        let inserted = self.insert(query);
        let (action, decided_by) = match inserted.iter().find(|insertion| insertion.denies) {
            Some(denial) => (Action::Deny, denial.rule.clone()),
            None => (Action::Allow, RuleId(format!("{service}/(service)").into())),
        };
        Judgement { inserted, ..Judgement::new(action, decided_by) }
    }

    /// Whether a rule lets a machine reach what is outside the mesh by this name, so that it must be able to ask for it, and
    /// the answer is to be remembered. The name is as in [`FlowQuery::names`].
    fn names_domain(&self, _from: VmIndex, _name: &str) -> bool {
        false
    }

    /// Where the flow goes instead of its destination. Asked before anything else; what it answers is judged.
    /// The attributions in `query` are ignored.
    fn detour(&self, _query: &FlowQuery<'_>) -> Option<Detour> {
        None
    }

    /// What rules add to the flow, from the outermost level inwards, in order. [`Judge::judge`] says it too; this is
    /// for flows that policy does not decide about.
    fn insert(&self, _query: &FlowQuery<'_>) -> Vec<Arc<Insertion>> {
        Vec::new()
    }
}

/// One published state of the mesh on this host. Immutable.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its number; every verdict carries it.
    pub generation: Generation,
    /// What exists.
    pub inventory: Inventory,
    /// Who may talk to whom.
    pub judge: Arc<dyn Judge>,
    /// What is offered, and to whom.
    pub services: Arc<dyn Directory>,
}

impl Snapshot {
    /// Whether what a flow is for exists for its source. `via` is the service whose virtual address the source
    /// called, if it did.
    #[must_use]
    pub fn sight(&self, query: &FlowQuery<'_>, via: Option<OfferIndex>) -> Sight {
        match via {
            Some(offer) => self.services.sees(offer, query.source),
            None => self.services.reaches(query),
        }
    }

    /// Which ends must be attributed before [`Snapshot::judge`] can answer.
    #[must_use]
    pub fn needs(&self, query: &FlowQuery<'_>, via: Option<OfferIndex>) -> Needs {
        let unattributed = Party { attribution: None, ..query.source };
        let unsure = self.sight(&FlowQuery { source: unattributed, ..*query }, via) == Sight::Unsure;
        let needs = match self.crosses(query, via) {
            Some(service) => self.judge.needs_of_call(service, query),
            None => self.judge.needs(query),
        };
        Needs { source: needs.source || unsure, ..needs }
    }

    fn tenant(&self, party: Party<'_>) -> Option<&Name> {
        party.vm.map(|vm| &self.inventory.vm(vm).id.tenant)
    }

    /// The service, if this is a call from one tenant to another's.
    #[must_use]
    pub fn crosses(&self, query: &FlowQuery<'_>, via: Option<OfferIndex>) -> Option<&RuleId> {
        let own = self.tenant(query.source) == self.tenant(query.destination);
        via.filter(|_| !own).map(|offer| &self.services.offer(offer).id)
    }

    /// Decides: what does not exist for the source is refused, and policy decides about the rest.
    #[must_use]
    pub fn judge(&self, query: &FlowQuery<'_>, via: Option<OfferIndex>) -> Judgement {
        let mut judgement = match self.crosses(query, via) {
            _ if self.sight(query, via) != Sight::Seen => {
                let tenant = self.tenant(query.source).or(self.tenant(query.destination));
                let tenant = tenant.map_or("", Name::as_str);
                Judgement::new(Action::Deny, RuleId(format!("{tenant}/(visibility)").into()))
            }
            Some(service) => self.judge.judge_call(service, query),
            None => self.judge.judge(query),
        };
        let limit_of = |party: Party<'_>| self.inventory.limit(party.vm?);
        let own = limit_of(query.source);
        // A machine that calls itself has but one limit.
        let far = limit_of(query.destination).filter(|_| query.source.vm != query.destination.vm);
        if let Some(offer) = via.map(|offer| self.services.offer(offer)) {
            judgement.inserted.extend(offer.inserted.clone());
            judgement.via = Some(offer.id.clone());
        }
        judgement.inserted.extend(own.into_iter().chain(far).cloned());
        judgement
    }
}
