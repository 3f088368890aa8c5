//! Enrolment keys: their hashes only.

use std::collections::BTreeSet;

use ipnet::IpNet;
use penstock_proto::coordination::{EnrolmentKeyId, Name};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::audit::Change;
use super::sites::{from_json, json, time, wrong};
use super::{Store, StoreError, Who};

const COLUMNS: &str = "id, hash, uses_left, expires, tags, approve_manually, created, site_lifetime, subnets";

/// What is stored about an enrolment key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyRecord {
    /// Its identifier.
    #[serde(with = "id_as_text")]
    pub id: EnrolmentKeyId,
    /// [`EnrolmentKey::hash`](penstock_proto::coordination::EnrolmentKey::hash).
    #[serde(skip)]
    pub hash: [u8; 32],
    /// How many more sites it can admit.
    pub uses_left: u32,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// The tags of the sites that it admits.
    pub tags: BTreeSet<Name>,
    /// Whether those sites wait for an administrator.
    pub approve_manually: bool,
    /// For how many seconds they are admitted; `None`: without end.
    #[serde(default)]
    pub site_lifetime: Option<u64>,
    /// What those sites may offer at first; empty: what needs no grant.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

impl Store {
    /// Adds an enrolment key.
    ///
    /// # Errors
    /// SQLite's error; nothing was changed then.
    pub async fn add_key(&mut self, key: &KeyRecord, who: &Who) -> Result<(), StoreError> {
        let change = Change::of(who, "key create", None, Some(key));
        self.begin().await?;
        let outcome = add(&mut self.connection, key, change).await;
        self.end(outcome).await
    }

    /// One key.
    ///
    /// # Errors
    /// SQLite's error, or the row is not as we write it.
    pub async fn key(&mut self, id: EnrolmentKeyId) -> Result<Option<KeyRecord>, StoreError> {
        let failed = self.failed();
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM enrolment_keys WHERE id = ?"));
        let row = sqlx::query(sql).bind(&id.0[..]).fetch_optional(&mut self.connection).await.map_err(&failed)?;
        row.map(|row| key(&row).map_err(failed)).transpose()
    }

    /// All keys, oldest first.
    ///
    /// # Errors
    /// SQLite's error, or a row is not as we write it.
    pub async fn keys(&mut self) -> Result<Vec<KeyRecord>, StoreError> {
        let failed = self.failed();
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM enrolment_keys ORDER BY created, id"));
        let rows = sqlx::query(sql).fetch_all(&mut self.connection).await.map_err(&failed)?;
        rows.iter().map(|row| key(row).map_err(&failed)).collect()
    }

    /// Removes a key; the sites that it admitted stay. Returns whether it existed.
    ///
    /// # Errors
    /// SQLite's error; nothing was changed then.
    pub async fn remove_key(&mut self, id: EnrolmentKeyId, who: &Who) -> Result<bool, StoreError> {
        let Some(before) = self.key(id).await? else { return Ok(false) };
        let change = Change::of(who, "key revoke", Some(&before), None);
        self.begin().await?;
        let outcome = remove(&mut self.connection, id, change).await;
        self.end(outcome).await?;
        Ok(true)
    }

    /// Records the expiry of keys that could still admit somebody, once for each. Returns them.
    ///
    /// # Errors
    /// SQLite's error; nothing was recorded then.
    pub async fn end_keys(&mut self, now: u64) -> Result<Vec<KeyRecord>, StoreError> {
        let failed = self.failed();
        let over = "ended = 0 AND uses_left > 0 AND expires <= ?";
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM enrolment_keys WHERE {over}"));
        let rows = sqlx::query(sql).bind(now as i64).fetch_all(&mut self.connection).await.map_err(&failed)?;
        let over = rows.iter().map(|row| key(row).map_err(&failed)).collect::<Result<Vec<KeyRecord>, StoreError>>()?;
        if !over.is_empty() {
            self.begin().await?;
            let outcome = end(&mut self.connection, &over).await;
            self.end(outcome).await?;
        }
        Ok(over)
    }
}

async fn end(connection: &mut SqliteConnection, keys: &[KeyRecord]) -> Result<(), sqlx::Error> {
    for key in keys {
        let query = sqlx::query("UPDATE enrolment_keys SET ended = 1 WHERE id = ?").bind(key.id.0.to_vec());
        query.execute(&mut *connection).await?;
        Change::of(&Who::Clock, "key ends", Some(key), None).note(&mut *connection).await?;
    }
    Ok(())
}

async fn add(connection: &mut SqliteConnection, key: &KeyRecord, change: Change<'_>) -> Result<(), sqlx::Error> {
    let values = "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let sql = sqlx::AssertSqlSafe(format!("INSERT INTO enrolment_keys ({COLUMNS}) {values}"));
    sqlx::query(sql)
        .bind(&key.id.0[..])
        .bind(&key.hash[..])
        .bind(key.uses_left)
        .bind(key.expires as i64)
        .bind(json(&key.tags))
        .bind(key.approve_manually)
        .bind(key.created as i64)
        .bind(key.site_lifetime.map(|seconds| seconds as i64))
        .bind(json(&key.subnets))
        .execute(&mut *connection)
        .await?;
    change.note(connection).await
}

async fn remove(connection: &mut SqliteConnection, id: EnrolmentKeyId, change: Change<'_>) -> Result<(), sqlx::Error> {
    let query = sqlx::query("DELETE FROM enrolment_keys WHERE id = ?").bind(id.0.to_vec());
    query.execute(&mut *connection).await?;
    change.note(connection).await
}

fn key(row: &SqliteRow) -> Result<KeyRecord, sqlx::Error> {
    let id: Vec<u8> = row.try_get("id")?;
    let hash: Vec<u8> = row.try_get("hash")?;
    Ok(KeyRecord {
        id: EnrolmentKeyId(id.try_into().map_err(|_| wrong("a key's id is not 4 bytes long"))?),
        hash: hash.try_into().map_err(|_| wrong("a key's hash is not 32 bytes long"))?,
        uses_left: row.try_get("uses_left")?,
        expires: time(row.try_get("expires")?),
        tags: from_json(row, "tags")?,
        approve_manually: row.try_get("approve_manually")?,
        created: time(row.try_get("created")?),
        site_lifetime: row.try_get::<Option<i64>, _>("site_lifetime")?.map(time),
        subnets: from_json(row, "subnets")?,
    })
}

mod id_as_text {
    use penstock_proto::coordination::EnrolmentKeyId;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(id: &EnrolmentKeyId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EnrolmentKeyId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
