// SPDX-License-Identifier: Apache-2.0
//! The settings below `[export]`: where records of flows go.

use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, within};
use crate::export::{ExportConfig, Transport};

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExport {
    /// `address:port`. IANA gave IPFIX 4739.
    collector: std::net::SocketAddr,
    transport: Option<RawTransport>,
    domain: Option<u32>,
    enterprise: Option<u32>,
    template_refresh_s: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawTransport {
    Udp,
    Tcp,
}

impl TryFrom<RawExport> for ExportConfig {
    type Error = ConfigError;

    /// Defaults: UDP, observation domain 1, the enterprise number for documentation, templates every minute (1 s
    /// to one hour).
    fn try_from(raw: RawExport) -> Result<Self, ConfigError> {
        let refresh_s = raw.template_refresh_s.unwrap_or(60);
        let refresh_s = within("export.template_refresh_s", refresh_s, 1, 3600, "1 to 3600")?;
        Ok(Self {
            collector: raw.collector,
            transport: match raw.transport {
                Some(RawTransport::Tcp) => Transport::Tcp,
                Some(RawTransport::Udp) | None => Transport::Udp,
            },
            domain: raw.domain.unwrap_or(1),
            enterprise: raw.enterprise.unwrap_or(ipfix::DOCUMENTATION_ENTERPRISE),
            template_refresh: Duration::from_secs(refresh_s),
        })
    }
}
