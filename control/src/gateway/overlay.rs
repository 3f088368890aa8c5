//! Peers that the coordinator names: its map becomes peers and prefixes, the paths found to them become
//! endpoints, and what we learn of our own place goes back to it.
//!
//! The map is an offer. What of it is taken is judged here ([`trust::judge`]), again whenever the map or the networks
//! of this site change; what is refused is a problem with a name.
//!
//! [`trust::judge`]: penstock_proto::trust::judge

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use penstock_connect::CoordinatorUrl;
use penstock_dataplane::ports::udp::UdpSender;
use penstock_proto::coordination::{self, Candidate, Map, RefusalReason, Registration, SiteKey};
use penstock_proto::path::Path;
use penstock_proto::trust::{RefusedPrefix, Server, Surroundings, judge};
use penstock_proto::{Bucket, PeerConfig, PeerId};

use super::handshakes::{Due, Handshakes};
use super::peers::{Found, Peer, Peers};
use crate::coordinator::{Cached, Client, Config, Event};
use crate::ground::Origin;
use crate::key::PublicKey;
use crate::problem::{Problem, Problems};
use crate::profile::Profile;
use crate::traversal::{self, Selection, Settings, Traversal};

/// First handshakes a second, and at once, that go out before there is anything to send. Half of what a relay
/// lets one site begin, so that handshakes for traffic find room.
const FIRST_HANDSHAKES_PER_SECOND: u32 = 10;
const FIRST_HANDSHAKES_BURST: u32 = 100;

/// What a gateway with a coordinator has.
pub struct Overlay {
    /// Where the coordinator is.
    pub url: CoordinatorUrl,
    config: Config,
    /// Port and mark of the socket by which the ways are found; `None` once others are to be found.
    socket: Option<(u16, u32)>,
    /// The connection to the coordinator.
    pub client: Client,
    /// The ways to the peers.
    pub traversal: Traversal,
    /// What the coordinator said last.
    pub map: Map,
    /// What it has on record of us.
    pub registration: Option<Registration>,
    /// First handshakes that nobody has asked for, lately.
    first_handshakes: Bucket,
    /// What of the map was refused.
    refused: Problems,
    /// The ways out, when they were last looked at.
    default_routes: Option<DefaultRoutes>,
}

/// Interface and router of each default route.
pub type DefaultRoutes = Vec<(Option<u32>, Option<IpAddr>)>;

/// What came in for the overlay.
pub enum Input {
    /// The coordinator said something, or is gone.
    Coordinator(Box<Event>),
    /// Something came in on the way to the peers.
    Traversal(traversal::Input),
}

/// What has become of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing that others have to see to.
    Nothing,
    /// There is another map, which has to be applied.
    Map,
    /// The coordinator has told this site's address.
    Address,
}

impl Overlay {
    /// Connects to the coordinator, if the profile names one. Until it says more there are the peers of last time.
    pub fn start(profile: &Profile, udp: UdpSender) -> Option<Self> {
        let config = Config::of(profile)?;
        let (map, registration) = match Client::cached(&config) {
            Some(Cached { map, registration }) => (map, Some(registration)),
            None => Default::default(),
        };
        Some(Self {
            url: config.url.clone(),
            socket: Some((udp.local_port(), udp.mark())),
            traversal: traversal(profile, &config, udp),
            client: Client::start(config.clone()),
            config,
            map,
            registration,
            first_handshakes: Bucket::default(),
            refused: Problems::default(),
            default_routes: None,
        })
    }

    /// Takes up another profile. To be followed by [`Self::set_place`] and [`Self::apply`].
    pub fn reload(overlay: &mut Option<Self>, now: Instant, profile: &Profile, handshakes: &mut Handshakes) {
        let config = Config::of(profile);
        if let (Some(Self { config: before, client, traversal, socket, .. }), Some(config)) =
            (overlay.as_mut(), &config)
            && (&before.url, &before.private_key) == (&config.url, &config.private_key)
        {
            if before != config {
                *client = Client::start(config.clone());
                traversal.repeat_reachability();
                // Relays are trusted as the coordinator is.
                *socket = socket.filter(|_| before.trust == config.trust);
                before.clone_from(config);
            }
            traversal.set_permissions(now, profile.birthday_probing, profile.port_mapping);
            return;
        }
        if let Some(old) = overlay.take() {
            let named: Vec<_> = handshakes.peers.iter().filter(|p| p.origin == Origin::Overlay).map(|p| p.id).collect();
            named.into_iter().for_each(|id| drop(handshakes.remove(id)));
            // Router and disk may take their time.
            tokio::spawn(old.stop());
        }
        *overlay = config.and_then(|_| Self::start(profile, handshakes.sender()));
    }

