// SPDX-License-Identifier: Apache-2.0
//! The settings of the DNS proxy: section `[dns]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;
use vswitch::DnsConfig;

use super::{ConfigError, within};

/// Most upstreams.
const UPSTREAMS_MAX: usize = 8;
/// The port of an upstream that names none.
const DNS_PORT: u16 = 53;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDns {
    enabled: Option<bool>,
    resolver: Option<Ipv4Addr>,
    ttl_s: Option<u64>,
    questions_per_second_max: Option<u64>,
    #[serde(default)]
    upstreams: Vec<String>,
    timeout_ms: Option<u64>,
    cache_entries: Option<u64>,
}

/// How names are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// What the switch works by; `None` when it answers no names.
    pub switch: Option<DnsConfig>,
    /// Whom to ask about names outside the mesh.
    pub upstreams: Upstreams,
}

/// Who knows about names outside the mesh, and how they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstreams {
    /// Their addresses, the preferred first; empty: nobody is asked.
    pub addresses: Vec<SocketAddr>,
    /// How long one may take to answer.
    pub timeout: Duration,
    /// Most answers of one tenant that are kept; at zero none is.
    pub cache_entries: usize,
}

impl RawDns {
    /// Checks everything.
    ///
    /// # Errors
    /// The first setting that cannot be used, by its key.
    pub fn validated(self) -> Result<Dns, ConfigError> {
        let usual = DnsConfig::default();
        let ttl_s = within("dns.ttl_s", self.ttl_s.unwrap_or(usual.ttl_s.into()), 0, 3600, "0 to 3600")?;
        let limit = self.questions_per_second_max.unwrap_or(usual.questions_per_second_max.into());
        let limit = within("dns.questions_per_second_max", limit, 0, 1_000_000, "0 to 1000000")?;
        let timeout_ms = within("dns.timeout_ms", self.timeout_ms.unwrap_or(1500), 100, 5000, "100 to 5000")?;
        let cache_entries = self.cache_entries.unwrap_or(4096);
        let cache_entries = within("dns.cache_entries", cache_entries, 0, 1_000_000, "0 to 1000000")?;
        let count = self.upstreams.len() as u64;
        within("dns.upstreams", count, 0, UPSTREAMS_MAX as u64, "at most 8 addresses")?;
        let addresses = self.upstreams.iter().map(|text| upstream(text)).collect::<Result<Vec<_>, _>>()?;
        // Every range is within 2^32.
        let switch = self.enabled.unwrap_or(true).then_some(DnsConfig {
            resolver: self.resolver.unwrap_or(usual.resolver),
            ttl_s: ttl_s as u32,
            questions_per_second_max: limit as u32,
            has_upstreams: !addresses.is_empty(),
        });
        let timeout = Duration::from_millis(timeout_ms);
        let upstreams = Upstreams { addresses, timeout, cache_entries: cache_entries as usize };
        Ok(Dns { switch, upstreams })
    }
}

/// An address, with or without a port.
fn upstream(text: &str) -> Result<SocketAddr, ConfigError> {
    let alone = text.parse().map(|address: IpAddr| SocketAddr::new(address, DNS_PORT));
    alone.or_else(|_| text.parse()).map_err(|_| ConfigError::Upstream(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(toml: &str) -> Result<Dns, ConfigError> {
        toml::from_str::<RawDns>(toml).unwrap().validated()
    }

    #[test]
    fn defaults_are_those_of_the_switch() {
        let dns = dns("").unwrap();
        assert_eq!(dns.switch, Some(DnsConfig::default()));
        assert!(dns.upstreams.addresses.is_empty());
    }

    #[test]
    fn what_is_given_reaches_the_switch_and_the_resolver() {
        let given = dns("resolver = '169.254.9.9'\nttl_s = 0\nquestions_per_second_max = 7\n\
                         upstreams = ['192.0.2.1', '[2001:db8::1]:5353']\ntimeout_ms = 100\ncache_entries = 3")
        .unwrap();
        let resolver = Ipv4Addr::new(169, 254, 9, 9);
        let switch = DnsConfig { resolver, ttl_s: 0, questions_per_second_max: 7, has_upstreams: true };
        assert_eq!(given.switch, Some(switch));
        let addresses = vec!["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:5353".parse().unwrap()];
        let timeout = Duration::from_millis(100);
        assert_eq!(given.upstreams, Upstreams { addresses, timeout, cache_entries: 3 });
        assert_eq!(dns("enabled = false").unwrap().switch, None);
    }

    #[test]
    fn wrong_settings_are_refused_by_name() {
        let nine = format!("upstreams = {:?}", ["192.0.2.1"; 9]);
        for (toml, says) in [
            ("ttl_s = 3601", "`dns.ttl_s` is 3601: must be 0 to 3600"),
            ("timeout_ms = 9", "`dns.timeout_ms` is 9"),
            ("upstreams = ['dns.example.com']", "`dns.upstreams` has `dns.example.com`"),
            (nine.as_str(), "`dns.upstreams` is 9: must be at most 8"),
        ] {
            let error = dns(toml).unwrap_err().to_string();
            assert!(error.contains(says), "{toml:?} gave {error:?}");
        }
    }

    #[test]
    fn every_setting_is_documented_with_default_and_range() {
        let page = include_str!("../../../../docs/settings.md");
        for row in [
            "| `dns.enabled` | true | true or false |",
            "| `dns.resolver` | 169.254.1.53 | an IPv4 address |",
            "| `dns.ttl_s` | 5 | 0 to 3600 |",
            "| `dns.questions_per_second_max` | 5000 | 0 to 1000000 |",
            "| `dns.upstreams` | none | at most 8 addresses |",
            "| `dns.timeout_ms` | 1500 | 100 to 5000 |",
            "| `dns.cache_entries` | 4096 | 0 to 1000000 |",
        ] {
            assert!(page.contains(row), "docs/settings.md lacks this row:\n{row}");
        }
    }
}
