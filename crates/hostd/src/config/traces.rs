// SPDX-License-Identifier: Apache-2.0
//! The settings below `[traces]`: where spans of traced flows go.

use std::time::Duration;

use serde::Deserialize;
use ureq::http::Uri;

use super::{ConfigError, within};
use crate::otlp::TracesConfig;

/// Where collectors take traces unless the endpoint has a path of its own.
const PATH: &str = "/v1/traces";

/// As written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTraces {
    /// `http://host:port`. Collectors listen for OTLP over HTTP at 4318.
    endpoint: String,
    service_name: Option<String>,
    host_name: Option<String>,
    timeout_ms: Option<u64>,
}

impl TryFrom<RawTraces> for TracesConfig {
    type Error = ConfigError;

    /// Defaults: `meshvisor-hostd`, the name that the host has given itself, 10 seconds (100 ms to one minute).
    fn try_from(raw: RawTraces) -> Result<Self, ConfigError> {
        let timeout_ms = raw.timeout_ms.unwrap_or(10_000);
        let timeout_ms = within("traces.timeout_ms", timeout_ms, 100, 60_000, "100 to 60000")?;
        let own_name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self {
            endpoint: endpoint(&raw.endpoint)?,
            service_name: raw.service_name.unwrap_or_else(|| "meshvisor-hostd".into()),
            host_name: raw.host_name.unwrap_or_else(own_name),
            timeout: Duration::from_millis(timeout_ms),
        })
    }
}

fn endpoint(text: &str) -> Result<String, ConfigError> {
    let wrong = || ConfigError::TracesEndpoint(text.to_owned());
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
        return Err(wrong());
    }
    Ok(match uri.path() {
        "" | "/" => format!("{}{PATH}", text.trim_end_matches('/')),
        _ => text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_plain_http_and_gets_the_usual_path() {
        for (given, used) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
            ("http://collector/otlp/traces", "http://collector/otlp/traces"),
        ] {
            assert_eq!(endpoint(given).unwrap(), used);
        }
        for wrong in ["", "127.0.0.1:4318", "https://collector", "grpc://c:4317", "http://c/?x", "http:///v1"]
        {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
