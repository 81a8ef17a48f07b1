// SPDX-License-Identifier: Apache-2.0
//! Application protocols, as far as the first bytes of a connection tell them.

use std::fmt;

/// A protocol that runs over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AppProtocol {
    /// HTTP/1.0 and 1.1.
    Http,
    /// HTTP/2 without TLS.
    Http2,
    /// TLS, whatever is inside.
    Tls,
    /// SSH.
    Ssh,
    /// Redis.
    Redis,
    /// PostgreSQL.
    Postgres,
    /// MySQL and MariaDB.
    Mysql,
}

impl AppProtocol {
    /// Each with the word that rules use and users are shown.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Http, "http"),
        (Self::Http2, "http2"),
        (Self::Tls, "tls"),
        (Self::Ssh, "ssh"),
        (Self::Redis, "redis"),
        (Self::Postgres, "postgres"),
        (Self::Mysql, "mysql"),
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

impl fmt::Display for AppProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Some application protocols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AppProtocols(u8);

impl AppProtocols {
    /// Whether `protocol` is one of them.
    #[must_use]
    pub const fn has(self, protocol: AppProtocol) -> bool {
        self.0 >> protocol as u8 & 1 == 1
    }

    /// Those that are in both sets.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The protocols, in the order of [`AppProtocol::ALL`].
    pub fn iter(self) -> impl Iterator<Item = AppProtocol> {
        AppProtocol::ALL.into_iter().map(|(protocol, _)| protocol).filter(move |protocol| self.has(*protocol))
    }
}

impl FromIterator<AppProtocol> for AppProtocols {
    fn from_iter<T: IntoIterator<Item = AppProtocol>>(protocols: T) -> Self {
        Self(protocols.into_iter().fold(0, |bits, protocol| bits | 1 << protocol as u8))
    }
}

impl fmt::Display for AppProtocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.iter().map(AppProtocol::as_str).collect();
        f.pad(&words.join(","))
    }
}

/// What is spoken in a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spoken {
    /// This protocol.
    Known(AppProtocol),
    /// None of those that are told.
    Other,
}

impl Spoken {
    /// The word shown to users.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Known(protocol) => protocol.as_str(),
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_has_a_place_and_a_word_of_its_own() {
        for (place, (protocol, word)) in AppProtocol::ALL.into_iter().enumerate() {
            assert_eq!((protocol as usize, protocol.as_str()), (place, word));
        }
        let some: AppProtocols = [AppProtocol::Tls, AppProtocol::Http].into_iter().collect();
        assert_eq!(some.to_string(), "http,tls");
        assert!(some.has(AppProtocol::Tls) && !some.has(AppProtocol::Ssh));
        assert!(AppProtocols::default().is_empty());
    }
}
