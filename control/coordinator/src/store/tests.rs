use super::*;
use crate::site::{BindingMode, Site, SiteState};
use penstock_proto::coordination::{EnrolmentKey, EnrolmentKeyId};
use penstock_proto::trust::Subnets;
use std::io::{Seek, SeekFrom, Write};

const WHO: Who = Who::User(1000);

fn site(number: u8) -> Site {
    Site {
        key: [number; 32].into(),
        name: format!("site-{number}").parse().unwrap(),
        virtual_address: std::net::Ipv4Addr::new(100, 64, 0, number),
        subnets: vec![format!("10.{number}.0.0/16").parse().unwrap(), "2001:db8::/64".parse().unwrap()],
        tags: ["branch".parse().unwrap(), "eu".parse().unwrap()].into(),
        state: SiteState::Approved,
        created: 1_700_000_000,
        last_seen: None,
        ends: Some(1_900_000_000),
        channel_binding: BindingMode::Off,
        in_force: vec![format!("10.{number}.0.0/16").parse().unwrap()],
        granted: Subnets::new([format!("10.{number}.0.0/16").parse().unwrap()]).ok(),
    }
}

fn key(uses_left: u32) -> KeyRecord {
    let key = EnrolmentKey::generate(&mut rand::rng(), None);
    KeyRecord {
        id: key.id(),
        hash: key.hash(),
        uses_left,
        expires: 1_800_000_000,
        tags: ["branch".parse().unwrap()].into(),
        approve_manually: true,
        created: 1_700_000_000,
        site_lifetime: Some(86_400),
        subnets: vec!["0.0.0.0/0".parse().unwrap()],
    }
}

#[tokio::test]
async fn what_is_stored_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut store = Store::open(&path).await.unwrap();
    let record = key(3);
    store.add_key(&record, &WHO).await.unwrap();
    let mut first = site(1);
    assert!(store.enrol(&first, record.id, &[]).await.unwrap());
    let policy = Policy { links: Vec::new(), ..Policy::default() };
    store.set_policy(&Policy::default(), &Policy::default(), &WHO).await.unwrap();
    store.set_policy(&Policy::default(), &policy, &WHO).await.unwrap();
    first.state = SiteState::Revoked;
    first.subnets.pop();
    store.update_site(&site(1), &first, &[], &WHO, "site revoke").await.unwrap();
    store.note_seen(&[(first.key, 1_700_000_005)]).await.unwrap();
    first.last_seen = Some(1_700_000_005);
    // Not closed: what was acknowledged must be there all the same.
    drop(store);
    let mut store = Store::open(&path).await.unwrap();
    assert_eq!(store.sites().await.unwrap(), [first]);
    assert_eq!(store.key(record.id).await.unwrap(), Some(KeyRecord { uses_left: 2, ..record.clone() }));
    assert_eq!(store.policy().await.unwrap(), Some(policy.to_text()));
    assert!(store.remove_key(record.id, &WHO).await.unwrap());
    assert!(!store.remove_key(record.id, &WHO).await.unwrap());
    assert_eq!(store.keys().await.unwrap(), []);
    store.close().await.unwrap();
    assert!(!directory.path().join("a.db-wal").exists(), "an orderly end leaves one file");
}

