//! What a map of many sites, and a change of it, costs the gateway's control thread, not counting kernel and workers.

use std::net::SocketAddr;

use penstock_connect::{Destinations, Trust};
use penstock_dataplane::ports::udp::{UdpConfig, UdpPort};
use penstock_proto::coordination::{Candidate, CandidateKind, MapVersion, Peer as MapPeer, Update};
use penstock_proto::trust::{
    Authority, Document, LeaseLength, Lessor, Serial, SigningKey, SiteGrant, Subnets, UnixTime, Validity,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::gateway::peers::tests::peers;
use crate::key::PrivateKey;

/// The figures of 5,000 sites: `PENSTOCK_TEST_LONG=1 cargo test --release -p penstock --lib scale -- --nocapture`.
fn sites() -> u16 {
    if std::env::var_os("PENSTOCK_TEST_LONG").is_some() { 5_000 } else { 300 }
}

struct Lab {
    authority: Authority,
    lessor: Lessor,
    overlay: Overlay,
    handshakes: Handshakes,
    map: Arc<Map>,
    _directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let signing_key = |seed| SigningKey::generate(&mut StdRng::seed_from_u64(seed));
        let mut authority = Authority::found(signing_key(1));
        let lessor = Lessor::new(signing_key(2), LeaseLength::DEFAULT, Serial(0));
        authority.certify(wall(), lessor.key(), LeaseLength::DEFAULT).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let private_key = PrivateKey::from_bytes([1; 32]);
        let own = SiteKey::from(*private_key.public_key().as_bytes());
        let config = Config {
            // Nothing listens there.
            url: "https://127.0.0.1:1".parse().unwrap(),
            trust: Trust::Authorities(None),
            private_key: private_key.clone(),
            subnets: Vec::new(),
            authority: Some(authority.publication().root()),
            cache: directory.path().join("a.map"),
            seen: directory.path().join("a.seen"),
            mark: 0,
        };
        let port = UdpPort::bind(&UdpConfig { interface: None, port: 0, workers: 1, gso: false, mark: 0 }).unwrap();
        let destinations = Destinations::default();
        let settings = Settings {
            trust: config.trust.clone(),
            destinations: destinations.clone(),
            birthday_probing: false,
            port_mapping: false,
            pinned_mtu: None,
        };
        let overlay = Overlay {
            statements: Statements::open(Instant::now(), &config),
            believed: Believed::default(),
            surroundings: None,
            moved: BTreeSet::new(),
            traversal: Traversal::new(private_key.to_secret(), port[0].sender(), settings),
            client: Client::start(config.clone(), destinations.clone()),
            new_destinations: destinations.changes(),
            destinations,
            socket: None,
            sizes: None,
            config,
            map: Arc::default(),
            registration: None,
            first_handshakes: Bucket::default(),
            reporting: Reporting::default(),
            refused: Problems::default(),
            outdated: BTreeSet::new(),
            cut_off: Problems::default(),
            default_routes: None,
        };
        let (proto, peers) = peers(&[]);
        let handshakes = Handshakes::of(proto, peers, port[0].sender());
        let map = Arc::default();
        let mut lab = Self { authority, lessor, overlay, handshakes, map, _directory: directory };
        lab.approve(own, u16::MAX);
        lab
    }

    fn approve(&mut self, public_key: SiteKey, number: u16) -> Vec<Document> {
        let [high, low] = number.to_be_bytes();
        let grant = SiteGrant {
            public_key,
            name: format!("site-{number}").parse().unwrap(),
            virtual_address: [100, 64 | (high >> 2), high, low].into(),
            tags: Default::default(),
            subnets: Subnets::new([format!("10.{high}.{low}.0/24").parse().unwrap()]).unwrap(),
            validity: Validity::default(),
        };
        let mut documents = self.authority.approve(wall(), grant).unwrap();
        documents.push(self.lessor.lease(wall(), public_key));
        documents
    }

    /// A new site: the signed document about it, and its entry in the map.
    fn join(&mut self, number: u16) -> (Vec<Document>, (SiteKey, MapPeer)) {
        let public_key = key(number);
        let documents = self.approve(public_key, number);
        let grant = &self.authority.publication().site(&public_key).unwrap().grant;
        let peer = MapPeer {
            name: grant.name.clone(),
            virtual_address: grant.virtual_address,
            subnets: grant.subnets.iter().copied().collect(),
            tags: grant.tags.iter().cloned().collect(),
            allow: None,
            reachability: Some(at(number, 47100)),
        };
        (documents, (public_key, peer))
    }

    /// What the gateway does with a message of the coordinator: these documents, and these sites that are new or have
    /// changed.
    fn receive(&mut self, documents: Vec<Document>, upsert: BTreeMap<SiteKey, MapPeer>) -> Duration {
        let from = self.map.version;
        let to = MapVersion { epoch: 1, number: from.number + 1 };
        let update = Update { from, to, upsert, remove: Vec::new() };
        let begun = Instant::now();
        // The client keeps the map, has it written, and passes it on.
        Arc::make_mut(&mut self.map).apply(update).unwrap();
        let (map, written) = (self.map.clone(), self.map.clone());
        let now = Instant::now();
        for documents in documents.chunks(256) {
            let event = Event::Documents(documents.to_vec());
            self.overlay.handle_input(now, Input::Coordinator(Box::new(event)));
        }
        if self.overlay.handle_input(now, Input::Coordinator(Box::new(Event::Map(map)))) == Outcome::Map {
            self.overlay.judge(now);
            // The part of `wanted::surroundings` that depends on the number of sites.
            let endpoints = endpoints_in_use(&self.handshakes.peers, &self.overlay.believed.sites);
            let servers = self.overlay.servers().chain(endpoints.map(|address| (address, Server::Endpoint)));
            let surroundings = Surroundings::new([], None, servers);
            self.overlay.apply(now, &mut self.handshakes, surroundings);
        }
        self.overlay.follow_paths(now, &mut self.handshakes);
        drop(written);
        begun.elapsed()
    }
}

