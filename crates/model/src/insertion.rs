// SPDX-License-Identifier: Apache-2.0
//! Data-plane services and the rules that add them to flows.
//!
//! Each service is a flag. Rules set flags on flows, the flags travel with each frame through the switch, and a
//! service runs because its flag is set, not because of who is asking.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};
use std::sync::Arc;

use crate::{
    AppProtocols, Confidence, Counted, End, Level, Limit, Part, RuleId, Sample, Spoken, UnknownReason,
    VmIndex,
};

/// A set of data-plane services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceFlags(u16);

impl ServiceFlags {
    /// No service.
    pub const NONE: Self = Self(0);
    /// What is called is looked up among what exists for the caller.
    pub const DISCOVERY: Self = Self(1);
    /// An endpoint is chosen.
    pub const BALANCE: Self = Self(1 << 1);
    /// A span is told to a collector.
    pub const TRACE: Self = Self(1 << 2);
    /// Who is behind both ends must be proven.
    pub const AUTHENTICATE: Self = Self(1 << 3);
    /// Policy decides whether the flow may pass.
    pub const AUTHORIZE: Self = Self(1 << 4);
    /// Frames that exceed a rate wait.
    pub const LIMIT: Self = Self(1 << 5);
    /// Frames are copied to a collector.
    pub const MIRROR: Self = Self(1 << 6);
    /// What happens to the flow is written to the log.
    pub const LOG: Self = Self(1 << 7);
    /// The flow's application protocol is told, and must be one of those that rules name.
    pub const LAYER7: Self = Self(1 << 8);
    /// The flow never leaves the host in the clear.
    pub const ENCRYPT: Self = Self(1 << 9);
    /// Frames have a part of the limits that they share with others.
    pub const SHARE: Self = Self(1 << 10);

    /// Each service with the word shown to users, in the order in which they run.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::DISCOVERY, "discovery"),
        (Self::BALANCE, "balance"),
        (Self::TRACE, "trace"),
        (Self::AUTHENTICATE, "authenticate"),
        (Self::AUTHORIZE, "authorize"),
        (Self::SHARE, "share"),
        (Self::LIMIT, "limit"),
        (Self::MIRROR, "mirror"),
        (Self::LOG, "log"),
        (Self::LAYER7, "layer7"),
        (Self::ENCRYPT, "encrypt"),
    ];

    /// The services that are given.
    #[must_use]
    pub fn given<const N: usize>(services: [(bool, Self); N]) -> Self {
        let given = services.into_iter().filter(|(is_given, _)| *is_given);
        given.fold(Self::NONE, |all, (_, flag)| all | flag)
    }

    /// What is in the set and not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in both sets.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// All that is in any of `sets`.
    #[must_use]
    pub const fn union(sets: &[Self]) -> Self {
        let (mut all, mut index) = (0, 0);
        while index < sets.len() {
            all |= sets[index].0;
            index += 1;
        }
        Self(all)
    }

    /// Whether any of `other` is in the set.
    #[must_use]
    #[inline]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The words of the services in the set.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().filter(move |(flag, _)| self.has(*flag)).map(|(_, word)| word)
    }
}

impl BitOr for ServiceFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ServiceFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Display for ServiceFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.words().collect();
        f.pad(&words.join(","))
    }
}

/// What one rule, or the limit of a machine or service, adds to flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insertion {
    /// The rule, or whose limit it is.
    pub rule: RuleId,
    /// The level that it speaks for.
    pub level: Level,
    /// Its place among the rules of its level, lowest first; those alike go by their files.
    pub order: u32,
    /// Whether it denies the flow.
    pub denies: bool,
    /// The services that it adds.
    pub services: ServiceFlags,
    /// Who gets copies of the flow's frames.
    pub mirror: Option<VmIndex>,
    /// What frames may pass, and which of them count.
    pub limit: Option<(Limit, Counted)>,
    /// Which part of the flows is traced.
    pub trace: Option<Sample>,
    /// What such flows get of all limits that they share with others.
    pub part: Option<Part>,
    /// What may be spoken in such flows; absent: anything.
    pub protocols: Option<AppProtocols>,
}

impl Insertion {
    /// An insertion that adds these services, and does nothing else.
    #[must_use]
    pub const fn new(rule: RuleId, level: Level, services: ServiceFlags) -> Self {
        let (mirror, limit, trace, part, protocols) = (None, None, None, None, None);
        Self { rule, level, order: 0, denies: false, services, mirror, limit, trace, part, protocols }
    }

    /// What calls of a service have from it, if anything.
    #[must_use]
    pub fn of_service(
        rule: RuleId,
        level: Level,
        limit: Option<Limit>,
        part: Option<Part>,
    ) -> Option<Arc<Self>> {
        let services = ServiceFlags::given([
            (limit.is_some(), ServiceFlags::LIMIT),
            (part.is_some(), ServiceFlags::SHARE),
        ]);
        let limit = limit.map(|limit| (limit, Counted::EachWay));
        let own = Self { limit, part, ..Self::new(rule, level, services) };
        (services != ServiceFlags::NONE).then(|| Arc::new(own))
    }
}

/// What a service demands of a flow that rules allow, and the flow does not meet: it is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// Who is behind this end is not proven.
    Unproven(End, Unproven),
    /// Its frames would leave the host, or have come to it, in the clear.
    InTheClear(End),
    /// It speaks something else than one of these.
    Speaks(Spoken, AppProtocols),
    /// What it speaks is not told, since it is not TCP, and must be one of these.
    Untold(AppProtocols),
}

/// What is known instead of who is behind an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// The end is no machine of the mesh.
    Outside,
    /// Nothing: nobody was asked, or could tell.
    Nothing,
    /// There is no process, and this is why.
    Unknown(UnknownReason),
    /// A process, found with this confidence.
    Unsure(Confidence),
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unproven(end, known) => write!(f, "who is behind the {end} is not proven: {known}"),
            Self::InTheClear(end) => {
                write!(f, "the {end} is outside, and nothing leaves the host but in the clear")
            }
            Self::Speaks(Spoken::Known(spoken), wanted) => write!(f, "it speaks {spoken}, not {wanted}"),
            Self::Speaks(Spoken::Other, wanted) => write!(f, "it does not speak {wanted}"),
            Self::Untold(wanted) => write!(f, "only of TCP it is told whether it speaks {wanted}"),
        }
    }
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outside => f.write_str("it is outside the mesh"),
            Self::Nothing => f.write_str("nothing is known but the machine"),
            Self::Unknown(reason) => write!(f, "no process is known ({reason})"),
            Self::Unsure(confidence) => write!(f, "its process has confidence {confidence} only"),
        }
    }
}

/// The services that rules add.
pub(crate) fn added(insertions: &[Arc<Insertion>]) -> ServiceFlags {
    insertions.iter().fold(ServiceFlags::NONE, |services, insertion| services | insertion.services)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_a_bit_and_a_word_of_its_own() {
        let all = ServiceFlags::ALL.into_iter().fold(ServiceFlags::NONE, |all, (flag, word)| {
            assert!(!all.has(flag), "{word} shares its bit");
            assert_eq!(flag.to_string(), word);
            all | flag
        });
        assert_eq!(all.words().count(), ServiceFlags::ALL.len());
        assert_eq!((ServiceFlags::LOG | ServiceFlags::MIRROR).to_string(), "mirror,log");
        assert_eq!(ServiceFlags::NONE.to_string(), "");
    }
}