#[tokio::test]
async fn a_key_lets_in_as_many_as_it_may_and_a_failure_takes_no_use() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(&directory.path().join("a.db")).await.unwrap();
    let record = key(2);
    store.add_key(&record, &WHO).await.unwrap();
    assert!(store.enrol(&site(1), record.id, &[]).await.unwrap());
    let mut namesake = site(2);
    namesake.name = site(1).name;
    assert!(store.enrol(&namesake, record.id, &[]).await.is_err());
    assert_eq!(store.key(record.id).await.unwrap().unwrap().uses_left, 1);
    assert!(store.enrol(&site(2), record.id, &[]).await.unwrap());
    assert!(!store.enrol(&site(3), record.id, &[]).await.unwrap());
    assert!(!store.enrol(&site(3), EnrolmentKeyId([9; 4]), &[]).await.unwrap());
    assert_eq!(store.sites().await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_secret_of_a_key_is_not_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut store = Store::open(&path).await.unwrap();
    let secret_key = EnrolmentKey::generate(&mut rand::rng(), None);
    store.add_key(&KeyRecord { id: secret_key.id(), hash: secret_key.hash(), ..key(1) }, &WHO).await.unwrap();
    store.close().await.unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(holds(&secret_key.hash()));
    use base64::Engine;
    let text = secret_key.to_text();
    let encoded = text.strip_prefix("penstock1-").unwrap();
    let raw = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).unwrap();
    assert!(!holds(&raw[4..]));
    assert!(!holds(encoded.as_bytes()));
}