    /// Finds the ways to the peers anew if the tunnel has another port or mark, or other relays are to be trusted;
    /// whether that is so. Peers are sent to where they were until their paths are found. To be followed by
    /// [`Self::set_place`] and [`Self::apply`].
    pub fn follow_socket(&mut self, now: Instant, profile: &Profile, handshakes: &mut Handshakes) -> bool {
        let udp = handshakes.sender();
        let socket = Some((udp.local_port(), udp.mark()));
        if std::mem::replace(&mut self.socket, socket) == socket {
            return false;
        }
        self.traversal = traversal(profile, &self.config, udp);
        for peer in handshakes.peers.iter_mut().filter(|peer| peer.found.is_some()) {
            peer.found = Some(Found::default());
            if let Err(e) = self.traversal.add_peer(now, peer.public_key.into()) {
                tracing::error!("no path can be found to {}: {e}", peer.label());
            }
        }
        true
    }

    /// Gives back what others hold for us, and keeps what is known for the next start.
    pub async fn stop(mut self) {
        self.traversal.release().await;
        self.client.stop().await;
    }

    /// The next input. Cancel safe.
    pub async fn next(overlay: &mut Option<Self>) -> Input {
        let Some(Self { client, traversal, .. }) = overlay else { return std::future::pending().await };
        tokio::select! {
            event = client.next() => Input::Coordinator(Box::new(event)),
            input = traversal.next() => Input::Traversal(input),
        }
    }

    /// Takes what came in.
    pub fn handle_input(&mut self, now: Instant, input: Input) -> Outcome {
        match input {
            Input::Traversal(input) => {
                self.traversal.handle_input(now, &input);
                Outcome::Nothing
            }
            Input::Coordinator(event) => match *event {
                // The others are told to forget us; so do we.
                Event::Refused(refusal) if refusal.reason == RefusalReason::Revoked => {
                    self.map = Map::default();
                    Outcome::Map
                }
                Event::Connected | Event::Lost(_) | Event::Refused(_) => Outcome::Nothing,
                Event::Registered(registration) => {
                    self.registration = Some(registration);
                    Outcome::Address
                }
                Event::Map(map) => {
                    self.map = map;
                    Outcome::Map
                }
            },
        }
    }

    /// Takes up where we are: our addresses, the router that may map ports with our address towards it, and the
    /// default routes. When these have changed, every path is tried anew.
    pub fn set_place(
        &mut self,
        now: Instant,
        hosts: Vec<IpAddr>,
        router: Option<(IpAddr, IpAddr)>,
        default_routes: DefaultRoutes,
    ) {
        self.traversal.set_hosts(now, hosts);
        self.traversal.set_route(now, router);
        if self.default_routes.replace(default_routes.clone()).is_some_and(|before| before != default_routes) {
            self.traversal.network_changed(now);
            self.client.hurry();
        }
    }

    /// The address that the coordinator gives this site.
    pub fn address(&self) -> Option<IpAddr> {
        self.registration.as_ref().map(|registration| IpAddr::from(registration.virtual_address))
    }

