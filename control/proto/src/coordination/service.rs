//! What one site may reach at another: `tcp/443`, `udp/5000-5999`, `icmp`, `47`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const NAMES: [(&str, u8); 3] = [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)];

/// A protocol, with destination ports if it has them: `tcp`, `udp` or `sctp` with a port, a range, or neither for all
/// ports; `icmp`, which means ICMP in IPv4 and ICMPv6 in IPv6; or the number of another IP protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Service {
    /// Its number in the IP header; `None`: ICMP of either family.
    protocol: Option<u8>,
    /// The first and last destination port.
    ports: Option<(u16, u16)>,
}

/// The text is not a [`Service`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a service such as tcp/443, udp/5000-5999, tcp, icmp or 47")]
pub struct ServiceError(String);

impl Service {
    /// Its number in the IP header; `None`: ICMP in IPv4 and ICMPv6 in IPv6.
    #[must_use]
    pub fn protocol(&self) -> Option<u8> {
        self.protocol
    }

    /// The destination ports; `None`: all.
    #[must_use]
    pub fn ports(&self) -> Option<RangeInclusive<u16>> {
        self.ports.map(|(first, last)| first..=last)
    }

    fn parse(text: &str) -> Option<Self> {
        let named = |name: &str| NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
        let Some((name, ports)) = text.split_once('/') else {
            let protocol = match text {
                "icmp" => None,
                _ => Some(named(text).or_else(|| number(text))?),
            };
            return Some(Self { protocol, ports: None });
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last) = (number(first)?, number(last)?);
        (first <= last).then_some(Self { protocol: Some(named(name)?), ports: Some((first, last)) })
    }
}

/// A number without sign or leading zeros.
fn number<N: FromStr + fmt::Display>(text: &str) -> Option<N> {
    let number: N = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

impl FromStr for Service {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        Self::parse(text).ok_or_else(|| ServiceError(text.chars().take(32).collect()))
    }
}

impl TryFrom<String> for Service {
    type Error = ServiceError;

    fn try_from(text: String) -> Result<Self, ServiceError> {
        text.parse()
    }
}

impl From<Service> for String {
    fn from(service: Service) -> Self {
        service.to_string()
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(protocol) = self.protocol else { return f.write_str("icmp") };
        match NAMES.iter().find(|(_, number)| *number == protocol) {
            Some((name, _)) => f.write_str(name)?,
            None => protocol.fmt(f)?,
        }
        match self.ports {
            Some((first, last)) if first == last => write!(f, "/{first}"),
            Some((first, last)) => write!(f, "/{first}-{last}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_and_written() {
        let cases = [
            ("tcp/443", Some(TCP), Some(443..=443)),
            ("udp/5000-5999", Some(UDP), Some(5000..=5999)),
            ("sctp/0-65535", Some(SCTP), Some(0..=65535)),
            ("tcp", Some(TCP), None),
            ("icmp", None, None),
            ("47", Some(47), None),
            ("0", Some(0), None),
        ];
        for (text, protocol, ports) in cases {
            let service: Service = text.parse().unwrap();
            assert_eq!((service.protocol(), service.ports(), service.to_string()), (protocol, ports, text.to_owned()));
        }
        assert_eq!("6".parse::<Service>().unwrap().to_string(), "tcp", "one protocol has one name");
    }

    #[test]
    fn what_is_no_service_is_refused() {
        for text in [
            "",
            "/",
            "tcp/",
            "/443",
            "tcp/x",
            "tcp/443-",
            "tcp/-443",
            "tcp/9-8",
            "tcp/65536",
            "tcp/+1",
            "tcp/01",
            "256",
            "047",
            "icmp/8",
            "gre",
            "47/1",
            "TCP/443",
            " tcp",
            "tcp/443/1",
            "tcp/1-2-3",
        ] {
            assert!(text.parse::<Service>().is_err(), "{text}");
        }
    }
}
