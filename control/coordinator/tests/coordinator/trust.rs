//! What the overlay's authority signs, where its key is, and what a site may offer.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use penstock_coordinator::admin::{Answer, Request, SiteStatus};
use penstock_coordinator::config::Document;
use penstock_coordinator::site::BindingMode;
use penstock_proto::coordination::{Candidate, CandidateKind, GatewayMessage};
use penstock_proto::coordination::{EnrolmentKey, Reachability, RefusalReason, RegistrationState};
use penstock_proto::trust::{AuthorityKey, Contents, LeaseLength, Now, PeerReason};
use sqlx::{ConnectOptions, Connection as _};
use tempfile::TempDir;

use crate::client::{Connection, Gateway, refusal};
use crate::program::{Program, enrolment_key, succeeds};
use crate::running::{Running, approve, directory, document, grant};

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

async fn authority(running: &Running) -> AuthorityKey {
    running.key(1, &[]).await.authority().unwrap()
}

async fn site(running: &Running, name: &str) -> SiteStatus {
    running.sites().await.into_iter().find(|status| status.site.name.as_str() == name).unwrap()
}

fn waiting(connection: &Connection) -> Vec<String> {
    let registration = connection.registration.as_ref().unwrap();
    registration.waiting.iter().map(|waiting| format!("{}: {}", waiting.subnet, waiting.reason)).collect()
}

