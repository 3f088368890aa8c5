//! One mapping at a router, made with one of the three protocols.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use penstock_connect::bind_udp;
use penstock_proto::port_control::{self, Answer, MESSAGE_MAX, Nonce, Refusal, Request};
use rand::Rng;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::igd::Igd;
use super::{External, Protocol, RENEWAL_MIN, Target};

/// How long to wait for the answer to each of the three transmissions of a PCP or NAT-PMP request. RFC 6886 would go on
/// for two minutes, but the router is one hop away, and most speak neither protocol.
const PATIENCE: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1)];
/// Mappings are renewed as if they lived no longer than this, because a router that has restarted has forgotten them.
const GRANT_MAX: Duration = Duration::from_secs(7200);
/// How many other ports are tried where an IGD has given our port to somebody else.
const OTHER_PORTS: usize = 3;

/// A mapping that the router has granted.
pub struct Lease {
    held: Held,
    external: External,
    expires: Instant,
    lifetime: Duration,
}

enum Held {
    Pcp(Nonce),
    NatPmp,
    Igd(Igd),
}

/// The result of asking with all protocols at once.
pub struct Attempt {
    pub lease: Option<Lease>,
    pub found: Vec<Protocol>,
}

/// Asks with all protocols; of those that work, PCP is preferred to NAT-PMP, and NAT-PMP to IGD.
pub async fn attempt(target: &Target) -> Attempt {
    let nonce = rand::rng().random();
    let port = target.port.get();
    let (pcp, nat_pmp, igd) = tokio::join!(by_pcp(target, nonce, port), nat_pmp_address(target), find_igd(target));
    let mut found = vec![];
    let mut lease = None;
    match pcp {
        Ok(mapping) => {
            found.push(Protocol::Pcp);
            lease = mapping;
        }
        Err(error) => {
            tracing::debug!(%error, "PCP");
            if matches!(error, Failure::Refused(Refusal::Code(_))) {
                found.push(Protocol::Pcp);
            }
        }
    }
    if let Some(address) = nat_pmp {
        found.push(Protocol::NatPmp);
        if lease.is_none() {
            lease = by_nat_pmp(target, address, port).await;
        }
    }
    if let Some(igd) = igd {
        found.push(Protocol::UpnpIgd);
        if lease.is_none() {
            lease = by_igd(target, igd, None).await;
        }
    }
    Attempt { lease, found }
}

impl Lease {
    pub fn external(&self) -> External {
        self.external
    }

    pub fn expires(&self) -> Instant {
        self.expires
    }

    /// How long to wait before renewing: half of the remaining time (RFC 6887, section 11.2.1).
    pub fn renewal(&self) -> Duration {
        (self.expires.saturating_duration_since(Instant::now()) / 2).max(RENEWAL_MIN.min(self.lifetime / 2))
    }

    /// Renews it; returns whether that worked. The external address may have changed afterwards.
    pub async fn renew(&mut self, target: &Target) -> bool {
        let port = self.external.address.port();
        let renewed = match &self.held {
            Held::Pcp(nonce) => by_pcp(target, *nonce, port).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "a port mapping was not renewed");
                None
            }),
            Held::NatPmp => match nat_pmp_address(target).await {
                Some(address) => by_nat_pmp(target, address, port).await,
                None => None,
            },
            Held::Igd(igd) => by_igd(target, igd.clone(), Some(port)).await,
        };
        match renewed {
            Some(lease) => {
                *self = lease;
                true
            }
            None => false,
        }
    }

    /// Deletes it.
    pub async fn release(self, target: &Target) {
        let released = match &self.held {
            Held::Pcp(nonce) => {
                ask(target, &pcp_map(target, *nonce, 0, 0)).await.map(drop).map_err(|error| error.to_string())
            }
            Held::NatPmp => {
                let request = Request::NatPmpMap { port: target.port, external: 0, lifetime: 0 };
                ask(target, &request).await.map(drop).map_err(|error| error.to_string())
            }
            Held::Igd(igd) => igd.unmap(self.external.address.port()).await.map_err(|error| error.to_string()),
        };
        if let Err(error) = released {
            tracing::debug!(%error, router = %target.router, "a port mapping was not removed");
        }
    }

    /// The lease that PCP or NAT-PMP has granted, if any.
    fn granted(held: Held, address: IpAddr, port: u16, lifetime: u32) -> Option<Self> {
        let protocol = if matches!(held, Held::NatPmp) { Protocol::NatPmp } else { Protocol::Pcp };
        if lifetime == 0 || port == 0 {
            return None;
        }
        let lifetime = Duration::from_secs(lifetime.into()).min(GRANT_MAX);
        let external = External { address: SocketAddr::new(address, port), protocol };
        Some(Self { held, external, expires: Instant::now() + lifetime, lifetime })
    }
}

