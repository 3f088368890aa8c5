//! Policy changes reach those whom they concern, at once.

use std::time::{Duration, Instant};

use penstock_coordinator::admin::{Answer, Request};
use penstock_coordinator::policy::Policy;
use penstock_proto::coordination::{GatewayMessage, Reachability};

use crate::client::Connection;
use crate::running::Running;

#[tokio::test]
async fn a_new_policy_parts_and_joins_within_a_second() {
    let running = Running::start().await;
    let (hub_site, mut hub) = running.site("hub", &["10.1.0.0/16"], &["hub"]).await;
    let (_, mut left) = running.site("left", &["10.2.0.0/16"], &["branch"]).await;
    let (_, mut right) = running.site("right", &["10.3.0.0/16"], &["branch"]).await;
    hub.until_peers(&["left", "right"]).await;
    left.until_peers(&["hub", "right"]).await;
    right.until_peers(&["hub", "left"]).await;

    let start = Instant::now();
    running.policy(r#"{"Links": [["tag:branch", "tag:hub"]]}"#).await;
    left.until_peers(&["hub"]).await;
    right.until_peers(&["hub"]).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    hub.stays_silent().await;

    running.policy(r#"{"Links": [["left", "right"]]}"#).await;
    left.until_peers(&["right"]).await;
    right.until_peers(&["left"]).await;
    hub.until_peers(&[]).await;

    hub.say_address("192.0.2.1:1").await;
    left.stays_silent().await;
    running.policy(r#"{"Links": [["*", "*"]]}"#).await;
    left.until_peers(&["hub", "right"]).await;
    assert_eq!(left.addresses(&hub_site.key), ["192.0.2.1:1"]);
}

#[tokio::test]
async fn a_policy_bounds_what_a_site_announces() {
    let running = Running::start().await;
    let (site, mut a) = running.site("amsterdam", &["10.1.0.0/24", "10.2.0.0/24"], &["branch"]).await;
    let (_, mut b) = running.site("berlin", &[], &[]).await;
    b.until_peers(&["amsterdam"]).await;
    running.policy(r#"{"Links": [["*", "*"]], "Subnets": {"tag:branch": ["10.2.0.0/16"]}}"#).await;
    let only = ["10.2.0.0/24".parse().unwrap()];
    b.until("only one is announced", |b| b.map.as_ref().unwrap().peers[&site.key].subnets == only).await;
    a.until("amsterdam knows it", |a| a.registration.as_ref().unwrap().subnets == only).await;
}

#[tokio::test]
async fn changes_in_a_row_become_few_messages() {
    let running = Running::start().await;
    let (site, mut a) = running.site("amsterdam", &[], &[]).await;
    let (_, mut b) = running.site("berlin", &[], &[]).await;
    b.until_peers(&["amsterdam"]).await;
    for port in 1..=15 {
        a.say_address(&format!("192.0.2.1:{port}")).await;
    }
    b.until("the last address is known", |b| b.addresses(&site.key) == ["192.0.2.1:15"]).await;
    assert!(b.updates <= 4, "{}", b.updates);
}

/// A gateway that does not say that it enforces `Allow` is too old for it, and whoever sets such a policy is told so.
#[tokio::test]
async fn sites_too_old_for_a_policy_are_named() {
    let running = Running::start().await;
    let (_, mut new) = running.site("amsterdam", &[], &[]).await;
    let (old_site, mut old) = running.site("berlin", &[], &[]).await;
    let (silent_site, _silent) = running.site("cadiz", &[], &[]).await;
    let able = Reachability { enforces_allow: true, ..Reachability::default() };
    new.send(&GatewayMessage::Reachability(able.clone())).await;
    old.send(&GatewayMessage::Reachability(Reachability::default())).await;
    let enforces = |new: &Connection| {
        let berlin = new.map.as_ref().and_then(|map| map.peers.get(&old_site.key));
        berlin.and_then(|berlin| berlin.reachability.as_ref()).map(|told| told.enforces_allow)
    };
    new.until("berlin has spoken", |new| enforces(new) == Some(false)).await;
    let set = async |text: &str| match running.ask(Request::SetPolicy(Policy::parse(text).unwrap())).await {
        Answer::Done(sentence) => sentence,
        other => panic!("{other:?}"),
    };
    let cut_off = async || {
        let sites = running.sites().await;
        sites.iter().filter_map(|status| Some(status.cut_off.as_ref()?.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(set(r#"{"Links": [["*", "*"]]}"#).await, "the policy is in force");
    let misspelt = r#"{"Links": [["*", "berlin"], ["tag:hub", "Berlin"]], "Subnets": {"tag:hubs": []}}"#;
    assert_eq!(set(misspelt).await, "the policy is in force; no site is selected by tag:hub, tag:hubs, Berlin");
    let restricted = r#"{"Links": [{"From": "amsterdam", "To": "berlin", "Allow": ["icmp"]},
        {"From": "*", "To": "cadiz", "Allow": []}, ["amsterdam", "cadiz"]]}"#;
    let sentence = "berlin has no tunnel to amsterdam, cadiz: its gateway is too old to enforce Allow; update it";
    assert_eq!(set(restricted).await, format!("the policy is in force; {sentence}"));
    assert_eq!(cut_off().await, [sentence], "nothing is said of a site that has not spoken: {}", silent_site.key);

    old.send(&GatewayMessage::Reachability(able)).await;
    new.until("berlin is updated", |new| enforces(new) == Some(true)).await;
    assert_eq!(cut_off().await, [""; 0]);
}
