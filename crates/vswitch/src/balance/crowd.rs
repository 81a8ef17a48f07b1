// SPDX-License-Identifier: Apache-2.0
//! Members ordered by how many flows they have: the least busy is found, and counts change, in constant time.

/// Counts beyond this are not told apart.
const COUNT_MAX: u32 = 65_535;

const ABSENT: (u32, u32) = (u32::MAX, 0);

/// Members by number of flows.
#[derive(Clone, Debug, Default)]
pub(super) struct Crowd {
    /// By number of flows, who has that many.
    rooms: Vec<Vec<u32>>,
    /// By member, its room and its position there.
    places: Vec<(u32, u32)>,
    /// No room before this one holds anybody.
    lowest: usize,
}

impl Crowd {
    /// A crowd of the given members with their numbers of flows.
    pub(super) fn new(members: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut crowd = Self::default();
        members.for_each(|(member, flows)| crowd.enter(member, flows));
        crowd
    }

    /// One of those with the fewest flows; `hash` tells which.
    pub(super) fn least(&mut self, hash: u64) -> Option<u32> {
        while self.rooms.get(self.lowest)?.is_empty() {
            self.lowest += 1;
        }
        let room = &self.rooms[self.lowest];
        let position = (u128::from(hash) * room.len() as u128) >> 64;
        Some(room[position as usize])
    }

    /// A member now has so many flows; nothing happens to one that is not in the crowd.
    pub(super) fn count(&mut self, member: u32, flows: u32) {
        let Some((room, position)) =
            self.places.get(member as usize).copied().filter(|place| *place != ABSENT)
        else {
            return;
        };
        self.rooms[room as usize].swap_remove(position as usize);
        if let Some(moved) = self.rooms[room as usize].get(position as usize) {
            self.places[*moved as usize].1 = position;
        }
        self.enter(member, flows);
    }

    fn enter(&mut self, member: u32, flows: u32) {
        let (room, member_place) = (flows.min(COUNT_MAX) as usize, member as usize);
        if self.rooms.len() <= room {
            self.rooms.resize_with(room + 1, Vec::new);
        }
        if self.places.len() <= member_place {
            self.places.resize(member_place + 1, ABSENT);
        }
        self.places[member_place] = (room as u32, self.rooms[room].len() as u32);
        self.rooms[room].push(member);
        self.lowest = self.lowest.min(room);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn least_is_one_with_the_fewest_flows(
            first in vec(0_u32..9, 1..20), changes in vec((0_usize..20, 0_u32..12, any::<u64>()), 0..80),
        ) {
            let mut counts = first;
            let mut crowd = Crowd::new(counts.iter().enumerate().map(|(member, flows)| (member as u32, *flows)));
            for (member, flows, hash) in changes {
                crowd.count(member as u32, flows);
                if let Some(count) = counts.get_mut(member) {
                    *count = flows;
                }
                let least = crowd.least(hash).unwrap();
                prop_assert_eq!(counts[least as usize], *counts.iter().min().unwrap());
            }
        }
    }
}