async fn told(connection: &mut Connection, subnets: &[&str], waits: usize) {
    let wanted = nets(subnets);
    let what = format!("{subnets:?} are in force and {waits} wait");
    let is_told = |connection: &Connection| {
        connection.registration.as_ref().is_some_and(|now| now.subnets == wanted && now.waiting.len() == waits)
    };
    connection.until(&what, is_told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_coordinator_tells_is_signed() {
    let running = Running::start().await;
    let authority = authority(&running).await;
    let (amsterdam, mut a) = running.site("amsterdam", &["10.101.0.0/24"], &["branch"]).await;
    let (berlin, mut b) = running.site("berlin", &["10.102.0.0/24"], &[]).await;
    a.until_peers(&["berlin"]).await;
    b.until_peers(&["amsterdam"]).await;
    let expected = |name: &str, nets_of: &[&str]| (name.to_owned(), nets(nets_of));
    assert_eq!(a.admitted(amsterdam.key, authority), [expected("berlin", &["10.102.0.0/24", "100.64.0.2/32"])]);
    assert_eq!(b.admitted(berlin.key, authority), [expected("amsterdam", &["10.101.0.0/24", "100.64.0.1/32"])]);
    let relay = a.map.as_ref().unwrap().relays[0].clone();
    let now = Now { instant: Instant::now(), wall: std::time::SystemTime::now().into() };
    assert_eq!(a.verifier(amsterdam.key, authority).admit_relay(now, &relay.public_key), Ok(&relay.name));

    // A revocation reaches those that were peers and those that were not, and outlives the coordinator.
    running.policy(r#"{"Links": []}"#).await;
    running.done(Request::Revoke("berlin".into())).await;
    let revoked = |connection: &Connection| {
        connection.documents.iter().any(|document| match document.contents() {
            Contents::Revocations(list) => list.subjects().any(|(subject, _)| *subject == berlin.key),
            _ => false,
        })
    };
    a.until("the revocation is told", revoked).await;
    let running = Running::start_in(running.stop().await).await;
    let mut again = running.connect(&amsterdam).await.unwrap();
    again.until("the revocation is told again", revoked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subnet_that_is_not_plainly_a_sites_own_waits_for_a_grant() {
    let running = Running::start().await;
    let authority = authority(&running).await;
    let (_, mut a) = running.site("amsterdam", &["10.101.0.0/16"], &[]).await;
    // Another site says that it is reached there, by an address that a STUN server saw.
    let address = "192.168.7.1:51820".parse().unwrap();
    let candidates = vec![Candidate { kind: CandidateKind::ServerReflexive, address }];
    a.send(&GatewayMessage::Reachability(Reachability { candidates, ..Reachability::default() })).await;
    let (watching, mut watcher) = running.site("watcher", &[], &[]).await;
    let knows =
        |watcher: &Connection| watcher.map.as_ref().unwrap().peers.values().any(|peer| peer.reachability.is_some());
    watcher.until("the address is known", knows).await;

    let offers =
        ["10.101.7.0/24", "192.168.7.0/24", "8.0.0.0/7", "2000::/3", "0.0.0.0/0", "100.64.0.0/16", "10.5.0.1/24"];
    let (berlin, mut b) = running.site("berlin", &[&offers[..], &["10.102.0.0/24"]].concat(), &[]).await;
    assert_eq!(b.state(), RegistrationState::Approved);
    told(&mut b, &["10.102.0.0/24"], offers.len()).await;
    let reasons = [
        "10.101.7.0/24: it overlaps 10.101.0.0/16 of amsterdam",
        "192.168.7.0/24: it holds the outer address of another site",
        "8.0.0.0/7: a prefix that is not private must be granted",
        "2000::/3: a prefix that is not private must be granted",
        "0.0.0.0/0: a default route must be granted",
        "100.64.0.0/16: 100.64.0.0/16 cannot be at a site: it lies inside 100.64.0.0/10, where sites have their virtual \
         addresses",
        "10.5.0.1/24: 10.5.0.1/24 is an address within a subnet: write 10.5.0.0/24",
    ];
    assert_eq!(waiting(&b), reasons);
    let status = site(&running, "berlin").await;
    assert_eq!((status.site.in_force, status.waiting.len()), (nets(&["10.102.0.0/24"]), offers.len()));

    // Approval alone grants none of these. If they are named, it grants those that a site can have.
    running.done(approve("berlin")).await;
    assert_eq!(site(&running, "berlin").await.site.in_force, nets(&["10.102.0.0/24"]));
    let possible = ["10.101.7.0/24", "192.168.7.0/24", "8.0.0.0/7", "2000::/3", "0.0.0.0/0", "10.102.0.0/24"];
    running.done(grant("berlin", &possible)).await;
    told(&mut b, &possible, 2).await;
    let routed = |watcher: &Connection| {
        watcher.map.as_ref().unwrap().peers.get(&berlin.key).is_some_and(|peer| peer.subnets == nets(&possible))
    };
    watcher.until("it is routed", routed).await;
    let admitted = watcher.admitted(watching.key, authority);
    let (_, routed) = admitted.iter().find(|(name, _)| name == "berlin").unwrap();
    // The longer subnet inside amsterdam's is berlin's by the authority's word.
    assert_eq!(routed.len(), possible.len() + 1);
    match running.ask(grant("watcher", &["0.0.0.0/0"])).await {
        Answer::Error(sentence) => assert!(sentence.contains("berlin may offer 0.0.0.0/0 already"), "{sentence}"),
        other => panic!("{other:?}"),
    }
    for impossible in ["127.0.0.0/8", "100.64.0.0/16", "10.5.0.1/24"] {
        assert!(matches!(running.ask(grant("watcher", &[impossible])).await, Answer::Error(_)), "{impossible}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_offer_waits_and_the_old_one_stays_in_force() {
    let running = Running::start().await;
    let (amsterdam, mut a) = running.site("amsterdam", &["10.101.0.0/24"], &[]).await;
    let (_, mut b) = running.site("berlin", &[], &[]).await;
    b.until_peers(&["amsterdam"]).await;
    let subnets_of = |b: &Connection| b.map.as_ref().unwrap().peers[&amsterdam.key].subnets.clone();
    drop(a);
    let moved = Gateway { subnets: nets(&["10.109.0.0/24"]), map: None, ..Gateway::new("", &[]) };
    let moved = Gateway { key: amsterdam.key, private: amsterdam.private.clone(), ..moved };
    a = running.connect(&moved).await.unwrap();
    told(&mut a, &["10.101.0.0/24"], 1).await;
    assert_eq!(waiting(&a), ["10.109.0.0/24: the site was not granted it"]);
    b.stays_silent().await;
    assert_eq!(subnets_of(&b), nets(&["10.101.0.0/24"]));
    let listed = succeeds(running.directory.path(), &["site", "list"]);
    assert!(listed.contains("10.109.0.0/24 of amsterdam waits for `site approve`"), "{listed}");

    running.done(approve("amsterdam")).await;
    told(&mut a, &["10.109.0.0/24"], 0).await;
    b.until("the subnet has moved", |b| subnets_of(b) == nets(&["10.109.0.0/24"])).await;
    // Less than was granted needs no approval, and neither does the first offer of a site that had none.
    let less = Gateway { subnets: Vec::new(), private: moved.private.clone(), ..moved };
    let mut a = running.connect(&less).await.unwrap();
    told(&mut a, &[], 0).await;
    b.until("nothing is offered", |b| subnets_of(b).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_allows_what_its_sites_offer_at_first() {
    let running = Running::start().await;
    let request = Request::CreateKey {
        uses: 4,
        lifetime: Duration::from_secs(60),
        tags: [].into(),
        approve_manually: false,
        subnets: nets(&["203.0.113.0/24", "::/0"]),
        site_lifetime: None,
    };
    let Answer::Key(key) = running.ask(request).await else { panic!("no key") };
    let key: EnrolmentKey = key.parse().unwrap();
    let first = Gateway::new("amsterdam", &["203.0.113.0/25", "::/0", "10.1.0.0/24"]).with_key(&key);
    let mut a = running.connect(&first).await.unwrap();
    told(&mut a, &["203.0.113.0/25", "::/0"], 1).await;
    assert_eq!(waiting(&a), ["10.1.0.0/24: the site was not granted it"]);
    let second = Gateway::new("berlin", &["203.0.113.128/25", "::/0"]).with_key(&key);
    let mut b = running.connect(&second).await.unwrap();
    told(&mut b, &["203.0.113.128/25"], 1).await;
    // Every offer after the first waits, even if the first had nothing that the key allows.
    for (name, first) in [("cologne", &["10.2.0.0/24"][..]), ("dresden", &[])] {
        let site = Gateway::new(name, first).with_key(&key);
        let mut connection = running.connect(&site).await.unwrap();
        told(&mut connection, &[], first.len()).await;
        let later = Gateway { subnets: nets(&["10.3.0.0/24", "203.0.113.128/26"]), enrolment: None, ..site };
        let mut connection = running.connect(&later).await.unwrap();
        told(&mut connection, &[], 2).await;
    }
    let listed = succeeds(running.directory.path(), &["key", "list"]);
    assert!(listed.contains("203.0.113.0/24,::/0"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_overlapped_another_site_still_waits_when_that_is_gone() {
    let running = Running::start().await;
    let (_amsterdam, _a) = running.site("amsterdam", &["10.1.0.0/16"], &[]).await;
    let (berlin, mut b) = running.site("berlin", &["10.1.7.0/24"], &[]).await;
    told(&mut b, &[], 1).await;
    running.done(Request::Remove("amsterdam".into())).await;
    let running = Running::start_in(running.stop().await).await;
    let mut b = running.connect(&Gateway { enrolment: None, ..berlin }).await.unwrap();
    told(&mut b, &[], 1).await;
    let listed = succeeds(running.directory.path(), &["site", "list"]);
    assert!(listed.contains("10.1.7.0/24 of berlin waits for `site approve`"), "{listed}");
    running.done(approve("berlin")).await;
    told(&mut b, &["10.1.7.0/24"], 0).await;
}

/// Each lease is renewed eight times in its length, and none of that is stored.
#[tokio::test(flavor = "multi_thread")]
async fn leases_are_renewed_without_a_word_to_the_disk() {
    let directory = directory();
    let lease = Some(LeaseLength::from(4));
    let document = Document { lease, ..document(directory.path()) };
    let running = Running::start_with(directory, document).await;
    let (amsterdam, mut a) = running.site("amsterdam", &[], &[]).await;
    let (berlin, _b) = running.site("berlin", &[], &[]).await;
    a.until_peers(&["berlin"]).await;
    let files = || {
        ["coordinator.db", "coordinator.db-wal"].map(|name| {
            let metadata = std::fs::metadata(running.directory.path().join(name)).unwrap();
            (metadata.len(), metadata.modified().unwrap())
        })
    };
    let before = files();
    let leases = |a: &Connection| {
        let of_berlin = |document: &&_| match penstock_proto::trust::Document::contents(document) {
            Contents::Lease(lease) => lease.site == berlin.key,
            _ => false,
        };
        a.documents.iter().filter(of_berlin).count()
    };
    let (start, had) = (Instant::now(), leases(&a));
    a.until("there are new leases", |a| leases(a) >= had + 4).await;
    assert!(start.elapsed() > Duration::from_secs(1), "an eighth of four seconds lies between two");
    assert_eq!(files(), before);
    assert_eq!(a.updates + a.maps, 2, "the map has not changed");
    // Serials go on after a restart.
    let authority = authority(&running).await;
    let mut verifier = a.verifier(amsterdam.key, authority);
    let directory = running.stop().await;
    let running = Running::start_in(directory).await;
    let mut again = running.connect(&amsterdam).await.unwrap();
    again.until("there is a map", |again| again.map.is_some()).await;
    let now = Now { instant: Instant::now(), wall: std::time::SystemTime::now().into() };
    let learnt = verifier.learn(now, &again.documents);
    assert_eq!(learnt.refused, []);
    assert!(learnt.changed);
}

/// A coordinator of its own, with a key that lets sites in.
struct Started {
    directory: TempDir,
    state: PathBuf,
    program: Program,
    address: SocketAddr,
    key: EnrolmentKey,
}

impl Started {
    fn new() -> Self {
        let directory = directory();
        let state = directory.path().join("coordinator");
        std::fs::create_dir(&state).unwrap();
        private(&state);
        let program = Program::start(&state);
        let address = program.address();
        let key = enrolment_key(&state, &["--uses", "9"]);
        Self { directory, state, program, address, key }
    }

    /// Amsterdam and Berlin, connected and joined: the one with its connection, and that of the other.
    async fn two_sites(&self) -> (Gateway, Connection, Connection) {
        let pin = self.key.fingerprint().unwrap();
        let amsterdam = Gateway::new("amsterdam", &["10.101.0.0/24"]).with_key(&self.key);
        let berlin = Gateway::new("berlin", &["10.102.0.0/24"]).with_key(&self.key);
        let mut a = amsterdam.connect(self.address, pin).await.unwrap();
        let b = berlin.connect(self.address, pin).await.unwrap();
        a.until_peers(&["berlin"]).await;
        (amsterdam, a, b)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_the_authoritys_key_adds_nobody() {
    let Started { directory, state, program, address, key } = Started::new();
    let (authority, pin) = (key.authority().unwrap(), key.fingerprint().unwrap());
    let amsterdam = Gateway::new("amsterdam", &["10.101.0.0/24"]).with_key(&key);
    let mut a = amsterdam.connect(address, pin).await.unwrap();
    a.until("there is a map", |a| a.map.is_some()).await;

    // The key goes to another machine.
    let (exported, elsewhere) = (directory.path().join("export.json"), directory.path().join("authority"));
    let [exported, elsewhere] = [&exported, &elsewhere].map(|path| path.to_str().unwrap());
    succeeds(&state, &["authority", "export", exported]);
    succeeds(Path::new(elsewhere), &["authority", "import", exported]);
    succeeds(&state, &["authority", "remove", "--exported"]);
    assert!(!state.join("authority.key").exists());
    let shown = succeeds(&state, &["authority", "show"]);
    assert!(shown.contains(&authority.to_string()) && shown.contains("on another machine"), "{shown}");

    // A site that enrols now waits, whatever the enrolment key says, and the coordinator cannot approve it.
    let berlin = Gateway::new("berlin", &["10.102.0.0/24"]).with_key(&key);
    let mut b = berlin.connect(address, pin).await.unwrap();
    assert_eq!(b.state(), RegistrationState::Pending);
    let output = std::process::Command::new(crate::program::PROGRAM)
        .args(["--state", state.to_str().unwrap(), "site", "approve", "berlin"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("on another machine"), "{error}");
    a.stays_silent().await;

    let sign = |arguments: &[&str]| {
        let requests = directory.path().join("requests.json");
        std::fs::write(&requests, succeeds(&state, &["authority", "requests"])).unwrap();
        let offline = ["--offline", requests.to_str().unwrap()];
        let signed = succeeds(Path::new(elsewhere), &[&["site", "approve"], arguments, &offline].concat());
        let file = directory.path().join("signed.json");
        std::fs::write(&file, signed).unwrap();
        succeeds(&state, &["authority", "add", file.to_str().unwrap()])
    };
    sign(&["berlin"]);
    b.until("it is approved", |b| b.state() == RegistrationState::Approved).await;
    b.until_peers(&["amsterdam"]).await;
    a.until_peers(&["berlin"]).await;
    assert_eq!(a.admitted(amsterdam.key, authority)[0].1, nets(&["10.102.0.0/24", "100.64.0.2/32"]));

    // A subnet that is public, or inside another site's, is not signed just because a site offers it.
    let more = nets(&["10.102.0.0/24", "8.0.0.0/7", "10.101.0.128/25"]);
    let berlin = Gateway { subnets: more, private: berlin.private.clone(), ..berlin };
    let mut b = berlin.connect(address, pin).await.unwrap();
    told(&mut b, &["10.102.0.0/24"], 2).await;
    b.until_peers(&["amsterdam"]).await;
    sign(&["berlin"]);
    sign(&[]);
    told(&mut b, &["10.102.0.0/24"], 2).await;
    sign(&["berlin", "--subnets", "10.102.0.0/24,8.0.0.0/7"]);
    told(&mut b, &["10.102.0.0/24", "8.0.0.0/7"], 1).await;
    let public = |a: &Connection| a.admitted(amsterdam.key, authority)[0].1.contains(&nets(&["8.0.0.0/7"])[0]);
    a.until("the grant is told", public).await;

    // The coordinator cuts the site off at once; it is final when the authority has signed it.
    succeeds(&state, &["site", "revoke", "berlin"]);
    a.until_peers(&[]).await;
    sign(&[]);
    let revoked =
        |a: &Connection| a.documents.iter().any(|document| matches!(document.contents(), Contents::Revocations(_)));
    a.until("the revocation is told", revoked).await;
    let mut verifier = a.verifier(amsterdam.key, authority);
    let now = Now { instant: Instant::now(), wall: std::time::SystemTime::now().into() };
    let peers = b.map.as_ref().unwrap().peers.clone();
    let peers = peers.into_values().map(|peer| (berlin.key, peer)).collect();
    assert_eq!(verifier.admit(now, &peers).refused, [(berlin.key, PeerReason::Unstated)].into());

    // A restart without the key serves those who are vouched for.
    drop(program);
    let program = Program::start(&state);
    let mut a = amsterdam.connect(program.address(), pin).await.unwrap();
    a.until("there is a map", |a| a.map.is_some()).await;
    assert_eq!(a.admitted(amsterdam.key, authority), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_elsewhere_hands_over_and_makes_a_spare() {
    let started = Started::new();
    let (amsterdam, _a, _b) = started.two_sites().await;
    let Started { directory, state, program: _program, address, key } = started;
    let (first, pin) = (key.authority().unwrap(), key.fingerprint().unwrap());
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (elsewhere, exported) = (file("authority"), file("export.json"));
    let elsewhere = Path::new(&elsewhere);
    succeeds(&state, &["authority", "export", &exported]);
    succeeds(elsewhere, &["authority", "import", &exported]);
    succeeds(&state, &["authority", "remove", "--exported"]);

    let now_in_force = || enrolment_key(&state, &[]).authority().unwrap();
    std::fs::write(file("signed.json"), succeeds(elsewhere, &["authority", "rollover"])).unwrap();
    assert_eq!(now_in_force(), first, "it is not brought back yet");
    succeeds(&state, &["authority", "add", &file("signed.json")]);
    let second = now_in_force();
    assert_ne!(second, first);
    // It signs for the new key, also after a restart, and its spare is good.
    std::fs::write(file("requests.json"), succeeds(&state, &["authority", "requests"])).unwrap();
    succeeds(elsewhere, &["site", "approve", "--offline", &file("requests.json")]);
    succeeds(elsewhere, &["authority", "spare", &file("spare.json")]);
    succeeds(&state, &["authority", "recover", &file("spare.json")]);
    assert!(![first, second].contains(&now_in_force()));
    // A gateway that pins the first key follows all of these changes.
    let mut a = amsterdam.connect(address, pin).await.unwrap();
    a.until("there is a map", |a| a.map.is_some()).await;
    assert_eq!(a.admitted(amsterdam.key, first)[0].0, "berlin");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_hands_over_and_a_spare_takes_over() {
    let started = Started::new();
    let (amsterdam, _a, _b) = started.two_sites().await;
    let Started { directory, state, program, key, .. } = started;
    let (first, pin) = (key.authority().unwrap(), key.fingerprint().unwrap());
    succeeds(&state, &["authority", "rollover"]);
    let second = enrolment_key(&state, &[]).authority().unwrap();
    assert_ne!(second, first);

    let spare = directory.path().join("spare.json");
    succeeds(&state, &["authority", "spare", spare.to_str().unwrap()]);
    drop(program);
    // The key is lost.
    std::fs::remove_file(state.join("authority.key")).unwrap();
    let program = Program::start(&state);
    let address = program.address();
    assert!(succeeds(&state, &["authority", "show"]).contains("on another machine"));
    succeeds(&state, &["authority", "recover", spare.to_str().unwrap()]);
    let third = enrolment_key(&state, &[]).authority().unwrap();
    assert!(third != first && third != second);
    // A gateway that pins the first key follows all of these changes.
    let mut a = amsterdam.connect(address, pin).await.unwrap();
    a.until("there is a map", |a| a.map.is_some()).await;
    assert_eq!(a.admitted(amsterdam.key, first)[0].0, "berlin");
    drop(program);
    let program = Program::start(&state);
    program.address();
    assert_eq!(enrolment_key(&state, &[]).authority(), Some(third));
}

/// Whoever has a certificate for the coordinator's name and stands in between can pass on a proof, except that of a
/// site that has always connected directly.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_is_passed_on_is_worth_nothing() {
    let running = Running::start().await;
    let key = running.key(2, &[]).await;
    let (address, pin) = (running.address, running.pin);
    let direct = Gateway::new("amsterdam", &["10.101.0.0/24"]).with_key(&key);
    // Through a proxy that ends TLS, from the first day.
    let proxied = Gateway::new("berlin", &["10.102.0.0/24"]).with_key(&key);
    direct.connect_bound(false, address, pin).await.unwrap();
    proxied.connect_bound(true, address, pin).await.unwrap();
    assert_eq!(refusal(direct.connect_bound(true, address, pin).await), RefusalReason::Proof);
    assert_eq!(refusal(direct.connect(address, pin).await), RefusalReason::Proof, "nor without that proof");
    proxied.connect_bound(true, address, pin).await.unwrap();
    direct.connect_bound(false, address, pin).await.unwrap();
    // It is remembered, and granting something does not change it.
    let running = Running::start_in(running.stop().await).await;
    let (address, pin) = (running.address, running.pin);
    running.done(approve("amsterdam")).await;
    assert_eq!(refusal(direct.connect_bound(true, address, pin).await), RefusalReason::Proof);
    // Other subnets, which are to be stored, are no way around it.
    let moved = Gateway { subnets: nets(&["10.101.1.0/24"]), private: direct.private.clone(), ..direct };
    assert_eq!(refusal(moved.connect_bound(true, address, pin).await), RefusalReason::Proof);
}

/// An administrator who puts a proxy that ends TLS in front of some sites says so, and can forbid it to others.
#[tokio::test(flavor = "multi_thread")]
async fn the_administrator_says_which_site_may_come_by_a_proxy() {
    let running = Running::start().await;
    let key = running.key(2, &[]).await;
    let moved = Gateway::new("amsterdam", &[]).with_key(&key);
    let strict = Gateway::new("berlin", &[]).with_key(&key);
    let connect = async |running: &Running, site: &Gateway, by_proxy| {
        site.connect_bound(by_proxy, running.address, running.pin).await
    };
    let set = async |running: &Running, site: &str, mode| {
        running.done(Request::ChannelBinding { site: site.into(), mode }).await;
    };
    let listed = |running: &Running, name: &str| {
        let list = succeeds(running.directory.path(), &["site", "list"]);
        let column = list.find("BINDING").unwrap();
        let line = list.lines().find(|line| line.starts_with(name)).unwrap();
        line[column..].split_whitespace().next().unwrap().to_owned()
    };
    connect(&running, &moved, false).await.unwrap();
    connect(&running, &strict, true).await.unwrap();
    assert_eq!([listed(&running, "amsterdam"), listed(&running, "berlin")], ["required", "auto"]);
    succeeds(running.directory.path(), &["site", "channel-binding", "amsterdam", "off"]);
    set(&running, "berlin", BindingMode::Required).await;

    let running = Running::start_in(running.stop().await).await;
    assert_eq!([listed(&running, "amsterdam"), listed(&running, "berlin")], ["off", "required"]);
    connect(&running, &moved, true).await.unwrap();
    // One direct connection does not make it required again.
    connect(&running, &moved, false).await.unwrap();
    connect(&running, &moved, true).await.unwrap();
    assert_eq!(refusal(connect(&running, &strict, true).await), RefusalReason::Proof);
    // It does once the choice is left to the coordinator again.
    set(&running, "amsterdam", BindingMode::Auto).await;
    connect(&running, &moved, true).await.unwrap();
    connect(&running, &moved, false).await.unwrap();
    assert_eq!(refusal(connect(&running, &moved, true).await), RefusalReason::Proof);

    let Answer::Audit(log) = running.ask(Request::Audit { last: 100 }).await else { panic!("no audit") };
    let changes: Vec<(&str, &str, &str)> = log
        .iter()
        .filter(|entry| entry.what == "site channel-binding")
        .map(|entry| [&entry.before["Name"], &entry.before["ChannelBinding"], &entry.after["ChannelBinding"]])
        .map(|values| values.map(|value| value.as_str().unwrap()).into())
        .collect();
    let expected = [("amsterdam", "required", "off"), ("berlin", "auto", "required"), ("amsterdam", "off", "auto")];
    assert_eq!(changes, expected);
}

/// The database of a coordinator that knew no authority: whoever was approved is vouched for, with what was in force.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_vouches_for_what_was_in_force() {
    let directory = directory();
    let path = directory.path().join("coordinator.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut before = options.connect().await.unwrap();
    for schema in [include_str!("../../src/store/schema-1.sql"), include_str!("../../src/store/schema-2.sql")] {
        sqlx::raw_sql(schema).execute(&mut before).await.unwrap();
    }
    let sites = [Gateway::new("amsterdam", &["10.101.0.0/24"]), Gateway::new("berlin", &["203.0.113.0/24"])];
    for (number, site) in sites.iter().enumerate() {
        let insert = "INSERT INTO sites (public_key, name, virtual_address, subnets, tags, state, created) \
            VALUES (?, ?, ?, ?, '[]', 'approved', 1700000000)";
        let query = sqlx::query(insert).bind(site.key.as_bytes().to_vec()).bind(&site.name);
        let query = query.bind(0x6440_0001 + number as u32).bind(serde_json::to_string(&site.subnets).unwrap());
        query.execute(&mut before).await.unwrap();
    }
    sqlx::raw_sql("PRAGMA user_version = 2").execute(&mut before).await.unwrap();
    before.close().await.unwrap();
    let running = Running::start_in(directory).await;
    let authority = authority(&running).await;
    let mut a = running.connect(&sites[0]).await.unwrap();
    a.until_peers(&["berlin"]).await;
    assert_eq!(a.admitted(sites[0].key, authority)[0].1, nets(&["100.64.0.2/32", "203.0.113.0/24"]));
    let shown = succeeds(running.directory.path(), &["authority", "show"]);
    assert!(shown.contains(&format!("\"Authority\": \"{authority}\"")), "{shown}");
}

fn private(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).unwrap();
}
