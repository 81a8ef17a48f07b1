// SPDX-License-Identifier: Apache-2.0
//! From what was seen once to what is told: a contradiction has to be seen again.

use std::collections::HashMap;
use std::time::Duration;

use crate::kallsyms::SymbolNames;

use super::finding::{
    Certainty, FINDING_KEPT, Finding, FindingKind, SIGHTINGS_MIN, SUSPECT_FOR, SUSPECT_KEPT, SUSPECTS_MAX,
};

/// A contradiction seen once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) kind: FindingKind,
    pub(super) certainty: Certainty,
    pub(super) address: u64,
    pub(super) evidence: String,
}

/// What has been seen, by what and where it is.
#[derive(Default)]
pub(super) struct Suspects {
    seen: HashMap<(FindingKind, u64), Seen>,
}

struct Seen {
    finding: Finding,
    sightings: u32,
    /// Its symbol has been looked for.
    is_named: bool,
}

impl Seen {
    /// Whether it has been seen often enough, over a time long enough.
    fn is_confirmed(&self) -> bool {
        let seen_for = self.finding.last_seen.saturating_sub(self.finding.first_seen);
        self.sightings >= SIGHTINGS_MIN && seen_for >= SUSPECT_FOR
    }
}

impl Suspects {
    pub(super) fn saw(&mut self, now: Duration, suspects: Vec<Suspect>) {
        for Suspect { kind, certainty, address, evidence } in suspects {
            if let Some(Seen { finding, sightings, .. }) = self.seen.get_mut(&(kind, address)) {
                // Two views of one thing in one call are one sighting.
                if finding.last_seen != now {
                    *sightings = sightings.saturating_add(1);
                }
                finding.last_seen = now;
                finding.certainty = certainty;
                finding.evidence = evidence;
            } else if self.seen.len() < SUSPECTS_MAX {
                let (symbol, first_seen, last_seen) = (None, now, now);
                let finding = Finding { kind, certainty, address, symbol, evidence, first_seen, last_seen };
                self.seen.insert((kind, address), Seen { finding, sightings: 1, is_named: false });
            }
        }
    }

    pub(super) fn forget(&mut self, now: Duration) {
        self.seen.retain(|_, seen| {
            let kept = if seen.is_confirmed() { FINDING_KEPT } else { SUSPECT_KEPT };
            now.saturating_sub(seen.finding.last_seen) <= kept
        });
    }

    /// Whether there is a suspect that may become a finding.
    pub(super) fn is_any_open(&self) -> bool {
        self.seen.values().any(|seen| !seen.is_confirmed())
    }

    /// Looks for the symbols of some findings.
    pub(super) fn name(&mut self, names: &SymbolNames, count: usize) {
        let nameless = self.seen.values_mut().filter(|seen| seen.is_confirmed() && !seen.is_named);
        for seen in nameless.take(count) {
            seen.finding.symbol = names.nearest(seen.finding.address);
            seen.is_named = true;
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let confirmed = self.seen.values().filter(|seen| seen.is_confirmed());
        let mut findings: Vec<Finding> = confirmed.map(|seen| seen.finding.clone()).collect();
        findings.sort_by_key(|finding| (std::cmp::Reverse(finding.certainty), finding.kind, finding.address));
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspect(address: u64) -> Suspect {
        let kind = FindingKind::HiddenTask;
        Suspect { kind, certainty: Certainty::Certain, address, evidence: "seen".into() }
    }

    #[test]
    fn suspect_is_told_once_it_is_seen_again_and_forgotten_when_it_is_not() {
        let mut suspects = Suspects::default();
        let second = Duration::from_secs;
        for now in 1..=SIGHTINGS_MIN {
            assert!(suspects.findings().is_empty());
            suspects.saw(second(now.into()), vec![suspect(1), suspect(1)]);
        }
        suspects.saw(second(3), vec![suspect(2)]);
        let told = suspects.findings();
        assert_eq!((told.len(), told[0].first_seen, told[0].last_seen), (1, second(1), second(3)));
        suspects.forget(second(3) + SUSPECT_KEPT + second(1));
        assert_eq!((suspects.findings().len(), suspects.seen.len()), (1, 1));
        suspects.forget(second(4) + FINDING_KEPT);
        assert!(suspects.findings().is_empty());
    }

    #[test]
    fn number_of_suspects_is_bounded() {
        let mut suspects = Suspects::default();
        let many = (0..2 * SUSPECTS_MAX as u64).map(suspect).collect();
        suspects.saw(Duration::ZERO, many);
        assert_eq!(suspects.seen.len(), SUSPECTS_MAX);
    }
}
