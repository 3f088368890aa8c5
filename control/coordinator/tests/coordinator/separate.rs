//! A relay of its own: told by the coordinator who may talk, and going on without it. What it passes on of signed
//! documents.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use penstock_connect::Trust;
use penstock_coordinator::admin::{Answer, Request};
use penstock_coordinator::config::{Config, Document};
use penstock_coordinator::relay::key;
use penstock_coordinator::relay::process::{RelayConfig, RelayProcess};
use penstock_proto::coordination::{Fingerprint, Relay, SiteKey};
use penstock_proto::relay::gossip::Gossip;
use penstock_proto::trust::{AuthorityKey, Contents};
use penstock_proto::{PublicKey, StaticSecret};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;

use crate::client::{HOST, PATIENCE};
use crate::program::{PROGRAM, Program};
use crate::running::{Running, addresses, directory, document};
use crate::tunnel::{Link, SILENCE, Tunnel, handshake, passes};

/// A relay whose key the coordinator knows, not started yet.
pub struct Place {
    directory: TempDir,
    key: SiteKey,
}

impl Place {
    pub fn new() -> Self {
        let directory = directory();
        let key = PublicKey::from(&key::load(directory.path()).unwrap()).into();
        Self { directory, key }
    }

    fn announced(&self) -> Document {
        let relay = Relay {
            name: "elsewhere".parse().unwrap(),
            public_key: self.key,
            udp: vec!["192.0.2.9:3478".parse().unwrap()],
            url: None,
            fingerprint: None,
        };
        Document { relays: Some(vec![relay]), relay: Some(false), ..document(self.directory.path()) }
    }

    async fn start(&self, coordinator: &Running) -> RelayProcess {
        self.start_with(coordinator, None, |document| document).await
    }

    /// With the overlay's authority, and with what `change` makes of the usual configuration.
    pub async fn start_with(
        &self,
        coordinator: &Running,
        authority: Option<AuthorityKey>,
        change: fn(Document) -> Document,
    ) -> RelayProcess {
        let config: Config = change(document(self.directory.path())).try_into().unwrap();
        let config = RelayConfig {
            serving: config.serving,
            coordinator: format!("https://{}", coordinator.address).parse().unwrap(),
            tls: Trust::Pinned(coordinator.pin).client_config().unwrap(),
            authority,
        };
        RelayProcess::start(config).await.unwrap()
    }
}

fn udp(relay: &RelayProcess) -> SocketAddr {
    relay.udp.addresses().next().unwrap()
}

async fn tunnel(private: &StaticSecret, relay: &RelayProcess, by_udp: bool) -> Tunnel {
    let link = match by_udp {
        true => Link::udp(udp(relay)).await,
        false => Link::stream(relay.addresses[0], relay.identity.as_ref().unwrap().fingerprint).await,
    };
    Tunnel::new(private, relay.public_key(), link)
}

async fn start(place: &Place) -> Running {
    start_in(place, directory()).await
}

async fn start_in(place: &Place, state: TempDir) -> Running {
    // The proof is for the name by which the relay reaches the coordinator.
    let names = Some(vec![HOST.into(), "127.0.0.1".into()]);
    Running::start_with(state, Document { names, ..place.announced() }).await
}

/// Of which revoked sites a relay tells a site that binds itself there.
async fn revoked(site: &StaticSecret, relay: &RelayProcess) -> Vec<SiteKey> {
    let mut tunnel = tunnel(site, relay, true).await;
    tunnel.bind().await;
    let mut gossip = Gossip::new(Instant::now(), StdRng::from_os_rng());
    let mut sites = Vec::new();
    while let Some(ask) = gossip.poll_transmit(Instant::now()) {
        tunnel.link.send(&ask).await;
        let answer = tunnel.link.receive(10 * SILENCE).await.expect("the relay answers");
        for document in gossip.handle_datagram(Instant::now(), &answer).expect("an answer") {
            if let Contents::Revocations(list) = document.contents() {
                sites.extend(list.subjects().map(|(site, _)| *site));
            }
        }
    }
    sites
}

