//! Peers that the coordinator names: its map becomes peers and prefixes, the paths found to them become endpoints, and
//! what we learn about our own addresses goes back to it.
//!
//! The map is only an offer. Of its sites and relays, only those that the authority has signed for are accepted
//! ([`Statements`]), and of their prefixes only those that this gateway has no objection to ([`trust::judge`]); both
//! are judged again whenever the map, this site's networks or the signed documents change. Whatever is refused is a
//! problem with a name.
//!
//! [`trust::judge`]: penstock_proto::trust::judge

mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_connect::{Changes, Destinations};
use penstock_dataplane::ports::udp::UdpSender;
use penstock_proto::Bucket;
use penstock_proto::coordination::{self, Map, Reachability, RefusalReason, Registration, SiteKey};
use penstock_proto::path::Path;
use penstock_proto::trust::{Server, Surroundings};

use super::due::Due;
use super::handshakes::Handshakes;
use super::path_mtu;
use super::paths::Reporting;
use super::peers::{Found, Peer, Peers};
use super::plane::Sizes;
use super::statements::{Believed, By, Refused, Site, Statements, Vouched, listed};
use crate::coordinator::{Cached, Client, Config, Event};
use crate::ground::Origin;
use crate::key::PublicKey;
use crate::problem::{Problem, Problems};
use crate::profile::Profile;
use crate::traversal::{self, Selection, Settings, Traversal, trust_in_relays};

use members::follow_map;

/// First handshakes per second, and at once, that are sent before there is anything to send. Half of what a relay lets
/// one site start, so that handshakes for traffic find room.
const FIRST_HANDSHAKES_PER_SECOND: u32 = 10;
const FIRST_HANDSHAKES_BURST: u32 = 100;

/// The subject of the problem that gateways are too old for the policy.
const CUT_OFF: &str = "policy";

/// What a gateway with a coordinator has.
pub struct Overlay {
    /// Where the coordinator is, and how this site connects to it.
    pub config: Config,
    /// Port and mark of the socket with which paths are found; `None` when they are to be found again.
    socket: Option<(u16, u32)>,
    /// The packet sizes that the path agent was told.
    sizes: Option<Sizes>,
    /// The connection to the coordinator.
    pub client: Client,
    /// Where its connections and those to relays go.
    destinations: Destinations,
    new_destinations: Changes,
    /// The paths to the peers.
    pub traversal: Traversal,
    /// The map that the coordinator last sent.
    pub map: Arc<Map>,
    /// The coordinator's record of this site.
    pub registration: Option<Registration>,
    /// What decides which sites of the map this gateway believes.
    pub statements: Statements,
    /// The result of judging the map for the last time.
    pub believed: Believed,
    /// The surroundings in which its prefixes were last judged; `None` if something else has given prefixes to peers
    /// since.
    surroundings: Option<Surroundings>,
    /// Sites whose reachability has changed, or has to be looked at again, since paths were last looked for.
    moved: BTreeSet<SiteKey>,
    /// Limits first handshakes with peers that there is nothing to send to.
    first_handshakes: Bucket,
    /// What the coordinator wants to know about paths.
    pub reporting: Reporting,
    /// The parts of the map that were refused.
    refused: Problems,
    /// Sites that are believed, but whose gateways are too old for the policy.
    outdated: BTreeSet<SiteKey>,
    /// The problem that these cannot be reached.
    cut_off: Problems,
    /// The default routes, when they were last looked at.
    default_routes: Option<DefaultRoutes>,
}

/// Interface and router of each default route.
pub type DefaultRoutes = Vec<(Option<u32>, Option<IpAddr>)>;

/// An input for the overlay.
pub enum Input {
    /// The coordinator sent something, or its connection ended.
    Coordinator(Box<Event>),
    /// Something arrived that concerns the paths to the peers.
    Traversal(traversal::Input),
    /// A connection is about to be made to a host with a new address.
    Destination,
}

/// The effect of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing that concerns other parts.
    Nothing,
    /// There is a new map, which has to be applied.
    Map,
    /// There are other addresses that must stay outside the tunnel.
    Servers,
    /// The coordinator has assigned this site's address.
    Address,
}

