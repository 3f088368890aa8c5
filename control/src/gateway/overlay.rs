//! Peers that the coordinator names: its map becomes peers and prefixes, the paths found to them become
//! endpoints, and what we learn of our own place goes back to it.
//!
//! The map is an offer. Only sites and relays that the authority has signed for are taken of it ([`Statements`]), and
//! of their prefixes those that this gateway has nothing against ([`trust::judge`]); both again whenever the map, the
//! networks of this site or the signed documents change. What is refused is a problem with a name.
//!
//! [`trust::judge`]: penstock_proto::trust::judge

mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_dataplane::ports::udp::UdpSender;
use penstock_proto::Bucket;
use penstock_proto::coordination::{self, Candidate, Map, Reachability, RefusalReason, Registration, SiteKey};
use penstock_proto::path::Path;
use penstock_proto::trust::{Server, Surroundings};

use super::due::Due;
use super::handshakes::Handshakes;
use super::peers::{Found, Peer, Peers};
use super::plane::Sizes;
use super::statements::{Believed, By, Refused, Site, Statements, Vouched};
use crate::coordinator::{Cached, Client, Config, Event};
use crate::ground::{Origin, Prefixes};
use crate::key::PublicKey;
use crate::problem::{Problem, Problems};
use crate::profile::Profile;
use crate::traversal::{self, Selection, Settings, Traversal};

use members::follow_map;

/// First handshakes a second, and at once, that go out before there is anything to send. Half of what a relay
/// lets one site begin, so that handshakes for traffic find room.
const FIRST_HANDSHAKES_PER_SECOND: u32 = 10;
const FIRST_HANDSHAKES_BURST: u32 = 100;

/// What a gateway with a coordinator has.
pub struct Overlay {
    /// Where the coordinator is, and how this site connects to it.
    pub config: Config,
    /// Port and mark of the socket by which the ways are found; `None` once others are to be found.
    socket: Option<(u16, u32)>,
    /// What the path agent was told of the sizes of packets.
    sizes: Option<Sizes>,
    /// The connection to the coordinator.
    pub client: Client,
    /// The ways to the peers.
    pub traversal: Traversal,
    /// What the coordinator said last.
    pub map: Arc<Map>,
    /// What it has on record of us.
    pub registration: Option<Registration>,
    /// Whom of the map this gateway believes.
    pub statements: Statements,
    /// What came of the map when it was last judged.
    pub believed: Believed,
    /// The surroundings in which its prefixes were last judged; `None` if anybody else has given peers prefixes since.
    surroundings: Option<Surroundings>,
    /// Whose reachability is another, or to be seen otherwise, since paths were last looked for.
    moved: BTreeSet<SiteKey>,
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
    pub fn start(now: Instant, profile: &Profile, udp: UdpSender) -> Option<Self> {
        let config = Config::of(profile)?;
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
        if let (Some(Self { config: before, client, traversal, socket, statements, .. }), Some(config)) =
            (overlay.as_mut(), &config)
            && (&before.url, &before.private_key) == (&config.url, &config.private_key)
        {
            if before != config {
                *client = Client::start(config.clone());
                *statements = Statements::open(now, config);
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
        *overlay = config.and_then(|_| Self::start(now, profile, handshakes.sender()));
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

    /// How large packets may be, for the paths that are probed.
    pub fn set_sizes(&mut self, now: Instant, sizes: Sizes) {
        if self.sizes.replace(sizes) != Some(sizes) {
            self.traversal.set_sizes(now, sizes.link, sizes.pinned, sizes.receive_limit);
        }
    }

    /// Gives back what others hold for us, and keeps what is known for the next start.
    pub async fn stop(mut self) {
        self.statements.stop(Instant::now());
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
                Event::Lost(_) | Event::Refused(_) => Outcome::Nothing,
                Event::Registered(registration) => {
                    self.registration = Some(registration);
                    Outcome::Address
                }
                Event::Map(map) => {
                    let before = std::mem::replace(&mut self.map, map);
                    let Difference { moved, sites } = Difference::between(&before, &self.map);
                    self.moved.extend(moved);
                    // Most news is where somebody is, and concerns nobody else.
                    if sites { Outcome::Map } else { Outcome::Nothing }
                }
            },
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) or [`follow_paths`](Self::follow_paths) has something to do.
    pub fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        self.traversal.poll_timeout(now).into_iter().chain(self.statements.poll_timeout()).min()
    }

    /// Does what has become due; whether the map has to be applied again.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        self.statements.handle_timeout(now)
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
        let coordinator = self.config.url.endpoint().host().parse().ok().map(|address| (address, Server::Coordinator));
        let relays = self.believed.relays.iter().flat_map(|relay| &relay.udp).map(|at| (at.ip(), Server::Relay));
        let stun = self.map.stun_servers.iter().map(|at| (at.ip(), Server::Stun));
        coordinator.into_iter().chain(relays).chain(stun)
    }