    /// The addresses that must stay outside the tunnel: of the coordinator, relays and STUN servers.
    pub fn servers(&self) -> impl Iterator<Item = (IpAddr, Server)> + '_ {
        let coordinator = self.url.endpoint().host().parse().ok().map(|address| (address, Server::Coordinator));
        let relays = self.map.relays.iter().flat_map(|relay| &relay.udp).map(|at| (at.ip(), Server::Relay));
        let stun = self.map.stun_servers.iter().map(|at| (at.ip(), Server::Stun));
        coordinator.into_iter().chain(relays).chain(stun)
    }

    /// Makes peers of the map's sites, and has paths found to them.
    pub fn apply(&mut self, now: Instant, handshakes: &mut Handshakes, surroundings: &Surroundings) {
        let changes = follow_map(&self.map, &mut handshakes.proto, &mut handshakes.peers, now, surroundings);
        changes.removed.iter().for_each(|key| self.traversal.remove_peer(&(*key).into()));
        for key in &changes.added {
            if let Err(e) = self.traversal.add_peer(now, (*key).into()) {
                tracing::error!("no path can be found to {key}: {e}");
            }
        }
        if changes.any() {
            handshakes.changed(Due::PEERS);
        }
        self.note_refused(now, &changes.refused);
        self.find_paths(now, handshakes);
    }

    fn note_refused(&mut self, now: Instant, refused: &[(String, RefusedPrefix)]) {
        let subjects: BTreeSet<String> = refused.iter().map(|(site, refused)| subject(site, refused)).collect();
        self.refused.solved_all_but(&subjects);
        for (site, refusal) in refused {
            let what_to_do = "have the site offer another prefix, or admit this one by Accept in the profile";
            self.refused.note(now, &subject(site, refusal), &refusal.to_string(), what_to_do);
        }
    }

    /// Tells the traversal of the servers, and where the map's peers may be reached.
    fn find_paths(&mut self, now: Instant, handshakes: &Handshakes) {
        self.traversal.set_servers(now, &self.map.relays, &self.map.stun_servers);
        // What lies behind the tunnel cannot be the way to its end.
        let outside = |candidate: &&Candidate| !handshakes.peers.is_remote(candidate.address.ip());
        for (key, site) in &self.map.peers {
            let told = site.reachability.clone().unwrap_or_default();
            let candidates: Vec<Candidate> = told.candidates.iter().filter(outside).copied().collect();
            self.traversal.set_remote(now, &(*key).into(), &candidates, told.nat_type.unwrap_or_default());
        }
    }

    /// Follows the paths: what the agent has chosen becomes endpoints, what it has learnt of us goes to the
    /// coordinator.
    pub fn follow_paths(&mut self, now: Instant, handshakes: &mut Handshakes) {
        self.traversal.step(now);
        if let Some(reachability) = self.traversal.poll_reachability() {
            self.client.announce(reachability);
        }
        while let Some(selection) = self.traversal.poll_selection() {
            self.select(now, handshakes, selection);
        }
    }

    fn select(
        &mut self,
        now: Instant,
        handshakes: &mut Handshakes,
        Selection { peer, endpoint, path, reason }: Selection,
    ) {
        let relay = |id| self.traversal.relay_name(id).unwrap_or_default();
        let way = match path {
            Path::Direct { address, .. } => format!("direct to {address}"),
            Path::Relay { relay: id, .. } => format!("by relay {}: {reason}", relay(id)),
            Path::None => format!("no path: {reason}"),
        };
        let key = PublicKey::from_bytes(peer.to_bytes());
        let Some(id) = handshakes.peers.with_key(&key).map(|peer| peer.id) else { return };
        let Some(peer) = handshakes.peers.of_mut(id) else { return };
        tracing::info!("{}: {way}", peer.label());
        let before = peer.found.replace(Found { path, reason });
        let has_session = peer.sending.is_some();
        handshakes.set_endpoint(id, endpoint);
        if before.is_none_or(|before| before.path != path) {
            // A relay knows by handshakes which session is whose, and has seen none of this one's, nor of one
            // that is in the making.
            let known = has_session || handshakes.proto.peer(id).is_some_and(|peer| peer.handshake_under_way());
            let unseen = matches!(path, Path::Relay { .. }) && known;
            // We may have been restarted: the peer would send by a session that we have not until it has missed
            // our answers for 15 s.
            let first = !has_session && before.is_some_and(|before| before.path == Path::None);
            let renew = unseen || (first && self.may_call(now));
            handshakes.proto.handle_path(now, id, renew);
        }
    }

    /// Whether a peer may be called before there is anything to send to it.
    fn may_call(&mut self, now: Instant) -> bool {
        let cost = Duration::from_secs(1) / FIRST_HANDSHAKES_PER_SECOND;
        self.first_handshakes.take(now, cost, cost * FIRST_HANDSHAKES_BURST)
    }

    /// The relay that a peer's WireGuard datagrams go by, for `status`.
    pub fn relay_of(&self, peer: &Peer) -> Option<String> {
        match peer.found?.path {
            Path::Relay { relay, .. } => self.traversal.relay_name(relay),
            _ => None,
        }
    }

    /// What of the map was refused.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        self.refused.list(now)
    }
}

fn traversal(profile: &Profile, config: &Config, udp: UdpSender) -> Traversal {
    let settings = Settings {
        trust: config.trust.clone(),
        birthday_probing: profile.birthday_probing,
        port_mapping: profile.port_mapping,
    };
    Traversal::new(profile.private_key.to_secret(), udp, settings)
}

