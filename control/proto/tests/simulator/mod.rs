//! Gateways behind NATs on a virtual clock.
//!
//! ```text
//!   Shell ─ Nat ─┐                         ┌─ Nat ─ Shell
//!   (agent,      ├─ loss, delay, copies ───┤
//!    STUN)       ├─ Relay (UDP) ───────────┤        coordination: a reliable channel with a delay
//!                └─ STUN server, 2 × 2 ────┘        TLS to the relay: the same
//! ```
//! Everything follows from the seed: a failing run is repeated by its seed. A datagram with a time to live of 2 passes
//! the sender's own NAT and expires behind it.

pub mod nat;
pub mod pipes;
pub mod servers;
pub mod shell;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use penstock_proto::coordination::{Candidate, NatType};
use penstock_proto::path::{
    FIRST_BYTE, Path, PathAgent, PathConfig, PathEvent, PathTransmit, Relay, RelayId, RelayKind, SiteId, SocketId,
};
use penstock_proto::stun::{Discovery, Reflexive, is_stun};
use penstock_proto::{PublicKey, Traffic, generate_private_key};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use nat::{Kind, Nat};
use pipes::Pipes;
use servers::{Binding, STUN, bind_message, data_message, stun_answer, stun_server};
use shell::Shell;

pub const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9)), 3478);
pub const TLS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7443);
const PORT: u16 = 47_100;

pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[derive(Clone)]
pub struct Faults {
    pub loss: f64,
    pub duplication: f64,
    pub delay: Range<Duration>,
}

impl Faults {
    pub fn none() -> Self {
        Self { loss: 0.0, duplication: 0.0, delay: millis(20)..millis(21) }
    }

    pub fn some(rng: &mut StdRng) -> Self {
        let base = rng.random_range(2..60);
        let loss = rng.random_range(0.0..0.05);
        Self { loss, duplication: 0.02, delay: millis(base)..millis(base + rng.random_range(1..40)) }
    }
}

/// A datagram on the wire between the NATs.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// No router may fragment it.
    pub dont_fragment: bool,
    pub bytes: Vec<u8>,
}

enum Happening {
    Start(usize),
    Arrive(Datagram),
    /// Over TLS, to the relay.
    TlsUp(usize, Vec<u8>),
    /// And back from it.
    TlsDown(usize, Vec<u8>),
    Signal {
        from: usize,
        to: usize,
        version: u64,
        candidates: Vec<Candidate>,
        nat: NatType,
    },
    Bind(usize),
    /// ICMP to the gateway that sent this datagram.
    TooBig {
        sender: usize,
        datagram: Datagram,
        mtu: u16,
    },
    /// A data packet, and when the next one follows.
    Data {
        from: usize,
        to: usize,
    },
}

pub struct World {
    pub start: Instant,
    pub now: Instant,
    pub gateways: Vec<Shell>,
    pub nats: Vec<Nat>,
    pub relay: servers::Relay,
    pub faults: Faults,
    pub rng: StdRng,
    /// Every datagram that was seen on the wire, if somebody listens.
    pub wire: Option<Vec<Datagram>>,
    /// The time between two data packets.
    pub pace: Option<Duration>,
    /// Whether data packets are as large as they may be.
    pub full_size: bool,
    pub pipes: Pipes,
    pub signal_delay: Range<Duration>,
    queue: BTreeMap<(Instant, u64), Happening>,
    number: u64,
}

impl World {
    /// Gateways behind these NATs, which start within half a second and are each other's peers.
    pub fn new(seed: u64, kinds: &[Kind], config: PathConfig) -> Self {
        let start = Instant::now();
        let mut world = Self {
            start,
            now: start,
            gateways: vec![],
            nats: vec![],
            relay: servers::Relay::default(),
            faults: Faults::none(),
            rng: StdRng::seed_from_u64(seed),
            wire: None,
            pace: None,
            full_size: false,
            pipes: Pipes::default(),
            signal_delay: millis(20)..millis(500),
            queue: BTreeMap::new(),
            number: 0,
        };
        for kind in kinds {
            world.add(*kind, config);
        }
        let keys: Vec<PublicKey> = world.gateways.iter().map(|gateway| gateway.key).collect();
        for (number, gateway) in world.gateways.iter_mut().enumerate() {
            for key in keys.iter().enumerate().filter(|(peer, _)| *peer != number).map(|(_, key)| *key) {
                gateway.agent.add_peer(start, key).unwrap();
            }
        }
        for number in 0..world.gateways.len() {
            let at = millis(world.rng.random_range(0..500));
            world.at(at, Happening::Start(number));
        }
        world
    }

