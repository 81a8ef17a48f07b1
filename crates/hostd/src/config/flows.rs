// SPDX-License-Identifier: Apache-2.0
//! The settings of the flow table and of connection tracking: sections `[flows]` and `[flows.timeouts]`.
//!
//! Each number is said once, with its default and range; `docs/settings.md` is compared with them.

use std::time::Duration;

use serde::Deserialize;
use vswitch::{SwitchConfig, Timeouts};

use super::{ConfigError, within};

/// Declares a section of whole numbers: as written in the file, and as checked.
macro_rules! section {
    ($section:literal, $raw:ident => $checked:ident {
        $(#[doc = $doc:literal] $field:ident = $default:literal in $min:literal ..= $max:literal,)+
    } $($nested:ident: $nested_type:ty)?) => {
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $raw {
            $($field: Option<u64>,)+
            $(#[serde(default)] $nested: $nested_type,)?
        }

        #[derive(Clone, Copy, Debug)]
        struct $checked {
            $($field: u64,)+
        }

        impl $raw {
            fn check(&self) -> Result<$checked, ConfigError> {
                Ok($checked {
                    $($field: within(
                        concat!($section, ".", stringify!($field)),
                        self.$field.unwrap_or($default),
                        $min,
                        $max,
                        concat!(stringify!($min), " to ", stringify!($max)),
                    )?,)+
                })
            }

            /// Rows of the table of settings.
            #[cfg(test)]
            const ROWS: &'static [(&'static str, u64, &'static str, &'static str)] = &[
                $((
                    concat!($section, ".", stringify!($field)),
                    $default,
                    concat!(stringify!($min), " to ", stringify!($max)),
                    $doc,
                ),)+
            ];
        }
    };
}

section!("flows", RawFlows => Limits {
    /// Entries of the flow table, two per flow, of 128 bytes each: a power of two
    capacity = 262144 in 1024..=16777216,
    /// Live flows that one port may have opened
    per_port_max = 32768 in 16..=8388608,
    /// Incomplete TCP connections that one port may have opened
    half_open_per_port_max = 4096 in 1..=8388608,
    /// Incomplete TCP connections towards one port
    half_open_per_target_max = 16384 in 1..=8388608,
    /// Live flows that one port may have opened under an external address
    external_per_port_max = 16384 in 0..=8388608,
    /// Fragmented packets of one port of which pieces are still to come; the oldest is forgotten
    fragmented_per_port_max = 64 in 0..=4096,
    /// How long after the first piece of a packet the others may come
    fragment_timeout_ms = 5000 in 1..=60000,
    /// ICMP errors sent to one port in a second
    errors_per_second_max = 100 in 0..=1000000,
    /// Denials of one port told in a second; more are only counted
    denials_per_second_max = 100 in 0..=1000000,
    /// Events of one port's flows written to the log in a second, where a flow policy says `log: true`
    logged_per_second_max = 100 in 0..=1000000,
    /// Traced flows in the table that one port may have opened; more go their way untraced and are counted
    traced_per_port_max = 4096 in 0..=8388608,
    /// Flows of one port whose application protocol is still to be told, where a flow policy says `layer7`
    undecided_per_port_max = 4096 in 0..=8388608,
    /// How often a flow that goes on is told of to watchers and the collector, in seconds
    ongoing_told_every_s = 300 in 1..=2000000,
} timeouts: RawTimeouts);

section!("flows.timeouts", RawTimeouts => Seconds {
    /// TCP: the handshake is not complete
    handshake_s = 60 in 1..=2000000,
    /// TCP: open
    established_s = 86400 in 1..=2000000,
    /// TCP: one end has closed
    half_closed_s = 120 in 1..=2000000,
    /// TCP: both ends have closed, or one has reset
    closed_s = 30 in 1..=2000000,
    /// TCP: reset by policy; late segments are answered with resets
    reset_s = 30 in 1..=2000000,
    /// Others: denied; judged anew after that
    refused_s = 5 in 1..=2000000,
    /// Others: not answered yet
    one_way_s = 30 in 1..=2000000,
    /// Others: seen in both directions
    two_way_s = 120 in 1..=2000000,
});

/// The checked settings.
#[derive(Clone, Copy, Debug)]
pub struct Flows {
    limits: Limits,
    timeouts: Seconds,
}

