//! What STUN finds out about us: the addresses that others see, and the NAT's behaviour.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use penstock_proto::coordination::Dependence;
use penstock_proto::stun::{Discovery, NatReport, Query, Reflexive};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Servers of one family that are asked for our address regularly; more would only cost packets.
const ASKED: usize = 2;
/// How long after a start one answer is enough, even though other servers have not answered yet.
const PATIENCE: Duration = Duration::from_millis(500);

/// The STUN servers, and their answers.
#[derive(Default)]
pub struct Stun {
    servers: Vec<SocketAddr>,
    local: Vec<SocketAddr>,
    asked: Vec<Asked>,
    discovery: Option<Discovery>,
    /// The family of the report: IPv4 if there are IPv4 servers, because that is what NATs translate.
    report: NatReport,
    /// Whether a discovery is under way, so that the report is empty or about an earlier mapping.
    measuring: bool,
    started: Option<Instant>,
    changed: bool,
}

struct Asked {
    server: SocketAddr,
    reflexive: Reflexive,
    answered: bool,
    /// The last address that it reported.
    known: Option<SocketAddr>,
}

impl Stun {
    /// Takes over the servers; `local` are our addresses with the tunnel's port.
    pub fn set_servers(&mut self, now: Instant, servers: &[SocketAddr], local: &[SocketAddr]) {
        if servers != self.servers {
            self.servers = servers.to_vec();
            self.restart(now, local);
        }
    }

    /// Asks for everything again, because the network has changed.
    pub fn restart(&mut self, now: Instant, local: &[SocketAddr]) {
        self.local = local.to_vec();
        let asked = |server| Asked {
            server,
            reflexive: Reflexive::new(now, server, StdRng::from_os_rng()),
            answered: false,
            known: None,
        };
        self.asked = [true, false].into_iter().flat_map(|v4| self.of_family(v4).take(ASKED)).map(asked).collect();
        self.discover(now);
        self.report = NatReport::default();
        self.started = Some(now);
        self.changed = true;
    }

    fn discover(&mut self, now: Instant) {
        let v4 = self.of_family(true).next().is_some();
        let servers: Vec<SocketAddr> = self.of_family(v4).collect();
        let begin = || Discovery::new(now, &servers, &self.local, StdRng::from_os_rng());
        self.discovery = (!servers.is_empty()).then(begin);
        self.measuring = self.discovery.is_some();
    }

    fn of_family(&self, v4: bool) -> impl Iterator<Item = SocketAddr> {
        self.servers.iter().copied().filter(move |server| server.is_ipv4() == v4)
    }

    /// Asks for our address again.
    pub fn refresh(&mut self, now: Instant) {
        self.asked.iter_mut().for_each(|asked| asked.reflexive.refresh(now));
    }

    /// Takes a STUN message.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        if let Some(discovery) = &mut self.discovery {
            discovery.handle_datagram(now, datagram);
        }
        for asked in &mut self.asked {
            asked.reflexive.handle_datagram(datagram);
        }
        self.look(now);
    }

    /// The requests to send.
    pub fn step(&mut self, now: Instant) -> Vec<Query> {
        let mut queries = Vec::new();
        for asked in &mut self.asked {
            queries.extend(std::iter::from_fn(|| asked.reflexive.poll_transmit(now)));
        }
        if let Some(discovery) = &mut self.discovery {
            queries.extend(std::iter::from_fn(|| discovery.poll_transmit(now)));
        }
        self.look(now);
        queries
    }

    /// When there is more to send.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let asked = self.asked.iter().map(|asked| asked.reflexive.poll_timeout());
        asked.chain(self.discovery.as_mut().and_then(Discovery::poll_timeout)).min()
    }

    /// Whether our addresses or the report have changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// When enough is known to announce it: all servers have answered or were given up, or one has answered and the
    /// others have had their chance. `None` as long as no server has said anything.
    pub fn settles_at(&self) -> Option<Instant> {
        let started = self.started?;
        if self.asked.iter().all(|asked| asked.answered) {
            return Some(started);
        }
        self.passes().then(|| started + PATIENCE)
    }

    /// Whether UDP gets out and back in.
    pub fn passes(&self) -> bool {
        self.asked.iter().any(|asked| asked.reflexive.address().is_some())
    }

    /// The addresses that the servers see.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.asked.iter().filter_map(|asked| asked.reflexive.address()).collect()
    }

    /// What is known about the NAT.
    pub fn report(&self) -> &NatReport {
        &self.report
    }

    /// Whether the report is still to come.
    pub fn measuring(&self) -> bool {
        self.measuring
    }

    /// What is known about the NAT for IPv4 and for IPv6; `None` where we have no address or there is no server. For
    /// the family without a discovery, only what the address shows.
    pub fn reports(&self) -> [Option<NatReport>; 2] {
        let discovered = self.of_family(true).next().is_some();
        [true, false].map(|v4| {
            let ours = self.local.iter().any(|local| local.is_ipv4() == v4);
            if !ours || self.of_family(v4).next().is_none() {
                None
            } else if v4 == discovered {
                Some(self.report)
            } else {
                Some(self.seen(v4))
            }
        })
    }

    fn seen(&self, v4: bool) -> NatReport {
        let asked = || self.asked.iter().filter(|asked| asked.server.is_ipv4() == v4);
        let Some(address) = asked().find_map(|asked| asked.reflexive.address()) else {
            return NatReport { udp_blocked: asked().all(|asked| asked.answered), ..NatReport::default() };
        };
        let translated = !self.local.contains(&address);
        NatReport {
            reflexive: Some(address),
            translated: Some(translated),
            mapping: (!translated).then_some(Dependence::EndpointIndependent),
            port_preservation: Some(self.local.iter().any(|local| local.port() == address.port())),
            ..NatReport::default()
        }
    }

    fn look(&mut self, now: Instant) {
        let mut moved = false;
        for asked in &mut self.asked {
            let Some(change) = asked.reflexive.poll_changed() else { continue };
            asked.answered = true;
            self.changed = true;
            if let Some(address) = change.address {
                moved |= asked.known.replace(address).is_some_and(|known| known != address);
            }
        }
        // Another mapping may be another NAT's. The same one is not measured twice: the NAT now lets in the
        // destinations of the first time, which would look as if it let everybody in.
        if moved || (self.report.udp_blocked && self.passes()) {
            self.report.udp_blocked = false;
            self.discover(now);
        }
        if let Some(report) = self.discovery.as_mut().and_then(Discovery::poll_report) {
            tracing::info!("{report}");
            self.report = report;
            self.measuring = false;
            self.changed = true;
        }
    }
}
