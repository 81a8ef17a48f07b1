// SPDX-License-Identifier: Apache-2.0
//! Quality of service, as operators say it: limits, shares, reservations, latency classes.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use crate::{Insertion, Level, RuleId, ServiceFlags, VmIndex, VmRef};

/// Bits in a second, at least one. Counted are whole frames from the Ethernet header on; a super-frame counts as it
/// is handed over, with one header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitRate(NonZeroU64);

impl BitRate {
    /// The lowest rate that can be given, in bits per second: a full frame takes about 12 seconds.
    pub const BPS_MIN: u64 = 1000;
    /// The highest: a terabit.
    pub const BPS_MAX: u64 = 1_000_000_000_000;

    /// So many bits in a second; `None` unless they are within [`BitRate::BPS_MIN`] and [`BitRate::BPS_MAX`].
    #[must_use]
    pub const fn new(bits_per_second: u64) -> Option<Self> {
        match NonZeroU64::new(bits_per_second) {
            Some(rate) if bits_per_second >= Self::BPS_MIN && bits_per_second <= Self::BPS_MAX => {
                Some(Self(rate))
            }
            _ => None,
        }
    }

    /// Bits in a second.
    #[must_use]
    pub fn bits_per_second(self) -> u64 {
        self.0.get()
    }

    /// Bytes in so much time.
    #[must_use]
    pub fn bytes_in(self, time: Duration) -> u64 {
        let bits = u128::from(self.0.get()) * time.as_nanos() / 1_000_000_000;
        u64::try_from(bits / 8).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bit/s", self.0)
    }
}

/// How much may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// In the long run.
    pub rate: BitRate,
    /// At once after a pause, in bytes. One frame more may follow.
    pub burst_bytes: u64,
}

impl Limit {
    /// Largest burst, in bytes: 1 GiB.
    pub const BURST_BYTES_MAX: u64 = 1 << 30;
    /// Smallest burst that is chosen where none is given, in bytes.
    const BURST_BYTES_LEAST: u64 = 4096;

    /// A rate with the burst of a twentieth of a second, at least 4 KiB: so long a guest may take to send on, without the
    /// time being lost to it.
    #[must_use]
    pub fn new(rate: BitRate) -> Self {
        let burst_bytes = rate.bytes_in(Duration::from_millis(50)).max(Self::BURST_BYTES_LEAST);
        Self { rate, burst_bytes }
    }
}

/// Whose frames a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counted {
    /// What this machine sends.
    From(VmIndex),
    /// What either end sends, each way for itself.
    EachWay,
}

/// What a class of flows gets of each limit that it shares with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Its part, relative to the others', of what is not reserved while there is not enough for all. At least one.
    pub shares: u32,
    /// What it gets even then.
    pub reservation: Option<BitRate>,
}

impl Default for Part {
    fn default() -> Self {
        Self { shares: Qos::SHARES_DEFAULT, reservation: None }
    }
}

/// How soon a machine's frames are taken up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LatencyClass {
    /// In turn.
    #[default]
    Standard,
    /// Again behind every other machine's turn.
    Interactive,
}

/// The part of the host's capacity that a machine gets, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Qos {
    /// What it may send at most.
    pub limit: Option<Limit>,
    /// Its part, relative to the others', of what is not reserved while there is not enough for all. At least one.
    pub shares: u32,
    /// What it gets even then.
    pub reservation: Option<BitRate>,
    /// How soon its frames are taken up.
    pub class: LatencyClass,
}

impl Qos {
    /// Shares of a machine that says nothing.
    pub const SHARES_DEFAULT: u32 = 100;
    /// Most shares.
    pub const SHARES_MAX: u32 = 10_000;
}

impl Default for Qos {
    fn default() -> Self {
        Self { limit: None, shares: Self::SHARES_DEFAULT, reservation: None, class: LatencyClass::default() }
    }
}

impl Limit {
    /// What this limit adds to flows whose frames it counts; `name` is whose it is.
    #[must_use]
    pub fn insertion(self, name: &RuleId, level: Level, counted: Counted) -> Arc<Insertion> {
        let limit = Some((self, counted));
        Arc::new(Insertion { limit, ..Insertion::new(name.clone(), level, ServiceFlags::LIMIT) })
    }

    /// As [`Limit::insertion`], of what a machine sends.
    pub(crate) fn of_machine(self, vm: &VmRef, index: VmIndex) -> Arc<Insertion> {
        self.insertion(&RuleId(format!("{vm}/(vm)").into()), Level::Tenant, Counted::From(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bounded_and_give_bytes() {
        assert_eq!(BitRate::new(999), None);
        assert_eq!(BitRate::new(BitRate::BPS_MAX + 1), None);
        let rate = BitRate::new(80_000_000).unwrap();
        assert_eq!(rate.bytes_in(Duration::from_secs(1)), 10_000_000);
        assert_eq!(rate.to_string(), "80000000 bit/s");
        assert_eq!(Limit::new(rate).burst_bytes, 500_000);
        assert_eq!(Limit::new(BitRate::new(1000).unwrap()).burst_bytes, 4096);
    }
}
