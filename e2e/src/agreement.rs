// SPDX-License-Identifier: Apache-2.0
//! Whether RAM and the guest itself tell the same, while things come and go.
//!
//! Each side tells twice, in turn: what one side told both times was there in between, when the other side looked,
//! and must be in what it told.

use std::collections::BTreeMap;
use std::fmt::Debug;

use anyhow::{Result, bail};

/// Contradictions that a failure names.
const NAMED_MAX: usize = 8;

/// Compares what `guest` and `ram` tell; returns of how many things.
///
/// # Errors
/// When a side cannot tell, or they contradict each other.
pub(crate) fn compare<K: Ord + Debug, V: PartialEq + Debug>(
    mut guest: impl FnMut() -> Result<BTreeMap<K, V>>,
    mut ram: impl FnMut() -> Result<BTreeMap<K, V>>,
) -> Result<usize> {
    let guest_before = guest()?;
    let ram_before = ram()?;
    let guest_after = guest()?;
    let ram_after = ram()?;
    let missed = differences(&guest_before, &guest_after, &ram_before);
    let invented = differences(&ram_before, &ram_after, &guest_after);
    if !missed.is_empty() || !invented.is_empty() {
        bail!("not in RAM or different there: {missed:?}; not in the guest or different there: {invented:?}");
    }
    Ok(stayed(&guest_before, &guest_after).count())
}

/// Whether all that stayed is in `theirs`, who told only once, in between; returns how much.
///
/// # Errors
/// When it is not.
pub(crate) fn included<K: Ord + Debug, V: PartialEq + Debug>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
    theirs: &BTreeMap<K, V>,
) -> Result<usize> {
    let missed = differences(before, after, theirs);
    if !missed.is_empty() {
        bail!("absent or different: {missed:?}");
    }
    Ok(stayed(before, after).count())
}

/// What was the same both times.
fn stayed<'a, K: Ord, V: PartialEq>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    before.iter().filter(|(key, value)| after.get(key) == Some(value))
}

/// What stayed on one side and is absent from the other, or different there, with what that has instead.
fn differences<'a, K: Ord, V: PartialEq>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
    theirs: &'a BTreeMap<K, V>,
) -> Vec<(&'a K, &'a V, Option<&'a V>)> {
    let with_theirs = stayed(before, after).map(|(key, value)| (key, value, theirs.get(key)));
    with_theirs.filter(|(_, value, other)| Some(*value) != *other).take(NAMED_MAX).collect()
}

/// Names of threads end after this many bytes; the guest shows those of kernel threads whole.
const NAME_BYTES: usize = 15;

/// A thread's name as RAM has it, without what the guest appends to those of kernel workers, the queue they last
/// worked for: `kworker/0:1-events` and `kworker/0:1+events` are `kworker/0:1`.
pub(crate) fn plain_name(name: &str) -> String {
    let named = name.starts_with("kworker/") && !name.starts_with("kworker/R-");
    let name = if named { name.split(['-', '+']).next().unwrap_or(name) } else { name };
    name.get(..NAME_BYTES).unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells `first` and then, for ever, `second`.
    fn told<'a>(
        first: &'a [(u8, u8)],
        second: &'a [(u8, u8)],
    ) -> impl FnMut() -> Result<BTreeMap<u8, u8>> + 'a {
        let mut asked = false;
        move || {
            let answer = if asked { second } else { first };
            asked = true;
            Ok(answer.iter().copied().collect())
        }
    }

    #[test]
    fn only_what_stayed_must_agree() {
        let (same, changed, gone) = ([(1, 1), (2, 2)], [(1, 1), (2, 3)], [(1, 1)]);
        for (guest, ram, agreed) in [
            ((&same[..], &same[..]), (&same[..], &same[..]), Some(2)),
            ((&same, &changed), (&same, &changed), Some(1)),
            ((&same, &gone), (&changed, &gone), Some(1)),
            ((&same, &same), (&gone, &same), None),
            ((&gone, &gone), (&same, &same), None),
            ((&same, &same), (&changed, &changed), None),
        ] {
            let found = compare(told(guest.0, guest.1), told(ram.0, ram.1));
            assert_eq!(found.as_ref().ok().copied(), agreed, "{guest:?} {ram:?} {found:?}");
        }
    }

    #[test]
    fn kernel_workers_lose_their_queue() {
        for (name, plain) in
            [("kworker/0:1-events", "kworker/0:1"), ("kworker/R-rcu_gp", "kworker/R-rcu_g"), ("a-b", "a-b")]
        {
            assert_eq!(plain_name(name), plain);
        }
    }
}
