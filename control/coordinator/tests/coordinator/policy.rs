//! Policy changes reach those whom they concern, at once.

use std::time::{Duration, Instant};

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