impl Overlay {
    /// Connects to the coordinator, if the profile names one. Until it answers, the peers are those of the cached map.
    pub fn start(now: Instant, profile: &Profile, udp: UdpSender) -> Option<Self> {
        let config = Config::of(profile)?;
        let destinations = Destinations::default();
        let (map, registration) = match Client::cached(&config) {
            Some(Cached { map, registration }) => (Arc::new(map), Some(registration)),
            None => Default::default(),
        };
        Some(Self {
            socket: Some((udp.local_port(), udp.mark())),
            sizes: None,
            statements: Statements::open(now, &config),
            believed: Believed::default(),
            surroundings: None,
            moved: BTreeSet::new(),
            traversal: traversal(profile, &config, udp, &destinations),
            client: Client::start(config.clone(), destinations.clone()),
            new_destinations: destinations.changes(),
            destinations,
            config,
            map,
            registration,
            first_handshakes: Bucket::default(),
            reporting: Reporting::default(),
            refused: Problems::default(),
            outdated: BTreeSet::new(),
            cut_off: Problems::default(),
            default_routes: None,
        })
    }

    /// Takes up another profile. [`Self::set_place`] and [`Self::apply`] are to follow.
    pub fn reload(overlay: &mut Option<Self>, now: Instant, profile: &Profile, handshakes: &mut Handshakes) {
        let config = Config::of(profile);
        if let (Some(Self { config: before, client, destinations, traversal, socket, statements, .. }), Some(config)) =
            (overlay.as_mut(), &config)
            && (&before.url, &before.private_key) == (&config.url, &config.private_key)
        {
            if before != config {
                *client = Client::start(config.clone(), destinations.clone());
                *statements = Statements::open(now, config);
                traversal.repeat_reachability();
                *socket = socket.filter(|_| trust_in_relays(&before.trust) == trust_in_relays(&config.trust));
                before.clone_from(config);
            }
            traversal.set_permissions(now, profile.birthday_probing, profile.port_mapping);
            return;
        }
        if let Some(old) = overlay.take() {
            let named: Vec<_> = handshakes.peers.iter().filter(|p| p.origin == Origin::Overlay).map(|p| p.id).collect();
            named.into_iter().for_each(|id| drop(handshakes.remove(id)));
            // Router and disk may be slow.
            tokio::spawn(old.stop());
        }
        *overlay = config.and_then(|_| Self::start(now, profile, handshakes.sender()));
    }

    /// Starts finding paths again if the tunnel has another port or mark, or if other relays are to be trusted; returns
    /// whether that is so. Packets go to the peers' present endpoints until their paths are found. [`Self::set_place`]
    /// and [`Self::apply`] are to follow.
    pub fn follow_socket(&mut self, now: Instant, profile: &Profile, handshakes: &mut Handshakes) -> bool {
        let udp = handshakes.sender();
        let socket = Some((udp.local_port(), udp.mark()));
        if std::mem::replace(&mut self.socket, socket) == socket {
            return false;
        }
        self.traversal = traversal(profile, &self.config, udp, &self.destinations);
        self.sizes = None;
        self.moved.extend(self.believed.sites.keys());
        for peer in handshakes.peers.iter_mut().filter(|peer| peer.found.is_some()) {
            peer.found = Some(Found::default());
            if let Err(e) = self.traversal.add_peer(now, peer.public_key.into()) {
                tracing::error!("no path can be found to {}: {e}", peer.label());
            }
        }
        true
    }

    /// Sets how large packets may be, for the paths that are probed.
    pub fn set_sizes(&mut self, now: Instant, sizes: Sizes) {
        if self.sizes.replace(sizes) != Some(sizes) {
            path_mtu::tell(self.traversal.agent(), now, sizes);
        }
    }

    /// Releases what others hold for us, and stores what is known for the next start.
    pub async fn stop(mut self) {
        self.statements.stop(Instant::now());
        self.traversal.release().await;
        self.client.stop().await;
    }

    /// The next input. Cancel safe.
    pub async fn next(overlay: &mut Option<Self>) -> Input {
        let Some(Self { client, traversal, new_destinations, .. }) = overlay else {
            return std::future::pending().await;
        };
        tokio::select! {
            event = client.next() => Input::Coordinator(Box::new(event)),
            input = traversal.next() => Input::Traversal(input),
            () = new_destinations.next() => Input::Destination,
        }
    }

