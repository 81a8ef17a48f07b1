// SPDX-License-Identifier: Apache-2.0
//! Maglev's lookup table (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Every backend has a permutation of the table's places that follows from its name alone; in turn each backend
//! takes the first place of its permutation that is still free. So all backends get nearly the same number of
//! places, and when one comes or goes few places of the others change.

/// Places for each backend at the least, which keeps shares within one percent of each other (section 5.3).
const PLACES_PER_BACKEND: usize = 100;

/// Sizes of a table: primes, so that every step visits every place.
const SIZES: [usize; 6] = [251, 2_039, 16_381, 131_071, 1_048_573, 16_777_213];

/// A table from hashes to backends.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    places: Vec<u32>,
}

impl Table {
    /// Fills a table for `backends`: the number that lookups return, and the hash of the name.
    pub(super) fn new(backends: &[(u32, u64)]) -> Self {
        if backends.is_empty() {
            return Self::default();
        }
        let wanted = backends.len() * PLACES_PER_BACKEND;
        let size = SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1]);
        let mut walks: Vec<Walk> = backends.iter().map(|(_, name)| Walk::new(*name, size)).collect();
        let mut places = vec![u32::MAX; size];
        let mut free = size;
        'filling: loop {
            for (walk, (number, _)) in walks.iter_mut().zip(backends) {
                let place = walk.find(|place| places[*place] == u32::MAX).expect("a free place is left");
                places[place] = *number;
                free -= 1;
                if free == 0 {
                    break 'filling;
                }
            }
        }
        Self { places }
    }

    /// The backend for a hash.
    pub(super) fn at(&self, hash: u64) -> Option<u32> {
        // The high half of a product is as even as a remainder, without a division.
        let place = (u128::from(hash) * self.places.len() as u128) >> 64;
        self.places.get(place as usize).copied()
    }
}

/// A backend's permutation of the places.
struct Walk {
    next: usize,
    step: usize,
    size: usize,
}

impl Walk {
    fn new(name: u64, size: usize) -> Self {
        let (offset, skip) = (super::mixed(name), super::mixed(name ^ 0x9e37_79b9_7f4a_7c15));
        let (size64, places) = (size as u64, size);
        Self { next: (offset % size64) as usize, step: (skip % (size64 - 1)) as usize + 1, size: places }
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let place = self.next;
        self.next = (place + self.step) % self.size;
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(names: impl Iterator<Item = u32>) -> Table {
        let backends: Vec<_> = names.map(|name| (name, super::super::mixed(u64::from(name)))).collect();
        Table::new(&backends)
    }

    fn shares(table: &Table, backends: usize) -> Vec<usize> {
        let mut shares = vec![0; backends];
        table.places.iter().for_each(|backend| shares[*backend as usize] += 1);
        shares
    }

    #[test]
    fn nobody_is_nowhere() {
        assert_eq!(Table::new(&[]).at(7), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        /// Nobody's share differs from the mean by more than one percent: it is the turns that see to that.
        #[test]
        fn shares_differ_by_one_percent_at_most(backends in 1_usize..200) {
            let table = table(0..backends as u32);
            let shares = shares(&table, backends);
            let (least, most) = (*shares.iter().min().unwrap(), *shares.iter().max().unwrap());
            prop_assert!(most - least <= 1 && least >= PLACES_PER_BACKEND, "{least} to {most}");
        }

        /// When one of n backends goes, its n-th part moves; of the rest a few percent (section 5.3).
        #[test]
        fn few_places_move_when_one_backend_goes(backends in 2_u32..200, gone in 0_u32..200) {
            let gone = gone % backends;
            let (before, after) = (table(0..backends), table((0..backends).filter(|name| *name != gone)));
            if before.places.len() == after.places.len() {
                let pairs = before.places.iter().zip(&after.places);
                let moved = pairs.filter(|(before, after)| **before != gone && before != after).count();
                prop_assert!(moved * 25 <= before.places.len(), "{moved} of {}", before.places.len());
            }
        }
    }
}
