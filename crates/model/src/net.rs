// SPDX-License-Identifier: Apache-2.0
//! Addresses, protocols and five-tuples.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

/// A point in monotonic time, in nanoseconds since an epoch that the caller chose and keeps.
///
/// Engines take it as an argument; none of them reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// Time passed since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment plus `delay`, saturating at the end of time (584 years).
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

/// Why a text is not a unicast [`MacAddr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an Ethernet address: write six hexadecimal bytes as 02:00:00:00:00:01")]
pub struct MacError(String);

impl MacAddr {
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the group bit is set (multicast and broadcast).
    #[must_use]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl FromStr for MacAddr {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let wrong = || MacError(text.chars().take(40).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let is_hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(is_hex).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address with the length of its subnet's prefix, written `10.0.0.11/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix_len_bits: u8,
}

/// Why a text is not a [`Cidr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address with a prefix length: write 10.0.0.11/24 or fd00::11/64")]
pub struct CidrError(String);

impl Cidr {
    /// Joins an address and a prefix length.
    ///
    /// # Errors
    /// When the length exceeds the address's own: 32 or 128 bits.
    pub fn new(address: IpAddr, prefix_len_bits: u8) -> Result<Self, CidrError> {
        let max = if address.is_ipv4() { 32 } else { 128 };
        if prefix_len_bits > max {
            return Err(CidrError(format!("{address}/{prefix_len_bits}")));
        }
        Ok(Self { address, prefix_len_bits })
    }

    /// The address itself, host bits included.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length of the subnet's prefix, in bits.
    #[must_use]
    pub fn prefix_len_bits(&self) -> u8 {
        self.prefix_len_bits
    }

    /// Whether `address` lies in this subnet.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let shift = |width: u8| u32::from(width - self.prefix_len_bits);
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                (a.to_bits() ^ b.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether all of `inner`'s subnet lies in this one.
    #[must_use]
    pub fn includes(&self, inner: &Self) -> bool {
        self.prefix_len_bits <= inner.prefix_len_bits && self.contains(inner.address)
    }

    /// The subnet as a whole: the address with its host bits cleared.
    #[must_use]
    pub fn network(&self) -> Self {
        let shift = |width: u8| u32::from(width - self.prefix_len_bits);
        let address = match self.address {
            IpAddr::V4(v4) => {
                IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(shift(32)).unwrap_or(0)).into())
            }
            IpAddr::V6(v6) => {
                IpAddr::V6((v6.to_bits() & u128::MAX.checked_shl(shift(128)).unwrap_or(0)).into())
            }
        };
        Self { address, ..*self }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError(text.chars().take(80).collect());
        let (address, len) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        let len = len.parse().map_err(|_| wrong())?;
        Self::new(address, len).map_err(|_| wrong())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len_bits)
    }
}

/// An IP protocol number with the ones the switch understands named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// ICMP for IPv4 (1).
    Icmp,
    /// TCP (6).
    Tcp,
    /// UDP (17).
    Udp,
    /// ICMP for IPv6 (58).
    Icmpv6,
    /// Any other, by number.
    Other(u8),
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmpv6 => 58,
            Self::Other(number) => number,
        }
    }
}

impl From<u8> for Protocol {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Icmp,
            6 => Self::Tcp,
            17 => Self::Udp,
            58 => Self::Icmpv6,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmp => f.pad("icmp"),
            Self::Tcp => f.pad("tcp"),
            Self::Udp => f.pad("udp"),
            Self::Icmpv6 => f.pad("icmpv6"),
            Self::Other(number) => write!(f, "ip-{number}"),
        }
    }
}

/// What names a flow: both addresses, both ports, the protocol.
///
/// ICMP echo carries the identifier in both ports; protocols without ports carry zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FiveTuple {
    /// Who sent the packet.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// The sender's layer-4 port.
    pub source_port: u16,
    /// The receiver's layer-4 port.
    pub destination_port: u16,
    /// The protocol above IP.
    pub protocol: Protocol,
}

impl FiveTuple {
    /// The tuple of the answers to this one.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

impl fmt::Display for FiveTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: IpAddr, port: u16| match address {
            IpAddr::V4(v4) => format!("{v4}:{port}"),
            IpAddr::V6(v6) => format!("[{v6}]:{port}"),
        };
        let from = end(self.source, self.source_port);
        let to = end(self.destination, self.destination_port);
        write!(f, "{} {from} -> {to}", self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_contain_by_prefix() {
        for (cidr, address, inside) in [
            ("10.0.0.11/24", "10.0.0.254", true),
            ("10.0.0.11/24", "10.0.1.1", false),
            ("10.0.0.11/0", "192.0.2.1", true),
            ("10.0.0.11/32", "10.0.0.11", true),
            ("10.0.0.11/32", "10.0.0.10", false),
            ("fd00::1/64", "fd00::ffff", true),
            ("fd00::1/0", "2001:db8::1", true),
            ("fd00::1/64", "10.0.0.1", false),
        ] {
            let cidr: Cidr = cidr.parse().unwrap();
            assert_eq!(cidr.contains(address.parse().unwrap()), inside, "{cidr} {address}");
        }
        for (cidr, network) in [
            ("10.0.0.11/24", "10.0.0.0/24"),
            ("10.0.0.11/0", "0.0.0.0/0"),
            ("10.0.0.11/32", "10.0.0.11/32"),
            ("fd00::ff11/120", "fd00::ff00/120"),
            ("fd00::1/0", "::/0"),
        ] {
            let (cidr, network): (Cidr, Cidr) = (cidr.parse().unwrap(), network.parse().unwrap());
            assert_eq!(cidr.network(), network);
            assert!(network.includes(&cidr) && cidr.includes(&network));
        }
        let wide: Cidr = "10.0.0.0/8".parse().unwrap();
        assert!(wide.includes(&"10.1.0.0/16".parse().unwrap()));
        assert!(!"10.1.0.0/16".parse::<Cidr>().unwrap().includes(&wide));
        for bad in ["10.0.0.1", "10.0.0.1/33", "fd00::1/129", "x/8", "10.0.0.1/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ethernet_addresses_read_back() {
        let mac: MacAddr = "02:00:5e:10:00:Ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        for bad in
            ["", "02:00", "02:00:00:00:00:00:00", "2:0:0:0:0:0", "gg:00:00:00:00:00", "+f:00:00:00:00:00"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn protocol_numbers_read_back() {
        for number in 0..=255 {
            assert_eq!(Protocol::from(number).number(), number);
        }
    }
}