    /// Takes an input.
    pub fn handle_input(&mut self, now: Instant, input: Input) -> Outcome {
        match input {
            Input::Traversal(input) => {
                self.traversal.handle_input(now, &input);
                Outcome::Nothing
            }
            Input::Destination => Outcome::Servers,
            Input::Coordinator(event) => match *event {
                // The others are told to forget us, so we forget them too.
                Event::Refused(refusal) if refusal.reason == RefusalReason::Revoked => {
                    self.map = Arc::default();
                    Outcome::Map
                }
                Event::Connected => {
                    self.statements.connected();
                    Outcome::Nothing
                }
                Event::Documents(documents) => {
                    self.statements.learn(now, &documents);
                    Outcome::Nothing
                }
                Event::Reports(reports) => {
                    self.reporting.ask(Some(reports));
                    Outcome::Nothing
                }
                Event::Lost(_) | Event::Refused(_) => {
                    self.reporting.ask(None);
                    Outcome::Nothing
                }
                Event::Registered(registration) => {
                    self.registration = Some(registration);
                    Outcome::Address
                }
                Event::Map(map) => {
                    let before = std::mem::replace(&mut self.map, map);
                    let Difference { moved, sites } = Difference::between(&before, &self.map);
                    self.moved.extend(moved);
                    // Most news is about where one site is, and concerns nobody else.
                    if sites { Outcome::Map } else { Outcome::Nothing }
                }
            },
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) or [`follow_paths`](Self::follow_paths) has something to do.
    pub fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        self.traversal.poll_timeout(now).into_iter().chain(self.statements.poll_timeout()).min()
    }

