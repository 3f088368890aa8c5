//! The client: maps, lost connections, and operation without a coordinator.

use std::time::{Duration, Instant};

use penstock::coordinator::{Client, Event, State};
use penstock_proto::coordination::limits::{PING_INTERVAL, SILENCE_LIMIT};
use penstock_proto::coordination::{
    Candidate, CandidateKind, Map, Reachability, RefusalReason, RegistrationState, SiteKey,
};

use super::laboratory::{Coordinator, Running, Site, eventually};

fn at(address: &str) -> Reachability {
    let candidate = Candidate { kind: CandidateKind::Host, address: address.parse().unwrap() };
    Reachability { candidates: vec![candidate], ..Reachability::default() }
}

fn key(site: &Site) -> SiteKey {
    (*site.load().private_key.public_key().as_bytes()).into()
}

/// The addresses that a map has for a peer.
fn addresses(map: &Map, peer: &SiteKey) -> Vec<String> {
    let reachability = map.peers.get(peer).and_then(|peer| peer.reachability.as_ref());
    reachability.into_iter().flat_map(|at| &at.candidates).map(|candidate| candidate.address.to_string()).collect()
}

async fn until_address(running: &mut Running, peer: &SiteKey, address: &str) {
    running
        .until(address, |event| match event {
            Event::Map(map) => (addresses(map, peer) == [address]).then_some(()),
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn two_sites_learn_of_each_other_and_where_they_are() {
    let Some(mut coordinator) = Coordinator::start() else { return };
    let (amsterdam, berlin) =
        (coordinator.site("amsterdam", "10.101.0.0/24"), coordinator.site("berlin", "10.102.0.0/24"));
    let mut a = amsterdam.client();
    assert_eq!(a.client.state(), State::Connecting);
    assert_eq!(a.next().await, Event::Connected);
    let Event::Registered(registration) = a.next().await else { panic!("no registration") };
    assert_eq!((registration.name.as_str(), registration.state), ("amsterdam", RegistrationState::Approved));
    assert!(matches!(a.client.state(), State::Connected { .. }));
    a.until_peers(&["berlin"]).await;
    let b = berlin.client();
    b.client.announce(at("192.0.2.2:47100"));
    until_address(&mut a, &key(&berlin), "192.0.2.2:47100").await;
    assert_eq!(a.map.as_ref().unwrap().peers[&key(&berlin)].subnets, ["10.102.0.0/24".parse().unwrap()]);

    // The latest announcement counts, however many there are, and the coordinator tolerates them.
    for port in 1..=100 {
        b.client.announce(at(&format!("192.0.2.2:{port}")));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    until_address(&mut a, &key(&berlin), "192.0.2.2:100").await;
    assert!(matches!(b.client.state(), State::Connected { .. }), "{:?}", b.client.state());

    // It is announced again to a coordinator that comes back.
    coordinator.kill();
    a.until_lost().await;
    let State::Disconnected { why, .. } = a.client.state() else { panic!("{:?}", a.client.state()) };
    assert!(why.contains("coordinator"), "{why}");
    coordinator.run();
    until_address(&mut a, &key(&berlin), "192.0.2.2:100").await;
}

#[tokio::test]
async fn what_is_known_outlives_the_coordinator_and_us() {
    let Some(mut coordinator) = Coordinator::start() else { return };
    let (amsterdam, _) = (coordinator.site("amsterdam", "10.1.0.0/24"), coordinator.site("berlin", "10.2.0.0/24"));
    let mut first = amsterdam.client();
    first.until_peers(&["berlin"]).await;
    let known = || Client::cached(&amsterdam.config()).map_or(0, |cached| cached.map.peers.len());
    eventually("the map is kept", || known() == 1).await;
    drop(first);
    coordinator.kill();

    // A start without the coordinator.
    let cached = Client::cached(&amsterdam.config()).unwrap();
    assert_eq!(cached.registration.name.as_str(), "amsterdam");
    let mut again = amsterdam.client();
    let why = again.until_lost().await;
    assert!(why.contains("cannot be reached: Connection refused"), "{why}");
    assert_eq!(known(), 1);

    // It comes back, and knows more.
    coordinator.run();
    let _cairo = coordinator.site("cairo", "10.3.0.0/24");
    again.client.hurry();
    again.until_peers(&["berlin", "cairo"]).await;
    eventually("the new map is kept", || known() == 2).await;
}

#[tokio::test]
async fn damaged_and_foreign_files_are_passed_over() {
    let Some(coordinator) = Coordinator::start() else { return };
    let (amsterdam, berlin) = (coordinator.site("amsterdam", "10.1.0.0/24"), coordinator.site("berlin", "10.2.0.0/24"));
    let good = std::fs::read(amsterdam.cache()).unwrap();
    let mut bent = good.clone();
    *bent.last_mut().unwrap() ^= 1;
    let foreign = std::fs::read(berlin.cache()).unwrap();
    for bytes in [&b""[..], b"garbage", &bent, &good[..good.len() / 2], &foreign] {
        std::fs::write(amsterdam.cache(), bytes).unwrap();
        assert!(Client::cached(&amsterdam.config()).is_none());
        amsterdam.client().until_peers(&["berlin"]).await;
        eventually("it is written anew", || Client::cached(&amsterdam.config()).is_some()).await;
    }
}

#[tokio::test]
async fn a_site_that_waits_is_told_of_its_approval() {
    let Some(coordinator) = Coordinator::start() else { return };
    let _berlin = coordinator.site("berlin", "10.2.0.0/24");
    let amsterdam = Site::new("amsterdam", "10.1.0.0/24");
    let key = coordinator.key(&["--approve-manually"]);
    assert!(amsterdam.enrol(&[&key, "--coordinator", &coordinator.url()]).is(0));
    let mut running = amsterdam.client();
    let state = |event: &Event| match event {
        Event::Registered(registration) => Some(registration.state),
        Event::Map(_) => panic!("a map for a site that waits"),
        _ => None,
    };
    assert_eq!(running.until("a registration", state).await, RegistrationState::Pending);
    coordinator.cli(&["site", "approve", "amsterdam"]);
    assert_eq!(running.until("the approval", state).await, RegistrationState::Approved);
    running.until_peers(&["berlin"]).await;
}

#[tokio::test]
async fn a_revoked_site_is_told_and_forgets_and_the_others_too() {
    let Some(coordinator) = Coordinator::start() else { return };
    let (amsterdam, berlin) = (coordinator.site("amsterdam", "10.1.0.0/24"), coordinator.site("berlin", "10.2.0.0/24"));
    let (mut a, mut b) = (amsterdam.client(), berlin.client());
    a.until_peers(&["berlin"]).await;
    b.until_peers(&["amsterdam"]).await;
    let start = Instant::now();
    coordinator.cli(&["site", "revoke", "amsterdam"]);
    let refusal = a
        .until("a refusal", |event| match event {
            Event::Refused(refusal) => Some(refusal.clone()),
            _ => None,
        })
        .await;
    b.until_peers(&[]).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(refusal.reason, RefusalReason::Revoked);
    eventually("the map is gone", || !amsterdam.cache().exists()).await;
    let State::Disconnected { why, .. } = a.client.state() else { panic!("{:?}", a.client.state()) };
    assert_eq!(why, "this site was revoked");
    // It is tried again, slowly if nothing else happens.
    a.client.hurry();
    a.until("another refusal", |event| matches!(event, Event::Refused(_)).then_some(())).await;
    coordinator.cli(&["site", "approve", "amsterdam"]);
    a.client.hurry();
    a.until_peers(&["berlin"]).await;
}

#[tokio::test]
async fn a_changed_certificate_is_refused_for_good() {
    let Some(mut coordinator) = Coordinator::start() else { return };
    let (amsterdam, _) = (coordinator.site("amsterdam", "10.1.0.0/24"), coordinator.site("berlin", "10.2.0.0/24"));
    let mut running = amsterdam.client();
    running.until_peers(&["berlin"]).await;
    coordinator.change_certificate();
    running
        .until("the refusal of the certificate", |event| match event {
            Event::Lost(why) => why.contains("shows another certificate than the pinned one").then_some(()),
            Event::Connected => panic!("connected to somebody else"),
            _ => None,
        })
        .await;
    assert!(Client::cached(&amsterdam.config()).is_some(), "what is known stays");
}

#[tokio::test]
async fn a_coordinator_that_hangs_is_left_soon_after_a_change_of_the_network() {
    let Some(coordinator) = Coordinator::start() else { return };
    let amsterdam = coordinator.site("amsterdam", "10.1.0.0/24");
    let mut running = amsterdam.client();
    running.until_peers(&[]).await;
    // A coordinator that answers is not abandoned.
    running.client.hurry();
    let early = tokio::time::timeout(Duration::from_secs(6), running.client.next()).await;
    assert!(early.is_err(), "{early:?}");
    coordinator.signal("-STOP");
    let start = Instant::now();
    running.client.hurry();
    let why = running.until_lost().await;
    coordinator.signal("-CONT");
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
    assert!(why.contains("silent"), "{why}");
    running.until("it is back", |event| matches!(event, Event::Connected).then_some(())).await;
}

/// Pings keep the connection, and are answered.
#[tokio::test]
async fn an_idle_connection_stays() {
    if std::env::var_os("PENSTOCK_TEST_LONG").is_none_or(|value| value != "1") {
        return;
    }
    let Some(coordinator) = Coordinator::start() else { return };
    let amsterdam = coordinator.site("amsterdam", "10.1.0.0/24");
    let mut running = amsterdam.client();
    running.until_peers(&[]).await;
    let quiet = SILENCE_LIMIT + 2 * PING_INTERVAL;
    let more = tokio::time::timeout(quiet, running.client.next()).await;
    assert!(more.is_err(), "{more:?}");
}
