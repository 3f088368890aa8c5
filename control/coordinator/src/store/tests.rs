use super::*;
use crate::site::{Site, SiteState};
use penstock_proto::coordination::{EnrolmentKey, EnrolmentKeyId};
use std::io::{Seek, SeekFrom, Write};

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
    }
}

#[tokio::test]
async fn what_is_stored_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut store = Store::open(&path).await.unwrap();
    let record = key(3);
    store.add_key(&record).await.unwrap();
    let mut first = site(1);
    assert!(store.enrol(&first, record.id).await.unwrap());
    store.set_policy("{}").await.unwrap();
    store.set_policy("{\"Links\":[]}").await.unwrap();
    first.state = SiteState::Revoked;
    first.subnets.pop();
    store.update_site(&first).await.unwrap();
    store.note_seen(&[(first.key, 1_700_000_005)]).await.unwrap();
    first.last_seen = Some(1_700_000_005);
    // Not closed: what was acknowledged must be there all the same.
    drop(store);
    let mut store = Store::open(&path).await.unwrap();
    assert_eq!(store.sites().await.unwrap(), [first]);
    assert_eq!(store.key(record.id).await.unwrap(), Some(KeyRecord { uses_left: 2, ..record.clone() }));
    assert_eq!(store.policy().await.unwrap().as_deref(), Some("{\"Links\":[]}"));
    assert!(store.remove_key(record.id).await.unwrap());
    assert!(!store.remove_key(record.id).await.unwrap());
    assert_eq!(store.keys().await.unwrap(), []);
    store.close().await.unwrap();
    assert!(!directory.path().join("a.db-wal").exists(), "an orderly end leaves one file");
}

#[tokio::test]
async fn a_key_lets_in_as_many_as_it_may_and_a_failure_takes_no_use() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(&directory.path().join("a.db")).await.unwrap();
    let record = key(2);
    store.add_key(&record).await.unwrap();
    assert!(store.enrol(&site(1), record.id).await.unwrap());
    let mut namesake = site(2);
    namesake.name = site(1).name;
    assert!(store.enrol(&namesake, record.id).await.is_err());
    assert_eq!(store.key(record.id).await.unwrap().unwrap().uses_left, 1);
    assert!(store.enrol(&site(2), record.id).await.unwrap());
    assert!(!store.enrol(&site(3), record.id).await.unwrap());
    assert!(!store.enrol(&site(3), EnrolmentKeyId([9; 4])).await.unwrap());
    assert_eq!(store.sites().await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_secret_of_a_key_is_not_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut store = Store::open(&path).await.unwrap();
    let secret_key = EnrolmentKey::generate(&mut rand::rng(), None);
    store.add_key(&KeyRecord { id: secret_key.id(), hash: secret_key.hash(), ..key(1) }).await.unwrap();
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
    store.add_key(&record).await.unwrap();
    for number in 1..=100 {
        assert!(store.enrol(&site(number), record.id).await.unwrap());
    }
    store.close().await.unwrap();
    // The middle of the file is pages of tables and indices.
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
    assert!(matches!(error, StoreError::Newer { found: 99, known: 1, .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_full_disk_changes_nothing_and_is_named_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut store = Store::open(&path).await.unwrap();
    let record = key(u32::MAX);
    store.add_key(&record).await.unwrap();
    // SQLite says the same of a file that may not grow as of a disk that is full.
    sqlx::raw_sql("PRAGMA max_page_count = 12").execute(&mut store.connection).await.unwrap();
    let mut stored = 0;
    let error = loop {
        match store.enrol(&site(stored + 1), record.id).await {
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
    assert!(store.enrol(&site(stored + 1), record.id).await.unwrap(), "with space again it works");
}
