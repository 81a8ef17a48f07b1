// SPDX-License-Identifier: Apache-2.0
//! Where virtual addresses come from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Cidr, Level};

/// The ranges that virtual addresses are allocated from: one of each family for each level.
///
/// They are part of the daemon's settings and not of any tenant's resources, because all tenants share them:
/// a virtual address means one service in the whole mesh. The defaults lie in the shared address space of
/// RFC 6598 and in a unique local prefix of RFC 4193, which tenants rarely use themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    levels: [(Cidr, Cidr); 4],
    callers: (Cidr, Cidr),
}

/// Why ranges cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangesError {
    /// The IPv4 range is IPv6 or the other way round.
    #[error("{0} is of the wrong family")]
    Family(Cidr),
    /// Too few addresses to be of use.
    #[error("{0} is too small: it needs 256 addresses or more")]
    Small(Cidr),
    /// Two ranges have addresses in common.
    #[error("{0} and {1} have addresses in common")]
    Overlap(Cidr, Cidr),
}

/// Shortest host part of a range, in bits.
const HOST_BITS_MIN: u8 = 8;

impl Ranges {
    /// Ranges for the levels from infrastructure inwards, and for callers from other tenants.
    ///
    /// # Errors
    /// When one is of the wrong family or too small, or two overlap.
    pub fn new(levels: [(Cidr, Cidr); 4], callers: (Cidr, Cidr)) -> Result<Self, RangesError> {
        let all: Vec<(Cidr, Cidr)> = levels.into_iter().chain([callers]).collect();
        for (v4, v6) in &all {
            let wrong = [(v4, !v4.address().is_ipv4()), (v6, v6.address().is_ipv4())];
            if let Some((range, _)) = wrong.into_iter().find(|(_, wrong)| *wrong) {
                return Err(RangesError::Family(*range));
            }
            let small = [(v4, 32), (v6, 128)];
            if let Some((range, _)) =
                small.into_iter().find(|(range, bits)| bits - range.prefix_len_bits() < HOST_BITS_MIN)
            {
                return Err(RangesError::Small(*range));
            }
        }
        let flat: Vec<Cidr> = all.iter().flat_map(|(v4, v6)| [*v4, *v6]).collect();
        for (index, one) in flat.iter().enumerate() {
            let meets = |other: &&Cidr| one.contains(other.address()) || other.contains(one.address());
            if let Some(other) = flat[index + 1..].iter().find(meets) {
                return Err(RangesError::Overlap(*one, *other));
            }
        }
        Ok(Self { levels, callers })
    }

    /// The IPv4 and the IPv6 range of a level.
    #[must_use]
    pub fn level(&self, level: Level) -> (Cidr, Cidr) {
        self.levels[level as usize]
    }

    /// The addresses under which a tenant's machines see callers from other tenants.
    #[must_use]
    pub fn callers(&self) -> (Cidr, Cidr) {
        self.callers
    }

    /// Whether an address lies in any of the ranges.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.levels.iter().chain([&self.callers]).any(|(v4, v6)| v4.contains(address) || v6.contains(address))
    }
}

impl Default for Ranges {
    fn default() -> Self {
        let pair = |number: u16| {
            let v4 = Ipv4Addr::new(100, 96 + number.to_be_bytes()[1], 0, 0);
            let v6 = Ipv6Addr::new(0xfd6d, 0x6573, 0x6800, number, 0, 0, 0, 0);
            let cidr = |address, bits| Cidr::new(address, bits).expect("a legal length");
            (cidr(v4.into(), 16), cidr(v6.into(), 64))
        };
        Self { levels: [pair(0), pair(1), pair(2), pair(3)], callers: pair(4) }
    }
}

/// The address at `offset` in a range; the offset is taken modulo its size, and the first and the last address
/// are never given.
#[must_use]
pub fn nth_address(range: Cidr, offset: u64) -> IpAddr {
    match range.address() {
        IpAddr::V4(base) => {
            let host_bits = 32 - u32::from(range.prefix_len_bits());
            let size = 1_u64 << host_bits;
            let host = 1 + offset % (size - 2).max(1);
            Ipv4Addr::from_bits(base.to_bits() & !((size - 1) as u32) | host as u32).into()
        }
        IpAddr::V6(base) => {
            let host_bits = (128 - u32::from(range.prefix_len_bits())).min(63);
            let size = 1_u64 << host_bits;
            let host = 1 + offset % (size - 2).max(1);
            let prefix = u128::MAX.checked_shl(128 - u32::from(range.prefix_len_bits())).unwrap_or(0);
            Ipv6Addr::from_bits(base.to_bits() & prefix | u128::from(host)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_ranges_are_good_ones() {
        let ranges = Ranges::default();
        assert_eq!(Ranges::new(ranges.levels, ranges.callers), Ok(ranges.clone()));
        assert_eq!(ranges.level(Level::Instance).0.to_string(), "100.99.0.0/16");
        assert!(
            ranges.contains("100.96.0.1".parse().unwrap()) && !ranges.contains("10.0.0.1".parse().unwrap())
        );
    }

    #[test]
    fn ranges_that_meet_are_small_or_of_the_wrong_family_are_refused() {
        let ranges = Ranges::default();
        let with = |v4: &str, v6: &str| {
            let callers = (v4.parse().unwrap(), v6.parse().unwrap());
            Ranges::new(ranges.levels, callers).unwrap_err()
        };
        let good_v6 = "fd00::/64";
        assert!(matches!(with("100.96.7.0/24", good_v6), RangesError::Overlap(..)));
        assert!(matches!(with("100.0.0.0/8", good_v6), RangesError::Overlap(..)));
        assert!(matches!(with("192.0.2.0/25", good_v6), RangesError::Small(_)));
        assert!(matches!(with("fd01::/64", good_v6), RangesError::Family(_)));
    }

    #[test]
    fn addresses_stay_in_their_range_and_are_never_its_ends() {
        for (range, offset, address) in [
            ("100.96.0.0/16", 0, "100.96.0.1"),
            ("100.96.0.0/16", 65_533, "100.96.255.254"),
            ("100.96.0.0/16", 65_534, "100.96.0.1"),
            ("100.96.0.9/24", u64::MAX, "100.96.0.254"),
            ("fd00::/64", 0, "fd00::1"),
            ("fd00::/120", 253, "fd00::fe"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            let range: Cidr = range.parse().unwrap();
            assert!(range.contains(nth_address(range, offset)));
            if offset != u64::MAX {
                assert_eq!(nth_address(range, offset), address, "{range} {offset}");
            }
        }
    }
}
