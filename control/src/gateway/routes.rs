//! The gateway's routes: remote prefixes to the tun device, blackholes under them, and host routes
//! for endpoints that a remote prefix would swallow.
//!
//! A blackhole is there before its route and goes after it. Those of a process that was killed stay
//! in the kernel; the next start of a gateway of the same name adopts them, and an orderly stop
//! removes them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use crate::netlink::{MAIN_TABLE, Netlink, Route, RouteKind, network};

/// Who made a route, by the number that `ip route` shows as `proto`. The kernel and
/// `/etc/iproute2/rt_protos` leave this one free.
pub const PROTOCOL: u8 = 80;

/// Blackholes are worse than any other route. Below this, each gateway has a metric of its own.
const WORST_METRIC: u32 = u32::MAX;
/// How many metrics there are for the gateways of a machine.
const METRICS: u32 = 1 << 16;

/// The routes that are there because of us.
#[derive(Debug)]
pub struct Routes {
    metric: u32,
    /// Blackholes that were there before us.
    adopted: BTreeSet<IpNet>,
    blackholes: BTreeSet<IpNet>,
    through: BTreeMap<IpNet, Route>,
    around: BTreeMap<IpAddr, Route>,
}

/// The tun device, and the addresses of ours that connections through it begin from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Its index.
    pub interface: u32,
    /// Source of IPv4.
    pub source_v4: Option<IpAddr>,
    /// Source of IPv6.
    pub source_v6: Option<IpAddr>,
}

impl Routes {
    /// The routes of the gateway of this name: blackholes that a crash left are adopted.
    ///
    /// # Errors
    /// The kernel does not tell its routes.
    pub fn adopt(netlink: &mut Netlink, name: &str) -> Result<Self> {
        let metric = metric_of(name);
        let mut routes = Self {
            metric,
            adopted: BTreeSet::new(),
            blackholes: BTreeSet::new(),
            through: BTreeMap::new(),
            around: BTreeMap::new(),
        };
        for route in netlink.routes().context("the kernel does not tell its routes")? {
            if route.protocol == PROTOCOL && route.kind == RouteKind::Blackhole && route.metric == metric {
                routes.blackholes.insert(route.destination);
            }
        }
        routes.adopted.clone_from(&routes.blackholes);
        if !routes.blackholes.is_empty() {
            tracing::info!("adopting {} blackhole routes of a gateway that was killed", routes.blackholes.len());
        }
        Ok(routes)
    }

