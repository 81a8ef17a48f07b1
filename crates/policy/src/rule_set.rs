// SPDX-License-Identifier: Apache-2.0
//! Sets of rules that are cheap to keep when small and cheap to intersect when large.
//!
//! A bit per rule, in a tree of 64-bit words three levels high: a bit of an upper word says whether
//! the word below it is kept at all. Aggregated bit vectors (Baboescu, Varghese: *Scalable Packet
//! Classification*, SIGCOMM 2001), with the words that are zero left out and found by counting bits,
//! as in hash array mapped tries (Bagwell, 2001). A set of one rule takes 40 bytes, a set of a whole
//! tenant a little more than one bit a rule.

use smallvec::SmallVec;

use crate::bits::ones;

/// Rules that one set, and so one tenant, can hold.
pub(crate) const RULES_MAX: usize = 64 * GROUP_RULES;

/// Rules below one bit of the root.
const GROUP_RULES: usize = 64 * 64;

/// Numbers of rules that were found, mostly few.
pub(crate) type Numbers = SmallVec<[usize; 16]>;

/// A set of numbers below [`RULES_MAX`]. Never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RuleSet {
    /// Which groups of [`GROUP_RULES`] have members.
    root: u64,
    /// Two words for each of those groups: which of its words have members, and the position here of
    /// the first of them. Behind them the words of members. All in one piece, because a lookup meets
    /// most sets for the first time in a long while.
    words: Box<[u64]>,
}

/// 64 words of members.
#[derive(Clone, Copy, Debug)]
struct Group<'a> {
    /// Which words have members.
    bits: u64,
    /// Those words.
    words: &'a [u64],
}

impl Group<'_> {
    fn word(&self, at: usize) -> u64 {
        if self.bits >> at & 1 == 0 { 0 } else { self.words[rank(self.bits, at)] }
    }
}

impl RuleSet {
    /// Takes in numbers, which must rise.
    pub(crate) fn new(numbers: impl IntoIterator<Item = usize>) -> Self {
        let mut words: Vec<(usize, u64)> = Vec::new();
        for number in numbers {
            let bit = 1 << (number % 64);
            match words.last_mut() {
                Some((index, word)) if *index == number / 64 => *word |= bit,
                _ => words.push((number / 64, bit)),
            }
        }
        Self::from_words(words.into_iter())
    }

    /// What any of `sets` has.
    pub(crate) fn union(sets: &[&Self]) -> Self {
        if let [only] = sets {
            return (*only).clone();
        }
        let groups = ones(sets.iter().fold(0, |bits, set| bits | set.root));
        let words = groups.flat_map(|at| {
            let members: Vec<_> = sets.iter().filter_map(|set| set.group(at)).collect();
            let bits = members.iter().fold(0, |bits, group| bits | group.bits);
            ones(bits).map(move |index| {
                (at * 64 + index, members.iter().fold(0, |word, group| word | group.word(index)))
            })
        });
        Self::from_words(words)
    }

    /// Takes in words that are not zero, each with its position, which must rise.
    fn from_words(indexed: impl Iterator<Item = (usize, u64)>) -> Self {
        let (mut root, mut groups, mut words) = (0, Vec::<[u64; 2]>::new(), Vec::new());
        for (index, word) in indexed {
            let (group, bit) = (index / 64, 1 << (index % 64));
            assert!(group < 64, "a tenant has at most {RULES_MAX} rules");
            if root >> group & 1 == 0 {
                root |= 1 << group;
                groups.push([0, words.len() as u64]);
            }
            groups.last_mut().expect("one was pushed")[0] |= bit;
            words.push(word);
        }
        let behind = 2 * groups.len() as u64;
        groups.iter_mut().for_each(|[_, first]| *first += behind);
        let words = groups.into_iter().flatten().chain(words);
        Self { root, words: words.collect() }
    }