    /// Judges the map by what the authority has signed. [`apply`](Self::apply) is to follow.
    pub fn judge(&mut self, now: Instant) {
        self.believed = self.statements.judge(now, &self.map);
    }

    /// Makes peers of the sites that are believed, and has paths found to them.
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
        self.traversal.set_servers(now, &self.believed.relays, &self.map.stun_servers);
        self.moved.extend(changes.added.iter().map(|key| SiteKey::from(*key.as_bytes())));
        let changed: Prefixes = changes.prefixes.into_iter().collect();
        let inside = |at: &Candidate| changed.holding(at.address.ip()).is_some();
        let told = self.map.peers.iter().filter_map(|(site, peer)| Some((site, peer.reachability.as_ref()?)));
        self.moved.extend(told.filter(|(_, told)| told.candidates.iter().any(inside)).map(|(site, _)| *site));
        self.follow_moves(now, handshakes);
    }

    /// Has every prefix judged anew at the next [`apply`](Self::apply): somebody else has changed whose they are.
    pub fn judge_all(&mut self) {
        self.surroundings = None;
    }

    fn note_refused(&mut self, now: Instant) {
        // One doubt about this gateway itself concerns all.
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
            self.refused.note(now, &rest, &sentence, "see to the first ones");
        }
    }

    /// What vouches for a peer, unless it is the profile's.
    pub fn vouched(&self, peer: &Peer) -> Option<Vouched> {
        peer.found?;
        self.believed.sites.get(&SiteKey::from(*peer.public_key.as_bytes()))?.vouched
    }

    /// What of the map was refused, as `status` lists it.
    pub fn refused(&self) -> &[Refused] {
        &self.believed.refused
    }

    /// Takes up what those say of themselves that have moved: where they are, and how fast.
    fn follow_moves(&mut self, now: Instant, handshakes: &mut Handshakes) {
        for key in std::mem::take(&mut self.moved) {
            let Some(site) = self.map.peers.get(&key).filter(|_| self.believed.sites.contains_key(&key)) else {
                continue;
            };
            // A coordinator that was restarted has not heard of all sites yet; what they said before still holds.
            if let Some(told) = &site.reachability {
                handshakes.set_speeds(&PublicKey::from_bytes(*key.as_bytes()), told.speeds);
            }
            let told = site.reachability.clone().unwrap_or_default();
            // What lies behind the tunnel cannot be the way to its end.
            let outside = |candidate: &&Candidate| !handshakes.peers.is_remote(candidate.address.ip());
            let candidates: Vec<Candidate> = told.candidates.iter().filter(outside).copied().collect();
            self.traversal.set_remote(now, &key.into(), &candidates, told.nat_type.unwrap_or_default());
        }
    }

    /// Follows the paths: what the agent has chosen becomes endpoints, what it has learnt of us goes to the
    /// coordinator.
    pub fn follow_paths(&mut self, now: Instant, handshakes: &mut Handshakes) {
        self.follow_moves(now, handshakes);
        self.traversal.step(now);
        self.statements.learn_from_relays(now, &self.traversal.take_documents());
        if let Some(reachability) = self.traversal.poll_reachability() {
            self.client.announce(Reachability { speeds: Some(handshakes.speeds()), ..reachability });
        }
        while let Some(selection) = self.traversal.poll_selection() {
            self.select(now, handshakes, selection);
        }
        while let Some((peer, mtu)) = self.traversal.poll_mtu() {
            handshakes.set_path_mtu(&PublicKey::from_bytes(peer.to_bytes()), mtu);
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

    /// What of the map was refused, and what is wrong with the signed documents.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        self.refused.list(now).into_iter().chain(self.statements.problems(now)).collect()
    }
}

/// The addresses at which the peers are reached from outside, but for those that are no longer believed. What stands
/// for a way by TLS or from another port is no address of anybody's.
pub fn endpoints_in_use<'a>(peers: &'a Peers, sites: &'a BTreeMap<SiteKey, Site>) -> impl Iterator<Item = IpAddr> + 'a {
    let stays = |peer: &&Peer| peer.found.is_none() || sites.contains_key(&SiteKey::from(*peer.public_key.as_bytes()));
    let endpoints = peers.iter().filter(stays).filter_map(|peer| peer.endpoint);
    endpoints.map(|endpoint| endpoint.ip()).filter(|address| !address.is_loopback())
}

/// How a map differs from the one before.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    /// Whose reachability is another.
    moved: Vec<SiteKey>,
    /// Whether relays, servers or sites are others, wherever these are.
    sites: bool,
}

impl Difference {
    fn between(before: &Map, after: &Map) -> Self {
        let servers = (&before.relays, &before.stun_servers) != (&after.relays, &after.stun_servers);
        // Of as many sites as before one is new if one is gone.
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

fn traversal(profile: &Profile, config: &Config, udp: UdpSender) -> Traversal {
    let settings = Settings {
        trust: config.trust.clone(),
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