impl RawFlows {
    /// Checks every number. The quota of a port follows the table's size unless it is given.
    ///
    /// # Errors
    /// The first number out of its range, by its key.
    pub fn validated(self) -> Result<Flows, ConfigError> {
        let mut limits = self.check()?;
        if !limits.capacity.is_power_of_two() {
            let (key, range) = ("flows.capacity", "a power of two");
            return Err(ConfigError::Range { key, value: limits.capacity, range });
        }
        if self.per_port_max.is_none() {
            limits.per_port_max = limits.capacity / 8;
        }
        Ok(Flows { limits, timeouts: self.timeouts.check()? })
    }
}

impl Flows {
    /// Entries of the flow table.
    pub fn capacity(&self) -> usize {
        self.limits.capacity as usize
    }

    /// What the switch works by, with the key of its hash.
    pub fn switch_config(&self, hash_seed: u64) -> SwitchConfig {
        // Every range is within 2^32.
        let Self { limits, timeouts } = self;
        SwitchConfig {
            flows_per_port_max: limits.per_port_max as u32,
            half_open_per_port_max: limits.half_open_per_port_max as u32,
            half_open_per_target_max: limits.half_open_per_target_max as u32,
            external_per_port_max: limits.external_per_port_max as u32,
            fragmented_per_port_max: limits.fragmented_per_port_max as usize,
            fragment_timeout: Duration::from_millis(limits.fragment_timeout_ms),
            errors_per_second_max: limits.errors_per_second_max as u32,
            denials_per_second_max: limits.denials_per_second_max as u32,
            logged_per_second_max: limits.logged_per_second_max as u32,
            traced_per_port_max: limits.traced_per_port_max as u32,
            undecided_per_port_max: limits.undecided_per_port_max as u32,
            ongoing_told_every: Duration::from_secs(limits.ongoing_told_every_s),
            timeouts: Timeouts {
                handshake: Duration::from_secs(timeouts.handshake_s),
                established: Duration::from_secs(timeouts.established_s),
                half_closed: Duration::from_secs(timeouts.half_closed_s),
                closed: Duration::from_secs(timeouts.closed_s),
                reset: Duration::from_secs(timeouts.reset_s),
                refused: Duration::from_secs(timeouts.refused_s),
                one_way: Duration::from_secs(timeouts.one_way_s),
                two_way: Duration::from_secs(timeouts.two_way_s),
            },
            ..SwitchConfig::new(hash_seed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(toml: &str) -> RawFlows {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_switch() {
        let flows = RawFlows::default().validated().unwrap();
        let expected = SwitchConfig { flows_per_port_max: 32_768, ..SwitchConfig::new(7) };
        assert_eq!((flows.switch_config(7), flows.capacity()), (expected, 1 << 18));
    }

    #[test]
    fn what_is_given_reaches_the_switch() {
        let toml = "capacity = 1024\nhalf_open_per_port_max = 9\nfragment_timeout_ms = 250\n\
                    [timeouts]\nestablished_s = 77\nrefused_s = 1";
        let config = raw(toml).validated().unwrap().switch_config(7);
        assert_eq!((config.flows_per_port_max, config.half_open_per_port_max), (128, 9));
        assert_eq!(config.fragment_timeout, Duration::from_millis(250));
        let timeouts = config.timeouts;
        assert_eq!((timeouts.established.as_secs(), timeouts.refused.as_secs()), (77, 1));
    }

    #[test]
    fn wrong_numbers_are_refused_by_name() {
        for (toml, says) in [
            ("capacity = 5000", "`flows.capacity` is 5000: must be a power of two"),
            ("capacity = 512", "`flows.capacity` is 512: must be 1024 to 16777216"),
            ("per_port_max = 1", "`flows.per_port_max` is 1: must be 16 to 8388608"),
            ("fragmented_per_port_max = 5000", "`flows.fragmented_per_port_max` is 5000"),
            ("[timeouts]\nestablished_s = 0", "`flows.timeouts.established_s` is 0: must be 1 to 2000000"),
        ] {
            let error = raw(toml).validated().unwrap_err().to_string();
            assert!(error.contains(says), "{toml:?} gave {error:?}");
        }
        let unknown = toml::from_str::<RawFlows>("[timeouts]\nestablished = 1").unwrap_err().to_string();
        assert!(unknown.contains("unknown field `established`"), "{unknown}");
    }

    #[test]
    fn every_setting_is_documented_with_default_and_range() {
        let page = include_str!("../../../../docs/settings.md");
        for (key, default, range, doc) in [RawFlows::ROWS, RawTimeouts::ROWS].concat() {
            let row = format!("| `{key}` | {default} | {range} | {} |", doc.trim());
            assert!(page.contains(&row), "docs/settings.md lacks this row:\n{row}");
        }
    }
}
