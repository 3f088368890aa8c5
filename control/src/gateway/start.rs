//! The start, in order: what can fail without harm first, then the blackholes, and only then anything
//! that a packet could take.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use penstock_dataplane::engine::Engine;
use penstock_dataplane::ports::tun::{TunConfig, TunPort};
use penstock_dataplane::ports::udp::{UdpConfig, UdpPort};
use penstock_dataplane::table::Table;
use penstock_proto::Bucket;
use penstock_proto::coordination::Registration;
use penstock_proto::{Key, PeerConfig, Timings};
use rand::SeedableRng;

use super::Gateway;
use super::drives::{self, Drive, Drives, KernelPorts, Manner};
use super::forwarding::{self, Forwarding};
use super::modes::{Wish, workers};
use super::network::Network;
use super::overlay::{self, Changes, Overlay};
use super::peers::{Peer, Peers};
use super::privileges;
use super::resolver::Resolver;
use super::routes::{Routes, Tunnel};
use super::settle::Due;
use super::steering::Steering;
use super::tables::Parts;
use crate::coordinator::{self, Cached, Client};
use crate::netlink::{Interface, Netlink};
use crate::profile::{Endpoint, LanMode, LocalPort, Profile, WanMode};
use crate::traversal::{Settings, Traversal};

/// What encapsulation takes from the WAN's MTU: outer IPv6 (40) and UDP (8), WireGuard's header (16)
/// and tag (16).
const OVERHEAD: u32 = 80;
/// The smallest MTU that IPv6 runs on (RFC 8200, section 5).
const SMALLEST_MTU: u32 = 1280;
/// Shortens the handshakes' timings, for tests.
const TEST_REKEY: &str = "PENSTOCK_TEST_REKEY_AFTER_SECONDS";

impl Gateway {
    /// Starts a gateway. What was begun is undone if it fails; blackholes that a killed gateway had
    /// left stay then.
    ///
    /// # Errors
    /// One sentence: what is missing or in the way.
    pub(super) fn start(profile: &Profile) -> Result<Self> {
        let wishes = Wishes::of(profile);
        privileges::check(wishes.must_xdp())?;
        let mut netlink = Netlink::open().context("cannot speak netlink")?;
        let network = Network::ask(&mut netlink)?;
        let drives = wishes.drives(profile, &network)?;
        let name = profile.name.as_str();
        if network.named(name).is_some() {
            bail!("there is a network device {name} already, which is not ours; remove it or rename the gateway");
        }

        let now = Instant::now();
        let rng = rand::rngs::StdRng::from_os_rng();
        let secret = profile.private_key.to_secret();
        let mut proto = penstock_proto::Gateway::with_timings(secret, rng, now, SystemTime::now(), timings()?);
        let mut peers = meet(profile, &mut proto, now)?;
        let connection = coordinator::Config::of(profile);
        // The peers of last time, until the coordinator says more: it may be down.
        let (map, registration) = match connection.as_ref().and_then(Client::cached) {
            Some(Cached { map, registration }) => (map, Some(registration)),
            None => Default::default(),
        };
        let changes = overlay::meet(&map, &mut proto, &mut peers, now);

        let mut routes = Routes::adopt(&mut netlink, name)?;
        let built = build(profile, &mut netlink, &network, drives, &peers, &mut routes);
        let Built { udp, engine, steering, drives, tun, local_port, tunnel_mtu } = match built {
            Ok(built) => built,
            Err(e) => {
                routes.retract(&mut netlink);
                return Err(e);
            }
        };
        let overlay = connection.map(|connection| {
            let private_key = profile.private_key.to_secret();
            let settings = Settings {
                trust: connection.trust.clone(),
                birthday_probing: profile.birthday_probing,
                port_mapping: profile.port_mapping,
            };
            let traversal = Traversal::new(private_key, udp.clone(), settings);
            let url = connection.url.clone();
            Overlay {
                url,
                client: Client::start(connection),
                traversal,
                map,
                registration: None,
                greetings: Bucket::default(),
            }
        });
        let mut gateway = Self {
            name: name.to_owned(),
            private_key: profile.private_key.clone(),
            local_port,
            pinned: profile.local_port != LocalPort::Random,
            tunnel_mtu,
            virtual_addresses: profile.virtual_addresses.clone(),
            own_address: !profile.virtual_addresses.is_empty(),
            proto,
            peers,
            rejects: HashMap::new(),
            lost_waiting: 0,
            clock_set: now,
            resolver: Resolver::default(),
            udp,
            overlay,
            netlink,
            network,
            drives,
            tunnel: Tunnel { interface: tun, ..Tunnel::default() },
            routes,
            forwarding: Forwarding::default(),
            engine,
            steering,
            parts: Parts::new(tunnel_mtu),
            paths: HashMap::new(),
            looping: HashSet::new(),
            next_hops: Default::default(),
            asked: HashMap::new(),
            due: Due::default(),
            commands: Vec::new(),
            fail_closed: false,
        };
        match gateway.open(profile, registration, &changes) {
            Ok(()) => Ok(gateway),
            Err(e) => {
                gateway.routes.retract(&mut gateway.netlink);
                gateway.fail_closed = true;
                gateway.stop();
                Err(e)
            }
        }
    }

