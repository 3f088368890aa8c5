//! A relay elsewhere passes on a revocation that the coordinator cannot: first a relay whose every step is observed,
//! then the program beside a real coordinator.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use penstock_proto::coordination::{Relay, SiteKey};
use penstock_proto::relay::gossip::ASK_EVERY;
use penstock_proto::relay::{self, Outcome, RelayLimits, Source};
use penstock_proto::trust::{Document, LeaseLength, Validity};
use penstock_proto::{PublicKey, generate_private_key};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use super::{World, name, tools, wall};
use crate::support::nat::{Kind, Lab};
use crate::support::overlay::{Coordinator, OverlayGateway, Pair, Relay as RelayProgram};
use crate::support::*;

/// A UDP relay that somebody else runs.
struct Elsewhere {
    key: SiteKey,
    address: SocketAddr,
    relay: Arc<Mutex<relay::Relay>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Elsewhere {
    fn start(lab: &Lab, sites: &[SiteKey]) -> Self {
        let private = generate_private_key(&mut StdRng::seed_from_u64(3));
        let key = SiteKey::from(PublicKey::from(&private));
        let mut relay = relay::Relay::new(private, [7; 32].into(), RelayLimits::default());
        for site in sites {
            relay.set_site((*site).into(), sites.iter().map(|site| PublicKey::from(*site)));
        }
        let address = SocketAddr::new(lab.server(3).into(), 3478);
        let socket = lab.internet().enter(|| UdpSocket::bind(address)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let (relay, stop) = (Arc::new(Mutex::new(relay)), Arc::new(AtomicBool::new(false)));
        let (decider, stopped) = (relay.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let mut relay = decider.lock().expect("nobody panics with it");
                let outcome = relay.handle_datagram(Instant::now(), Source::Udp(from), &buffer[..length]);
                let sent = match outcome {
                    Ok(Outcome::Answer(answer)) => socket.send_to(&answer, from),
                    Ok(Outcome::Forward(Source::Udp(to))) => socket.send_to(&buffer[..length], to),
                    _ => continue,
                };
                sent.expect("sent");
            }
        });
        Self { key, address, relay, stop, thread: Some(thread) }
    }

    fn pass_on<'a>(&self, documents: impl IntoIterator<Item = &'a Document>) {
        self.relay.lock().expect("nobody panics with it").set_documents(documents);
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn keeping_a_gateway_from_its_coordinator_does_not_undo_a_revocation() {
    if !tools() {
        return;
    }
    let mut world = World::new(LeaseLength::DEFAULT);
    let keys: Vec<SiteKey> = world.keys.iter().map(|(_, key)| *key).collect();
    let relay = Elsewhere::start(&world.lab, &keys);
    let relay_name = "elsewhere".parse().expect("a name");
    world.authority.approve_relay(wall(), relay.key, relay_name, Validity::default()).expect("room");
    relay.pass_on(world.authority.publication().common());
    let listed = Relay {
        name: "elsewhere".parse().expect("a name"),
        public_key: relay.key,
        udp: vec![relay.address],
        url: None,
        fingerprint: None,
    };
    for number in 0..2 {
        let (documents, mut map) = (world.documents(), world.map_for(number));
        map.relays.push(listed.clone());
        world.show(number, documents, map);
    }
    world.start(true);
    world.await_direct();
    let bound = || world.gateways[0].status()["Relays"][0]["Bound"] == json!(true);
    eventually(PATIENCE, "the relay has bound it", bound);

    world.puppet.stop();
    world.authority.revoke(wall(), [keys[1]]).expect("room");
    relay.pass_on(world.authority.publication().common());
    let alone = || world.gateways[0].status()["Peers"] == json!([]);
    eventually(ASK_EVERY + PATIENCE, "the revocation gets there", alone);
    let status = world.await_refused(0, &[&name(1)]);
    assert_eq!((&status["Peers"], &status["Coordinator"]["Connected"]), (&json!([]), &json!(false)));
    assert!(!world.ping());
}

/// From the moment of the revocation on, one gateway cannot reach the coordinator at all, only the relay elsewhere.
#[test]
fn a_gateway_that_reaches_only_a_relay_learns_of_a_revocation() {
    if !tools() {
        return;
    }
    let lab = Lab::new();
    let mut coordinator = Coordinator::start(&lab);
    let relay = RelayProgram::start(&lab, &coordinator, 3);
    coordinator.list_relays(&[relay.listing("elsewhere", relay.address)], &["--no-relay"]);
    let pair = Pair::start(&lab, &coordinator, [Kind::None, Kind::None], &json!({}));
    pair.await_both("direct", 2 * PATIENCE);
    let bound = |gateway: &OverlayGateway| gateway.status()["Relays"][0]["Bound"] == json!(true);
    eventually(PATIENCE, "the relay has bound it", || bound(&pair.gateway_a));

    let ip = lab.server(1);
    pair.a.gateway.nft(&format!(
        "table inet blocked {{
            chain in {{ type filter hook input priority -10; ip saddr {ip} drop; }}
            chain out {{ type filter hook output priority -10; ip daddr {ip} drop; }}
        }}"
    ));
    coordinator.run(&["site", "revoke", &pair.gateway_b.name]);
    let alone = || pair.gateway_a.status()["Peers"] == json!([]);
    eventually(ASK_EVERY + PATIENCE, "the revocation gets there", alone);
    let refused = pair.gateway_a.status()["Coordinator"]["Refused"].clone();
    assert_eq!(refused[0]["Name"], json!(pair.gateway_b.name), "{refused}");
    let pings = ping(&pair.a.host, pair.b.host_address(), &["-c", "3", "-i", "0.2"]);
    assert_eq!(pings.received, 0, "{}", pings.text);
}
