//! Sites on a simulated network with a virtual clock.
//!
//! ```text
//!   send() ─► Plane (really seals and opens) ─► World (delay, loss, duplication) ─► Plane ─► received
//!               ▲ events          │ notes               ▲
//!               └──── Gateway ◄───┘ ────────────────────┘ handshakes
//! ```
//! Everything follows from the seed: a failing run is repeated by its seed.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use penstock_proto::{
    Event, Gateway, PeerConfig, PeerId, PublicKey, Reject, Role, StaticSecret, Timings, Used, generate_private_key,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use crate::site::*;

pub const LIFETIME: Duration = Duration::from_secs(180);

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn wall() -> SystemTime {
    UNIX_EPOCH + seconds(1_800_000_000)
}

pub struct Faults {
    pub loss: f64,
    pub duplication: f64,
    pub delay: Range<Duration>,
}

/// A datagram as it left a site.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub at: Duration,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

pub struct World {
    pub start: Instant,
    pub now: Instant,
    pub sites: Vec<Site>,
    pub faults: Faults,
    /// How often traffic is reported; `None` means at once.
    pub sampling: Option<Duration>,
    /// Every datagram that was sent, including those that the network lost.
    pub wire: Vec<Datagram>,
    /// Datagrams of these types are lost.
    pub block: HashSet<u8>,
    in_flight: BTreeMap<(Instant, u64), Datagram>,
    sent: u64,
    rng: StdRng,
}

impl World {
    /// Sites without peers; each has its own address and its own random numbers.
    pub fn new(seed: u64, timings: Timings, sites: usize) -> Self {
        let start = Instant::now();
        let mut rng = StdRng::seed_from_u64(seed);
        let sites = (0..sites).map(|number| {
            let address = format!("192.0.2.{}:51820", number + 1).parse().unwrap();
            let key = generate_private_key(&mut rng);
            let rng = StdRng::from_rng(&mut rng);
            let gateway = Gateway::with_timings(key, rng, start, wall(), timings);
            Site { gateway, address, plane: Plane::default(), received: vec![], log: vec![] }
        });
        let sites = sites.collect();
        let faults = Faults { loss: 0.0, duplication: 0.0, delay: millis(10)..millis(11) };
        Self {
            start,
            now: start,
            sites,
            faults,
            sampling: None,
            wire: vec![],
            block: HashSet::new(),
            in_flight: BTreeMap::new(),
            sent: 0,
            rng,
        }
    }

    /// Two sites that know each other, with the protocol's own timings.
    pub fn pair(seed: u64) -> (Self, PeerId, PeerId) {
        Self::pair_with(seed, PeerConfig::default())
    }

    /// The same with the configuration that site 0 has of site 1.
    pub fn pair_with(seed: u64, config: PeerConfig) -> (Self, PeerId, PeerId) {
        let mut world = Self::new(seed, Timings::default(), 2);
        let preshared_key = config.preshared_key.clone();
        let b = world.introduce(0, 1, config);
        let a = world.introduce(1, 0, PeerConfig { preshared_key, ..PeerConfig::default() });
        (world, a, b)
    }

    /// Makes `to` a peer of `site`, at its address.
    pub fn introduce(&mut self, site: usize, to: usize, config: PeerConfig) -> PeerId {
        let key = *self.sites[to].gateway.public_key();
        let endpoint = Some(self.sites[to].address);
        let config = PeerConfig { endpoint, ..config };
        self.sites[site].gateway.add_peer(self.now, key, config).unwrap()
    }

