//! Enrolment, approval and revocation.

use std::net::Ipv4Addr;
use std::time::Duration;

use penstock_coordinator::admin::{Answer, Request};
use penstock_coordinator::site::SiteState;
use penstock_proto::coordination::{EnrolmentKey, RefusalReason, RegistrationState};

use crate::client::{Gateway, HOST, refusal};
use crate::running::{Running, approve};

#[tokio::test]
async fn two_sites_enrol_and_learn_of_each_other() {
    let running = Running::start().await;
    let key = running.key(2, &["branch"]).await;
    assert_eq!(key.fingerprint(), Some(running.pin), "the key tells what to pin");
    let amsterdam = Gateway::new("amsterdam", &["10.101.0.0/24"]).with_key(&key);
    let berlin = Gateway::new("berlin", &["10.102.0.0/24", "fd02::/48"]).with_key(&key);
    let mut a = running.connect(&amsterdam).await.unwrap();
    a.until_peers(&[]).await;
    let mut b = running.connect(&berlin).await.unwrap();
    b.until_peers(&["amsterdam"]).await;
    a.until_peers(&["berlin"]).await;
    assert_eq!((a.maps, a.updates), (1, 1));
    assert_eq!(a.state(), RegistrationState::Approved);

    let map = a.map.clone().unwrap();
    let peer = &map.peers[&berlin.key];
    assert_eq!(peer.subnets, berlin.subnets);
    assert_eq!(peer.virtual_address, Ipv4Addr::new(100, 64, 0, 2));
    assert_eq!(a.registration.as_ref().unwrap().virtual_address, Ipv4Addr::new(100, 64, 0, 1));
    assert_eq!(map.stun_servers, [running.udp, "192.0.2.1:3478".parse().unwrap()]);
    assert_eq!(map.relays.len(), 1);
    assert_eq!(map.relays[0].udp, [running.udp]);
    assert_eq!(map.relays[0].url.as_deref(), Some(&*format!("https://{HOST}:{}", running.address.port())));

    b.say_address("192.0.2.2:47100").await;
    a.until("berlin's address is known", |a| a.addresses(&berlin.key) == ["192.0.2.2:47100"]).await;
    a.say_address("192.0.2.1:47100").await;
    b.until("amsterdam's address is known", |b| b.addresses(&amsterdam.key) == ["192.0.2.1:47100"]).await;

    let sites = running.sites().await;
    assert_eq!(sites.len(), 2);
    assert!(sites.iter().all(|status| status.connected && status.site.state == SiteState::Approved));
    assert!(sites.iter().all(|status| status.site.tags.contains(&"branch".parse().unwrap())));
}

#[tokio::test]
async fn an_answer_that_was_lost_costs_no_second_use() {
    let running = Running::start().await;
    let key = running.key(1, &[]).await;
    let site = Gateway::new("amsterdam", &[]).with_key(&key);
    for _ in 0..3 {
        let connection = running.connect(&site).await.unwrap();
        assert_eq!(connection.state(), RegistrationState::Approved);
    }
    assert_eq!(running.sites().await.len(), 1);
}

#[tokio::test]
async fn keys_that_let_nobody_in() {
    let running = Running::start().await;
    let used = running.key(1, &[]).await;
    running.connect(&Gateway::new("first", &[]).with_key(&used)).await.unwrap();
    let refused = async |site: Gateway| refusal(running.connect(&site).await);
    assert_eq!(refused(Gateway::new("b", &[]).with_key(&used)).await, RefusalReason::KeyUsedUp);
    assert_eq!(refused(Gateway::new("b", &[])).await, RefusalReason::NotEnrolled);
    let strange = EnrolmentKey::generate(&mut rand::rng(), None);
    assert_eq!(refused(Gateway::new("b", &[]).with_key(&strange)).await, RefusalReason::KeyUnknown);

    // Long enough to enrol with on a busy machine.
    let lifetime = Duration::from_secs(4);
    let short = running.key_for(9, &[], lifetime, false).await;
    running.connect(&Gateway::new("second", &[]).with_key(&short)).await.unwrap();
    tokio::time::sleep(lifetime + Duration::from_millis(100)).await;
    assert_eq!(refused(Gateway::new("b", &[]).with_key(&short)).await, RefusalReason::KeyExpired);

    let revoked = running.key(9, &[]).await;
    running.done(Request::RevokeKey(revoked.id().to_string())).await;
    assert_eq!(refused(Gateway::new("b", &[]).with_key(&revoked)).await, RefusalReason::KeyUnknown);
    let names: Vec<String> = running.sites().await.iter().map(|status| status.site.name.to_string()).collect();
    assert_eq!(names, ["first", "second"]);
}