fn subject(site: &str, refused: &RefusedPrefix) -> String {
    format!("{} of {site}", refused.prefix)
}

/// What a map has changed.
#[derive(Debug, Default)]
struct Changes {
    /// Who is new.
    added: Vec<PublicKey>,
    /// Who is gone.
    removed: Vec<PublicKey>,
    /// Whether anybody has other prefixes.
    prefixes: bool,
    /// What was refused of whom.
    refused: Vec<(String, RefusedPrefix)>,
}

impl Changes {
    fn any(&self) -> bool {
        self.prefixes || !self.added.is_empty() || !self.removed.is_empty()
    }
}

/// Makes peers of a map's sites, with what is accepted of their prefixes. What the profile says of a site, or gives
/// to another peer, stays so.
fn follow_map(
    map: &Map,
    proto: &mut penstock_proto::Gateway,
    peers: &mut Peers,
    now: Instant,
    surroundings: &Surroundings,
) -> Changes {
    let mut changes = Changes::default();
    let gone = |peer: &&Peer| {
        peer.origin == Origin::Overlay && !map.peers.contains_key(&SiteKey::from(*peer.public_key.as_bytes()))
    };
    let gone: Vec<_> = peers.iter().filter(gone).map(|peer| peer.id).collect();
    for id in gone {
        proto.remove_peer(id);
        if let Some(peer) = peers.remove(id) {
            tracing::info!("{}: gone from the coordinator's map", peer.label());
            changes.removed.push(peer.public_key);
        }
    }
    let mut sites = Vec::new();
    for (key, site) in &map.peers {
        let key = PublicKey::from_bytes(*key.as_bytes());
        let id = match peers.with_key(&key) {
            Some(peer) if peer.origin != Origin::Overlay => continue,
            Some(peer) => peer.id,
            None => match add(proto, peers, now, key, site) {
                Some(id) => {
                    changes.added.push(key);
                    id
                }
                None => continue,
            },
        };
        if let Some(peer) = peers.of_mut(id) {
            peer.name = site.name.to_string();
        }
        sites.push((id, site));
    }
    changes.prefixes = allow(peers, &sites, surroundings, &mut changes.refused);
    changes
}

fn add(
    proto: &mut penstock_proto::Gateway,
    peers: &mut Peers,
    now: Instant,
    key: PublicKey,
    site: &coordination::Peer,
) -> Option<PeerId> {
    let config = PeerConfig { fixed_endpoint: true, ..PeerConfig::default() };
    let id = proto
        .add_peer(now, key.into(), config)
        .inspect_err(|e| tracing::error!("{} cannot be added: {e:?}", site.name))
        .ok()?;
    let number = peers.number();
    let mut peer = Peer::new(id, number, key, Origin::Overlay);
    peer.found = Some(Found::default());
    peers.push(peer);
    let prefixes: Vec<String> = prefixes(site).map(|prefix| prefix.to_string()).collect();
    tracing::info!("{}: {}", site.name, prefixes.join(", "));
    Some(id)
}

/// Gives every peer exactly what is accepted of its site's prefixes; whether that changes anything.
fn allow(
    peers: &mut Peers,
    sites: &[(PeerId, &coordination::Peer)],
    surroundings: &Surroundings,
    refused: &mut Vec<(String, RefusedPrefix)>,
) -> bool {
    let by_administrator = |prefix: &IpNet| {
        peers.owner(prefix).and_then(|owner| peers.of(owner)).is_some_and(|peer| peer.origin != Origin::Overlay)
    };
    let mut offers: Vec<(PeerId, IpNet)> = sites
        .iter()
        .flat_map(|(id, site)| prefixes(site).map(move |prefix| (*id, prefix)))
        .filter(|(_, prefix)| !by_administrator(prefix))
        .collect();
    // Of two sites with the same prefix the one keeps it that has it.
    offers.sort_by_key(|(id, prefix)| peers.owner(prefix) != Some(*id));
    let judgement = judge(offers, surroundings);
    for (id, refusal) in judgement.refused {
        refused.push((peers.of(id).map(Peer::label).unwrap_or_default(), refusal));
    }
    let mut wanted: BTreeMap<PeerId, BTreeSet<IpNet>> = sites.iter().map(|(id, _)| (*id, BTreeSet::new())).collect();
    for (prefix, id) in judgement.accepted {
        wanted.entry(id).or_default().insert(prefix);
    }
    let mut changed = false;
    // First all that goes, since a prefix may move from one to another.
    for (id, wanted) in &wanted {
        let has = peers.of(*id).map(|peer| peer.allowed_ips().clone()).unwrap_or_default();
        has.difference(wanted).for_each(|prefix| peers.disallow(*prefix, *id));
        changed |= has != *wanted;
    }
    for (id, wanted) in wanted {
        for prefix in wanted {
            peers.allow(prefix, id);
        }
    }
    changed
}

