//! Sites.

use std::net::Ipv4Addr;

use penstock_proto::coordination::{EnrolmentKeyId, SiteKey};
use penstock_proto::trust::Document;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::audit::Change;
use super::documents::publish;
use super::{Store, StoreError, Who};
use crate::site::{BindingMode, Site, SiteState};

impl Store {
    /// All sites, including revoked ones.
    ///
    /// # Errors
    /// SQLite's error, or a row is not as we write it.
    pub async fn sites(&mut self) -> Result<Vec<Site>, StoreError> {
        let failed = self.failed();
        let sql = "SELECT public_key, name, virtual_address, subnets, tags, state, created, last_seen, ends, in_force, \
            granted, channel_binding FROM sites";
        let rows = sqlx::query(sql).fetch_all(&mut self.connection).await.map_err(&failed)?;
        rows.iter().map(|row| site(row).map_err(&failed)).collect()
    }

    /// Adds a site and takes one use of its enrolment key, both or neither. Returns false, and does nothing, if the key
    /// has no use left.
    ///
    /// # Errors
    /// SQLite's error; nothing was changed then.
    pub async fn enrol(
        &mut self,
        site: &Site,
        key: EnrolmentKeyId,
        documents: &[Document],
    ) -> Result<bool, StoreError> {
        let (who, what) = (Who::Site(site.name.clone()), format!("enrol with key {key}"));
        let change = Change::of(&who, &what, None, Some(site));
        self.begin().await?;
        let outcome = enrol(&mut self.connection, site, key, documents, change).await;
        self.end(outcome).await
    }

    /// Changes a site's state, subnets, channel binding and end, together with what the authority says about it.
    ///
    /// # Errors
    /// SQLite's error; nothing was changed then.
    pub async fn update_site(
        &mut self,
        before: &Site,
        after: &Site,
        documents: &[Document],
        who: &Who,
        what: &str,
    ) -> Result<(), StoreError> {
        let change = Change::of(who, what, Some(before), Some(after));
        self.begin().await?;
        let outcome = update(&mut self.connection, after, documents, change).await;
        self.end(outcome).await
    }

    /// Removes a site.
    ///
    /// # Errors
    /// SQLite's error; nothing was changed then.
    pub async fn remove_site(&mut self, site: &Site, documents: &[Document], who: &Who) -> Result<(), StoreError> {
        let change = Change::of(who, "site remove", Some(site), None);
        self.begin().await?;
        let outcome = remove(&mut self.connection, site, documents, change).await;
        self.end(outcome).await
    }

    /// Records when sites were last connected, in seconds since 1970.
    ///
    /// # Errors
    /// SQLite's error; nothing was recorded then.
    pub async fn note_seen(&mut self, seen: &[(SiteKey, u64)]) -> Result<(), StoreError> {
        self.begin().await?;
        let outcome = note_seen(&mut self.connection, seen).await;
        self.end(outcome).await
    }
}

async fn update(
    connection: &mut SqliteConnection,
    site: &Site,
    documents: &[Document],
    change: Change<'_>,
) -> Result<(), sqlx::Error> {
    publish(connection, documents).await?;
    sqlx::query(
        "UPDATE sites SET state = ?, subnets = ?, in_force = ?, granted = ?, channel_binding = ?, ends = ? \
        WHERE public_key = ?",
    )
    .bind(site.state.as_str())
    .bind(json(&site.subnets))
    .bind(json(&site.in_force))
    .bind(site.granted.as_ref().map(json))
    .bind(site.channel_binding.as_str())
    .bind(site.ends.map(|time| time as i64))
    .bind(&site.key.as_bytes()[..])
    .execute(&mut *connection)
    .await?;
    change.note(connection).await
}

async fn remove(
    connection: &mut SqliteConnection,
    site: &Site,
    documents: &[Document],
    change: Change<'_>,
) -> Result<(), sqlx::Error> {
    publish(connection, documents).await?;
    sqlx::query("DELETE FROM sites WHERE public_key = ?")
        .bind(&site.key.as_bytes()[..])
        .execute(&mut *connection)
        .await?;
    change.note(connection).await
}

async fn enrol(
    connection: &mut SqliteConnection,
    site: &Site,
    key: EnrolmentKeyId,
    documents: &[Document],
    change: Change<'_>,
) -> Result<bool, sqlx::Error> {
    let sql = "UPDATE enrolment_keys SET uses_left = uses_left - 1 WHERE id = ? AND uses_left > 0";
    let taken = sqlx::query(sql).bind(&key.0[..]).execute(&mut *connection).await?;
    if taken.rows_affected() != 1 {
        return Ok(false);
    }
    publish(connection, documents).await?;
    let sql = "INSERT INTO sites (public_key, name, virtual_address, subnets, tags, state, created, last_seen, ends, \
        in_force, granted, channel_binding) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    sqlx::query(sql)
        .bind(&site.key.as_bytes()[..])
        .bind(site.name.as_str())
        .bind(site.virtual_address.to_bits())
        .bind(json(&site.subnets))
        .bind(json(&site.tags))
        .bind(site.state.as_str())
        .bind(site.created as i64)
        .bind(site.last_seen.map(|time| time as i64))
        .bind(site.ends.map(|time| time as i64))
        .bind(json(&site.in_force))
        .bind(site.granted.as_ref().map(json))
        .bind(site.channel_binding.as_str())
        .execute(&mut *connection)
        .await?;
    change.note(connection).await?;
    Ok(true)
}

async fn note_seen(connection: &mut SqliteConnection, seen: &[(SiteKey, u64)]) -> Result<(), sqlx::Error> {
    for (key, time) in seen {
        sqlx::query("UPDATE sites SET last_seen = ? WHERE public_key = ?")
            .bind(*time as i64)
            .bind(&key.as_bytes()[..])
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

fn site(row: &SqliteRow) -> Result<Site, sqlx::Error> {
    let key: Vec<u8> = row.try_get("public_key")?;
    let key: [u8; 32] = key.try_into().map_err(|_| wrong("a public key is not 32 bytes long"))?;
    let name: String = row.try_get("name")?;
    let state: String = row.try_get("state")?;
    let channel_binding: String = row.try_get("channel_binding")?;
    Ok(Site {
        key: key.into(),
        name: name.parse().map_err(sqlx::Error::decode)?,
        virtual_address: Ipv4Addr::from_bits(row.try_get("virtual_address")?),
        subnets: from_json(row, "subnets")?,
        tags: from_json(row, "tags")?,
        state: SiteState::of(&state).ok_or_else(|| wrong("a site's state is unknown"))?,
        created: time(row.try_get("created")?),
        last_seen: row.try_get::<Option<i64>, _>("last_seen")?.map(time),
        ends: row.try_get::<Option<i64>, _>("ends")?.map(time),
        in_force: from_json(row, "in_force")?,
        granted: match row.try_get::<Option<String>, _>("granted")? {
            Some(text) => Some(serde_json::from_str(&text).map_err(sqlx::Error::decode)?),
            None => None,
        },
        channel_binding: BindingMode::of(&channel_binding).ok_or_else(|| wrong("a channel binding is unknown"))?,
    })
}

/// SQLite's seconds since 1970; anything before counts as 0.
pub(super) fn time(seconds: i64) -> u64 {
    seconds.try_into().unwrap_or(0)
}

pub(super) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("lists of names and subnets are JSON")
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(sqlx::Error::decode)
}

pub(super) fn wrong(sentence: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(sentence.into())
}
