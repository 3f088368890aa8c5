//! Reconnecting: to the same coordinator, to one that was restarted, to one that was restored.

use penstock_coordinator::admin::Request;
use penstock_proto::coordination::{Map, RefusalReason};

use crate::client::{Connection, Failure, Gateway, refusal};
use crate::running::Running;

/// Connects with the map that is known, and reads the first answer about maps.
async fn reconnect(running: &Running, site: &Gateway) -> Connection {
    let mut connection = running.connect(site).await.unwrap();
    connection.until("there is an answer", |connection| connection.maps + connection.updates > 0).await;
    connection
}

fn knowing(site: Gateway, map: Option<Map>) -> Gateway {
    Gateway { map, ..site }
}

#[tokio::test]
async fn a_gateway_that_comes_back_catches_up_with_increments() {
    let running = Running::start().await;
    let (a_site, mut a) = running.site("a", &[], &[]).await;
    let (b_site, mut b) = running.site("b", &[], &[]).await;
    let (c_site, _c) = running.site("c", &[], &[]).await;
    a.until_peers(&["b", "c"]).await;
    let map = a.map.take();
    drop(a);
    // Meanwhile one site goes, one comes, one moves.
    running.done(Request::Revoke("c".into())).await;
    let (_, _d) = running.site("d", &[], &[]).await;
    b.say_address("192.0.2.2:2").await;
    b.until_peers(&["a", "d"]).await;
    let a_site = knowing(a_site, map);
    let mut a = running.connect(&a_site).await.unwrap();
    a.until("b's address is known", |a| a.addresses(&b_site.key) == ["192.0.2.2:2"]).await;
    assert_eq!(a.peers(), ["b", "d"]);
    assert_eq!(a.maps, 0, "increments are enough");
    assert!(!a.map.as_ref().unwrap().peers.contains_key(&c_site.key));

    // Nothing happened meanwhile: that is said too, in a few bytes.
    let a_site = knowing(a_site, a.map.take());
    drop(a);
    let a = reconnect(&running, &a_site).await;
    assert_eq!((a.maps, a.updates), (0, 1));
    assert!(a.texts.last().unwrap().len() < 200, "{}", a.texts.last().unwrap());

    // Without a map, or with one of another coordinator, it gets the whole map.
    let mut foreign = a.map.clone().unwrap();
    foreign.version.epoch ^= 1;
    foreign.peers.pop_first();
    for map in [None, Some(foreign)] {
        let site = Gateway { map, ..Gateway::new("", &[]) };
        let site = Gateway { private: a_site.private.clone(), key: a_site.key, ..site };
        let a = reconnect(&running, &site).await;
        assert_eq!((a.maps, a.peers()), (1, vec!["b", "d"]));
    }
}

#[tokio::test]
async fn who_missed_too_much_gets_the_whole_map() {
    let running = Running::start().await;
    let (a_site, mut a) = running.site("a", &[], &[]).await;
    let (_, mut b) = running.site("b", &[], &[]).await;
    a.until_peers(&["b"]).await;
    let a_site = knowing(a_site, a.map.take());
    drop(a);
    // Each policy that parts and joins them is two changes of a's map, of which it remembers 1024.
    for _ in 0..600 {
        running.policy(r#"{"Links": []}"#).await;
        running.policy(r#"{"Links": [["*", "*"]]}"#).await;
    }
    b.say_address("192.0.2.2:2").await;
    let mut changed = a_site.map.clone().unwrap();
    changed.peers.clear();
    let a = reconnect(&running, &knowing(a_site, Some(changed))).await;
    assert_eq!((a.maps, a.peers()), (1, vec!["b"]));
}

#[tokio::test]
async fn a_restart_in_order_loses_nothing_and_costs_little() {
    let running = Running::start().await;
    let key = running.key(5, &[]).await;
    let a_site = Gateway::new("a", &["10.1.0.0/16"]).with_key(&key);
    let mut a = running.connect(&a_site).await.unwrap();
    let (b_site, b) = running.site("b", &["10.2.0.0/16"], &[]).await;
    let (_, c) = running.site("c", &["10.3.0.0/16"], &[]).await;
    a.until_peers(&["b", "c"]).await;
    running.policy(r#"{"Links": [["a", "b"]]}"#).await;
    a.until_peers(&["b"]).await;
    drop((b, c));
    let start = std::time::Instant::now();
    // A gateway that reads closes its connection at once.
    let (directory, end) = tokio::join!(running.stop(), a.end());
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(matches!(end, Failure::Ended), "a goodbye, no refusal");

    let running = Running::start_in(directory).await;
    let a_site = knowing(a_site, a.map.take());
    let mut a = reconnect(&running, &a_site).await;
    assert_eq!((a.maps, a.updates), (0, 1), "the digest tells that it is the same map");
    assert_eq!(a.peers(), ["b"]);
    assert_eq!(a.registration.as_ref().unwrap().virtual_address.to_string(), "100.64.0.1");
    let mut b = running.connect(&b_site).await.unwrap();
    b.say_address("192.0.2.2:2").await;
    a.until("increments go on", |a| a.addresses(&b_site.key) == ["192.0.2.2:2"]).await;
    // The remaining uses of the key are kept.
    for (name, outcome) in [("d", Ok(())), ("e", Ok(())), ("f", Ok(())), ("g", Ok(())), ("h", Err(()))] {
        let site = Gateway::new(name, &[]).with_key(&key);
        let connected = running.connect(&site).await;
        assert_eq!(connected.as_ref().map(drop).map_err(drop), outcome, "{name}");
        if outcome.is_err() {
            assert_eq!(refusal(connected), RefusalReason::KeyUsedUp);
        }
    }
    assert!(running.sites().await.iter().all(|status| status.connected || status.site.last_seen.is_some()));
}

#[tokio::test]
async fn what_changed_during_a_restart_is_told_whole() {
    let running = Running::start().await;
    let (a_site, mut a) = running.site("a", &[], &[]).await;
    let (_, _b) = running.site("b", &[], &[]).await;
    a.until_peers(&["b"]).await;
    let a_site = knowing(a_site, a.map.take());
    drop(a);
    running.done(Request::Revoke("b".into())).await;
    let running = Running::start_in(running.stop().await).await;
    let a = reconnect(&running, &a_site).await;
    assert_eq!((a.maps, a.peers()), (1, vec![]));
}
