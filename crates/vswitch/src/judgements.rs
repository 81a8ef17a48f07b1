// SPDX-License-Identifier: Apache-2.0
//! Judgements that flows share: most flows are decided by few rules, and remember the same of them.

use std::sync::Arc;

use model::Judgement;

/// How many judgements are remembered to be shared.
const PLACES: usize = 64;

/// What was decided lately, by the rule that did.
#[derive(Debug)]
pub(crate) struct Judgements([Option<Arc<Judgement>>; PLACES]);

impl Default for Judgements {
    fn default() -> Self {
        Self([const { None }; PLACES])
    }
}

impl Judgements {
    /// The same judgement, which others may have, too.
    pub(crate) fn share(&mut self, judgement: Judgement) -> Arc<Judgement> {
        // Names of rules lie apart in memory, which is as good as a hash of them.
        let name = Arc::as_ptr(&judgement.decided_by.0).addr() / align_of::<usize>();
        let spread = name ^ (name / PLACES) ^ judgement.matched.len();
        let place = &mut self.0[spread % PLACES];
        match place {
            Some(known) if **known == judgement => Arc::clone(known),
            _ => Arc::clone(place.insert(Arc::new(judgement))),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::{Action, RuleId};

    use super::*;

    #[test]
    fn what_is_shared_is_what_was_decided() {
        let mut judgements = Judgements::default();
        let rules: Vec<RuleId> = (0..2 * PLACES).map(|n| RuleId(format!("acme/{n}").into())).collect();
        let decided = |rule: &RuleId, action| Judgement::new(action, rule.clone());
        for rule in &rules {
            for action in [Action::Allow, Action::Deny, Action::Allow] {
                let shared = judgements.share(decided(rule, action));
                assert_eq!(*shared, decided(rule, action));
                assert!(Arc::ptr_eq(&shared, &judgements.share(decided(rule, action))));
            }
        }
    }
}
