// SPDX-License-Identifier: Apache-2.0
//! Sets of small numbers, one bit each.

/// A set of numbers below a size that is fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BitSet {
    words: Vec<u64>,
}

impl BitSet {
    /// The empty set of numbers below `size`.
    pub(crate) fn new(size: usize) -> Self {
        Self { words: vec![0; size.div_ceil(64)] }
    }

    /// Adds a number, which must be below the size.
    pub(crate) fn insert(&mut self, number: usize) {
        self.words[number / 64] |= 1 << (number % 64);
    }

    pub(crate) fn contains(&self, number: usize) -> bool {
        self.words.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether every member is also one of `other`, a set of the same size.
    pub(crate) fn is_subset(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).all(|(own, others)| own & !others == 0)
    }

    /// All members, in rising order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| ones(*word).map(move |bit| index * 64 + bit))
    }
}

/// The positions of a word's set bits, in rising order.
pub(crate) fn ones(word: u64) -> impl Iterator<Item = usize> {
    let mut left = word;
    std::iter::from_fn(move || {
        let bit = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        (bit < u64::BITS).then_some(bit as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[usize]) -> BitSet {
        let mut set = BitSet::new(200);
        for number in numbers {
            set.insert(*number);
        }
        set
    }

    #[test]
    fn members_come_back_in_order_across_words() {
        let numbers = [0, 1, 63, 64, 127, 128, 199];
        assert_eq!(set(&numbers).iter().collect::<Vec<_>>(), numbers);
        assert!(numbers.iter().all(|number| set(&numbers).contains(*number)));
        assert!(!set(&numbers).contains(2) && !set(&numbers).contains(10_000));
        assert!(set(&[]).is_empty() && BitSet::new(0).is_empty());
    }

    #[test]
    fn subsets_are_recognised() {
        let (small, large) = (set(&[5, 70]), set(&[5, 70, 71]));
        assert!(small.is_subset(&large) && !large.is_subset(&small));
    }
}
