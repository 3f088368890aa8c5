//! A peer's endpoint: an address, or a name that the daemon resolves.

use std::fmt;
use std::net::SocketAddr;

/// An address or a host name, with a port.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub enum Endpoint {
    /// `192.0.2.1:47100` or `[2001:db8::1]:47100`.
    Address(SocketAddr),
    /// `gateway.example.net:47100`.
    Host {
        /// The name.
        name: String,
        /// The UDP port.
        port: u16,
    },
}

/// Longest DNS name in text (RFC 1035, section 2.3.4).
const HOST_LIMIT: usize = 253;
/// Longest label of one.
const LABEL_LIMIT: usize = 63;

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let endpoint = if let Ok(address) = text.parse() {
            Some(Self::Address(address))
        } else {
            text.rsplit_once(':').and_then(|(name, port)| {
                let port = port.parse().ok()?;
                is_host(name).then(|| Self::Host { name: name.to_owned(), port })
            })
        };
        let endpoint = endpoint.ok_or_else(|| {
            format!(
                "{text:?} is not an endpoint such as 192.0.2.1:47100, [2001:db8::1]:47100 or host.example.net:47100"
            )
        })?;
        if endpoint.port() == 0 {
            return Err(format!("{text:?} has port 0, which cannot be used"));
        }
        match endpoint {
            Self::Address(address) if address.ip().is_unspecified() || address.ip().is_multicast() => {
                Err(format!("{text:?} is not the address of one host"))
            }
            endpoint => Ok(endpoint),
        }
    }
}

impl Endpoint {
    /// The UDP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

impl serde::Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether it is a DNS name, and not a mistyped IPv4 address.
fn is_host(name: &str) -> bool {
    let sound = |label: &str| {
        (1..=LABEL_LIMIT).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    name.len() <= HOST_LIMIT && name.split('.').all(sound) && !name.rsplit('.').next().is_some_and(numeric)
}
