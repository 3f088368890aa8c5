//! A separate relay: the coordinator tells it who may talk, and it continues without the coordinator. Which signed
//! documents it passes on.

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
pub struct PlannedRelay {
    directory: TempDir,
    key: SiteKey,
}

impl PlannedRelay {
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

    /// With a coordinator that may be gone.
    async fn start_at(
        &self,
        (address, pin): (SocketAddr, Fingerprint),
        authority: Option<AuthorityKey>,
    ) -> RelayProcess {
        self.start_as(document(self.directory.path()), address, pin, authority).await
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
        self.start_as(change(document(self.directory.path())), coordinator.address, coordinator.pin, authority).await
    }

    async fn start_as(
        &self,
        document: Document,
        coordinator: SocketAddr,
        pin: Fingerprint,
        authority: Option<AuthorityKey>,
    ) -> RelayProcess {
        let config: Config = document.try_into().unwrap();
        let config = RelayConfig {
            serving: config.serving,
            coordinator: format!("https://{coordinator}").parse().unwrap(),
            tls: Trust::Pinned(pin).client_config().unwrap(),
            authority,
        };
        RelayProcess::start(config).await.unwrap()
    }

    /// Waits until the relay has on its disk that one of these is a site and the other no longer is.
    async fn keeps(&self, site: &SiteKey, gone: &SiteKey) {
        let path = self.directory.path().join("snapshot");
        let kept = async {
            loop {
                let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
                if text.contains(&site.to_string()) && !text.contains(&gone.to_string()) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, kept).await.expect("its state is kept");
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

async fn start(planned: &PlannedRelay) -> Running {
    start_in(planned, directory()).await
}

async fn start_in(planned: &PlannedRelay, state: TempDir) -> Running {
    // The proof is for the name by which the relay reaches the coordinator.
    let names = Some(vec![HOST.into(), "127.0.0.1".into()]);
    let listen = Some(vec![addresses(state.path())[0]]);
    Running::start_with(state, Document { names, listen, ..planned.announced() }).await
}

/// The revoked sites that a relay lists to a site that binds itself there.
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
    let planned = PlannedRelay::new();
    let running = start(&planned).await;
    let (a_site, a_connection) = running.site("a", &[], &[]).await;
    let relay = planned.start(&running).await;
    assert_eq!(relay.public_key(), planned.key);
    assert_eq!(a_connection.map.as_ref().unwrap().relays[0].public_key, planned.key);
    // One was there before the relay, the others come later.
    let (b_site, _b_connection) = running.site("b", &[], &[]).await;
    let (c_site, _c_connection) = running.site("c", &[], &[]).await;
    let (mut a, mut b) = (tunnel(&a_site.private, &relay, true).await, tunnel(&b_site.private, &relay, false).await);
    let mut c = tunnel(&c_site.private, &relay, true).await;
    for tunnel in [&mut a, &mut b, &mut c] {
        tunnel.bind().await;
    }
    assert!(handshake(&mut a, &mut b).await && passes(&mut b, &mut a, b"by the other relay").await);
    assert_eq!(running.status().await.relays_connected, [planned.key]);

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
    let running = start_in(&planned, kept).await;
    assert_eq!(running.pin, pin);
    running.policy(r#"{"Links": []}"#).await;
    let cut = async {
        while handshake(&mut b, &mut a).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, cut).await.expect("the relay comes back and parts them");
}

#[tokio::test]
async fn it_restarts_without_the_coordinator_and_lets_nobody_in_who_was_revoked() {
    let planned = PlannedRelay::new();
    let running = start(&planned).await;
    let Answer::Authority(report) = running.ask(Request::Authority).await else { panic!("no authority") };
    let mut sites = Vec::new();
    for name in ["a", "b", "hidden", "revoked"] {
        sites.push(running.site(name, &[], &[]).await.0);
    }
    let relay = planned.start(&running).await;
    running.policy(r#"{"Links": [["a", "b"], ["hidden", "revoked"]]}"#).await;
    running.done(Request::Revoke("revoked".into())).await;
    planned.keeps(&sites[0].key, &sites[3].key).await;
    drop(relay);
    // The relay that knows the authority has to be told by itself.
    let relay = planned.start_with(&running, Some(report.authority), |document| document).await;
    let told = async { while revoked(&sites[0].private, &relay).await != [sites[3].key] {} };
    tokio::time::timeout(PATIENCE, told).await.expect("the relay tells of the revocation");
    drop(relay);
    let (was, state) = ((running.address, running.pin), running.stop().await);

    for authority in [None, Some(report.authority)] {
        let relay = planned.start_at(was, authority).await;
        let by_udp = [true, false, true, true];
        let mut tunnels = Vec::new();
        for (site, by_udp) in sites.iter().zip(by_udp) {
            tunnels.push(tunnel(&site.private, &relay, by_udp).await);
        }
        let [a, b, hidden, gone] = &mut tunnels[..] else { panic!("four") };
        assert_eq!(gone.try_bind().await, None);
        for tunnel in [&mut *a, b, hidden] {
            tunnel.bind().await;
        }
        assert!(handshake(a, b).await && passes(b, a, b"without the coordinator").await);
        assert!(!handshake(hidden, a).await, "the policy is in force");
        assert_eq!(revoked(&sites[0].private, &relay).await, [sites[3].key], "with {authority:?}");
    }

    // Whoever changes the file lets nobody in, and neither does what is left of it.
    let path = planned.directory.path().join("snapshot");
    let kept = std::fs::read(&path).unwrap();
    let mut bent = kept.clone();
    *bent.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bent).unwrap();
    let relay = planned.start_at(was, None).await;
    assert_eq!(relay.relay.count(), (0, 0));
    drop(relay);

    // What has changed meanwhile is in force as soon as the coordinator is back.
    std::fs::write(&path, kept).unwrap();
    let relay = planned.start_at(was, None).await;
    assert_eq!(relay.relay.count().0, 3);
    let running = start_in(&planned, state).await;
    assert_eq!((running.address, running.pin), was);
    running.done(Request::Revoke("b".into())).await;
    planned.keeps(&sites[0].key, &sites[1].key).await;
    assert_eq!(tunnel(&sites[1].private, &relay, true).await.try_bind().await, None);
}

/// A coordinator that is hostile, or was restored from a backup, shows what was signed before a revocation.
#[tokio::test]
async fn a_coordinator_that_shows_older_documents_does_not_undo_a_revocation() {
    let planned = PlannedRelay::new();
    let running = start(&planned).await;
    let Answer::Authority(report) = running.ask(Request::Authority).await else { panic!("no authority") };
    let (site, _) = running.site("a", &[], &[]).await;
    let (stolen, _) = running.site("b", &[], &[]).await;
    let state = running.stop().await;
    let backup = copy(state.path());

    let running = start_in(&planned, state).await;
    let pinned = planned.start_with(&running, Some(report.authority), |document| document).await;
    assert_eq!(revoked(&site.private, &pinned).await, []);
    running.done(Request::Revoke("b".into())).await;
    let told = async { while revoked(&site.private, &pinned).await != [stolen.key] {} };
    tokio::time::timeout(PATIENCE, told).await.expect("the relay tells of the revocation");
    running.stop().await;

    let running = start_in(&planned, backup).await;
    drop(pinned);
    let pinned = planned.start_with(&running, Some(report.authority), |document| document).await;
    assert_eq!(revoked(&site.private, &pinned).await, [stolen.key]);
    // Without the authority's key it has nothing but the coordinator's word.
    drop(pinned);
    let relay = planned.start(&running).await;
    assert_eq!(revoked(&site.private, &relay).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_no_relay_and_nobody_binds_before_the_coordinator_spoke() {
    let planned = PlannedRelay::new();
    let names = Some(vec![HOST.into(), "127.0.0.1".into()]);
    let running = Running::start_with(directory(), Document { names, ..document(planned.directory.path()) }).await;
    let (site, _connection) = running.site("a", &[], &[]).await;
    // The coordinator does not know this relay.
    let relay = planned.start(&running).await;
    let mut a = tunnel(&site.private, &relay, true).await;
    assert_eq!(a.try_bind().await, None);
    assert_eq!(relay.relay.count(), (0, 0));
    assert!(relay.relay.counters.drops()["unknown-site"] > 0);
    assert_eq!(running.status().await.relays_connected, []);
    drop(relay);
    let url = format!("https://{}", running.address);
    let relay = program(planned.directory.path(), &url, &["--fingerprint", &running.pin.to_string()]);
    relay.says("it does not know this relay: name the relay's public key in the coordinator's configuration");
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
    let (planned, running) = (PlannedRelay::new(), Running::start().await);
    let (state, url) = (planned.directory.path(), format!("https://{}", running.address));
    let relay = program(state, &url, &["--fingerprint", &Fingerprint([0; 32]).to_string()]);
    let why =
        relay.says("no connection to the coordinator: 127.0.0.1: it shows another certificate than the pinned one");
    assert!(why.contains(&running.pin.to_string()), "{why}");
    drop(relay);
    // A certificate that does not vouch for the coordinator's.
    let own = state.join("certificate.pem");
    let relay = program(state, &url, &["--ca", own.to_str().unwrap()]);
    relay.says("no connection to the coordinator: 127.0.0.1: its certificate is refused: ");
    drop(relay);
    // A file that cannot be used is reported at the start.
    program(state, &url, &["--ca", "/dev/null"]).says("the file of certificate authorities /dev/null: there is no");
}
