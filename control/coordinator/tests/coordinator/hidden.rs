//! What policy hides never shows, in no message.

use std::time::Duration;

use penstock_proto::trust::Contents;

use crate::client::{Connection, Gateway};
use crate::running::Running;

/// Nothing of the secret site in anything that was said.
fn assert_no_trace(connection: &Connection, secret: &Gateway) {
    for document in &connection.documents {
        match document.contents() {
            Contents::Site(statement) => assert_ne!(statement.grant.public_key, secret.key),
            Contents::Lease(lease) => assert_ne!(lease.site, secret.key),
            _ => {}
        }
    }
    let key = secret.key.to_string();
    for text in &connection.texts {
        for trace in ["secret", "10.66", "192.0.2.66", "100.64.0.66", key.as_str()] {
            assert!(!text.contains(trace), "{trace} in {text}");
        }
    }
}

#[tokio::test]
async fn whatever_a_hidden_site_does_nobody_hears_of_it() {
    let running = Running::start().await;
    running.policy(r#"{"Links": [["open", "other"]]}"#).await;
    let (open_site, mut open) = running.site("open", &["10.1.0.0/16"], &[]).await;
    let (_, mut other) = running.site("other", &["10.2.0.0/16"], &[]).await;
    let (secret, mut hidden) = running.site("secret", &["10.66.0.0/16"], &["vault"]).await;
    open.until_peers(&["other"]).await;
    hidden.say_address("192.0.2.66:1").await;
    drop(hidden);
    let moved = Gateway { subnets: vec!["10.66.1.0/24".parse().unwrap()], ..secret };
    let hidden = running.connect(&moved).await.unwrap();
    running.policy(r#"{"Links": [["open", "other"], ["secret", "nobody"]]}"#).await;
    open.stays_silent().await;
    let version = open.map.as_ref().unwrap().version;

    // Reconnecting with what one knows, with nothing, and with claims about what one knows.
    drop(hidden);
    for claimed in [None, Some(version.number), Some(0), Some(version.number + 1), Some(u64::MAX)] {
        let mut map = open.map.clone();
        match (&mut map, claimed) {
            (Some(map), Some(number)) => map.version.number = number,
            (map, _) => *map = None,
        }
        let again = Gateway {
            map,
            private: open_site.private.clone(),
            subnets: open_site.subnets.clone(),
            ..Gateway::new("", &[])
        };
        let again = Gateway { key: open_site.key, ..again };
        let mut connection = running.connect(&again).await.unwrap();
        connection.until("there is an answer", |connection| connection.maps + connection.updates > 0).await;
        connection.until_peers(&["other"]).await;
        assert_no_trace(&connection, &moved);
    }
    running.done(penstock_coordinator::admin::Request::Revoke("secret".into())).await;
    other.stays_silent().await;
    assert_no_trace(&open, &moved);
    assert_no_trace(&other, &moved);
}

#[tokio::test]
async fn the_reason_why_a_subnet_waits_does_not_name_a_hidden_site() {
    let running = Running::start().await;
    running.policy(r#"{"Links": []}"#).await;
    let (_, hidden) = running.site("secret", &["10.66.0.0/16"], &[]).await;
    let (_, probe) = running.site("probe", &["10.0.0.0/8"], &[]).await;
    let registration = probe.registration.unwrap();
    assert_eq!((registration.subnets.len(), registration.waiting.len()), (0, 1));
    assert_eq!(registration.waiting[0].reason, "it overlaps a subnet of another site");
    drop(hidden);
}

#[tokio::test]
async fn who_is_parted_hears_no_more() {
    let running = Running::start().await;
    let (_, mut a) = running.site("amsterdam", &["10.1.0.0/16"], &[]).await;
    let (_, mut b) = running.site("berlin", &["10.2.0.0/16"], &[]).await;
    a.until_peers(&["berlin"]).await;
    running.policy(r#"{"Links": []}"#).await;
    a.until_peers(&[]).await;
    b.until_peers(&[]).await;
    let told = a.texts.len();
    b.say_address("192.0.2.9:9").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    a.stays_silent().await;
    assert_eq!(a.texts.len(), told);
}
