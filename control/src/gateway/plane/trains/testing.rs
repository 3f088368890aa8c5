//! Tests trains to the peers that answer probes, tells the sockets to whom they may be sent, and reports where they are
//! spoilt.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use penstock_dataplane::clock::Millis;
use penstock_dataplane::ports::udp::{Bundling, UdpSender};
use penstock_proto::path::{Path, RelayKind, SocketId};

use super::{LENGTH, LONGEST, Trains};
use crate::gateway::handshakes::Handshakes;
use crate::gateway::peers::{Peer, Peers};
use crate::gateway::plane::Plane;
use crate::gateway::plane::proof::Verdict;
use crate::gateway::probing::Probing;
use crate::key::PublicKey;
use crate::needs::{spoils_trains, version};
use crate::netlink::Interface;
use crate::problem::{Problem, Problems};
use crate::traversal::Traversal;

/// How often to check for due tests.
const EVERY: Duration = Duration::from_millis(500);

/// What is known about trains, and what has to be remembered to find it out.
pub struct Testing {
    trains: Trains,
    looked: Instant,
    /// The WAN as it was when it was last looked at.
    wan: Option<Interface>,
    kernel_spoils: bool,
    problems: Problems,
}

impl Testing {
    /// Nothing is known yet but the kernel's version.
    pub fn new(now: Instant) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let kernel_spoils = version(kernel.trim()).is_some_and(spoils_trains);
        let mut testing =
            Self { trains: Trains::default(), looked: now, wan: None, kernel_spoils, problems: Problems::default() };
        testing.doubt(false);
        testing
    }

    /// Warns if no trains are sent without a proof. `card_spoils`: the WAN's card is known to spoil them.
    fn doubt(&mut self, card_spoils: bool) {
        let doubt = match (self.kernel_spoils, card_spoils) {
            (true, _) => Some("this kernel spoils trains with some drivers"),
            (_, true) => Some("QEMU sends the trains of its igb cards as fragments"),
            _ => None,
        };
        if self.trains.set_doubt(doubt)
            && let Some(doubt) = doubt
        {
            tracing::warn!("{doubt}: no trains of datagrams are sent to peers that do not confirm them");
        }
    }

    /// The peers whose trains are spoilt, or to which the kernel refuses to send any.
    pub fn problems(&self, now: Instant) -> Vec<Problem> {
        self.problems.list(now)
    }

    fn note_problems(&mut self, now: Instant, peers: &Peers) {
        let subject =
            |key: &PublicKey| format!("trains to {}", peers.with_key(key).map(Peer::label).unwrap_or_default());
        let spoilt = "update the kernel, or try: ethtool -K WAN tx-udp-segmentation off; UdpSegmentation: false ends the \
                      tests";
        let refused = "IPsec on the way to a peer is a reason, before Linux 6.11 also a WAN without checksum offload: \
                       ethtool -K WAN tx on; UdpSegmentation: false ends the attempts";
        let given_up = self.trains.given_up().map(|(key, seen)| (subject(key), seen, spoilt));
        let refused = self.trains.refusal().map(|said| ("trains".to_owned(), said, refused));
        let all: Vec<_> = given_up.chain(refused).collect();
        self.problems.solved_all_but(&all.iter().map(|(subject, ..)| subject.clone()).collect());
        for (subject, seen, what_to_do) in all {
            self.problems.warn(now, &subject, &seen, what_to_do);
        }
    }
}

impl Plane {
    /// Makes the tests that are due, of trains to peers whose path is found and to those of the profile.
    pub fn test_trains(
        &mut self,
        now: Instant,
        handshakes: &Handshakes,
        mut traversal: Option<&mut Traversal>,
        probing: &mut Probing,
    ) {
        let peers = &handshakes.peers;
        if now.duration_since(self.testing.looked) < EVERY {
            return;
        }
        let sockets = self.sockets.all();
        let bundles = sockets.iter().map(UdpSender::bundles).sum();
        let millis = Millis::at(now);
        self.testing.looked = now;
        if self.testing.wan != self.drives.wan.interface {
            self.testing.wan.clone_from(&self.drives.wan.interface);
            self.testing.doubt(self.drives.wan.spoils_trains());
            self.testing.trains.handle_link_event(millis);
        }
        let trains = &mut self.testing.trains;
        let refused = sockets.iter().find_map(UdpSender::refused);
        if trains.handle_refusal(millis, refused.as_ref(), bundles) || !self.config.udp_gso {
            sockets.iter().for_each(UdpSender::forget_refusal);
        }
        trains.retain(|key| self.config.udp_gso && peers.with_key(key).is_some());
        let arrived = traversal.as_mut().map(|traversal| traversal.take_arrived()).unwrap_or_default();
        for (key, name) in arrived.into_iter().chain(probing.take_arrived()) {
            trains.handle_arrived(&PublicKey::from_bytes(key.to_bytes()), name);
        }
        trains.handle_timeout(millis);
        for peer in peers.iter().filter(|_| self.config.udp_gso) {
            let Some(to) = by_this_socket(peer, probing) else { continue };
            let (key, sent) = (&peer.public_key, peer.counters.sent.packets.load(Relaxed));
            let Some(test) = trains.due(millis, key, to, sent, bundles) else { continue };
            let size = (LENGTH, LONGEST);
            let names = match (peer.found, &mut traversal) {
                (Some(_), Some(traversal)) => traversal.send_train(&(*key).into(), size, test.singles, peer.local),
                (Some(_), None) => None,
                (None, _) => probing.send_train(&handshakes.sender(), key, size, test.singles, peer.local),
            };
            match names {
                Some(names) => trains.begun(millis, key, names, sent, bundles),
                None => trains.refused(millis, key),
            }
        }
        self.testing.note_problems(now, peers);
        self.spread_bundling();
    }

    /// The verdict on trains to a peer, if there is one.
    pub fn trains_to(&self, peer: &PublicKey) -> Option<Verdict> {
        self.testing.trains.verdict(peer).filter(|_| self.config.udp_gso)
    }

    fn spread_bundling(&self) {
        let none = Bundling { usual: false, except: Vec::new() };
        let bundling = if self.config.udp_gso { self.testing.trains.bundling() } else { none };
        self.sockets.all().iter().for_each(|socket| socket.set_bundling(&bundling));
    }
}

/// The address to which the tunnel's socket sends a peer's packets, if the peer or a relay is there, and the peer
/// answers probes. Local addresses stand for other ways.
fn by_this_socket(peer: &Peer, probing: &Probing) -> Option<SocketAddr> {
    match peer.found.as_ref().map(|found| &found.path) {
        Some(Path::Direct { socket: SocketId::TUNNEL, address }) => Some(*address),
        Some(Path::Relay { kind: RelayKind::Udp, address, .. }) => Some(*address),
        Some(_) => None,
        None => probing.round_trip(&peer.public_key).and(peer.endpoint),
    }
}