    /// Gives the tun device its addresses and the remote prefixes their routes: from here packets flow.
    fn open(&mut self, profile: &Profile, registration: Option<Registration>, changes: &Changes) -> Result<()> {
        let (name, tun) = (&self.name, self.tunnel.interface);
        self.netlink.set_up(tun, false).with_context(|| format!("cannot put {name} down"))?;
        forwarding::quiet_ipv6(name);
        self.netlink.set_up(tun, true).with_context(|| format!("cannot put {name} up"))?;
        for address in &self.virtual_addresses {
            self.netlink
                .add_address(tun, *address)
                .with_context(|| format!("cannot give {name} the address {address}"))?;
        }
        let lan: Vec<String> = self.drives.lan.iter().map(|d| d.interface.name.clone()).collect();
        self.forwarding.enable(name, &lan)?;
        self.network = Network::ask(&mut self.netlink)?;
        self.tunnel = self.tunnel_sources();
        self.renew_parts();
        if let Some(registration) = registration {
            self.registered(registration);
        }
        self.place_paths();
        self.meet_paths(Instant::now(), changes);
        self.due.everything_of_peers();
        self.settle()?;
        for peer in &profile.peers {
            if let Some(Endpoint::Host { name, port }) = &peer.endpoint {
                self.resolver.ask(peer.public_key, name, *port, false);
            }
        }
        Ok(())
    }
}

/// What is between the blackholes and the open tunnel.
struct Built {
    udp: penstock_dataplane::ports::udp::UdpSender,
    engine: Engine,
    steering: Steering,
    drives: Drives,
    tun: u32,
    local_port: u16,
    tunnel_mtu: u16,
}

fn build(
    profile: &Profile,
    netlink: &mut Netlink,
    network: &Network,
    mut drives: Drives,
    peers: &Peers,
    routes: &mut Routes,
) -> Result<Built> {
    let remote = peers.remote();
    let endpoints = peers.iter().filter_map(|p| p.endpoint).map(|e| e.ip());
    // First of all, or the blackholes would cut the endpoints off.
    routes.pass_around(netlink, &network.routes, &remote, endpoints);
    routes.guard(netlink, &remote)?;

    let tunnel_mtu = tunnel_mtu(profile.mtu, drives.wan.interface.mtu)?;
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let count = workers(u32::from(profile.workers), drives.queues(), cores.len() as u32);
    let udp = bind(profile, count)?;
    let sender = udp.first().ok_or_else(|| anyhow!("there is no worker"))?.sender();
    let local_port = sender.local_port();
    let manner = Manner { local_port, tunnel_mtu, busy_poll: profile.busy_poll };
    let mut steering = drives::attach(&mut drives, manner)?;
    let name = profile.name.as_str();
    let config = TunConfig { name: name.to_owned(), mtu: tunnel_mtu, queues: count as usize };
    let tun = TunPort::open(&config).with_context(|| format!("cannot create the tun device {name}"))?;
    let index = tun.first().map(TunPort::ifindex).ok_or_else(|| anyhow!("the tun device has no queue"))?;
    let setups = drives::build(&mut drives, &mut steering, KernelPorts { udp, tun }, manner, &cores)?;
    for drive in std::iter::once(&drives.wan).chain(&drives.lan) {
        let how = if drive.xdp() { "AF_XDP" } else { "sockets" };
        tracing::info!("{}: {how}, because {}", drive.interface.name, drive.reason());
    }
    tracing::info!("{count} workers, tunnel MTU {tunnel_mtu}");
    let engine = Engine::start(setups, Table::default()).context("cannot start the workers")?;
    Ok(Built { udp: sender, engine, steering, drives, tun: index, local_port, tunnel_mtu })
}

fn bind(profile: &Profile, workers: u32) -> Result<Vec<UdpPort>> {
    let port = match profile.local_port {
        LocalPort::Random => 0,
        LocalPort::Pinned(port) => port,
    };
    // Not bound to the WAN interface: what the kernel routes elsewhere is carried as well.
    let config = UdpConfig { interface: None, port, workers: workers as usize, gso: profile.udp_gso, mark: 0 };
    UdpPort::bind(&config).map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => anyhow!("UDP port {port} is in use by another program"),
        std::io::ErrorKind::PermissionDenied => {
            anyhow!("UDP port {port} is not permitted: missing CAP_NET_BIND_SERVICE")
        }
        _ => anyhow!("cannot bind UDP port {port}: {e}"),
    })
}

/// What the profile asks for each side.
struct Wishes {
    wan: Wish,
    lan: Wish,
}

impl Wishes {
    fn of(profile: &Profile) -> Self {
        Self {
            wan: match profile.wan.mode {
                WanMode::Auto => Wish::Auto,
                WanMode::Xdp => Wish::Xdp,
                WanMode::Udp => Wish::Socket,
            },
            lan: match profile.lan.mode {
                LanMode::Auto => Wish::Auto,
                LanMode::Xdp => Wish::Xdp,
                LanMode::Tun => Wish::Socket,
            },
        }
    }