    /// Kills a site and starts it again with the same keys and one peer.
    pub fn restart(&mut self, site: usize, to: usize) -> PeerId {
        let rng = StdRng::from_rng(&mut self.rng);
        let old = &mut self.sites[site];
        let key = old.gateway.private_key().clone();
        let wall = wall() + (self.now - self.start);
        old.gateway = Gateway::new(key, rng, self.now, wall);
        old.plane = Plane::default();
        self.introduce(site, to, PeerConfig::default())
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// A packet from the site's LAN to a peer.
    pub fn send(&mut self, site: usize, peer: PeerId, packet: &[u8]) {
        if self.sending_session(site, peer).is_some() {
            self.seal(site, peer, packet);
        } else {
            let Site { gateway, plane, .. } = &mut self.sites[site];
            plane.staged.entry(peer).or_default().push(packet.to_vec());
            gateway.handle_wanted(self.now, peer);
        }
        self.drain(site);
    }

    /// Lets time pass.
    pub fn run(&mut self, span: Duration) {
        self.run_until(self.elapsed() + span);
    }

    pub fn run_until(&mut self, elapsed: Duration) {
        let end = self.start + elapsed;
        (0..self.sites.len()).for_each(|site| self.drain(site));
        while let Some(at) = self.next_time().filter(|at| *at <= end) {
            assert!(at >= self.now, "time goes forward");
            self.now = at;
            while let Some(entry) = self.in_flight.first_entry().filter(|e| e.key().0 <= at) {
                let datagram = entry.remove();
                self.deliver(&datagram);
            }
            for site in 0..self.sites.len() {
                if self.sites[site].gateway.poll_timeout().is_some_and(|due| due <= at) {
                    self.sites[site].gateway.handle_timeout(at);
                    let next = self.sites[site].gateway.poll_timeout();
                    assert!(next.is_none_or(|next| next > at), "a timeout is done with");
                }
                self.report(site);
                self.drain(site);
            }
        }
        self.now = end;
    }

    /// Delivers bytes as if they came from `from`.
    pub fn inject(&mut self, site: usize, from: SocketAddr, bytes: &[u8]) -> Result<(), Reject> {
        let result = self.sites[site].gateway.handle_datagram(self.now, from, bytes);
        self.drain(site);
        result
    }

    /// The datagrams of a type that left this site.
    pub fn sent_by(&self, site: usize, kind: u8) -> Vec<&Datagram> {
        let from = self.sites[site].address;
        self.wire.iter().filter(|sent| sent.from == from && sent.bytes[0] == kind).collect()
    }

    fn next_time(&self) -> Option<Instant> {
        let timeouts = self.sites.iter().filter_map(|site| site.gateway.poll_timeout());
        let sample = self.sampling.map(|every| {
            let ticks = self.elapsed().as_nanos() / every.as_nanos() + 1;
            self.start + every * u32::try_from(ticks).unwrap()
        });
        let arrival = self.in_flight.keys().next().map(|(at, _)| *at);
        timeouts.chain(sample).chain(arrival).min().map(|at| at.max(self.now))
    }

    fn deliver(&mut self, datagram: &Datagram) {
        let found = self.sites.iter().position(|site| site.address == datagram.to);
        let Some(site) = found else { return };
        if datagram.bytes[0] == 4 {
            self.open(site, datagram);
        } else {
            let elapsed = self.elapsed();
            let Site { gateway, log, .. } = &mut self.sites[site];
            let result = gateway.handle_datagram(self.now, datagram.from, &datagram.bytes);
            if let Err(reject) = result {
                log.push((elapsed, Happened::Rejected(reject)));
            }
        }
        self.drain(site);
    }

    fn transmit(&mut self, site: usize, to: SocketAddr, bytes: Vec<u8>) {
        let from = self.sites[site].address;
        let datagram = Datagram { at: self.elapsed(), from, to, bytes };
        self.wire.push(datagram.clone());
        if self.block.contains(&datagram.bytes[0]) || self.rng.random_bool(self.faults.loss) {
            return;
        }
        let copies = 1 + usize::from(self.rng.random_bool(self.faults.duplication));
        for _ in 0..copies {
            let at = self.now + self.rng.random_range(self.faults.delay.clone());
            self.sent += 1;
            self.in_flight.insert((at, self.sent), datagram.clone());
        }
    }

    fn sending_session(&self, site: usize, peer: PeerId) -> Option<&Session> {
        let plane = &self.sites[site].plane;
        let session = plane.sessions.get(plane.current.get(&peer)?)?;
        (self.now < session.keys.born + LIFETIME).then_some(session)
    }

    fn seal(&mut self, site: usize, peer: PeerId, packet: &[u8]) {
        let Site { gateway, plane, .. } = &mut self.sites[site];
        let Some(index) = plane.current.get(&peer) else {
            return;
        };
        let Some(session) = plane.sessions.get_mut(index) else {
            return;
        };
        let mut bytes = vec![4, 0, 0, 0];
        bytes.extend(session.keys.remote_index.to_le_bytes());
        bytes.extend(session.counter.to_le_bytes());
        bytes.extend(seal(&session.keys, session.counter, packet));
        session.counter += 1;
        let to = gateway.peer(peer).unwrap().endpoint().unwrap();
        let traffic = plane.traffic.entry(peer).or_default();
        traffic.sent_any = true;
        traffic.sent_data |= !packet.is_empty();
        let (index, used) = (*index, Used { messages: session.counter, blocks: 0 });
        gateway.handle_session_used(self.now, peer, index, used);
        self.transmit(site, to, bytes);
        self.report_at_once(site);
    }

    fn open(&mut self, site: usize, datagram: &Datagram) {
        let Site { gateway, plane, received, .. } = &mut self.sites[site];
        let bytes = &datagram.bytes;
        let index = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        let counter = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        let Some(session) = plane.sessions.get_mut(&index) else {
            return;
        };
        if self.now >= session.keys.born + LIFETIME {
            return;
        }
        let Some(packet) = open(&session.keys, counter, &bytes[16..]) else {
            return;
        };
        if !session.seen.insert(counter) {
            return;
        }
        if !std::mem::replace(&mut session.confirmed, true) {
            gateway.handle_confirmed(self.now, index, datagram.from);
        }
        if gateway.peer(session.peer).and_then(|peer| peer.endpoint()) != Some(datagram.from) {
            gateway.handle_roamed(self.now, index, datagram.from);
        }
        let traffic = plane.traffic.entry(session.peer).or_default();
        traffic.received_any = true;
        traffic.received_data |= !packet.is_empty();
        if !packet.is_empty() {
            received.push(packet);
        }
        self.report_at_once(site);
    }

    fn report_at_once(&mut self, site: usize) {
        if self.sampling.is_none() {
            self.report(site);
        }
    }

    fn report(&mut self, site: usize) {
        let sampled = self.sampling.is_none_or(|every| self.elapsed().as_nanos().is_multiple_of(every.as_nanos()));
        if sampled {
            let Site { gateway, plane, .. } = &mut self.sites[site];
            for (peer, traffic) in std::mem::take(&mut plane.traffic) {
                gateway.handle_traffic(self.now, peer, traffic);
            }
        }
    }

    /// Takes what the gateway has to send and tell.
    pub fn drain(&mut self, site: usize) {
        loop {
            let gateway = &mut self.sites[site].gateway;
            let (transmit, event) = (gateway.poll_transmit(), gateway.poll_event());
            if transmit.is_none() && event.is_none() {
                break;
            }
            if let Some(event) = event {
                self.obey(site, event);
            }
            if let Some(transmit) = transmit {
                self.transmit(site, transmit.to, transmit.contents.to_vec());
            }
        }
        let site = &self.sites[site];
        let bound = 4 * site.gateway.peers().count();
        assert!(site.gateway.live_indices() <= bound, "receiver indices leak");
    }

    fn obey(&mut self, site: usize, event: Event) {
        let elapsed = self.elapsed();
        let Site { plane, log, .. } = &mut self.sites[site];
        let mut flush = None;
        let happened = match event {
            Event::SessionEstablished { peer, session: keys } => {
                let role = keys.role;
                let confirmed = role == Role::Initiator;
                let index = keys.local_index;
                let session = Session { peer, keys: *keys, counter: 0, confirmed, seen: HashSet::new() };
                assert!(plane.sessions.insert(index, session).is_none(), "an index is used twice");
                Happened::Established(role)
            }
            Event::SessionPromoted { peer, local_index } => {
                assert!(plane.sessions.contains_key(&local_index));
                plane.current.insert(peer, local_index);
                flush = Some(peer);
                Happened::Promoted(local_index)
            }
            Event::SessionExpired { peer, local_index } => {
                assert!(plane.sessions.remove(&local_index).is_some(), "expired twice");
                if plane.current.get(&peer) == Some(&local_index) {
                    plane.current.remove(&peer);
                }
                Happened::Expired(local_index)
            }
            Event::SendKeepalive { peer } => {
                log.push((elapsed, Happened::Keepalive));
                self.seal(site, peer, &[]);
                return;
            }
            Event::EndpointChanged { endpoint, .. } => Happened::Endpoint(endpoint.remote),
            Event::PathSilent { .. } => Happened::Silent,
            Event::SuiteRefused { suite, .. } => Happened::SuiteRefused(suite),
            Event::HandshakeGaveUp { peer } => {
                plane.staged.remove(&peer);
                Happened::GaveUp
            }
        };
        log.push((elapsed, happened));
        if let Some(peer) = flush {
            for packet in self.sites[site].plane.staged.remove(&peer).unwrap_or_default() {
                self.seal(site, peer, &packet);
            }
        }
    }
}

/// A gateway on its own, without a world.
pub fn lone_gateway(seed: u64, now: Instant) -> Gateway {
    let mut rng = StdRng::seed_from_u64(seed);
    let key = generate_private_key(&mut rng);
    Gateway::new(key, rng, now, wall())
}

pub fn low_order_key() -> PublicKey {
    PublicKey::from([0; 32])
}

pub fn other_key(seed: u64) -> StaticSecret {
    generate_private_key(&mut StdRng::seed_from_u64(seed))
}