    /// Makes the blackholes those of the remote prefixes. New ones come here, so call it before
    /// [`Routes::lead`]; old ones go here, so call it after.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn guard(&mut self, netlink: &mut Netlink, remote: &BTreeSet<IpNet>) -> Result<()> {
        let wanted = installed(remote);
        for prefix in &wanted {
            if self.blackholes.contains(prefix) {
                continue;
            }
            netlink
                .add_route(&Route::blackhole(*prefix, self.metric, PROTOCOL))
                .with_context(|| format!("cannot add the blackhole route to {prefix}"))?;
            self.blackholes.insert(*prefix);
        }
        let surplus: Vec<_> =
            self.blackholes.difference(&wanted).filter(|p| !self.through.contains_key(p)).copied().collect();
        for prefix in surplus {
            self.remove_blackhole(netlink, prefix);
        }
        Ok(())
    }

    /// Makes the routes by the tun device those of the remote prefixes.
    ///
    /// # Errors
    /// The kernel refuses one, or has another route that would take its packets elsewhere.
    pub fn lead(&mut self, netlink: &mut Netlink, remote: &BTreeSet<IpNet>, tunnel: &Tunnel) -> Result<()> {
        let wanted = installed(remote);
        let surplus: Vec<_> = self.through.keys().filter(|p| !wanted.contains(*p)).copied().collect();
        for prefix in surplus {
            if let Some(route) = self.through.remove(&prefix) {
                removed(netlink.remove_route(&route), &route);
            }
        }
        for prefix in wanted {
            let (source, metric) = if prefix.addr().is_ipv4() { (tunnel.source_v4, 0) } else { (tunnel.source_v6, 1) };
            let route = Route { source, ..Route::by(prefix, tunnel.interface, None, metric, PROTOCOL) };
            match self.through.get(&prefix) {
                Some(there) if *there == route => continue,
                Some(_) => netlink.add_route(&route).with_context(|| format!("cannot change the route to {prefix}"))?,
                None => match netlink.add_new_route(&route) {
                    Ok(()) => {}
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) => bail!(
                        "there is another route to {prefix}, which would take the tunnel's packets elsewhere; remove it, or the prefix from AllowedIPs"
                    ),
                    Err(e) => return Err(e).with_context(|| format!("cannot add the route to {prefix}")),
                },
            }
            self.through.insert(prefix, route);
        }
        Ok(())
    }

    /// Gives each endpoint that lies in a remote prefix a route of its own, by the way it had
    /// without the tunnel. `all` is the kernel's routes.
    pub fn pass_around(
        &mut self,
        netlink: &mut Netlink,
        all: &[Route],
        remote: &BTreeSet<IpNet>,
        endpoints: impl Iterator<Item = IpAddr>,
    ) {
        let remote = installed(remote);
        let mut wanted = BTreeMap::new();
        for endpoint in endpoints {
            if let Some(route) = way_around(all, &remote, endpoint) {
                wanted.insert(endpoint, route);
            }
        }
        let surplus: Vec<_> = self.around.keys().filter(|e| !wanted.contains_key(*e)).copied().collect();
        for endpoint in surplus {
            if let Some(route) = self.around.remove(&endpoint) {
                removed(netlink.remove_route(&route), &route);
            }
        }
        for (endpoint, route) in wanted {
            if self.around.get(&endpoint) == Some(&route) {
                continue;
            }
            match netlink.add_route(&route) {
                Ok(()) => {
                    tracing::info!("endpoint {endpoint} lies in a remote prefix: it gets a route around the tunnel");
                    self.around.insert(endpoint, route);
                }
                Err(e) => tracing::warn!("no route around the tunnel to {endpoint}: {e}"),
            }
        }
    }

    /// Whether the kernel has lost one of our routes, as when the interface was down for a moment.
    /// Those are forgotten, so that they can be made anew.
    pub fn forget_lost(&mut self, all: &[Route]) -> bool {
        let there: BTreeSet<(IpNet, RouteKind)> =
            all.iter().filter(|r| r.protocol == PROTOCOL).map(|r| (r.destination, r.kind)).collect();
        let before = (self.through.len(), self.around.len(), self.blackholes.len());
        self.through.retain(|p, _| there.contains(&(*p, RouteKind::Unicast)));
        self.around.retain(|a, _| there.contains(&(IpNet::from(*a), RouteKind::Unicast)));
        self.blackholes.retain(|p| there.contains(&(*p, RouteKind::Blackhole)));
        before != (self.through.len(), self.around.len(), self.blackholes.len())
    }

    /// Removes all but the blackholes.
    pub fn leave(&mut self, netlink: &mut Netlink) {
        for route in
            std::mem::take(&mut self.through).into_values().chain(std::mem::take(&mut self.around).into_values())
        {
            removed(netlink.remove_route(&route), &route);
        }
    }

    /// Removes the blackholes: from here on the kernel forwards what comes.
    pub fn unguard(&mut self, netlink: &mut Netlink) {
        for prefix in std::mem::take(&mut self.blackholes) {
            self.remove_blackhole(netlink, prefix);
        }
    }

    /// Whether there are blackholes.
    pub fn guards(&self) -> bool {
        !self.blackholes.is_empty()
    }

    /// Undoes a start that failed: all goes but the blackholes that were there before.
    pub fn retract(&mut self, netlink: &mut Netlink) {
        self.leave(netlink);
        for prefix in self.blackholes.difference(&self.adopted).copied().collect::<Vec<_>>() {
            self.remove_blackhole(netlink, prefix);
        }
    }

    fn remove_blackhole(&mut self, netlink: &mut Netlink, prefix: IpNet) {
        let route = Route::blackhole(prefix, self.metric, PROTOCOL);
        removed(netlink.remove_route(&route), &route);
        self.blackholes.remove(&prefix);
    }
}