#[tokio::test]
async fn damaged_files_are_named_so() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("text.db");
    std::fs::write(&text, "this is a letter to my aunt ".repeat(100)).unwrap();
    let error = Store::open(&text).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("text.db is damaged"), "{error}");

    let path = directory.path().join("a.db");
    let mut store = Store::open(&path).await.unwrap();
    let record = key(100);
    store.add_key(&record, &WHO).await.unwrap();
    for number in 1..=100 {
        assert!(store.enrol(&site(number), record.id, &[]).await.unwrap());
    }
    store.close().await.unwrap();
    // The middle of the file consists of pages of tables and indices.
    let mut file = std::fs::File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(4096 * 2)).unwrap();
    file.write_all(&[0xa5; 4096 * 2]).unwrap();
    drop(file);
    let error = Store::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut store = Store::open(&path).await.unwrap();
    sqlx::raw_sql("PRAGMA user_version = 99").execute(&mut store.connection).await.unwrap();
    store.close().await.unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = Store::open(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, known: 5, .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_full_disk_changes_nothing_and_is_named_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut store = Store::open(&path).await.unwrap();
    let record = key(u32::MAX);
    store.add_key(&record, &WHO).await.unwrap();
    // SQLite reports the same for a file that may not grow as for a full disk.
    sqlx::raw_sql("PRAGMA max_page_count = 16").execute(&mut store.connection).await.unwrap();
    let mut stored = 0;
    let error = loop {
        match store.enrol(&site(stored + 1), record.id, &[]).await {
            Ok(true) => stored += 1,
            Ok(false) => panic!("the key has uses left"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    drop(store);
    let mut store = Store::open(&path).await.unwrap();
    assert_eq!(store.sites().await.unwrap().len(), usize::from(stored));
    let left = store.key(record.id).await.unwrap().unwrap().uses_left;
    assert_eq!(left, u32::MAX - u32::from(stored));
    assert!(store.enrol(&site(stored + 1), record.id, &[]).await.unwrap(), "with space again it works");
}

#[tokio::test]
async fn the_audit_log_has_each_change_that_was_made_and_can_only_grow() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(&directory.path().join("a.db")).await.unwrap();
    let record = key(1);
    store.add_key(&record, &WHO).await.unwrap();
    assert!(store.enrol(&site(1), record.id, &[]).await.unwrap());
    assert!(!store.enrol(&site(2), record.id, &[]).await.unwrap(), "used up");
    let revoked = Site { state: SiteState::Revoked, ..site(1) };
    store.update_site(&site(1), &revoked, &[], &Who::Clock, "site ends").await.unwrap();
    store.remove_site(&revoked, &[], &WHO).await.unwrap();
    assert_eq!(store.sites().await.unwrap(), []);
    let log = store.audit(10).await.unwrap();
    let told: Vec<(u64, &str, &str)> =
        log.iter().map(|entry| (entry.number, entry.who.as_str(), entry.what.as_str())).collect();
    let enrolled = format!("enrol with key {}", record.id);
    let expected = [
        (1, "user 1000", "key create"),
        (2, "site site-1", enrolled.as_str()),
        (3, "clock", "site ends"),
        (4, "user 1000", "site remove"),
    ];
    assert_eq!(told, expected);
    assert_eq!((&log[2].before["State"], &log[2].after["State"]), (&"Approved".into(), &"Revoked".into()));
    assert!(log[0].before.is_null() && log[3].after.is_null());
    assert!(!serde_json::to_string(&log).unwrap().contains("Hash"), "no secret, nor what it is known by");
    assert_eq!(store.audit(1).await.unwrap(), log[3..]);
    for sql in ["UPDATE audit SET who = 'nobody'", "DELETE FROM audit", "DELETE FROM audit WHERE number = 4"] {
        let error = sqlx::raw_sql(sql).execute(&mut store.connection).await.unwrap_err();
        assert!(error.to_string().contains("append-only"), "{error}");
    }
}

#[tokio::test]
async fn a_key_ends_once_when_its_time_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(&directory.path().join("a.db")).await.unwrap();
    let (record, used_up) = (key(2), key(1));
    store.add_key(&record, &WHO).await.unwrap();
    store.add_key(&used_up, &WHO).await.unwrap();
    assert!(store.enrol(&site(1), used_up.id, &[]).await.unwrap());
    assert_eq!(store.end_keys(record.expires - 1).await.unwrap(), []);
    assert_eq!(store.end_keys(record.expires).await.unwrap(), std::slice::from_ref(&record));
    assert_eq!(store.end_keys(record.expires + 1).await.unwrap(), []);
    let log = store.audit(10).await.unwrap();
    let last = log.last().unwrap();
    assert_eq!((log.len(), last.who.as_str(), last.what.as_str()), (4, "clock", "key ends"));
    assert_eq!((&last.before["Id"], &last.before["UsesLeft"]), (&record.id.to_string().into(), &2.into()));
    assert!(store.keys().await.unwrap().contains(&record), "it is listed all the same");
}

/// The file of an older coordinator: what it knows stays, and nothing expires.
#[tokio::test]
async fn a_database_of_before_is_brought_up_to_date() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut before = options.connect().await.unwrap();
    sqlx::raw_sql(MIGRATIONS[0]).execute(&mut before).await.unwrap();
    let sql = "PRAGMA user_version = 1; INSERT INTO sites VALUES \
        (zeroblob(32), 'old', 1681915905, '[]', '[]', 'approved', 5, NULL)";
    sqlx::raw_sql(sql).execute(&mut before).await.unwrap();
    before.close().await.unwrap();
    let mut store = Store::open(&path).await.unwrap();
    let sites = store.sites().await.unwrap();
    assert_eq!((sites[0].name.as_str(), sites[0].ends), ("old", None));
    assert_eq!(store.audit(10).await.unwrap(), []);
}

#[tokio::test]
async fn a_site_that_has_proved_its_channel_still_has_to_after_an_upgrade() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut before = options.connect().await.unwrap();
    for migration in &MIGRATIONS[..4] {
        sqlx::raw_sql(*migration).execute(&mut before).await.unwrap();
    }
    let sql = "PRAGMA user_version = 4; \
        INSERT INTO sites (public_key, name, virtual_address, subnets, tags, state, created, bound) VALUES \
        (zeroblob(32), 'direct', 1681915905, '[]', '[]', 'approved', 5, 1), \
        (randomblob(32), 'proxied', 1681915906, '[]', '[]', 'approved', 5, 0)";
    sqlx::raw_sql(sql).execute(&mut before).await.unwrap();
    before.close().await.unwrap();
    let sites = Store::open(&path).await.unwrap().sites().await.unwrap();
    let mut found: Vec<_> = sites.iter().map(|site| (site.name.as_str(), site.channel_binding)).collect();
    found.sort_by_key(|(name, _)| *name);
    assert_eq!(found, [("direct", BindingMode::Required), ("proxied", BindingMode::Auto)]);
}