    /// Does what is due; returns whether the map has to be applied again.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        self.statements.handle_timeout(now)
    }

    /// Sets where we are: our addresses, the router that may map ports and our address towards it, and the default
    /// routes. When these have changed, every path is tried again.
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

    /// The address that the coordinator assigns to this site.
    pub fn address(&self) -> Option<IpAddr> {
        self.registration.as_ref().map(|registration| IpAddr::from(registration.virtual_address))
    }

    /// The addresses that must stay outside the tunnel: of the coordinator, relays and STUN servers, and of proxies on
    /// the way to them.
    pub fn servers(&self) -> impl Iterator<Item = (IpAddr, Server)> + '_ {
        let host = self.config.url.endpoint().host();
        let coordinator = host.parse().ok().map(|address| (address, Server::Coordinator));
        let found = self.destinations.addresses().into_iter();
        let found =
            found.map(move |(name, at)| (at, if name == host { Server::Coordinator } else { Server::RelayOrProxy }));
        let relays = self.believed.relays.iter().flat_map(|relay| &relay.udp).map(|at| (at.ip(), Server::Relay));
        let stun = self.map.stun_servers.iter().map(|at| (at.ip(), Server::Stun));
        coordinator.into_iter().chain(found).chain(relays).chain(stun)
    }

    /// The addresses at which peers may be that are not reached directly yet, and which are probed therefore.
    pub fn candidates<'a>(&'a self, peers: &'a Peers) -> impl Iterator<Item = IpAddr> + 'a {
        let site = |peer: &Peer| self.map.peers.get(&SiteKey::from(*peer.public_key.as_bytes()));
        let looked_for = peers.iter().filter(|peer| peer.origin == Origin::Overlay && !is_direct(peer));
        let announced = looked_for.filter_map(site).filter_map(|site| site.reachability.as_ref());
        announced.flat_map(|reachability| &reachability.candidates).map(|candidate| candidate.address.ip())
    }

    /// Judges the map by what the authority has signed. [`apply`](Self::apply) is to follow.
    pub fn judge(&mut self, now: Instant) {
        self.believed = self.statements.judge(now, &self.map);
    }

    /// Makes peers of the sites that are believed, and looks for paths to them.
    pub fn apply(&mut self, now: Instant, handshakes: &mut Handshakes, surroundings: Surroundings) {
        let before = self.surroundings.as_ref();
        let Handshakes { proto, peers, .. } = handshakes;
        let changes = follow_map(&self.believed.sites, proto, peers, now, &surroundings, before);
        self.surroundings = Some(surroundings);
        changes.removed.iter().for_each(|key| self.traversal.remove_peer(&(*key).into()));
        for key in &changes.added {
            if let Err(e) = self.traversal.add_peer(now, (*key).into()) {
                tracing::error!("no path can be found to {key}: {e}");
            }
        }
        if changes.any() {
            handshakes.changed(Due::PEERS);
        }
        for (key, refused) in changes.refused {
            let Some(site) = self.believed.sites.get(&key) else { continue };
            let name = site.name.clone();
            let (prefix, by) = (Some(refused.prefix), By::Gateway);
            self.believed.refuse(|| Refused { name, key, prefix, reason: refused.to_string(), by });
        }
        self.note_refused(now);
        let outdated = self.map.peers.iter().filter(|(_, peer)| is_outdated(peer)).map(|(key, _)| *key);
        self.outdated = outdated.filter(|key| self.believed.sites.contains_key(key)).collect();
        self.note_outdated(now);
        self.traversal.set_servers(now, &self.believed.relays, &self.map.stun_servers);
        self.moved.extend(changes.added.iter().map(|key| SiteKey::from(*key.as_bytes())));
        self.follow_moves(now, handshakes);
    }

    /// Has every prefix judged again at the next [`apply`](Self::apply), because something other than the map has
    /// changed their owners.
    pub fn judge_all(&mut self) {
        self.surroundings = None;
    }

    fn note_refused(&mut self, now: Instant) {
        // A doubt about this gateway itself concerns all sites.
        let mut shown: Vec<&Refused> = self.believed.refused.iter().collect();
        shown.dedup_by_key(|refused| refused.subject());
        let more = self.believed.unlisted;
        let rest = "other refusals".to_owned();
        let mut subjects: BTreeSet<String> = shown.iter().map(|refused| refused.subject()).collect();
        if more > 0 {
            subjects.insert(rest.clone());
        }
        self.refused.solved_all_but(&subjects);
        for refused in shown {
            self.refused.note(now, &refused.subject(), &refused.reason, refused.what_to_do());
        }
        if more > 0 {
            let sentence = format!("{more} more sites or prefixes of the coordinator's map are refused");
            self.refused.note(now, &rest, &sentence, "resolve the first ones");
        }
    }

    fn note_outdated(&mut self, now: Instant) {
        if self.outdated.is_empty() {
            self.cut_off.solved(CUT_OFF);
            return;
        }
        let sites = self.outdated.iter().filter_map(|key| self.believed.sites.get(key));
        let names: Vec<&str> = sites.map(|site| site.name.as_str()).collect();
        let sentence = format!(
            "no tunnel to {}: the gateway there is too old to enforce what the coordinator's policy allows",
            listed(names.into_iter())
        );
        self.cut_off.warn(now, CUT_OFF, &sentence, "update Penstock there");
    }

    /// What vouches for a peer; `None` for the profile's.
    pub fn vouched(&self, peer: &Peer) -> Option<Vouched> {
        peer.found?;
        self.believed.sites.get(&SiteKey::from(*peer.public_key.as_bytes()))?.vouched
    }

    /// The refused parts of the map, as `status` lists them.
    pub fn refused(&self) -> &[Refused] {
        &self.believed.refused
    }

    /// Takes up what sites that have moved announce: where they are, and how fast.
    fn follow_moves(&mut self, now: Instant, handshakes: &mut Handshakes) {
        let mut changed = false;
        for key in std::mem::take(&mut self.moved) {
            let Some(site) = self.map.peers.get(&key).filter(|_| self.believed.sites.contains_key(&key)) else {
                continue;
            };
            changed |= if is_outdated(site) { self.outdated.insert(key) } else { self.outdated.remove(&key) };
            let public_key = PublicKey::from_bytes(*key.as_bytes());
            // A coordinator that has restarted has not heard from all sites yet; what they said before still holds.
            if let Some(told) = &site.reachability {
                handshakes.set_speeds(&public_key, told.speeds);
            }
            let told = site.reachability.clone().unwrap_or_default();
            // Probes carry the mark, so an address inside a remote prefix, such as a default route, is reached
            // outside the tunnel. For that the guard may need a gap.
            let peer = handshakes.peers.with_key(&public_key);
            if !told.candidates.is_empty() && !peer.is_some_and(is_direct) {
                handshakes.changed(Due { ground: true, ..Due::default() });
            }
            self.traversal.set_remote(now, &key.into(), &told.candidates, told.nat_type.unwrap_or_default());
        }
        if changed {
            self.note_outdated(now);
        }
    }

    /// Follows the paths: the agent's choices become endpoints, and what it has learnt about us goes to the
    /// coordinator.
    pub fn follow_paths(&mut self, now: Instant, handshakes: &mut Handshakes) {
        self.follow_moves(now, handshakes);
        self.traversal.step(now);
        self.statements.learn_from_relays(now, &self.traversal.take_documents());
        if let Some(reachability) = self.traversal.poll_reachability() {
            let speeds = Some(handshakes.speeds());
            self.client.announce(Reachability { speeds, enforces_allow: true, ..reachability });
        }
        while let Some(selection) = self.traversal.poll_selection() {
            self.select(now, handshakes, selection);
        }
        while let Some((peer, mtu)) = self.traversal.poll_mtu() {
            if path_mtu::note(&mut handshakes.peers, peer, mtu) {
                handshakes.changed(Due::SIZES);
            }
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
        peer.path_changes += u64::from(before.is_none_or(|before| before.path != path));
        let has_session = peer.sending.is_some();
        handshakes.set_endpoint(id, endpoint);
        if before.is_none_or(|before| before.path != path) {
            // A relay learns from handshakes which session belongs to whom. It has seen neither this session's
            // handshake nor the one under way.
            let known = has_session || handshakes.proto.peer(id).is_some_and(|peer| peer.handshake_under_way());
            let unseen = matches!(path, Path::Relay { .. }) && known;
            // We may have restarted: the peer would go on sending on a session that we do not have until it has missed
            // our answers for 15 s.
            let first = !has_session && before.is_some_and(|before| before.path == Path::None);
            let renew = unseen || (first && self.may_call(now));
            handshakes.proto.handle_path(now, id, renew);
        }
    }

    /// Whether a handshake with a peer may start before there is anything to send to it.
    fn may_call(&mut self, now: Instant) -> bool {
        let cost = Duration::from_secs(1) / FIRST_HANDSHAKES_PER_SECOND;
        self.first_handshakes.take(now, cost, cost * FIRST_HANDSHAKES_BURST)
    }

    /// The relay that a peer's WireGuard datagrams go through, for `status`.
    pub fn relay_of(&self, peer: &Peer) -> Option<String> {
        match peer.found?.path {
            Path::Relay { relay, .. } => self.traversal.relay_name(relay),
            _ => None,
        }
    }

    /// The refused parts of the map, the sites that cannot be reached, and what is wrong with the signed documents.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        [self.refused.list(now), self.cut_off.list(now), self.statements.problems(now)].concat()
    }
}