fn prefixes(site: &coordination::Peer) -> impl Iterator<Item = IpNet> + '_ {
    site.subnets.iter().copied().chain([IpNet::from(IpAddr::from(site.virtual_address))])
}

#[cfg(test)]
mod tests {
    use super::super::peers::tests::peers;
    use super::*;

    use std::net::Ipv4Addr;

    fn site(name: &str, number: u8, subnets: &[&str]) -> coordination::Peer {
        coordination::Peer {
            name: name.parse().unwrap(),
            virtual_address: Ipv4Addr::new(100, 64, 0, number),
            subnets: subnets.iter().map(|subnet| subnet.parse().unwrap()).collect(),
            reachability: None,
        }
    }

    fn map<const N: usize>(sites: [(u8, coordination::Peer); N]) -> Map {
        let peers = sites.into_iter().map(|(key, site)| (SiteKey::from([key; 32]), site)).collect();
        Map { peers, ..Map::default() }
    }

    fn prefixes_of(peers: &Peers, name: &str) -> Vec<String> {
        let peer = peers.iter().find(|peer| peer.name == name).unwrap();
        peer.allowed_ips().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn peers_follow_the_map() {
        let (mut proto, mut peers) = peers(&[]);
        let now = Instant::now();
        let both = map([(7, site("berlin", 7, &["10.7.0.0/16"])), (8, site("cadiz", 8, &["10.8.0.0/16"]))]);
        let changes = follow_map(&both, &mut proto, &mut peers, now, &Surroundings::default());
        assert_eq!((changes.added.len(), changes.removed.len(), changes.prefixes), (2, 0, true));
        assert_eq!(prefixes_of(&peers, "berlin"), ["10.7.0.0/16", "100.64.0.7/32"]);
        assert!(peers.iter().all(|peer| !peer.roams() && peer.endpoint.is_none()));

        let changes = follow_map(&both, &mut proto, &mut peers, now, &Surroundings::default());
        assert!(changes.added.is_empty() && changes.removed.is_empty() && !changes.prefixes, "{changes:?}");

        // Cadiz is gone, and Berlin takes its subnet over.
        let one = map([(7, site("berlin", 7, &["10.8.0.0/16"]))]);
        let changes = follow_map(&one, &mut proto, &mut peers, now, &Surroundings::default());
        assert_eq!((changes.removed.len(), changes.prefixes), (1, true));
        assert_eq!(prefixes_of(&peers, "berlin"), ["10.8.0.0/16", "100.64.0.7/32"]);
        assert_eq!(peers.remote().len(), 2);
        assert!(proto.peer_of(&PublicKey::from_bytes([8; 32]).into()).is_none(), "its sessions are over");
    }

    #[test]
    fn the_profile_comes_first() {
        let (mut proto, mut peers) = peers(&[7]);
        let now = Instant::now();
        let profiled = peers.iter().next().unwrap().id;
        peers.allow("10.7.0.0/16".parse().unwrap(), profiled);
        let greedy =
            map([(7, site("berlin", 7, &["10.9.0.0/16"])), (8, site("cadiz", 8, &["10.7.0.0/16", "10.7.1.0/24"]))]);
        follow_map(&greedy, &mut proto, &mut peers, now, &Surroundings::default());
        assert_eq!(peers.of(profiled).unwrap().allowed_ips(), &["10.7.0.0/16".parse().unwrap()].into());
        assert!(peers.of(profiled).unwrap().roams());
        assert_eq!(prefixes_of(&peers, "cadiz"), ["10.7.1.0/24", "100.64.0.8/32"]);
        follow_map(&Map::default(), &mut proto, &mut peers, now, &Surroundings::default());
        assert_eq!(peers.iter().map(|peer| peer.id).collect::<Vec<_>>(), [profiled]);
    }
}