    fn group(&self, at: usize) -> Option<Group<'_>> {
        (self.root >> at & 1 == 1).then(|| {
            let group = 2 * rank(self.root, at);
            Group { bits: self.words[group], words: &self.words[self.words[group + 1] as usize..] }
        })
    }

    /// Bytes of memory beside the set itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.words)
    }
}

/// How many bits are set below position `at`.
fn rank(bits: u64, at: usize) -> usize {
    (bits & ((1 << at) - 1)).count_ones() as usize
}

/// The rules of some sets, any of which will do.
#[derive(Debug, Default)]
pub(crate) struct Union<'a> {
    sets: SmallVec<[&'a RuleSet; 8]>,
    /// The part of each set in the group at hand.
    groups: SmallVec<[Group<'a>; 8]>,
}

impl<'a> Union<'a> {
    pub(crate) fn new(sets: impl Iterator<Item = &'a RuleSet>) -> Self {
        Self { sets: sets.collect(), groups: SmallVec::new() }
    }

    fn root(&self) -> u64 {
        self.sets.iter().fold(0, |bits, set| bits | set.root)
    }

    /// Turns to a group; returns which of its words have members.
    fn enter(&mut self, at: usize) -> u64 {
        self.groups.clear();
        self.groups.extend(self.sets.iter().filter_map(|set| set.group(at)));
        self.groups.iter().fold(0, |bits, group| bits | group.bits)
    }

    fn word(&self, at: usize) -> u64 {
        self.groups.iter().fold(0, |word, group| word | group.word(at))
    }
}

/// What three unions have in common, in rising order.
pub(crate) fn common(mut unions: [Union<'_>; 3]) -> Numbers {
    /// Joins what each union has, and asks no further once nothing is left.
    fn join(unions: &mut [Union<'_>; 3], mut part: impl FnMut(&mut Union<'_>) -> u64) -> u64 {
        unions.iter_mut().fold(u64::MAX, |left, union| if left == 0 { 0 } else { left & part(union) })
    }
    let mut found = Numbers::new();
    for group in ones(join(&mut unions, |union| union.root())) {
        for index in ones(join(&mut unions, |union| union.enter(group))) {
            let word = join(&mut unions, |union| union.word(index));
            found.extend(ones(word).map(|bit| (group * 64 + index) * 64 + bit));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn set(numbers: &BTreeSet<usize>) -> RuleSet {
        RuleSet::new(numbers.iter().copied())
    }

    /// Numbers that often share words and groups, and also lie far apart.
    fn numbers() -> impl Strategy<Value = BTreeSet<usize>> {
        btree_set(prop_oneof![0..200_usize, 4000..4200_usize, 0..RULES_MAX], 0..60)
    }

    proptest! {
        #[test]
        fn common_members_are_in_one_set_of_each_union(sets in vec(vec(numbers(), 0..4), 3)) {
            let unions: Vec<BTreeSet<usize>> =
                sets.iter().map(|sets| sets.iter().flatten().copied().collect()).collect();
            let expected: Vec<usize> = unions[0]
                .iter()
                .copied()
                .filter(|number| unions[1].contains(number) && unions[2].contains(number))
                .collect();
            let kept: Vec<Vec<RuleSet>> = sets.iter().map(|sets| sets.iter().map(set).collect()).collect();
            let union = |at: usize| Union::new(kept[at].iter());
            prop_assert_eq!(common([union(0), union(1), union(2)]).into_vec(), expected);
            for (kept, union) in kept.iter().zip(&unions) {
                let merged = RuleSet::union(&kept.iter().collect::<Vec<_>>());
                prop_assert_eq!(&merged, &set(union));
            }
        }
    }

    #[test]
    fn small_sets_are_small_and_large_ones_take_a_bit_a_rule() {
        assert!(RuleSet::new([RULES_MAX - 1]).heap_bytes() <= 24);
        assert!(RuleSet::new(0..RULES_MAX).heap_bytes() <= RULES_MAX / 8 + 1024);
    }
}