fn is_direct(peer: &Peer) -> bool {
    matches!(peer.found, Some(Found { path: Path::Direct { .. }, .. }))
}

/// The addresses at which the peers are reached from outside, except those of peers no longer believed. Local addresses
/// that stand for a path over TLS or from another port are left out.
pub fn endpoints_in_use<'a>(peers: &'a Peers, sites: &'a BTreeMap<SiteKey, Site>) -> impl Iterator<Item = IpAddr> + 'a {
    let stays = |peer: &&Peer| peer.found.is_none() || sites.contains_key(&SiteKey::from(*peer.public_key.as_bytes()));
    let endpoints = peers.iter().filter(stays).filter_map(|peer| peer.endpoint);
    endpoints.map(|endpoint| endpoint.ip()).filter(|address| !address.is_loopback())
}

/// How a map differs from the one before.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    /// Sites whose reachability has changed.
    moved: Vec<SiteKey>,
    /// Whether relays, servers or sites have changed, apart from where sites are.
    sites: bool,
}

impl Difference {
    fn between(before: &Map, after: &Map) -> Self {
        let servers = (&before.relays, &before.stun_servers) != (&after.relays, &after.stun_servers);
        // If there are as many sites as before, one is new exactly if one is gone.
        let mut difference = Self { moved: Vec::new(), sites: servers || before.peers.len() != after.peers.len() };
        let mut old = before.peers.iter().peekable();
        for (key, new) in &after.peers {
            while old.next_if(|(other, _)| *other < key).is_some() {}
            let Some((_, old)) = old.next_if(|(other, _)| *other == key) else {
                difference.moved.push(*key);
                difference.sites = true;
                continue;
            };
            if old.reachability != new.reachability {
                difference.moved.push(*key);
            }
            let coordination::Peer { name, virtual_address, subnets, tags, allow, reachability: _ } = new;
            difference.sites |= (&old.name, old.virtual_address, &old.subnets) != (name, *virtual_address, subnets)
                || (&old.tags, &old.allow) != (tags, allow);
        }
        difference
    }
}

/// Whether a site is to restrict what this one starts there, and its gateway is too old to do so. That gateway is not
/// shown this site.
fn is_outdated(peer: &coordination::Peer) -> bool {
    peer.allow.is_some() && peer.reachability.as_ref().is_some_and(|told| !told.enforces_allow)
}

fn traversal(profile: &Profile, config: &Config, udp: UdpSender, destinations: &Destinations) -> Traversal {
    let settings = Settings {
        trust: trust_in_relays(&config.trust),
        destinations: destinations.clone(),
        birthday_probing: profile.birthday_probing,
        port_mapping: profile.port_mapping,
        pinned_mtu: profile.mtu,
    };
    Traversal::new(profile.private_key.to_secret(), udp, settings)
}

#[cfg(test)]
mod scale;
#[cfg(test)]
mod tests;