/// A copy of a coordinator's state.
fn copy(state: &Path) -> TempDir {
    let copy = directory();
    for entry in std::fs::read_dir(state).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

#[tokio::test]
async fn it_carries_who_may_talk_and_goes_on_without_the_coordinator() {
    let place = Place::new();
    let running = start(&place).await;
    let (a_site, a_connection) = running.site("a", &[], &[]).await;
    let relay = place.start(&running).await;
    assert_eq!(relay.public_key(), place.key);
    assert_eq!(a_connection.map.as_ref().unwrap().relays[0].public_key, place.key);
    // One was there before the relay, the others come later.
    let (b_site, _b_connection) = running.site("b", &[], &[]).await;
    let (c_site, _c_connection) = running.site("c", &[], &[]).await;
    let (mut a, mut b) = (tunnel(&a_site.private, &relay, true).await, tunnel(&b_site.private, &relay, false).await);
    let mut c = tunnel(&c_site.private, &relay, true).await;
    for tunnel in [&mut a, &mut b, &mut c] {
        tunnel.bind().await;
    }
    assert!(handshake(&mut a, &mut b).await && passes(&mut b, &mut a, b"by the other relay").await);
    assert_eq!(running.status().await.relays_connected, [place.key]);

    running.policy(r#"{"Links": [["a", "b"]]}"#).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!handshake(&mut c, &mut a).await);
    running.done(Request::Revoke("c".into())).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(c.try_bind().await, None);

    // Without the coordinator what was known holds, for new bindings and handshakes too.
    let (pin, kept) = (running.pin, running.stop().await);
    a.link = Link::udp(udp(&relay)).await;
    a.bind().await;
    assert!(handshake(&mut b, &mut a).await && passes(&mut a, &mut b, b"all the same").await);
    assert!(!handshake(&mut c, &mut a).await);

    // Back again, it tells what changed meanwhile.
    let names = Some(vec![HOST.into(), "127.0.0.1".into()]);
    let again = Document { names, listen: Some(vec![addresses(kept.path())[0]]), ..place.announced() };
    let running = Running::start_with(kept, again).await;
    assert_eq!(running.pin, pin);
    running.policy(r#"{"Links": []}"#).await;
    let cut = async {
        while handshake(&mut b, &mut a).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, cut).await.expect("the relay comes back and parts them");
}

/// A coordinator that is hostile, or was restored from a backup, shows what was signed before a revocation.
#[tokio::test]
async fn a_coordinator_that_shows_older_documents_does_not_undo_a_revocation() {
    let place = Place::new();
    let running = start(&place).await;
    let Answer::Authority(report) = running.ask(Request::Authority).await else { panic!("no authority") };
    let (site, _) = running.site("a", &[], &[]).await;
    let (stolen, _) = running.site("b", &[], &[]).await;
    let state = running.stop().await;
    let backup = copy(state.path());

    let running = start_in(&place, state).await;
    let pinned = place.start_with(&running, Some(report.authority), |document| document).await;
    assert_eq!(revoked(&site.private, &pinned).await, []);
    running.done(Request::Revoke("b".into())).await;
    let told = async { while revoked(&site.private, &pinned).await != [stolen.key] {} };
    tokio::time::timeout(PATIENCE, told).await.expect("the relay tells of the revocation");
    running.stop().await;

    let running = start_in(&place, backup).await;
    drop(pinned);
    let pinned = place.start_with(&running, Some(report.authority), |document| document).await;
    assert_eq!(revoked(&site.private, &pinned).await, [stolen.key]);
    // Without the authority's key it has nothing but the coordinator's word.
    drop(pinned);
    let relay = place.start(&running).await;
    assert_eq!(revoked(&site.private, &relay).await, []);
}

#[tokio::test]
async fn a_stranger_is_no_relay_and_nobody_binds_before_the_coordinator_spoke() {
    let place = Place::new();
    let running = Running::start().await;
    let (site, _connection) = running.site("a", &[], &[]).await;
    // The coordinator does not know this relay.
    let relay = place.start(&running).await;
    let mut a = tunnel(&site.private, &relay, true).await;
    assert_eq!(a.try_bind().await, None);
    assert_eq!(relay.relay.count(), (0, 0));
    assert!(relay.relay.counters.drops()["unknown-site"] > 0);
    assert_eq!(running.status().await.relays_connected, []);
}

/// The program, as a relay of a coordinator at that URL.
fn program(state: &Path, url: &str, trust: &[&str]) -> Program {
    let [tcp, udp] = addresses(state).map(|address| address.to_string());
    let mut command = Command::new(PROGRAM);
    command.arg("--state").arg(state).args(["relay", "--listen", &tcp, "--udp", &udp, "--name", HOST]);
    command.args(["--stun-alternate-port", "0", "--coordinator", url]).args(trust).env_remove("RUST_LOG");
    Program::spawn(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_why_the_coordinator_is_not_trusted() {
    let (place, running) = (Place::new(), Running::start().await);
    let (state, url) = (place.directory.path(), format!("https://{}", running.address));
    let relay = program(state, &url, &["--fingerprint", &Fingerprint([0; 32]).to_string()]);
    let why =
        relay.says("no connection to the coordinator: 127.0.0.1: it shows another certificate than the pinned one");
    assert!(why.contains(&running.pin.to_string()), "{why}");
    drop(relay);
    // A namesake's key.
    let own = state.join("certificate.pem");
    let relay = program(state, &url, &["--ca", own.to_str().unwrap()]);
    relay.says("no connection to the coordinator: 127.0.0.1: its certificate is refused: ");
    drop(relay);
    // What cannot be read is said at the start.
    program(state, &url, &["--ca", "/dev/null"]).says("the file of certificate authorities /dev/null: there is no");
}
