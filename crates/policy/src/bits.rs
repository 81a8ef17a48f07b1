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

    /// Adds all members of `other`, a set of the same size.
    pub(crate) fn extend(&mut self, other: &Self) {
        for (own, others) in self.words.iter_mut().zip(&other.words) {
            *own |= others;
        }
    }

    /// What three sets of the same size have in common, in rising order.
    pub(crate) fn common<'a>(a: &'a Self, b: &'a Self, c: &'a Self) -> impl Iterator<Item = usize> + 'a {
        let words = a.words.iter().zip(&b.words).zip(&c.words).map(|((a, b), c)| a & b & c);
        words.enumerate().flat_map(|(index, word)| ones(index, word))
    }
}

/// The numbers that a word at `index` stands for.
fn ones(index: usize, word: u64) -> impl Iterator<Item = usize> {
    let mut left = word;
    std::iter::from_fn(move || {
        let bit = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        (bit < u64::BITS).then_some(index * 64 + bit as usize)
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
        let all = set(&numbers);
        assert_eq!(BitSet::common(&all, &all, &all).collect::<Vec<_>>(), numbers);
        assert!(numbers.iter().all(|number| set(&numbers).contains(*number)));
        assert!(!set(&numbers).contains(2) && !set(&numbers).contains(10_000));
        assert!(set(&[]).is_empty() && BitSet::new(0).is_empty());
    }

    #[test]
    fn common_members_are_in_all_three() {
        let common = |a: &[usize], b: &[usize], c: &[usize]| {
            BitSet::common(&set(a), &set(b), &set(c)).collect::<Vec<_>>()
        };
        assert_eq!(common(&[1, 64, 130], &[0, 64, 130], &[64, 130, 199]), [64, 130]);
        assert!(common(&[1], &[2], &[1, 2]).is_empty());
    }

    #[test]
    fn subset_and_union_agree() {
        let (small, mut large) = (set(&[5, 70]), set(&[70]));
        assert!(!small.is_subset(&large));
        large.extend(&small);
        assert!(small.is_subset(&large) && !large.is_subset(&set(&[5])));
    }
}