fn wall() -> UnixTime {
    std::time::SystemTime::now().into()
}

fn key(number: u16) -> SiteKey {
    let mut secret = [5; 32];
    secret[8..10].copy_from_slice(&number.to_be_bytes());
    let secret = PrivateKey::from_bytes(secret);
    SiteKey::from(*secret.public_key().as_bytes())
}

fn at(number: u16, port: u16) -> Reachability {
    let [high, low] = number.to_be_bytes();
    let address = SocketAddr::from(([198, 18 | (high & 1), high, low], port));
    Reachability { candidates: vec![Candidate { kind: CandidateKind::Host, address }], ..Reachability::default() }
}

#[tokio::test]
async fn a_change_of_a_map_costs_as_much_as_it_changes() {
    let mut lab = Lab::new();
    let own = lab.authority.publication().documents().cloned().collect::<Vec<_>>();
    let count = sites();
    let (documents, all): (Vec<_>, Vec<_>) = (1..=count).map(|number| lab.join(number)).unzip();
    let documents = own.into_iter().chain(documents.into_iter().flatten()).collect();
    let whole = lab.receive(documents, all.into_iter().collect());
    assert_eq!(lab.overlay.believed.sites.len(), usize::from(count));
    for (number, peer) in (1..).zip(lab.handshakes.peers.iter_mut()) {
        peer.endpoint = Some(at(number, 47_100).candidates[0].address);
    }
    let least = |run: &mut dyn FnMut(u16) -> Duration| (0..10).map(run).min().unwrap();

    let moved = least(&mut |round| {
        let moved = MapPeer { reachability: Some(at(7, 47_101 + round)), ..lab.map.peers[&key(7)].clone() };
        lab.receive(Vec::new(), [(key(7), moved)].into())
    });
    let joined = least(&mut |round| {
        let (documents, site) = lab.join(count + 1 + round);
        // Meanwhile a path to the previous one was found.
        if let Some(peer) = lab.handshakes.peers.iter_mut().last() {
            peer.endpoint = Some(SocketAddr::from(([198, 51, 100, round as u8], 47_100)));
        }
        lab.receive(documents, [site].into())
    });
    assert_eq!(lab.overlay.believed.sites.len(), usize::from(count) + 10);
    println!("{count} sites: the whole map {whole:.1?}; a site that moves {moved:.1?}; one that joins {joined:.1?}");
    // Signatures and key agreements of the whole map, against one comparison per site.
    assert!(moved < whole / 20, "{moved:?} of {whole:?}");
}