#[tokio::test]
async fn the_last_use_of_a_key_is_taken_once() {
    let running = Running::start().await;
    let key = running.key(5, &[]).await;
    let sites: Vec<Gateway> = (0..20).map(|number| Gateway::new(&format!("s{number}"), &[]).with_key(&key)).collect();
    let outcomes = futures_util::future::join_all(sites.iter().map(|site| running.connect(site))).await;
    let (let_in, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(let_in.len(), 5);
    assert!(refused.into_iter().all(|outcome| refusal(outcome) == RefusalReason::KeyUsedUp));
    assert_eq!(running.sites().await.len(), 5);
}

#[tokio::test]
async fn a_site_waits_for_approval() {
    let running = Running::start().await;
    let (_, mut other) = running.site("berlin", &["10.102.0.0/24"], &[]).await;
    let key = running.key_for(1, &[], Duration::from_secs(60), true).await;
    let site = Gateway::new("amsterdam", &["10.101.0.0/24"]).with_key(&key);
    let mut waiting = running.connect(&site).await.unwrap();
    assert_eq!(waiting.state(), RegistrationState::Pending);
    waiting.say_address("192.0.2.1:47100").await;
    waiting.stays_silent().await;
    assert!(waiting.map.is_none());
    other.stays_silent().await;

    running.done(approve("amsterdam")).await;
    waiting.until("it is approved", |waiting| waiting.state() == RegistrationState::Approved).await;
    waiting.until_peers(&["berlin"]).await;
    other.until_peers(&["amsterdam"]).await;
    assert_eq!(other.addresses(&site.key), ["192.0.2.1:47100"]);
}

#[tokio::test]
async fn a_revoked_site_is_cut_and_vanishes() {
    let running = Running::start().await;
    let (amsterdam, mut a) = running.site("amsterdam", &["10.101.0.0/24"], &[]).await;
    let (_, mut b) = running.site("berlin", &["10.102.0.0/24"], &[]).await;
    a.until_peers(&["berlin"]).await;
    b.until_peers(&["amsterdam"]).await;
    let start = std::time::Instant::now();
    running.done(Request::Revoke(amsterdam.key.to_string())).await;
    assert_eq!(a.end().await.reason(), RefusalReason::Revoked);
    b.until_peers(&[]).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(refusal(running.connect(&amsterdam).await), RefusalReason::Revoked);

    let key = running.key(1, &[]).await;
    let again = Gateway { enrolment: Some(key.clone()), ..amsterdam };
    assert_eq!(refusal(running.connect(&again).await), RefusalReason::Revoked, "a new key does not undo it");
    // Its name is free again, but two that look alike are not approved at the same time.
    let successor = Gateway::new("Amsterdam", &["10.101.0.0/24"]).with_key(&key);
    running.connect(&successor).await.unwrap();
    b.until_peers(&["Amsterdam"]).await;
    match running.ask(approve(again.key.to_string())).await {
        Answer::Error(sentence) => assert!(sentence.contains("another site is named Amsterdam"), "{sentence}"),
        other => panic!("{other:?}"),
    }
    running.done(Request::Revoke("Amsterdam".into())).await;
    b.until_peers(&[]).await;
    running.done(approve(again.key.to_string())).await;
    b.until_peers(&["amsterdam"]).await;
    assert!(b.map.as_ref().unwrap().peers.contains_key(&again.key));
}

#[tokio::test]
async fn a_taken_name_is_refused_and_takes_no_use_of_the_key() {
    let running = Running::start().await;
    let (_, mut a) = running.site("amsterdam", &["10.101.0.0/16"], &[]).await;
    let key = running.key(9, &[]).await;
    let again = Gateway::new("amsterdam", &[]).with_key(&key);
    assert_eq!(refusal(running.connect(&again).await), RefusalReason::NameTaken);
    a.stays_silent().await;
    match running.ask(Request::ListKeys).await {
        Answer::Keys(keys) => assert_eq!(keys.iter().map(|key| key.uses_left).max(), Some(9), "no use was taken"),
        other => panic!("{other:?}"),
    }
}
