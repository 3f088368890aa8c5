//! The audit log: who changed what, and when. An entry is on the disk with its change, or neither is.

use std::fmt;

use penstock_proto::coordination::Name;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Row, SqliteConnection};

use super::sites::{json, time};
use super::{Store, StoreError};
use crate::time::now;

/// Who makes a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// An administrator at the control socket, by the number of the Unix user.
    User(u32),
    /// An administrator at the page, by the name that the login gave.
    Page(String),
    /// A site itself.
    Site(Name),
    /// The coordinator itself, because a time limit was reached.
    Clock,
}

impl Who {
    /// The name, without the way they came in.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Page(name) => name.clone(),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Page(name) => write!(f, "page {name}"),
            Self::Site(name) => write!(f, "site {name}"),
            Self::Clock => f.write_str("clock"),
        }
    }
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AuditEntry {
    /// Its place in the log, from 1, without gaps.
    pub number: u64,
    /// In seconds since 1970.
    pub time: u64,
    /// [`Who`], as text.
    pub who: String,
    /// Such as `site approve`.
    pub what: String,
    /// What was changed, as it was; null if there was nothing.
    pub before: Value,
    /// As it is now; null if there is nothing any more.
    pub after: Value,
}

/// A change that is being made.
pub(super) struct Change<'a> {
    pub who: &'a Who,
    pub what: &'a str,
    pub before: Option<String>,
    pub after: Option<String>,
}

impl<'a> Change<'a> {
    /// A change of something that can be written as JSON.
    pub fn of<T: Serialize>(who: &'a Who, what: &'a str, before: Option<&T>, after: Option<&T>) -> Self {
        Self { who, what, before: before.map(json), after: after.map(json) }
    }

    /// Adds it to the log.
    pub async fn note(self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        sqlx::query("INSERT INTO audit (time, who, what, before, after) VALUES (?, ?, ?, ?, ?)")
            .bind(now() as i64)
            .bind(self.who.to_string())
            .bind(self.what)
            .bind(self.before)
            .bind(self.after)
            .execute(connection)
            .await?;
        Ok(())
    }
}

impl Store {
    /// Notes a change of something that is kept elsewhere.
    ///
    /// # Errors
    /// SQLite's error.
    pub async fn note<T: Serialize>(
        &mut self,
        who: &Who,
        what: &str,
        before: Option<&T>,
        after: Option<&T>,
    ) -> Result<(), StoreError> {
        let failed = self.failed();
        Change::of(who, what, before, after).note(&mut self.connection).await.map_err(failed)
    }

    /// The last `last` entries, oldest first.
    ///
    /// # Errors
    /// SQLite's error, or a row is not as we write it.
    pub async fn audit(&mut self, last: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let failed = self.failed();
        let sql = "SELECT number, time, who, what, before, after FROM audit ORDER BY number DESC LIMIT ?";
        let rows = sqlx::query(sql).bind(last).fetch_all(&mut self.connection).await.map_err(&failed)?;
        let entry = |row: &sqlx::sqlite::SqliteRow| -> Result<AuditEntry, sqlx::Error> {
            let value = |column: &str| {
                let text: Option<String> = row.try_get(column)?;
                text.map_or(Ok(Value::Null), |text| serde_json::from_str(&text).map_err(sqlx::Error::decode))
            };
            Ok(AuditEntry {
                number: time(row.try_get("number")?),
                time: time(row.try_get("time")?),
                who: row.try_get("who")?,
                what: row.try_get("what")?,
                before: value("before")?,
                after: value("after")?,
            })
        };
        rows.iter().rev().map(|row| entry(row).map_err(&failed)).collect()
    }
}