fn removed(result: io::Result<()>, route: &Route) {
    if let Err(e) = result {
        tracing::warn!("the route to {} could not be removed: {e}", route.destination);
    }
}

/// The metric of the blackholes of the gateway of this name, so that each knows its own after a crash.
fn metric_of(name: &str) -> u32 {
    // FNV-1a: the standard library's hash may differ from build to build.
    let hash = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    WORST_METRIC - hash % METRICS
}

/// The prefixes as they go into the kernel: a default route in two halves, which leave the one that
/// is there in its place.
fn installed(remote: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    let mut all = BTreeSet::new();
    for prefix in remote {
        match prefix.subnets(1) {
            Ok(halves) if prefix.prefix_len() == 0 => all.extend(halves),
            _ => {
                all.insert(*prefix);
            }
        }
    }
    all
}

/// The route that an endpoint needs: none if it would not follow a remote prefix.
fn way_around(all: &[Route], remote: &BTreeSet<IpNet>, endpoint: IpAddr) -> Option<Route> {
    let swallowing = remote.iter().filter(|p| p.contains(&endpoint)).map(IpNet::prefix_len).max()?;
    let without = all
        .iter()
        .filter(|r| r.table == MAIN_TABLE && r.protocol != PROTOCOL && r.kind == RouteKind::Unicast)
        .filter(|r| r.destination.contains(&endpoint))
        .min_by_key(|r| (std::cmp::Reverse(r.destination.prefix_len()), r.metric))?;
    if without.destination.prefix_len() > swallowing {
        return None;
    }
    // The longest prefix there is, but of a remote host the best metric is already the tunnel's.
    if swallowing == IpNet::from(endpoint).prefix_len() {
        return None;
    }
    let host = network(endpoint, 128);
    Some(Route { source: without.source, ..Route::by(host, without.interface?, without.gateway, 0, PROTOCOL) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|p| p.parse().unwrap()).collect()
    }

    fn route(destination: &str, gateway: Option<&str>) -> Route {
        Route::by(destination.parse().unwrap(), 2, gateway.map(|g| g.parse().unwrap()), 0, 3)
    }

    #[test]
    fn a_default_route_goes_in_halves() {
        assert_eq!(
            installed(&nets(&["0.0.0.0/0", "::/0", "10.0.0.0/8"])),
            nets(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1", "10.0.0.0/8"])
        );
    }

    #[test]
    fn an_endpoint_inside_a_remote_prefix_goes_around() {
        let all = [route("0.0.0.0/0", Some("192.0.2.254")), route("192.0.2.0/24", None)];
        let remote = installed(&nets(&["0.0.0.0/0"]));
        let far = way_around(&all, &remote, "203.0.113.5".parse().unwrap()).unwrap();
        assert_eq!(far.destination.to_string(), "203.0.113.5/32");
        assert_eq!(far.gateway, Some("192.0.2.254".parse().unwrap()));
        assert_eq!(way_around(&all, &remote, "192.0.2.9".parse().unwrap()), None, "the link is more specific");
        let remote = nets(&["192.0.2.0/25"]);
        let near = way_around(&all, &remote, "192.0.2.9".parse().unwrap()).unwrap();
        assert_eq!((near.gateway, near.interface), (None, Some(2)));
        assert_eq!(way_around(&all, &nets(&["10.0.0.0/8"]), "203.0.113.5".parse().unwrap()), None);
        assert_eq!(way_around(&all, &nets(&["203.0.113.5/32"]), "203.0.113.5".parse().unwrap()), None);
    }

    #[test]
    fn blackholes_are_worse_than_any_route_and_each_gateways_own() {
        assert!(metric_of("amsterdam") > u32::MAX - METRICS);
        assert_ne!(metric_of("amsterdam"), metric_of("berlin"));
    }
}
