// SPDX-License-Identifier: Apache-2.0
//! Which part of flows is traced.
//!
//! As OpenTelemetry samples consistently: a trace's identifier ends in 56 bits of randomness, and what has at least the
//! threshold that follows from the probability is traced. So whoever holds the same identifier decides alike, and a
//! flow that a rule traces is among those that a rule with a greater part traces.

use std::fmt;
use std::str::FromStr;

/// A part of all flows, to a millionth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sample(u32);

/// Not a part of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a percentage from `0%` to `100%`, with at most four digits behind the point, as in `0.5%`")]
pub struct SampleError;

impl Sample {
    /// Every flow.
    pub const ALL: Self = Self(Self::WHOLE);
    /// Bits of randomness in a trace's identifier: its lowest.
    pub const RANDOM_BITS: u32 = 56;

    const WHOLE: u32 = 1_000_000;
    const PERCENT: u32 = Self::WHOLE / 100;
    const DIGITS_MAX: usize = 4;

    /// The least randomness that is taken; more than any there is at zero.
    #[must_use]
    pub fn threshold(self) -> u64 {
        let left_out = u128::from(Self::WHOLE - self.0) << Self::RANDOM_BITS;
        (left_out / u128::from(Self::WHOLE)) as u64
    }

    /// Whether the trace of this identifier is taken.
    #[must_use]
    pub fn takes(self, trace: u128) -> bool {
        (trace & ((1 << Self::RANDOM_BITS) - 1)) >= self.threshold().into()
    }
}

impl FromStr for Sample {
    type Err = SampleError;

    fn from_str(text: &str) -> Result<Self, SampleError> {
        let number = text.strip_suffix('%').ok_or(SampleError)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > Self::DIGITS_MAX {
            return Err(SampleError);
        }
        let whole: u32 = whole.parse().ok().filter(|percent| *percent <= 100).ok_or(SampleError)?;
        let part: u32 = format!("{part:0<4}").parse().map_err(|_| SampleError)?;
        let sample = whole * Self::PERCENT + part;
        if sample <= Self::WHOLE { Ok(Self(sample)) } else { Err(SampleError) }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / Self::PERCENT, self.0 % Self::PERCENT);
        match part {
            0 => f.pad(&format!("{whole}%")),
            _ => f.pad(&format!("{whole}.{}%", format!("{part:04}").trim_end_matches('0'))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_read_as_they_are_written() {
        for text in ["0%", "0.0001%", "0.5%", "10%", "33.3333%", "99.9999%", "100%"] {
            assert_eq!(text.parse::<Sample>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "%",
            "10",
            "-1%",
            "+1%",
            "101%",
            "100.0001%",
            "1.00001%",
            ".5%",
            "5.%",
            "1e1%",
            "10 %",
            "1,5%",
        ] {
            assert_eq!(bad.parse::<Sample>(), Err(SampleError), "{bad}");
        }
    }

    #[test]
    fn a_sample_takes_its_part_and_a_greater_one_takes_it_too() {
        let sample = |text: &str| text.parse::<Sample>().unwrap();
        // Evenly over all randomness, with whatever lies above it.
        let traces =
            || (0_u128..10_000).map(|number| (number << 120) | ((number << Sample::RANDOM_BITS) / 10_000));
        for (text, part) in [("0%", 0), ("0.01%", 1), ("10%", 1000), ("50%", 5000), ("100%", 10_000)] {
            assert_eq!(traces().filter(|trace| sample(text).takes(*trace)).count(), part, "{text}");
        }
        assert!(traces().all(|trace| sample("20%").takes(trace) || !sample("10%").takes(trace)));
        assert!(!sample("0%").takes(u128::MAX));
    }
}