    fn add(&mut self, kind: Kind, config: PathConfig) {
        let number = self.gateways.len();
        let public: IpAddr = format!("203.0.113.{}", number + 1).parse().unwrap();
        let host = if kind.translates() { format!("10.{number}.0.2").parse().unwrap() } else { public };
        let nat = Nat::new(kind, public, &mut self.rng);
        self.nats.push(nat);
        let key = generate_private_key(&mut self.rng);
        let public_key = PublicKey::from(&key);
        let mut fresh = || StdRng::from_rng(&mut self.rng);
        let agent = PathAgent::new(key, config, fresh());
        let stun = Reflexive::new(self.now, stun_server(), fresh());
        let discovery = Discovery::new(self.now, &[], &[], fresh());
        self.gateways.push(Shell {
            key: public_key,
            site: SiteId::of(&public_key),
            agent,
            stun,
            discovery,
            report: None,
            hosts: vec![host],
            nats: vec![self.nats.len() - 1],
            sockets: [(SocketId::TUNNEL, PORT)].into(),
            next_socket: 1,
            started: false,
            version: 0,
            seen: BTreeMap::new(),
            ready: false,
            paths: BTreeMap::new(),
            diary: vec![],
            is_old: false,
            link: Some(1500),
            mtus: BTreeMap::new(),
            mtu_diary: vec![],
            sent: BTreeMap::new(),
            received: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            opened_sockets: 0,
        });
    }

