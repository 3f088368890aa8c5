//! Resolves host names, from sockets with our firewall mark and with the answer's time to live.
//!
//! getaddrinfo(3) can do neither. The files it reads are read here too, again for each question so that a change takes
//! effect at once: `/etc/hosts`, and if the name is not there, `/etc/resolv.conf` for the name servers (by UDP, by TCP
//! when an answer is truncated), search domains and options. `nsswitch.conf` with its modules is ignored.
//!
//! Name servers are asked one after the other, in their order: where two know different names, the first one decides
//! (split-horizon DNS).

mod provider;
mod system;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hickory_resolver::Resolver;
use hickory_resolver::config::ResolverConfig;
use hickory_resolver::lookup_ip::LookupIp;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::Name;
use tokio::time::timeout;

use crate::mark::set_mark;
use provider::Marked;
use system::{Server, System};

/// How long a question may take, all name servers and search domains together.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The most addresses of a name that are used.
const ADDRESSES_LIMIT: usize = 16;
/// How long an address that did not come from DNS is valid.
const STATIC_TTL: Duration = Duration::from_secs(3600);

/// Where names are looked up: the system's files by default.
#[derive(Clone, Debug)]
pub struct Names {
    /// In the format of resolv.conf(5).
    pub resolv_conf: PathBuf,
    /// In the format of hosts(5).
    pub hosts: PathBuf,
}

/// What a name resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// At least one address. Addresses without a route come last; among the others the families alternate, IPv6 first.
    pub addresses: Vec<IpAddr>,
    /// How long this is valid, as the zone's administrator has set it.
    pub ttl: Duration,
}

/// Why a name does not resolve.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// It cannot be a host name.
    #[error("it is not a host name")]
    Malformed,
    /// A name server says so.
    #[error("there is no such name")]
    NoSuchName,
    /// The name exists, but has no address.
    #[error("it has no address")]
    NoAddress,
    /// A file cannot be read, or is too long.
    #[error("{}: {error}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// No name server has an answer; the error is that of the last one.
    #[error("no answer from the name server {server}: {error}")]
    Failed {
        /// The last name server.
        server: IpAddr,
        /// What it said, or why it could not be asked.
        error: Box<NetError>,
    },
    /// It took too long.
    #[error("the name servers took longer than {} s", QUESTION_TIMEOUT.as_secs())]
    Slow,
}

impl Default for Names {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into() }
    }
}

impl Names {
    /// Resolves a name, or reads an address. `mark` is that of the sockets. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Why there is no address, as one sentence to put after the name.
    pub async fn resolve(&self, host: &str, mark: u32) -> Result<Answer, NameError> {
        if let Ok(address) = host.parse() {
            return Ok(Answer { addresses: vec![address], ttl: STATIC_TTL });
        }
        timeout(QUESTION_TIMEOUT, self.look_up(host, mark)).await.unwrap_or(Err(NameError::Slow))
    }

    async fn look_up(&self, host: &str, mark: u32) -> Result<Answer, NameError> {
        let name = Name::from_str_relaxed(host).map_err(|_| NameError::Malformed)?;
        let (names, wanted) = (self.clone(), name.clone());
        let read = tokio::task::spawn_blocking(move || System::read(&names, &wanted)).await;
        let system = read.unwrap_or_else(|gone| std::panic::resume_unwind(gone.into_panic()))?;
        if !system.hosts.is_empty() {
            return answer(system.hosts, STATIC_TTL, mark);
        }
        let mut failure = NameError::NoSuchName;
        for server in &system.servers {
            let error = match ask(server, &system, name.clone(), mark).await {
                Ok(lookup) => {
                    let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
                    return answer(lookup.iter().collect(), ttl, mark);
                }
                Err(error) => error,
            };
            failure = match &error {
                NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                    ResponseCode::NXDomain => return Err(NameError::NoSuchName),
                    ResponseCode::NoError => return Err(NameError::NoAddress),
                    _ => NameError::Failed { server: server.config.ip, error: Box::new(error) },
                },
                _ => NameError::Failed { server: server.config.ip, error: Box::new(error) },
            };
        }
        Err(failure)
    }
}

/// Asks one name server, for the name itself and within the search domains.
async fn ask(server: &Server, system: &System, name: Name, mark: u32) -> Result<LookupIp, NetError> {
    let config = ResolverConfig::from_parts(None, system.search.clone(), vec![server.config.clone()]);
    let mut builder = Resolver::builder_with_config(config, Marked::new(mark, server.zone.clone()));
    *builder.options_mut() = system.options.clone();
    builder.build()?.lookup_ip(name).await
}

fn answer(mut addresses: Vec<IpAddr>, ttl: Duration, mark: u32) -> Result<Answer, NameError> {
    // 0.0.0.0 would mean this host; it is also how some name servers block a name.
    addresses.retain(|address| !address.is_unspecified() && !address.is_multicast());
    let (usable, others): (Vec<_>, Vec<_>) = in_turn(addresses).into_iter().partition(|ip| has_route(*ip, mark));
    let mut addresses = usable;
    addresses.extend(others);
    addresses.truncate(ADDRESSES_LIMIT);
    if addresses.is_empty() { Err(NameError::NoAddress) } else { Ok(Answer { addresses, ttl }) }
}

/// The families alternating, IPv6 first (RFC 8305, section 4), without duplicates.
fn in_turn(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut these, mut others): (VecDeque<_>, VecDeque<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let mut result = Vec::new();
    while let Some(address) = these.pop_front().or_else(|| others.pop_front()) {
        if !result.contains(&address) {
            result.push(address);
        }
        std::mem::swap(&mut these, &mut others);
    }
    result
}

/// Whether the kernel has a route to it (RFC 6724, section 5, rule 1). Connecting a UDP socket sends nothing.
fn has_route(address: IpAddr, mark: u32) -> bool {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let connect = || {
        let socket = UdpSocket::bind((any, 0))?;
        set_mark(&socket, mark)?;
        socket.connect(SocketAddr::new(address, 9))
    };
    connect().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let addresses = list(&["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"]);
        assert_eq!(in_turn(addresses), list(&["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]));
        assert!(in_turn(Vec::new()).is_empty());
        let many = (0..100).map(|n| IpAddr::from([127, 0, 0, n])).collect();
        assert_eq!(answer(many, STATIC_TTL, 0).unwrap().addresses.len(), ADDRESSES_LIMIT);
    }
}