    fn must_xdp(&self) -> bool {
        self.wan == Wish::Xdp || self.lan == Wish::Xdp
    }

    fn drives(&self, profile: &Profile, network: &Network) -> Result<Drives> {
        let find = |side: &str, name: &str| -> Result<Interface> {
            let found =
                network.named(name).ok_or_else(|| anyhow!("there is no interface {name}, the profile's {side}"))?;
            if !found.up {
                tracing::warn!("interface {name} is down");
            }
            Ok(found.clone())
        };
        let wan = Drive::new(&find("WAN", &profile.wan.interface)?, self.wan);
        let lan = profile
            .lan
            .interfaces
            .iter()
            .map(|name| Ok(Drive::new(&find("LAN", name)?, self.lan)))
            .collect::<Result<_>>()?;
        Ok(Drives { wan, lan })
    }
}

/// The peers of the profile.
fn meet(profile: &Profile, proto: &mut penstock_proto::Gateway, now: Instant) -> Result<Peers> {
    let mut peers = Peers::default();
    for given in &profile.peers {
        let endpoint = match &given.endpoint {
            Some(Endpoint::Address(address)) => Some(*address),
            _ => None,
        };
        let config = PeerConfig {
            preshared_key: given.preshared_key.as_ref().map(|key| Key::from(*key.as_bytes())),
            endpoint,
            persistent_keepalive: given.persistent_keepalive,
            fixed_endpoint: false,
        };
        let id = proto
            .add_peer(now, given.public_key.into(), config)
            .map_err(|e| anyhow!("peer {} cannot be added: {e:?}", given.name))?;
        let number = peers.number();
        let mut peer = Peer::new(id, number, given.public_key);
        peer.name.clone_from(&given.name);
        peer.preshared_key.clone_from(&given.preshared_key);
        peer.configured.clone_from(&given.endpoint);
        peer.endpoint = endpoint;
        peer.persistent_keepalive = given.persistent_keepalive;
        peers.push(peer);
        for prefix in &given.allowed_ips {
            peers.allow(*prefix, id);
        }
    }
    Ok(peers)
}

/// The profile's MTU, else what the WAN leaves.
fn tunnel_mtu(wish: Option<u16>, wan: u32) -> Result<u16> {
    if let Some(mtu) = wish {
        if u32::from(mtu) + OVERHEAD > wan {
            tracing::warn!("an MTU of {mtu} does not fit the WAN's {wan}: outer packets will be fragmented");
        }
        return Ok(mtu);
    }
    let mtu = wan.saturating_sub(OVERHEAD).min(u32::from(u16::MAX));
    if mtu < SMALLEST_MTU {
        tracing::warn!("a tunnel MTU of {mtu} is too small for IPv6 inside");
    }
    u16::try_from(mtu).ok().filter(|mtu| *mtu >= 576).ok_or_else(|| anyhow!("the WAN's MTU of {wan} is too small"))
}

/// WireGuard's timings, unless a test wants them shorter.
fn timings() -> Result<Timings> {
    let Ok(text) = std::env::var(TEST_REKEY) else { return Ok(Timings::default()) };
    let seconds: u64 = text
        .parse()
        .ok()
        .filter(|seconds| (1..=120).contains(seconds))
        .ok_or_else(|| anyhow!("{TEST_REKEY}={text:?} is no number of seconds from 1 to 120"))?;
    tracing::warn!("{TEST_REKEY}={seconds}: TIMINGS ARE SHORTENED FOR TESTS; never run a site like this");
    Ok(shortened(Duration::from_secs(seconds)))
}

fn shortened(rekey_after: Duration) -> Timings {
    let real = Timings::default();
    let scale = rekey_after.as_secs_f64() / real.rekey_after_time.as_secs_f64();
    Timings {
        rekey_after_time: rekey_after,
        reject_after_time: real.reject_after_time.mul_f64(scale),
        rekey_timeout: real.rekey_timeout.mul_f64(scale).max(Duration::from_millis(200)),
        rekey_timeout_jitter: real.rekey_timeout_jitter.mul_f64(scale),
        keepalive_timeout: real.keepalive_timeout.mul_f64(scale).max(Duration::from_millis(400)),
        ..real
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tunnel_leaves_room_for_its_headers() {
        assert_eq!(tunnel_mtu(None, 1500).unwrap(), 1420);
        assert_eq!(tunnel_mtu(Some(1300), 1500).unwrap(), 1300);
        assert_eq!(tunnel_mtu(None, 65536).unwrap(), 65456);
        assert!(tunnel_mtu(None, 600).is_err());
    }

    #[test]
    fn shortened_timings_keep_their_order() {
        for seconds in [1, 3, 10, 120] {
            let t = shortened(Duration::from_secs(seconds));
            assert!(t.rekey_after_time < t.reject_after_time);
            assert!(t.keepalive_timeout + t.rekey_timeout < t.reject_after_time, "{seconds}");
        }
        assert_eq!(shortened(Duration::from_secs(120)), Timings::default());
    }
}