/// Why PCP or NAT-PMP gives no usable answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error("the router does not answer")]
    Silence,
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Asks the router, from the address that the mapping is for: PCP refuses to map for anybody else.
async fn ask(target: &Target, request: &Request) -> Result<Answer, Failure> {
    let socket = bind_udp((target.local.ip(), 0).into(), target.mark)?;
    // Only the router's datagrams are received.
    socket.connect((target.router, port_control::PORT)).await?;
    for patience in PATIENCE {
        socket.send(&request.encode()).await?;
        if let Ok(answer) = timeout_at(Instant::now() + patience, heard(&socket, request)).await {
            return Ok(answer??);
        }
    }
    Err(Failure::Silence)
}

async fn heard(socket: &UdpSocket, request: &Request) -> io::Result<Result<Answer, Refusal>> {
    let mut datagram = [0; MESSAGE_MAX];
    loop {
        let length = socket.recv(&mut datagram).await?;
        if let Some(answer) = request.answer(&datagram[..length]) {
            return Ok(answer);
        }
    }
}

fn seconds(lifetime: Duration) -> u32 {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)
}

fn pcp_map(target: &Target, nonce: Nonce, external: u16, lifetime: u32) -> Request {
    Request::PcpMap { nonce, client: target.local.ip(), port: target.port, external, lifetime }
}

/// Maps `port` or another one.
async fn by_pcp(target: &Target, nonce: Nonce, port: u16) -> Result<Option<Lease>, Failure> {
    let answer = ask(target, &pcp_map(target, nonce, port, seconds(target.lifetime))).await?;
    let Answer::Mapping { address: Some(address), port, lifetime } = answer else { return Ok(None) };
    Ok(Lease::granted(Held::Pcp(nonce), address, port, lifetime))
}

async fn nat_pmp_address(target: &Target) -> Option<IpAddr> {
    if target.router.is_ipv6() {
        return None;
    }
    match ask(target, &Request::NatPmpAddress).await {
        Ok(Answer::Address(address)) => Some(address.into()),
        Ok(Answer::Mapping { .. }) => None,
        Err(error) => {
            tracing::debug!(%error, "NAT-PMP");
            None
        }
    }
}

/// Maps `port` or another one.
async fn by_nat_pmp(target: &Target, address: IpAddr, port: u16) -> Option<Lease> {
    let request = Request::NatPmpMap { port: target.port, external: port, lifetime: seconds(target.lifetime) };
    match ask(target, &request).await {
        Ok(Answer::Mapping { port, lifetime, .. }) => Lease::granted(Held::NatPmp, address, port, lifetime),
        Ok(Answer::Address(_)) => None,
        Err(error) => {
            tracing::debug!(%error, "NAT-PMP");
            None
        }
    }
}

async fn find_igd(target: &Target) -> Option<Igd> {
    if target.router.is_ipv6() {
        return None;
    }
    Igd::find(target.router, target.local.ip(), target.mark).await
}

/// Maps `port`, the external one held before, or else our own port, or else some other.
async fn by_igd(target: &Target, igd: Igd, port: Option<u16>) -> Option<Lease> {
    let told = |error| tracing::debug!(%error, "UPnP IGD");
    let ip = igd.external_address().await.map_err(told).ok()?;
    let mut external = port.unwrap_or(target.local.port());
    for _ in 0..=OTHER_PORTS {
        let error = match igd.map(external, target.local, target.lifetime).await {
            Ok(for_good) => {
                let external = External { address: SocketAddr::new(ip, external), protocol: Protocol::UpnpIgd };
                let lifetime = if for_good { GRANT_MAX } else { target.lifetime };
                return Some(Lease { held: Held::Igd(igd), external, expires: Instant::now() + lifetime, lifetime });
            }
            Err(error) => error,
        };
        let conflict = error.is_conflict();
        told(error);
        if !conflict {
            return None;
        }
        // The dynamic ports (RFC 6335, section 6).
        external = rand::rng().random_range(49_152..=65_535);
    }
    None
}
