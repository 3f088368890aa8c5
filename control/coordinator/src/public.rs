//! What gateways are told about our own STUN server and relay.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use penstock_proto::coordination::{Fingerprint, Name, Relay, SiteKey};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::config::Udp;

/// How long resolving a name may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The port of `https` URLs, which is left out.
const HTTPS: u16 = 443;

/// There is no address to tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "UdpListen is {listened}, which is not an address to tell gateways, and no name of the coordinator has one \
    ({names}): set UdpPublic (--udp-public), or an address in UdpListen (--udp)"
)]
pub struct NoAddress {
    /// The address we listen at.
    listened: SocketAddr,
    /// The names that were tried instead.
    names: String,
}

/// The UDP addresses to tell, one per IP version: the configured ones, or else the bound ones. If we listen at all
/// addresses, those of the names are used, provided they are addresses.
///
/// The STUN server's other address must not be told: a NAT lets in those that a gateway has spoken to, and would seem
/// to let in strangers (RFC 5780, section 4.4).
///
/// # Errors
/// There is none.
pub async fn addresses(udp: &Udp, bound: &[SocketAddr], names: &[String]) -> Result<Vec<SocketAddr>, NoAddress> {
    if !udp.public.is_empty() {
        return Ok(first_of_each_version(&udp.public));
    }
    let mut told = Vec::new();
    for listened in bound {
        if !listened.ip().is_unspecified() {
            told.push(*listened);
            continue;
        }
        let mut found = Vec::new();
        for name in names {
            let lookup = timeout(RESOLVE_TIMEOUT, lookup_host((name.as_str(), listened.port()))).await;
            found.extend(lookup.ok().and_then(Result::ok).into_iter().flatten());
        }
        // Listening at all IPv6 addresses includes all IPv4 addresses. Hosts often give their own name a loopback
        // address.
        found.retain(|address| (listened.is_ipv6() || address.is_ipv4()) && !address.ip().is_loopback());
        if found.is_empty() {
            return Err(NoAddress { listened: *listened, names: names.join(", ") });
        }
        told.extend(found);
    }
    Ok(first_of_each_version(&told))
}

/// The coordinator's own addresses, which no site may have behind it: those of its names, and those that it listens at.
pub async fn coordinator(names: &[String], listened: &[SocketAddr]) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> =
        listened.iter().map(SocketAddr::ip).filter(|address| !address.is_unspecified()).collect();
    for name in names {
        let lookup = timeout(RESOLVE_TIMEOUT, lookup_host((name.as_str(), HTTPS))).await;
        found.extend(lookup.ok().and_then(Result::ok).into_iter().flatten().map(|address| address.ip()));
    }
    found
}

fn first_of_each_version(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = |v4: bool| addresses.iter().copied().find(|address| address.is_ipv4() == v4);
    [true, false].into_iter().filter_map(first).collect()
}

/// Our own relay as gateways are told about it. `tcp` is where we listen for TLS, `fingerprint` is that of a
/// certificate that no authority vouches for.
#[must_use]
pub fn relay(
    names: &[String],
    tcp: Option<SocketAddr>,
    fingerprint: Option<Fingerprint>,
    public_key: SiteKey,
    udp: Vec<SocketAddr>,
) -> Relay {
    let host = names.first().map_or("", String::as_str);
    let name: Name = host.parse().unwrap_or_else(|_| "coordinator".parse().expect("a name"));
    // An IPv6 address is in brackets (RFC 3986, section 3.2.2).
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let url = tcp.map(|tcp| match tcp.port() {
        HTTPS => format!("https://{host}"),
        port => format!("https://{host}:{port}"),
    });
    Relay { name, public_key, udp, url, fingerprint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(public: &[&str]) -> Udp {
        let public = public.iter().map(|address| address.parse().unwrap()).collect();
        Udp { listen: Vec::new(), public, stun: true, relay: true }
    }

    async fn told(public: &[&str], bound: &str, names: &[&str]) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let told = addresses(&udp(public), &[bound.parse().unwrap()], &names).await;
        told.map(|told| told.iter().map(ToString::to_string).collect()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn what_is_configured_then_what_is_bound_then_the_names() {
        assert_eq!(told(&["192.0.2.7:9"], "[::]:3478", &["192.0.2.1"]).await.unwrap(), ["192.0.2.7:9"]);
        assert_eq!(told(&[], "192.0.2.8:3478", &["192.0.2.1"]).await.unwrap(), ["192.0.2.8:3478"]);
        let both = told(&[], "[::]:3478", &["192.0.2.1", "2001:db8::1", "192.0.2.1"]).await.unwrap();
        assert_eq!(both, ["192.0.2.1:3478", "[2001:db8::1]:3478"]);
        assert_eq!(told(&[], "0.0.0.0:3478", &["2001:db8::1", "192.0.2.1"]).await.unwrap(), ["192.0.2.1:3478"]);
        let two = ["192.0.2.9:3478", "192.0.2.8:3478", "[2001:db8::1]:3478"];
        assert_eq!(told(&two, "[::]:3478", &[]).await.unwrap(), [two[0], two[2]]);
        let error = told(&[], "[::]:3478", &["127.0.0.1", "no-such-name.invalid"]).await.unwrap_err();
        assert!(error.contains("--udp-public") && error.contains("no-such-name.invalid"), "{error}");
    }

    #[test]
    fn the_url_has_a_port_only_if_it_must() {
        let url =
            |name: &str, port| relay(&[name.into()], Some(([0; 4], port).into()), None, [1; 32].into(), Vec::new()).url;
        assert_eq!(url("relay.example.net", 443).unwrap(), "https://relay.example.net");
        assert_eq!(url("2001:db8::1", 8443).unwrap(), "https://[2001:db8::1]:8443");
    }
}
