//! One mapping at a router, by one of the three protocols.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crab_nat::{InternetProtocol, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp};
use rand::Rng;
use tokio::time::Instant;

use super::igd::Igd;
use super::{External, Protocol, RENEWAL_MIN, Target};

/// A request by PCP or NAT-PMP is sent three times in 1.75 s: the router is one hop away, and most don't speak
/// either. RFC 6886 would go on for two minutes.
const REQUEST: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 2,
    max_retry_timeout: Some(Duration::from_secs(1)),
};
/// Mappings are renewed as if they lived at most this long: a router that has restarted has forgotten them.
const GRANT_MAX: Duration = Duration::from_secs(7200);
/// Where an IGD has given our port to somebody else, others are tried so often.
const OTHER_PORTS: usize = 3;

/// A mapping that the router has promised.
pub struct Lease {
    held: Held,
    external: External,
    expires: Instant,
    lifetime: Duration,
}

enum Held {
    /// By PCP or NAT-PMP.
    Control(crab_nat::PortMapping),
    Igd(Igd),
}

/// What asking by all protocols at once has brought.
pub struct Attempt {
    pub lease: Option<Lease>,
    pub found: Vec<Protocol>,
}

/// Asks by all protocols; of those that can map, PCP is taken before NAT-PMP before IGD.
pub async fn attempt(target: &Target) -> Attempt {
    let (pcp, nat_pmp, igd) = tokio::join!(by_pcp(target), nat_pmp_address(target), find_igd(target));
    let mut found = vec![];
    let mut lease = None;
    match pcp {
        Ok(mapping) => {
            found.push(Protocol::Pcp);
            lease = Lease::of_control(mapping, None);
        }
        Err(error) => {
            tracing::debug!(%error, "PCP");
            if answered(&error) {
                found.push(Protocol::Pcp);
            }
        }
    }
    if let Some(address) = nat_pmp {
        found.push(Protocol::NatPmp);
        if lease.is_none() {
            lease = by_nat_pmp(target, address).await;
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

    /// How long to wait before it is renewed: half of what is left (RFC 6887, section 11.2.1).
    pub fn renewal(&self) -> Duration {
        (self.expires.saturating_duration_since(Instant::now()) / 2).max(RENEWAL_MIN.min(self.lifetime / 2))
    }

    /// Whether it could be renewed; the external address may be another afterwards.
    pub async fn renew(&mut self, target: &Target) -> bool {
        let renewed = match &mut self.held {
            Held::Control(mapping) => {
                let nat_pmp = self.external.protocol == Protocol::NatPmp;
                if let Err(error) = mapping.renew().await {
                    tracing::debug!(%error, "a port mapping was not renewed");
                    return false;
                }
                let address = if nat_pmp { nat_pmp_address(target).await } else { None };
                Self::of_control(mapping.clone(), address)
            }
            Held::Igd(igd) => by_igd(target, igd.clone(), Some(self.external.address.port())).await,
        };
        match renewed {
            Some(lease) => {
                *self = lease;
                true
            }
            None => false,
        }
    }

    /// Gives it back.
    pub async fn release(self, target: &Target) {
        match self.held {
            Held::Control(mapping) => {
                if let Err((error, _)) = mapping.try_drop().await {
                    tracing::debug!(%error, router = %target.router, "a port mapping was not taken back");
                }
            }
            Held::Igd(igd) => {
                if let Err(error) = igd.unmap(self.external.address.port()).await {
                    tracing::debug!(%error, router = %target.router, "a port mapping was not taken back");
                }
            }
        }
    }

    /// `address`: the external one where the mapping itself does not say it.
    fn of_control(mapping: crab_nat::PortMapping, address: Option<IpAddr>) -> Option<Self> {
        let (ip, protocol) = match mapping.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => (external_ip.to_canonical(), Protocol::Pcp),
            PortMappingType::NatPmp => (address?, Protocol::NatPmp),
        };
        let lifetime = Duration::from_secs(mapping.lifetime().into());
        if lifetime.is_zero() {
            return None;
        }
        let lifetime = lifetime.min(GRANT_MAX);
        let address = SocketAddr::new(ip, mapping.external_port().get());
        let external = External { address, protocol };
        Some(Self { held: Held::Control(mapping), external, expires: Instant::now() + lifetime, lifetime })
    }
}

fn options(target: &Target) -> PortMappingOptions {
    PortMappingOptions {
        external_port: Some(target.port),
        lifetime_seconds: Some(u32::try_from(target.lifetime.as_secs()).unwrap_or(u32::MAX)),
        timeout_config: Some(REQUEST),
    }
}

async fn by_pcp(target: &Target) -> Result<crab_nat::PortMapping, pcp::Failure> {
    let base = pcp::BaseMapRequest::new(target.router, target.local.ip(), InternetProtocol::Udp, target.port);
    pcp::port_mapping(base, None, None, options(target)).await
}

/// Whether somebody speaks PCP, though it did not map.
fn answered(failure: &pcp::Failure) -> bool {
    use pcp::Failure;
    !matches!(failure, Failure::Socket(_) | Failure::Timeout | Failure::UnsupportedVersion(_))
}

async fn nat_pmp_address(target: &Target) -> Option<IpAddr> {
    if target.router.is_ipv6() {
        return None;
    }
    match natpmp::external_address(target.router, Some(REQUEST)).await {
        Ok(address) => Some(address.into()),
        Err(error) => {
            tracing::debug!(%error, "NAT-PMP");
            None
        }
    }
}

async fn by_nat_pmp(target: &Target, address: IpAddr) -> Option<Lease> {
    match natpmp::port_mapping(target.router, InternetProtocol::Udp, target.port, options(target)).await {
        Ok(mapping) => Lease::of_control(mapping, Some(address)),
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

/// Maps `port`, the one that was held before, or our own port, or else some other.
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
