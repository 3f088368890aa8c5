//! What an administrator does with sites besides letting them in: revoking and removing them; and the audit of it.

use std::time::Duration;

use penstock_coordinator::admin::{Answer, Request};
use penstock_coordinator::store::AuditEntry;
use penstock_proto::coordination::RefusalReason;
use penstock_proto::coordination::RegistrationState;
use penstock_proto::trust::SigningKey;
use serde_json::Value;

use crate::client::{Gateway, PATIENCE, refusal};
use crate::running::{Running, approve};

async fn audit(running: &Running) -> Vec<AuditEntry> {
    match running.ask(Request::Audit { last: 100 }).await {
        Answer::Audit(entries) => entries,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_removed_site_is_cut_off_and_leaves_nothing_behind() {
    let running = Running::start().await;
    let (site, mut there) = running.site("amsterdam", &["10.1.0.0/16"], &[]).await;
    let (_, mut peer) = running.site("berlin", &["10.2.0.0/16"], &[]).await;
    peer.until_peers(&["amsterdam"]).await;
    let address = there.registration.as_ref().unwrap().virtual_address;
    running.done(Request::Remove("amsterdam".into())).await;
    assert_eq!(there.end().await.reason(), RefusalReason::Revoked);
    peer.until_peers(&[]).await;
    assert_eq!(refusal(running.connect(&Gateway { enrolment: None, ..site }).await), RefusalReason::NotEnrolled);
    assert!(matches!(running.ask(Request::Revoke("amsterdam".into())).await, Answer::Error(_)));
    // Its name, subnet and address are free; after a restart too.
    let running = Running::start_in(running.stop().await).await;
    assert_eq!(running.sites().await.len(), 1);
    let (_, again) = running.site("amsterdam", &["10.1.0.0/16"], &[]).await;
    assert_eq!(again.registration.as_ref().unwrap().virtual_address, address);
}

#[tokio::test]
async fn who_was_removed_may_enrol_again() {
    let running = Running::start().await;
    let (site, there) = running.site("amsterdam", &["10.1.0.0/16"], &["old"]).await;
    let (_, mut peer) = running.site("berlin", &[], &[]).await;
    running.done(Request::Remove("amsterdam".into())).await;
    drop(there);
    let site = Gateway { name: "utrecht".into(), enrolment: Some(running.key(1, &["new"]).await), ..site };
    let mut again = running.connect(&site).await.unwrap();
    again.until_peers(&["berlin"]).await;
    peer.until_peers(&["utrecht"]).await;
    let sites = running.sites().await;
    let found = sites.iter().find(|status| status.site.key == site.key).unwrap();
    assert_eq!(found.site.tags, ["new".parse().unwrap()].into());
}

#[tokio::test]
async fn a_site_ends_when_its_time_is_over() {
    let running = Running::start().await;
    let second = Some(Duration::from_secs(1));
    let tags = [].into();
    let lifetime = Duration::from_secs(3600);
    let request =
        Request::CreateKey { uses: 1, lifetime, tags, approve_manually: false, subnets: vec![], site_lifetime: second };
    let Answer::Key(key) = running.ask(request).await else { panic!("no key") };
    let guest = Gateway::new("guest", &["10.9.0.0/16"]).with_key(&key.parse().unwrap());
    let mut there = running.connect(&guest).await.unwrap();
    let (_, mut peer) = running.site("berlin", &[], &[]).await;
    let (_, mut limited) = running.site("limited", &[], &[]).await;
    running.done(Request::Limit { site: "limited".into(), lifetime: second }).await;
    assert_eq!(there.end().await.reason(), RefusalReason::Revoked);
    assert_eq!(limited.end().await.reason(), RefusalReason::Revoked);
    peer.until_peers(&[]).await;
    let ended = audit(&running).await.into_iter().filter(|entry| entry.what == "site ends").count();
    assert_eq!(ended, 2);
    // Once let in again it does not end at once, and may be given a time limit or none.
    running.done(approve("guest")).await;
    let mut there = running.connect(&guest).await.unwrap();
    running.done(Request::Limit { site: "guest".into(), lifetime: Some(lifetime) }).await;
    running.done(Request::Limit { site: "guest".into(), lifetime: None }).await;
    there.until_peers(&["berlin"]).await;
    assert_eq!(there.state(), RegistrationState::Approved);
}

#[tokio::test]
async fn the_audit_log_tells_who_changed_what_also_after_a_restart() {
    let running = Running::start().await;
    let (site, _) = running.site("amsterdam", &["10.1.0.0/16"], &[]).await;
    running.policy(r#"{"Links": [["*", "tag:hub"]]}"#).await;
    let moved = Gateway { subnets: vec!["10.2.0.0/16".parse().unwrap()], ..site };
    running.connect(&moved).await.unwrap();
    running.done(Request::Revoke("amsterdam".into())).await;
    assert!(matches!(running.ask(Request::Remove("nobody".into())).await, Answer::Error(_)));
    let running = Running::start_in(running.stop().await).await;
    let log = audit(&running).await;
    let us = format!("user {}", rustix::process::geteuid().as_raw());
    let told: Vec<(&str, &str)> =
        log.iter().map(|entry| (entry.who.as_str(), entry.what.split(" with").next().unwrap_or_default())).collect();
    let expected = [
        ("clock", "authority created"),
        (us.as_str(), "key create"),
        ("site amsterdam", "enrol"),
        (&us, "policy set"),
        ("site amsterdam", "site offers subnets"),
        (&us, "site revoke"),
    ];
    assert_eq!(told, expected, "what was refused changed nothing");
    assert_eq!(
        (&log[4].before["Subnets"][0], &log[4].after["Subnets"][0]),
        (&"10.1.0.0/16".into(), &"10.2.0.0/16".into())
    );
    assert_eq!(log[3].after["Links"][0][1], "tag:hub");
    assert!(log.windows(2).all(|pair| pair[0].number + 1 == pair[1].number && pair[0].time <= pair[1].time));
}

#[tokio::test]
async fn the_audit_log_tells_of_keys_that_end_certificates_and_the_authority() {
    let running = Running::start().await;
    let authority = async || match running.ask(Request::Authority).await {
        Answer::Authority(report) => serde_json::to_value(report.authority).unwrap(),
        other => panic!("{other:?}"),
    };
    let founded = authority().await;
    let key = running.key_for(2, &[], Duration::from_secs(1), false).await;
    running.done(Request::NextCertificate).await;
    // Repeating a request changes nothing, and neither does one that fails.
    running.done(Request::NextCertificate).await;
    running.done(Request::SwitchCertificate).await;
    assert!(matches!(running.ask(Request::SwitchCertificate).await, Answer::Error(_)));
    running.done(Request::RollOver(None)).await;
    let spare = SigningKey::generate(&mut rand::rng()).authority();
    assert!(matches!(running.ask(Request::MakeSpare(spare)).await, Answer::Document(_)));
    let ended = async {
        loop {
            let log = audit(&running).await;
            if log.iter().any(|entry| entry.what == "key ends") {
                return log;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let log = tokio::time::timeout(PATIENCE, ended).await.expect("the key ends");
    let find = |what: &str| {
        let found: Vec<&AuditEntry> = log.iter().filter(|entry| entry.what == what).collect();
        assert_eq!(found.len(), 1, "{what}");
        (found[0].who.clone(), found[0].before.clone(), found[0].after.clone())
    };
    let us = format!("user {}", rustix::process::geteuid().as_raw());
    let (who, before, next) = find("certificate next");
    assert_eq!((who, before), (us.clone(), Value::Null));
    assert_eq!(find("certificate switch"), (us.clone(), running.pin.to_string().into(), next));
    assert_eq!(find("authority rollover"), (us.clone(), founded, authority().await));
    assert_eq!(find("authority spare"), (us, Value::Null, spare.to_string().into()));
    let (who, before, after) = find("key ends");
    assert_eq!((who.as_str(), &before["Id"], after), ("clock", &key.id().to_string().into(), Value::Null));
}