    /// Gives every gateway an IPv6 address too, behind this kind of firewall.
    pub fn add_ipv6(&mut self, kind: Kind) {
        for number in 0..self.gateways.len() {
            let host: IpAddr = format!("2001:db8:{}::2", number + 1).parse().unwrap();
            let nat = Nat::new(kind, host, &mut self.rng);
            self.nats.push(nat);
            self.gateways[number].hosts.push(host);
            self.gateways[number].nats.push(self.nats.len() - 1);
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Starts sending data between all gateways, in both directions.
    pub fn send_data(&mut self, pace: Duration) {
        self.pace = Some(pace);
        for from in 0..self.gateways.len() {
            for to in (0..self.gateways.len()).filter(|to| *to != from) {
                self.at(millis(0), Happening::Data { from, to });
            }
        }
    }

    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let timeouts: Vec<_> = self.gateways.iter_mut().map(Shell::poll_timeout).collect();
            let timeout = timeouts.iter().flatten().min().copied();
            let arrival = self.queue.keys().next().map(|(at, _)| *at);
            let Some(at) = timeout.into_iter().chain(arrival).min().filter(|at| *at <= end) else { break };
            self.now = at.max(self.now);
            while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let happening = entry.remove();
                self.happen(happening);
            }
            for (number, due) in timeouts.into_iter().enumerate() {
                if due.is_some_and(|due| due <= self.now) {
                    self.gateways[number].agent.handle_timeout(self.now);
                    let next = self.gateways[number].agent.poll_timeout();
                    assert!(next.is_none_or(|next| next > self.now), "a timeout is done with");
                    self.drain(number);
                }
            }
        }
        self.now = end;
    }

    /// The site's WAN address changes, and with it everything that its NAT knew.
    pub fn change_address(&mut self, number: usize) {
        let nat = self.gateways[number].nats[0];
        let old = self.nats[nat].ip;
        let IpAddr::V4(ip) = old else { panic!("the first is IPv4") };
        let new = IpAddr::V4((u32::from(ip) + 100).into());
        self.nats[nat].ip = new;
        self.nats[nat].reboot();
        let shell = &mut self.gateways[number];
        if !self.nats[nat].kind.translates() {
            shell.hosts[0] = new;
        }
        let (now, local, rng) = (self.now, shell.local(), StdRng::from_rng(&mut self.rng));
        shell.stun.refresh(now);
        shell.discovery = Discovery::new(now, &[stun_server()], &local, rng);
        shell.agent.handle_network_change(now);
        self.bind(number);
        self.signal(number);
        self.drain(number);
    }

    /// Delivers bytes to a gateway as if they had come from `from`, whatever its NAT.
    pub fn inject(&mut self, number: usize, from: SocketAddr, bytes: &[u8]) {
        self.receive(number, SocketId::TUNNEL, from, bytes);
        self.drain(number);
    }

    fn at(&mut self, delay: Duration, happening: Happening) {
        self.number += 1;
        self.queue.insert((self.now + delay, self.number), happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Start(number) => self.begin(number),
            Happening::Arrive(datagram) => self.arrive(datagram),
            Happening::TlsUp(number, bytes) => self.relay(Binding::Tls(number), &bytes),
            Happening::TlsDown(number, bytes) => {
                self.receive(number, SocketId::TUNNEL, TLS, &bytes);
                self.drain(number);
            }
            Happening::Signal { from, to, version, candidates, nat } => {
                let key = self.gateways[from].key;
                let shell = &mut self.gateways[to];
                let seen = shell.seen.entry(from).or_default();
                if *seen < version && shell.started {
                    *seen = version;
                    shell.agent.set_remote(self.now, &key, &candidates, nat);
                    self.drain(to);
                }
            }
            Happening::Bind(number) => {
                self.bind(number);
                self.at(seconds(20), Happening::Bind(number));
            }
            Happening::Data { from, to } => self.data(from, to),
            Happening::TooBig { sender, datagram, mtu } => self.too_big(sender, &datagram, mtu),
        }
    }

    fn begin(&mut self, number: usize) {
        let relay = |kind, address| Relay { id: RelayId(1), kind, address };
        let now = self.now;
        let rng = StdRng::from_rng(&mut self.rng);
        let shell = &mut self.gateways[number];
        shell.started = true;
        shell.stun.refresh(now);
        shell.discovery = Discovery::new(now, &[stun_server()], &shell.local(), rng);
        shell.agent.set_relays(now, &[relay(RelayKind::Udp, RELAY), relay(RelayKind::Tls, TLS)]);
        if let Some(mtu) = shell.link {
            self.set_link(number, mtu);
        }
        self.happen(Happening::Bind(number));
        self.drain(number);
        // What the others have signalled before is in the map that the coordinator sends now.
        for other in 0..self.gateways.len() {
            if other != number && self.gateways[other].version > 0 {
                self.signal(other);
            }
        }
    }

    fn bind(&mut self, number: usize) {
        let message = bind_message(self.gateways[number].site);
        self.send(number, SocketId::TUNNEL, RELAY, None, message.clone());
        self.send(number, SocketId::TUNNEL, TLS, None, message);
    }

    fn signal(&mut self, from: usize) {
        let shell = &mut self.gateways[from];
        if !shell.ready {
            return;
        }
        shell.version += 1;
        let (version, candidates) = (shell.version, shell.candidates());
        let nat = shell.report.map(|report| report.nat_type()).unwrap_or_default();
        shell.agent.set_local(self.now, &candidates, nat);
        for to in (0..self.gateways.len()).filter(|to| *to != from) {
            let delay = self.rng.random_range(self.signal_delay.clone());
            self.at(delay, Happening::Signal { from, to, version, candidates: candidates.clone(), nat });
        }
    }

    fn data(&mut self, from: usize, to: usize) {
        let Some(pace) = self.pace else { return };
        self.at(pace, Happening::Data { from, to });
        let receiver = self.gateways[to].site;
        let (key, now) = (self.gateways[to].key, self.now);
        let shell = &mut self.gateways[from];
        let number = shell.sent.entry(to).or_default();
        *number += 1;
        let mut message = data_message(receiver, from, *number);
        let mtu = shell.mtus.get(&to).filter(|_| self.full_size);
        message.resize(mtu.map_or(message.len(), |mtu| usize::from(mtu.inner) + 32), 0);
        let dont_fragment = mtu.is_some_and(|mtu| !mtu.fragmented);
        let (socket, address) = match shell.path_to(to) {
            Path::Direct { socket, address } => (socket, address),
            Path::Relay { address, .. } => (SocketId::TUNNEL, address),
            Path::None => return,
        };
        shell.agent.handle_traffic(now, &key, Traffic { sent_any: true, sent_data: true, ..Traffic::default() });
        self.dispatch(from, socket, address, None, dont_fragment, message);
        self.drain(from);
    }

    fn send(&mut self, number: usize, socket: SocketId, to: SocketAddr, ttl: Option<u8>, bytes: Vec<u8>) {
        self.dispatch(number, socket, to, ttl, false, bytes);
    }

    /// Sends from a socket of a gateway.
    fn dispatch(
        &mut self,
        number: usize,
        socket: SocketId,
        to: SocketAddr,
        ttl: Option<u8>,
        dont_fragment: bool,
        bytes: Vec<u8>,
    ) {
        if to == TLS {
            let delay = self.rng.random_range(self.faults.delay.clone()) * 2;
            return self.at(delay, Happening::TlsUp(number, bytes));
        }
        let shell = &self.gateways[number];
        let Some(index) = shell.hosts.iter().position(|host| host.is_ipv4() == to.is_ipv4()) else { return };
        let from = SocketAddr::new(shell.hosts[index], shell.sockets[&socket]);
        let nat = shell.nats[index];
        let Some(from) = self.nats[nat].outbound(self.now, from, to, &mut self.rng) else { return };
        if ttl.is_some_and(|ttl| ttl <= 2) || (to.ip() == self.nats[nat].ip && !self.nats[nat].hairpins) {
            return;
        }
        let datagram = Datagram { from, to, dont_fragment, bytes };
        if dont_fragment && self.gateways[number].link.is_some_and(|mtu| datagram.length() > mtu) {
            // The kernel refuses it.
            return;
        }
        match self.pipes.stops(&datagram) {
            None => self.carry(datagram),
            Some(pipe) if pipe.tells => self.tell(number, datagram, pipe),
            Some(_) => {}
        }
    }

    fn carry(&mut self, datagram: Datagram) {
        if let Some(wire) = &mut self.wire {
            wire.push(datagram.clone());
        }
        if self.rng.random_bool(self.faults.loss) {
            return;
        }
        for _ in 0..1 + usize::from(self.rng.random_bool(self.faults.duplication)) {
            let delay = self.rng.random_range(self.faults.delay.clone());
            self.at(delay, Happening::Arrive(datagram.clone()));
        }
    }

    fn arrive(&mut self, datagram: Datagram) {
        let Datagram { from, to, bytes, .. } = datagram;
        if STUN.contains(&to.ip()) {
            if let Some((origin, answer)) = stun_answer(from, to, &bytes) {
                self.carry(Datagram { from: origin, to: from, dont_fragment: false, bytes: answer });
            }
            return;
        }
        if to == RELAY {
            return self.relay(Binding::Udp(from), &bytes);
        }
        let Some(nat) = self.nats.iter().position(|nat| nat.ip == to.ip()) else { return };
        let Some(inside) = self.nats[nat].inbound(self.now, from, to) else { return };
        let found = self.gateways.iter().position(|shell| shell.nats.contains(&nat)).unwrap();
        let shell = &self.gateways[found];
        let socket = shell.sockets.iter().find(|(_, port)| **port == inside.port()).map(|(socket, _)| *socket);
        if let Some(socket) = socket.filter(|_| shell.hosts.contains(&inside.ip())) {
            self.receive(found, socket, from, &bytes);
            self.drain(found);
        }
    }

    fn relay(&mut self, from: Binding, bytes: &[u8]) {
        match self.relay.handle(self.now, from, bytes) {
            Some(Binding::Udp(to)) => {
                self.carry(Datagram { from: RELAY, to, dont_fragment: false, bytes: bytes.to_vec() });
            }
            Some(Binding::Tls(number)) => {
                let delay = self.rng.random_range(self.faults.delay.clone()) * 2;
                self.at(delay, Happening::TlsDown(number, bytes.to_vec()));
            }
            None => {}
        }
    }

    fn receive(&mut self, number: usize, socket: SocketId, from: SocketAddr, bytes: &[u8]) {
        let now = self.now;
        let shell = &mut self.gateways[number];
        if !shell.started {
            return;
        }
        if is_stun(bytes) {
            if !shell.stun.handle_datagram(bytes) {
                shell.discovery.handle_datagram(now, bytes);
            }
        } else if bytes[0] == FIRST_BYTE && !(shell.is_old && servers::is_sized(bytes)) {
            _ = shell.agent.handle_datagram(now, socket, from, bytes);
        } else if bytes[0] == 4 && bytes[4..12] == shell.site.0 {
            let sender = u64::from_be_bytes(bytes[12..20].try_into().unwrap()) as usize;
            let numbers = shell.received.entry(sender).or_default();
            numbers.insert(u64::from_be_bytes(bytes[20..28].try_into().unwrap()));
            shell.arrivals.entry(sender).or_default().push(now);
        }
    }

    /// Carries out what the gateway asks for.
    pub fn drain(&mut self, number: usize) {
        while let Some(event) = self.gateways[number].agent.poll_event() {
            self.obey(number, event);
        }
        let now = self.now;
        while let Some(transmit) = self.gateways[number].agent.poll_transmit() {
            if self.gateways[number].sockets.contains_key(&transmit.socket) {
                let PathTransmit { socket, to, ttl, dont_fragment, bytes, .. } = transmit;
                self.dispatch(number, socket, to, ttl, dont_fragment, bytes);
            }
        }
        if !self.gateways[number].started {
            return;
        }
        while let Some(query) = self.gateways[number].stun.poll_transmit(now) {
            self.send(number, SocketId::TUNNEL, query.to, None, query.bytes);
        }
        while let Some(query) = self.gateways[number].discovery.poll_transmit(now) {
            self.send(number, SocketId::TUNNEL, query.to, None, query.bytes);
        }
        let changed = self.gateways[number].stun.poll_changed();
        let report = self.gateways[number].discovery.poll_report();
        if changed.is_some() {
            self.gateways[number].ready = true;
        }
        if report.is_some() {
            self.gateways[number].report = report;
        }
        if changed.is_some() || report.is_some() {
            self.signal(number);
            self.drain(number);
        }
    }

    fn obey(&mut self, number: usize, event: PathEvent) {
        let (elapsed, now) = (self.elapsed(), self.now);
        match event {
            PathEvent::Selected { peer, path, reason } => {
                let peer = self.gateways.iter().position(|shell| shell.key == peer).unwrap();
                let shell = &mut self.gateways[number];
                shell.paths.insert(peer, (path, reason));
                shell.diary.push((elapsed, peer, path, reason));
            }
            PathEvent::Mtu { peer, mtu } => {
                let peer = self.gateways.iter().position(|shell| shell.key == peer).unwrap();
                let shell = &mut self.gateways[number];
                shell.mtus.insert(peer, mtu);
                shell.mtu_diary.push((elapsed, peer, mtu));
            }
            PathEvent::Arrived { .. } => unreachable!("no trains are sent"),
            PathEvent::RefreshCandidates => {
                self.gateways[number].stun.refresh(now);
                self.bind(number);
            }
            PathEvent::OpenSockets { peer, count } => {
                let shell = &mut self.gateways[number];
                let mut opened = vec![];
                for _ in 0..count {
                    let socket = SocketId(shell.next_socket);
                    shell.next_socket += 1;
                    shell.sockets.insert(socket, 20_000 + (shell.next_socket % 20_000) as u16);
                    opened.push(socket);
                }
                shell.opened_sockets += opened.len();
                shell.agent.handle_sockets(now, &peer, opened);
                self.drain(number);
            }
            PathEvent::CloseSockets { sockets } => {
                for socket in sockets {
                    assert_ne!(socket, SocketId::TUNNEL);
                    assert!(self.gateways[number].sockets.remove(&socket).is_some(), "closed twice");
                }
            }
        }
    }
}
